"""The site's tensors against a computation by hand, and interventions against the untouched model."""

import pytest
import torch

from lib.dictionary.dictionaries import Once, Sum
from lib.measure import metrics
from lib.model import activations, models
from lib.model.conditions import replaced_logits
from lib.model.encoding import encode
from lib.model.generation import generate
from lib.model.hooks import recorded, replaced
from lib.tests import real
from lib.tests.at import at
from lib.texts.prompts import written

TEXTS = ["What is 12 plus 30?\n", "a", "Room 4, floor 3: quiet lamp for 40 guests.\n", "7\n"]


@pytest.fixture(scope="module")
def batch(tiny):
    return encode(tiny.tokenizer, written("negative", 5, "test", 0))


def by_hand(plain, resid_mid, layer):
    """x and y of a Gemma-2 MLP from the residual stream before it, in float64."""
    block = plain.model.layers[layer]
    h = resid_mid.double()
    x = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + plain.config.rms_norm_eps)
    gated = x * (1 + block.pre_feedforward_layernorm.weight.double())
    gate, up, down = (getattr(block.mlp, f"{n}_proj").weight.double() for n in ("gate", "up", "down"))
    out = (torch.nn.functional.gelu(gated @ gate.T, approximate="tanh") * (gated @ up.T)) @ down.T
    out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + plain.config.rms_norm_eps)
    return x, out * (1 + block.post_feedforward_layernorm.weight.double())


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_the_site_is_what_a_hand_computation_says(tiny, plain, batch, layer):
    site = tiny.site("trained", layer)
    read, write = site.read, site.write
    resid = {}
    handle = plain.model.layers[layer].pre_feedforward_layernorm.register_forward_pre_hook(
        lambda m, args: resid.update(mid=args[0])
    )
    plain(batch.ids, attention_mask=batch.attention)
    handle.remove()
    with recorded(tiny, [read, write]) as cache:
        tiny.hf(batch.ids, attention_mask=batch.attention)
    x, y = by_hand(plain, resid["mid"], layer)
    assert torch.allclose(cache[read].double(), x, atol=1e-5)
    assert torch.allclose(cache[write].double(), y, atol=1e-4)
    # and the residual stream before the norm is not it
    assert not torch.allclose(resid["mid"].double(), x, atol=0.1)


