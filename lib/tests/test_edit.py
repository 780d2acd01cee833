"""SAEs at every site, replaced and edited, against a computation by hand from the Hugging Face modules in float64."""

from contextlib import contextmanager

import pytest
import torch

from lib.dictionary.dictionaries import Dictionary
from lib.model import models
from lib.model.conditions import replaced_logits
from lib.model.encoding import Encoded, encode
from lib.model.generation import generate
from lib.model.hooks import edited, recorded, replaced
from lib.model.sites import ARCHITECTURES, POINTS
from lib.tests import real
from lib.tests.test_hooks import hooks_left
from lib.texts.prompts import written

KINDS, LAYER, N_LAYERS = ["gemma2", "gpt2", "llama"], 1, 3


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    real.save(request.param, place, n_layers=N_LAYERS)
    return place


@pytest.fixture(scope="module")
def plain(folder):
    return models.load_hf(folder, "float64")[0]


@pytest.fixture(scope="module")
def model(folder):
    return models.bridged(*models.load_hf(folder, "float64"))


@pytest.fixture(scope="module")
def batch(model):
    return encode(model.tokenizer, written("negative", 4, "test", 0))


def sae(d: int, k: int | None = None, seed: int = 0) -> Dictionary:
    """Random, with features of which about a third is active."""
    one = Dictionary.initialised((), d, 3 * d, seed, threshold=0.3)
    one.k = k
    return one.requires_grad_(False)


def half(site, f):
    """Every other feature off, the others twice as strong."""
    return 2 * f * (torch.arange(f.shape[-1]) % 2)


@contextmanager
def by_hand(plain, name: str, change, is_first):
    """`change` of what the Hugging Face modules write at a site of LAYER, by torch's own hooks, but for the first token."""
    block = getattr(plain.base_model, ARCHITECTURES[plain.config.model_type].blocks)[LAYER]
    attention = getattr(block, "self_attn", None) or block.attn
    after = {  # the last module of what is added to the stream
        "attn_out": "post_attention_layernorm" if plain.config.model_type == "gemma2" else None,
        "mlp_out": "post_feedforward_layernorm" if plain.config.model_type == "gemma2" else "mlp",
    }

    def of(y):
        own = is_first(y.shape[:2])[..., None]
        return torch.where(own, y, change(y))

    def first(module, args, out):
        return (of(out[0]), *out[1:]) if isinstance(out, tuple) else of(out)

    if name == "resid_pre":
        handle = block.register_forward_pre_hook(
            lambda m, args, kwargs: ((of(args[0]), *args[1:]), kwargs) if args else
            (args, {**kwargs, "hidden_states": of(kwargs["hidden_states"])}), with_kwargs=True
        )  # fmt: skip
    elif name == "z":
        end = getattr(attention, "o_proj", None) or attention.c_proj
        handle = end.register_forward_pre_hook(lambda m, args: (of(args[0]),))
    else:
        module = block if name == "resid_post" else getattr(block, after[name]) if after[name] else attention
        handle = module.register_forward_hook(first)
    try:
        yield
    finally:
        handle.remove()


def where_first(batch: Encoded):
    """BOS, or what stands first where there is none."""
    return lambda shape: batch.attention.bool() & (batch.attention.cumsum(1) == 1)


def reconstruction(one: Dictionary):
    return lambda y: one(y.float()).to(y.dtype)


def edit_of(one: Dictionary):
    def change(y):
        f = one.encode(y.float())
        return y + ((half(None, f) - f) @ one.W_dec).to(y.dtype)

    return change


