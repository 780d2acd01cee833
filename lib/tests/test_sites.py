"""Every architecture's site: in float64 against a computation by hand, and by a transcoder that fits there and nowhere else."""

from dataclasses import replace
from itertools import repeat

import pytest
import torch
from torch.nn.functional import gelu, silu

from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.training import train
from lib.model import activations, models
from lib.model.conditions import replaced_logits
from lib.model.encoding import encode
from lib.model.generation import generate
from lib.model.hooks import recorded, replaced
from lib.model.sites import ARCHITECTURES, DenseMLP, Site
from lib.profiles.organism import Training
from lib.tests import real
from lib.tests.at import at, sites
from lib.texts.prompts import written

LAYER = 1


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def folder(request, tmp_path_factory):
    return real.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(folder):
    return models.load_hf(folder, "float64")[0]


@pytest.fixture(scope="module")
def model(folder):
    return models.bridged(*models.load_hf(folder, "float64"))


@pytest.fixture(scope="module")
def batch(model):
    return encode(model.tokenizer, written("negative", 6, "test", 0) + written("positive", 6, "test", 0))


def rms(h, eps, gain=1.0):
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * gain


def gated(mlp, act, x):
    return (act(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


def tanh_gelu(x):
    return gelu(x, approximate="tanh")


def gemma(block, h, eps, gain_before_reading):
    gain = 1 + block.pre_feedforward_layernorm.weight
    out = gated(block.mlp, tanh_gelu, rms(h, eps, gain))
    return rms(h, eps, gain if gain_before_reading else 1.0), rms(out, eps, 1 + block.post_feedforward_layernorm.weight)


def qwen3(block, h, eps):
    x = rms(h, eps, block.post_attention_layernorm.weight)
    return x, gated(block.mlp, silu, x)


def gpt2(block, h, eps):
    centred = h - h.mean(-1, keepdim=True)
    x = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    inner = (x * block.ln_2.weight + block.ln_2.bias) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
    return x, tanh_gelu(inner) @ block.mlp.c_proj.weight + block.mlp.c_proj.bias


BY_HAND = {  # where the block reads the residual stream before its MLP, and x and y from it
    "gemma2": ("pre_feedforward_layernorm", lambda *a: gemma(*a, gain_before_reading=False)),
    "gemma3_text": ("pre_feedforward_layernorm", lambda *a: gemma(*a, gain_before_reading=True)),
    "qwen3": ("post_attention_layernorm", qwen3),
    "llama": ("post_attention_layernorm", qwen3),
    "gpt2": ("ln_2", gpt2),
}


@torch.no_grad()
def by_hand(plain, batch, layer):
    """x and y of one MLP, in float64, from the stream that enters its norm in the model as transformers has it."""
    name, formula = BY_HAND[plain.config.model_type]
    block = getattr(plain.base_model, ARCHITECTURES[plain.config.model_type].blocks)[layer]
    stream = {}
    handle = getattr(block, name).register_forward_pre_hook(lambda m, args: stream.update(h=args[0]))
    plain(batch.ids, attention_mask=batch.attention)
    handle.remove()
    eps = getattr(plain.config, "rms_norm_eps", None) or plain.config.layer_norm_epsilon
    return formula(block, stream["h"], eps)


@torch.no_grad()
def check_site(model, site, plain, batch, layer):
    """What is captured at a site is what a hand computation says."""
    read, write = site.read, site.write
    with recorded(model, [read, write]) as cache:
        model.hf(batch.ids, attention_mask=batch.attention)
    # transformers' norms compute in float32 whatever the model's precision
    for found, wanted in zip((cache[read], cache[write]), by_hand(plain, batch, layer), strict=True):
        assert found.dtype == torch.float64 and torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_site_is_what_a_hand_computation_says(model, plain, batch, layer):
    check_site(model, model.site("trained", layer), plain, batch, layer)


def neighbours(model):
    """Sites one hook point beside the right one, and the published one."""
    right, block = model.site("trained", LAYER), f"blocks.{LAYER}."
    reads = {block + name for name in ("ln2.hook_in", "ln2.hook_normalized", "mlp.hook_in")} - {right.read}
    writes = {block + "mlp.hook_out", block + "hook_out"}
    if model.hf.config.model_type not in ("gemma2", "gemma3_text"):  # no norm between the two
        writes -= {block + "mlp.hook_out"}
    sites = [replace(right, name=read, read=read) for read in sorted(reads)]
    sites += [replace(right, name=write, write=write) for write in sorted(writes)]
    return [*sites, model.site("published", LAYER)]


def test_a_wrong_site_is_caught(model, plain, batch):
    for site in neighbours(model):
        with pytest.raises(AssertionError):
            check_site(model, site, plain, batch, LAYER)


def test_the_published_site_is_the_stream_before_the_norm_over_root_d(model, plain, batch):
    stream = {}
    name, _ = BY_HAND[plain.config.model_type]
    block = getattr(plain.base_model, ARCHITECTURES[plain.config.model_type].blocks)[LAYER]
    handle = getattr(block, name).register_forward_pre_hook(lambda m, args: stream.update(h=args[0]))
    with torch.no_grad():
        plain(batch.ids, attention_mask=batch.attention)
    handle.remove()
    held = activations.collect(model, [model.site("published", LAYER)], [batch])
    right = activations.collect(model, [model.site("trained", LAYER)], [batch])
    keep = batch.attention.bool() & (batch.attention.cumsum(1) > 1)
    root = model.d_model**0.5
    assert torch.allclose(held.x[0] * root, stream["h"][keep].float(), atol=1e-4)
    assert torch.allclose(held.y * root, right.y, atol=1e-4)


def fitted(x, y, d_sae=2048):
    """A transcoder without error on these tokens: random features, and the decoder that solves for `y`."""
    t = Dictionary.initialised((), x.shape[-1], d_sae, 0)
    t.b_enc.data += torch.randn(d_sae, generator=torch.Generator().manual_seed(1))
    t.b_dec.data += y.mean(0)
    t.W_dec.data = torch.linalg.lstsq(t.encode(x).double(), (y - t.b_dec).double(), driver="gelsd").solution.float()
    return t.requires_grad_(False)


def trained(x, y):
    """A transcoder trained until it has next to no error on these tokens."""
    stack = Dictionary.initialised((), x.shape[-1], 512, 0)
    train([stack], repeat((x, y)), (x, y), Training(lr=1e-2, batch=len(x), steps=1000, patience=100))
    return stack


def fvu(transcoder, held):
    x, y = held.x[0], held.y[0]
    return ((transcoder(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()


@torch.no_grad()
@pytest.mark.parametrize(
    ("made", "fits", "moves", "misfits", "moves_beside"),
    [(fitted, 1e-6, 1e-6, 0.05, 1e-3), (trained, 0.02, 0.005, 0.5, 0.02)],
    ids=["without error", "trained"],
)
def test_a_transcoder_made_at_the_site_fits_there_and_not_beside_it(model, batch, made, fits, moves, misfits, moves_beside):
    held = activations.collect(model, [model.site("trained", LAYER)], [batch])
    transcoder = made(held.x[0], held.y[0])
    assert fvu(transcoder, held) < fits

    def moved(site: Site):
        """How far it moves the logits of the tokens it was trained on, as a share of their variance."""
        raw = model.hf(batch.ids, attention_mask=batch.attention).logits
        with replaced(model, {site: transcoder}):
            out = model.hf(batch.ids, attention_mask=batch.attention).logits
        where = batch.attention.bool()
        return ((out - raw)[where].square().sum() / (raw[where] - raw[where].mean(0)).square().sum()).item()

    assert moved(model.site("trained", LAYER)) < moves
    for site in neighbours(model):
        assert fvu(transcoder, activations.collect(model, [site], [batch])) > misfits, site
        assert moved(site) > moves_beside, site


@torch.no_grad()
def test_the_dense_mlp_is_the_models_own(model, plain, batch):
    held = activations.collect(model, sites(model, [0, LAYER]), [batch])
    for i, layer in enumerate((0, LAYER)):
        assert torch.allclose(DenseMLP(plain, layer)(held.x[i]), held.y[i], atol=2e-4, rtol=1e-4)
    raw, out = replaced_logits(model, batch, [{}, at(model, {layer: DenseMLP(plain, layer) for layer in (0, LAYER)})])
    assert torch.allclose(raw[batch.attention.bool()], out[batch.attention.bool()], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_bridge_is_the_model(model, plain, batch):
    ours = model.hf(batch.ids, attention_mask=batch.attention).logits
    assert torch.allclose(ours, plain(batch.ids, attention_mask=batch.attention).logits, rtol=1e-9, atol=1e-9)


def check_bos(model):
    """A replacement, and what is streamed, leave out the first token, <bos> where there is one, and nothing else."""
    ids = model.tokenizer(["a", "a longer text 12"], return_tensors="pt", padding=True, padding_side="left")
    bos = torch.zeros_like(ids.input_ids, dtype=torch.bool)
    bos[[0, 1], ids.attention_mask.argmax(1)] = True
    write = model.site("trained", 0).write
    with torch.no_grad(), recorded(model, [write]) as cache:
        model.hf(**ids)
    before, ends = cache[write], ["blocks.0.ln2.hook_in", "blocks.0.hook_out"]
    with torch.no_grad(), replaced(model, at(model, {0: lambda x: x * 0 + 7})), recorded(model, ends) as cache:
        model.hf(**ids)
    after = cache[ends[1]] - cache[ends[0]]
    assert torch.allclose(after[bos], before[bos], atol=1e-5)
    assert torch.allclose(after[~bos & ids.attention_mask.bool()], torch.tensor(7.0, dtype=after.dtype), atol=1e-5)
    one = encode(model.tokenizer, written("negative", 1, "test", 0))
    assert activations.collect(model, sites(model, [0]), [one]).x.shape[1] == one.attention.sum() - 1


def test_the_first_token_keeps_its_mlp(model):
    check_bos(model)


def test_a_missing_or_wrong_bos_mask_is_caught(model, monkeypatch):
    def everywhere(tokenizer, ids, attention):
        return attention[:, -ids.shape[1] :].bool()

    def but_the_second(tokenizer, ids, attention):
        return everywhere(tokenizer, ids, attention) & (attention.cumsum(1) != 2)[:, -ids.shape[1] :]

    for wrong in (everywhere, but_the_second):
        monkeypatch.setattr("lib.model.hooks.acted_on", wrong)
        monkeypatch.setattr("lib.model.encoding.acted_on", wrong)
        with pytest.raises(AssertionError):
            check_bos(model)


@torch.no_grad()
def test_generation_under_a_replacement_is_the_same_cached_or_not_batched_or_alone(folder):
    model = models.bridged(*models.load_hf(folder, "float32"))
    texts = ["What is 12 plus 30?\n", "a", "Room 4, floor 3: quiet lamp for 40 guests.\n"]
    ids = model.tokenizer(texts).input_ids
    with replaced(model, at(model, {0: lambda x: torch.tanh(3 * x.roll(1, -1)), 1: lambda x: 2 * x.flip(-1)})):
        together = generate(model.hf, model.tokenizer, ids, 8)
        uncached = generate(model.hf, model.tokenizer, ids, 8, use_cache=False)
        alone = [generate(model.hf, model.tokenizer, [one], 8)[0] for one in ids]
    assert together == uncached == alone and len(set(together)) > 1


def test_booting_leaves_our_tokenizer_as_it_was(model):
    """Hooks come with a BOS and a padding side of their own; the tokenizer that we encode with keeps its own."""
    before = real.tokenizer(model.hf.config.model_type)
    assert (model.tokenizer.bos_token, model.tokenizer.eos_token) == (before.bos_token, before.eos_token)
    assert model.tokenizer("What is 12 plus 30?\n").input_ids == before("What is 12 plus 30?\n").input_ids