@torch.no_grad()
def test_the_published_site_is_the_stream_before_the_norm_over_root_d(tiny, plain, batch):
    with recorded(tiny, ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"]) as cache:
        tiny.hf(batch.ids, attention_mask=batch.attention)
    held = activations.collect(tiny, [tiny.site("published", 1)], [batch])
    keep = batch.attention.bool() & (batch.ids != tiny.tokenizer.bos_token_id)
    assert torch.allclose(held.x[0] * tiny.d_model**0.5, cache["blocks.1.hook_resid_mid"][keep], atol=1e-5)
    assert torch.allclose(held.y[0] * tiny.d_model**0.5, cache["blocks.1.hook_mlp_out"][keep], atol=1e-5)
    # a replacement there gets its input over root d, and its output is taken times root d
    matrix = torch.randn(tiny.d_model, tiny.d_model, generator=torch.Generator().manual_seed(0)) / 6
    with replaced(tiny, at(tiny, {1: lambda x: x @ matrix}, "published")), recorded(tiny, ["blocks.1.hook_resid_post"]) as out:
        tiny.hf(batch.ids, attention_mask=batch.attention)
    wanted = cache["blocks.1.hook_resid_mid"] + cache["blocks.1.hook_resid_mid"] @ matrix
    assert torch.allclose(out["blocks.1.hook_resid_post"][keep], wanted[keep], atol=1e-4)


@torch.no_grad()
def test_scope_prompt_leaves_generated_tokens_alone(tiny, plain):
    """The published mistake, by hand: a replaced pass over the prompt, then the untouched model on its cache."""
    ids = tiny.tokenizer(TEXTS[0], return_tensors="pt").input_ids
    mlp = at(tiny, {0: lambda x: -3 * x, 1: lambda x: 2 * x})
    with replaced(tiny, mlp, "prompt"):
        found = tiny.hf.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=-1)[0, ids.shape[1] :]
    with replaced(tiny, mlp):
        out = tiny.hf(ids, use_cache=True)
        everywhere = tiny.hf.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=-1)[0, ids.shape[1] :]
    wanted = []
    for _ in range(12):
        wanted.append(out.logits[0, -1].argmax().item())
        out = tiny.hf(torch.tensor([wanted[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    assert found.tolist() == wanted and everywhere.tolist() != wanted


def own_mlp(plain, layer):
    """The layer's MLP as a function of the site's input."""
    block = plain.model.layers[layer]

    def mlp(x):
        gated = x * (1 + block.pre_feedforward_layernorm.weight)
        return block.post_feedforward_layernorm(block.mlp(gated))

    return mlp


@torch.no_grad()
def test_replacing_an_mlp_by_itself_changes_nothing(tiny, plain, batch):
    with replaced(tiny, at(tiny, {layer: own_mlp(plain, layer) for layer in (0, 1)})):
        out = tiny.hf(batch.ids, attention_mask=batch.attention).logits
    assert torch.allclose(out, plain(batch.ids, attention_mask=batch.attention).logits, atol=1e-4)


@torch.no_grad()
def test_replacing_by_something_else_does_change(tiny, plain, batch):
    with replaced(tiny, at(tiny, {0: lambda x: torch.zeros_like(x)})):
        out = tiny.hf(batch.ids, attention_mask=batch.attention).logits
    handle = plain.model.layers[0].post_feedforward_layernorm.register_forward_hook(
        lambda m, args, y: y * (batch.ids == tiny.tokenizer.bos_token_id)[..., None]
    )
    wanted = plain(batch.ids, attention_mask=batch.attention).logits
    handle.remove()
    of_text = batch.attention.bool()
    assert torch.allclose(out[of_text], wanted[of_text], atol=1e-5)
    assert not torch.allclose(out, plain(batch.ids, attention_mask=batch.attention).logits, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_going_on_from_a_replacement_is_running_the_whole_model_with_it(folder, batch, scope, dtype):
    """Bit for bit: the same operations in the same order."""
    model = models.bridged(*models.load_hf(folder, dtype))
    low, top = (lambda x: torch.tanh(3 * x.roll(1, -1))), (lambda x: 2 * x.flip(-1))
    conditions = [at(model, of) for of in ({}, {0: low}, {1: top}, {0: low, 1: top}, {})]  # layer 1 is the last
    for mlps, logits in zip(conditions, replaced_logits(model, batch, conditions, scope), strict=True):
        with replaced(model, mlps, scope):
            whole = model.hf(batch.ids, attention_mask=batch.attention).logits
        assert torch.equal(logits, whole)
    assert hooks_left(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_conditions_that_begin_at_one_layer_share_batches_of_so_many_rows(tiny, batch, scope, monkeypatch):
    low, top = (lambda x: torch.tanh(3 * x.roll(1, -1))), (lambda x: 2 * x.flip(-1))
    by_layer = [{}, {0: low}, {0: top, 1: low}, {0: low, 1: top}, {1: top}, {0: low}]
    conditions = [at(tiny, of) for of in by_layer]
    apart, ran, forward = list(replaced_logits(tiny, batch, conditions, scope)), [], tiny.hf.forward

    def counted(*args, **kwargs):
        ran.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny.hf, "forward", counted)
    n = len(batch.ids)
    for rows, of_three in ((0, [n, n, n]), (2 * n + 1, [2 * n, n]), (9 * n, [3 * n])):
        ran.clear()
        together = list(replaced_logits(tiny, batch, conditions, scope, rows))
        assert ran == [n, *of_three, n, n]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, apart, strict=True))
    assert all(not torch.allclose(apart[i], apart[j], atol=1e-2) for i in range(5) for j in range(i))
    assert torch.equal(apart[1], apart[5]) and hooks_left(tiny) == 0


@torch.no_grad()
def test_logits_of_some_positions_are_those_of_all(tiny, batch):
    conditions = [at(tiny, of) for of in ({}, {0: lambda x: x.flip(-1)}, {1: lambda x: 2 * x})]
    some, every = (list(replaced_logits(tiny, batch, conditions, at=where)) for where in (batch.foreseen, None))
    assert 0 < len(batch.foreseen) < batch.ids.shape[1]
    for few, logits in zip(some, every, strict=True):
        assert torch.allclose(few, logits[:, batch.foreseen], atol=1e-5)
        wanted = (metrics.nats(metrics.log_probs(logits), batch.ids) * batch.answer).sum(1)
        assert torch.allclose(metrics.of_answers(few, batch), wanted, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [0.5, 1, 2, 99])
def test_the_cross_entropy_of_rows_is_the_same_however_many_are_told_at_once(tiny, batch, rows):
    logits = tiny.hf(input_ids=batch.ids, attention_mask=batch.attention).logits
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    wanted = (wanted.view(len(batch.ids), -1) * batch.attention[:, 1:]).sum(1)
    assert torch.allclose(metrics.of_rows(logits, batch, int(rows * logits[0].numel())).double(), wanted, atol=1e-3)


@torch.no_grad()
def test_what_several_conditions_share_is_run_once(tiny, batch):
    calls = []

    def base(x):
        calls.append(x)
        return x.flip(-1)

    once = Once(base)
    sums = [Sum(once, lambda x, k=k: k * x) for k in range(3)]
    shared = list(replaced_logits(tiny, batch, [at(tiny, {1: each}) for each in (once, *sums)]))
    apart = list(replaced_logits(tiny, batch, [at(tiny, {1: lambda x, k=k: x.flip(-1) + k * x}) for k in range(3)]))
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(shared, [apart[0], *apart], strict=True))
    assert once(torch.ones(2)).tolist() == [1, 1] and len(calls) == 2


@torch.no_grad()
def test_where_there_is_no_bos_the_first_token_of_each_text_keeps_its_mlp():
    """Padded on the left, on the right and not at all; and with a cache only in the pass that has it."""
    model = models.bridged(real.model("llama"), real.tokenizer("llama"))
    site, seen = model.site("trained", 1), []
    texts = [model.tokenizer(text).input_ids for text in ("What is 12 plus 30?", "Copy this", "One more line of text, longer")]

    def sevens(x):
        return torch.full_like(x, 7.0)

    def looked(tensor, hook):
        seen.append(tensor.clone())

    for side in ("left", "right"):
        batch = model.tokenizer.pad({"input_ids": texts}, padding_side=side, return_tensors="pt")
        seen.clear()
        with replaced(model, {site: sevens}), model.hooks([(site.write, looked)]), torch.no_grad():
            model.hf(**batch, use_cache=False)
        of_text = batch.attention_mask.bool()
        first = of_text & (of_text.cumsum(1) == 1)
        assert (seen[0][of_text & ~first] == 7.0).all() and (seen[0][first] != 7.0).any(-1).all()
    with replaced(model, {site: sevens}), torch.no_grad():
        batch = model.tokenizer.pad({"input_ids": texts}, padding_side="left", return_tensors="pt")
        cached = model.hf.generate(**batch, max_new_tokens=5, do_sample=False)
        ids, attention = batch.input_ids, batch.attention_mask
        for _ in range(5):
            position = (attention.cumsum(1) - 1).clamp(min=0)
            logits = model.hf(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            attention = torch.cat([attention, attention.new_ones(len(ids), 1)], 1)
    ends = (ids[:, -5:] == model.tokenizer.eos_token_id).cumsum(1).bool()
    assert torch.equal(cached[:, -5:][~ends], ids[:, -5:][~ends])


def test_bos_keeps_its_mlp_wherever_it_stands(tiny):
    ids = tiny.tokenizer(["a", "a longer text 12"], return_tensors="pt", padding=True, padding_side="left")
    bos = ids.input_ids == tiny.tokenizer.bos_token_id
    write = tiny.site("trained", 0).write
    with recorded(tiny, [write]) as cache:
        tiny.hf(**ids)
    before = cache[write]
    with (
        replaced(tiny, at(tiny, {0: lambda x: x * 0 + 7})),
        recorded(tiny, ["blocks.0.hook_resid_mid", "blocks.0.hook_out"]) as cache,
    ):
        tiny.hf(**ids)
    after = cache["blocks.0.hook_out"] - cache["blocks.0.hook_resid_mid"]
    assert torch.allclose(after[bos], before[bos], atol=1e-5)
    assert torch.allclose(after[~bos & ids.attention_mask.bool()], torch.tensor(7.0), atol=1e-5)


@pytest.mark.parametrize("hooked", [False, True])
def test_generation_cached_or_not_batched_or_alone(tiny, hooked):
    mlps = at(tiny, {0: lambda x: torch.tanh(3 * x.roll(1, -1)), 1: lambda x: 2 * x.flip(-1)} if hooked else {})
    with replaced(tiny, mlps):
        together = generate(tiny.hf, tiny.tokenizer, tiny.tokenizer(TEXTS).input_ids, 12)
        uncached = generate(tiny.hf, tiny.tokenizer, tiny.tokenizer(TEXTS).input_ids, 12, use_cache=False)
        alone = [generate(tiny.hf, tiny.tokenizer, tiny.tokenizer([text]).input_ids, 12)[0] for text in TEXTS]
    assert together == uncached == alone
    assert len(set(together)) > 1


def test_the_hook_acts_on_generated_tokens(tiny):
    calls = []

    def mlp(x):
        calls.append(x.shape[1])
        return x

    with replaced(tiny, at(tiny, {0: mlp})):
        generate(tiny.hf, tiny.tokenizer, tiny.tokenizer(["a b c\n"]).input_ids, 5)
    assert calls[0] > 1 and len(calls) >= 2 and set(calls[1:]) == {1}


def test_greedy_is_that_of_plain_transformers(tiny, plain):
    encoded = tiny.tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    out = plain.generate(**encoded, max_new_tokens=8, do_sample=False, pad_token_id=0)[:, encoded.input_ids.shape[1] :]
    assert generate(tiny.hf, tiny.tokenizer, tiny.tokenizer(TEXTS).input_ids, 8) == tiny.tokenizer.batch_decode(
        out, skip_special_tokens=True
    )


@torch.no_grad()
def test_a_half_precision_model_meets_a_float32_transcoder(folder, batch):
    half = models.bridged(*models.load_hf(folder, "bfloat16"))
    seen = []

    def mlp(x):
        seen.append(x.dtype)
        return x

    with replaced(half, at(half, {1: mlp})):
        assert half.hf(batch.ids, attention_mask=batch.attention).logits.dtype == torch.bfloat16
    assert seen == [torch.float32]


def hooks_left(model):
    points = {id(point): point for point in model.bridge.hook_dict.values()}.values()
    return sum(len(point.fwd_hooks) for point in points) + len(model.hf._forward_pre_hooks)


@torch.no_grad()
def test_hooks_are_gone_afterwards_also_after_an_exception(tiny, plain, batch):
    def fails(x):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"), replaced(tiny, at(tiny, {0: fails})):
        assert hooks_left(tiny) == 3
        tiny.hf(batch.ids)
    with pytest.raises(KeyError), recorded(tiny, ["blocks.0.hook_mlp_out"]):
        raise KeyError
    with pytest.raises(KeyError, match="hook_no_such"), recorded(tiny, ["blocks.0.hook_mlp_out", "hook_no_such"]):
        pass
    assert tiny.bridge.context_level == 0
    assert hooks_left(tiny) == 0
    assert torch.equal(tiny.hf(batch.ids).logits, plain(batch.ids).logits)