@torch.no_grad()
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("name", list(POINTS))
def test_an_sae_replaced_or_edited_is_what_a_hand_computation_says(model, plain, batch, name, k):
    site = model.site(name, LAYER)
    one, raw = sae(model.width(site), k), plain(batch.ids, attention_mask=batch.attention).logits
    run = dict(input_ids=batch.ids, attention_mask=batch.attention)
    where = batch.attention.bool()
    for change, context in (
        (reconstruction(one), replaced(model, {site: one})),
        (edit_of(one), edited(model, {site: one}, half)),
    ):
        with by_hand(plain, name, change, where_first(batch)):
            wanted = plain(**run).logits
        with context:
            found = model.hf(**run).logits
        assert torch.allclose(found[where], wanted[where], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found[where], raw[where], atol=1e-2)
    assert hooks_left(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", list(POINTS))
def test_an_edit_by_nothing_changes_nothing_bit_for_bit(model, batch, name):
    site = model.site(name, LAYER)
    one, run = sae(model.width(site)), dict(input_ids=batch.ids, attention_mask=batch.attention)
    raw = model.hf(**run).logits
    for edit in (lambda site, f: None, lambda site, f: f.clone()):
        with edited(model, {site: one}, edit):
            assert torch.equal(model.hf(**run).logits, raw)
    with recorded(model, [site.write], {site: one}) as seen:
        assert torch.equal(model.hf(**run).logits, raw)
    assert torch.equal(seen.features[site], one.encode(seen[site.write].flatten(2).float()))


@torch.no_grad()
@pytest.mark.parametrize("name", [*POINTS, "trained"])
def test_the_shortcut_is_the_whole_model(model, batch, name):
    """Every site in the first, a middle and the last layer; with others above, and beside it in one layer."""
    own = lambda layer, site=name: {model.site(site, layer): sae(model.width(model.site(site, layer)), seed=layer)}
    beside = {model.site("attn_out", LAYER): sae(model.d_model, seed=7)}
    conditions = [{}, *(own(layer) for layer in range(N_LAYERS)), own(0) | own(2), own(LAYER) | beside, own(LAYER)]
    for rows in (0, 100):
        for condition, logits in zip(conditions, replaced_logits(model, batch, conditions, rows=rows), strict=True):
            with replaced(model, condition):
                whole = model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
            where = batch.attention.bool()
            assert torch.allclose(logits[where], whole[where], rtol=1e-6, atol=1e-6)
    assert hooks_left(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["resid_post", "attn_out", "z"])
def test_cached_or_not_batched_or_alone(folder, name):
    model = models.bridged(*models.load_hf(folder, "float32"))
    site = model.site(name, LAYER)
    one = sae(model.width(site))
    asked, wrote = model.tokenizer(["What is 12 plus 30?\n", "a", "Room 4, floor 3: quiet lamp.\n"]).input_ids, set()
    for context in (lambda: replaced(model, {site: one}), lambda: edited(model, {site: one}, half)):
        with context():
            together = generate(model.hf, model.tokenizer, asked, 8)
            uncached = generate(model.hf, model.tokenizer, asked, 8, use_cache=False)
            alone = [generate(model.hf, model.tokenizer, [ids], 8)[0] for ids in asked]
        assert together == uncached == alone
        wrote |= set(together)
    assert len(wrote) > 1 or wrote != set(generate(model.hf, model.tokenizer, asked, 8))


def test_recording_stops_early_and_hooks_are_gone_after_an_exception(model, batch):
    site, top = model.site("resid_post", 0), []
    with recorded(model, [site.write], {site: sae(model.d_model)}, stop=True) as seen:
        model.hf(batch.ids, attention_mask=batch.attention)
        top.append("the pass went on")
    assert not top and site.write in seen and site in seen.features and hooks_left(model) == 0

    def fails(site, f):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"), edited(model, {site: sae(model.d_model)}, fails):
        model.hf(batch.ids)
    assert hooks_left(model) == 0


def test_gradients_of_features_are_what_a_small_edit_does(model, batch):
    """The gradient of a loss by a feature, its error kept, against a finite difference in float64."""
    model.hf.requires_grad_(False)
    site, run = model.site("resid_post", LAYER), dict(input_ids=batch.ids, attention_mask=batch.attention)
    one = sae(model.d_model)
    loss = lambda: model.hf(**run).logits[batch.attention.bool()].square().mean()
    with recorded(model, [site.write], {site: one}, gradients=True) as seen:
        loss().backward()
    f = seen.features[site]
    assert seen[site.write].grad is not None and f.grad.abs().max() > 0
    feature = int(f.grad.abs().sum((0, 1)).argmax())
    small = torch.zeros(f.shape[-1], dtype=f.dtype)
    small[feature] = 1e-2  # norms compute in float32 whatever the model's precision
    not_bos = ~where_first(batch)(batch.ids.shape)[..., None]
    after = []
    for sign in (1, -1):
        with torch.no_grad(), edited(model, {site: one}, lambda site, f, sign=sign: f + sign * small):
            after.append(loss().item())
    wanted = (f.grad * not_bos)[..., feature].sum().item()
    assert (after[0] - after[1]) / 2e-2 == pytest.approx(wanted, rel=1e-2)
