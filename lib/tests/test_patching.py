"""Patching: exact at its ends, equal to a computation by hand, and a planted circuit is found where nothing else is."""

import random
from collections.abc import Mapping
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.book import stats
from lib.measure import linear, patching
from lib.measure.patched import patched
from lib.measure.patching import ALL, DENOISING, DIRECTIONS, EVERY, NOISING, PARTS, Cell, Pair, cells, effects, metric_of, runs
from lib.model import models
from lib.tests import real
from lib.tests.test_hooks import hooks_left

ONE = SimpleNamespace(these=[310], those=[320])
SOME = SimpleNamespace(these=[310, 311], those=[320, 321, 322])
N_LAYERS = 3


@pytest.fixture(scope="module", params=["gemma2", "gpt2", "llama"])
def model(request, tmp_path_factory):
    folder = real.save(request.param, tmp_path_factory.mktemp(request.param), n_layers=N_LAYERS)
    return models.bridged(*models.load_hf(folder, "float64"))


def pair(i: int, longer: int = 0, n: int = 11) -> Pair:
    """Random tokens; another one at `word`, and so many more after it. What follows `end` is never read."""
    rng = random.Random(i)
    clean = [rng.randrange(300, 600) for _ in range(n)]
    corrupt = [*clean[:2], rng.randrange(300, 600), *(rng.randrange(300, 600) for _ in range(longer)), *clean[3:]]
    at = {"word": (2, 2), "middle": (5, 5 + longer), "also middle": (5, 5 + longer), "end": (n - 2, n - 2 + longer)}
    return Pair(clean, corrupt, at, at["end"], f"unit {i}")


@pytest.fixture(scope="module")
def pairs():
    return [pair(0), pair(1, n=14), pair(2), pair(3, longer=2), pair(4, longer=2), pair(5, n=14)]


def alone(model, ids):
    return metric_of(model.hf(torch.tensor([ids])).logits[:, -1], SOME)


@torch.no_grad()
def test_both_runs_are_the_model_as_it_is(model, pairs):
    found = runs(model, pairs, SOME)
    for i, one in enumerate(pairs):
        assert found.clean[i] == pytest.approx(alone(model, one.clean[: one.reads[0] + 1]).item(), abs=1e-9)
        assert found.corrupt[i] == pytest.approx(alone(model, one.corrupt[: one.reads[1] + 1]).item(), abs=1e-9)
    assert found.unit.tolist() == [one.unit for one in pairs]


def test_everything_patched_is_the_other_run_and_nothing_patched_is_this_one(model):
    equal = [pair(i) for i in range(4)]
    some, of = cells(model, ["resid_pre"], range(N_LAYERS), [ALL]), runs(model, equal, SOME)
    for row in patching.per_pair(patched(model, equal, SOME, some), of).itertuples():
        assert row.value == pytest.approx(row.corrupt if row.direction == NOISING else row.clean, abs=1e-9)
    same = [Pair(one.clean, one.clean, one.roles, one.reads, one.unit) for one in equal]
    everything = cells(model, list(PARTS), range(N_LAYERS), [*same[0].roles, EVERY, ALL])
    found = patching.per_pair(patched(model, same, SOME, everything), of)
    assert np.allclose(found.value, found.clean, rtol=0, atol=1e-12)
    assert (found.groupby("pair").value.nunique() == 1).all(), "bit for bit, whatever the cell"


def test_where_there_is_one_role_it_is_every_role(model, pairs):
    alike = [Pair(one.clean, one.corrupt, {"end": one.roles["end"]}, one.reads, one.unit) for one in pairs]
    alone_, every = (patched(model, alike, ONE, cells(model, list(PARTS), [0, 2], [role])) for role in ("end", EVERY))
    assert np.allclose(alone_.value, every.value, atol=1e-9)


def test_all_heads_of_z_are_the_attention_output(model, pairs):
    of = {part: patched(model, pairs, SOME, cells(model, [part], range(N_LAYERS), ["word", "end", EVERY])) for part in
          ("z", "attn_out")}  # fmt: skip
    assert np.allclose(of["z"].value, of["attn_out"].value, atol=1e-9)


def test_rows_and_pairs_may_be_batched_as_one_likes(model, pairs):
    some = cells(model, list(PARTS), range(N_LAYERS), [*pairs[0].roles, EVERY])
    some += cells(model, list(PARTS), range(N_LAYERS), ["word", EVERY], by_head=True)
    few, many = (patched(model, pairs, SOME, some, rows, size) for rows, size in ((1, 1), (50, 32)))
    assert few.drop(columns="value").equals(many.drop(columns="value"))
    assert np.allclose(few.value, many.value, atol=1e-9)
    assert (few.value != few.value.iloc[0]).any() and len(few) == 2 * len(some) * len(pairs)
    assert hooks_left(model) == 0


# --- by hand ---


def grouped(seed: int = 0) -> LlamaForCausalLM:
    """A Llama with two queries' heads to a KV head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(real.tokenizer("llama")), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    hf = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    for name, parameter in hf.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.25)
    return hf


def saved(hf, folder):
    hf.save_pretrained(folder)
    real.tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_groups(tmp_path_factory):
    folder = saved(grouped(), tmp_path_factory.mktemp("grouped"))
    return models.bridged(*models.load_hf(folder, "float64")), models.load_hf(folder, "float64")[0]


@contextmanager
def written(module, at: Mapping[int, torch.Tensor], columns: slice):
    """A module whose output has other values at some positions, in some columns."""

    def change(module, args, y):
        y = y.clone()
        for place, value in at.items():
            y[:, place, columns] = value[..., columns]
        return y

    handle = module.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("role", ["word", "middle", "end", EVERY])
def test_heads_are_patched_as_by_hand_from_the_modules_of_hugging_face(of_groups, part, role):
    """Before the rotary embedding, at another position than it was taken from, one head, in both directions."""
    model, plain = of_groups
    one, n_heads = pair(7, longer=2), 4 if part == "q" else 2
    found = patched(model, [one], SOME, cells(model, [part], [0, 1], [role], by_head=True))
    assert len(found) == 2 * 2 * n_heads
    for row in found.itertuples():
        into, of = (0, 1) if row.direction == NOISING else (1, 0)
        texts = [torch.tensor([ids[: read + 1]]) for ids, read in zip((one.clean, one.corrupt), one.reads, strict=True)]
        module, kept = getattr(plain.model.layers[row.layer].self_attn, f"{part}_proj"), {}
        handle = module.register_forward_hook(lambda m, args, y, kept=kept: kept.update(y=y))
        plain(texts[of])
        handle.remove()
        roles = one.roles.values() if role == EVERY else [one.roles[role]]
        with written(module, {at[into]: kept["y"][:, at[of]] for at in roles}, slice(8 * row.head, 8 * row.head + 8)):
            wanted = metric_of(plain(texts[into]).logits[:, -1], SOME).item()
        assert row.value == pytest.approx(wanted, abs=1e-5)


# --- what gradients and sums say ---


def test_contributions_sum_to_the_logit_difference(model, pairs):
    """Of single tokens, before soft-capping; by head after Gemma's norm."""
    found, of = linear.contributions(model, pairs, ONE), runs(model, pairs, ONE)
    total, cap = found.groupby(["run", "pair"]).value.sum(), getattr(model.hf.config, "final_logit_softcapping", None)
    for side, run in enumerate(("clean", "corrupt")):
        for i, one in enumerate(pairs):
            with torch.no_grad():
                ids = (one.clean, one.corrupt)[side][: one.reads[side] + 1]
                logits = model.hf(torch.tensor([ids])).logits[0, -1]
            logits = cap * torch.atanh(logits / cap) if cap else logits
            assert total[run, i] == pytest.approx((logits[310] - logits[320]).item(), abs=1e-5)
            assert cap or total[run, i] == pytest.approx(of[run][i], abs=1e-5)
    bias = found[found.part == "bias"].value.abs().max()
    assert (bias > 1e-3) == (model.hf.config.model_type == "gpt2")
    assert set(found.part) == {"embedding", "head", "mlp", "bias"}


def test_attribution_is_the_slope_of_a_small_patch(model):
    """Of texts whose activations hardly differ it is patching; the gradient is not taken somewhere else."""
    equal = [pair(i) for i in range(3)]
    embed = model.hf.get_input_embeddings().weight
    before = embed.detach().clone()
    some = cells(model, list(PARTS), range(N_LAYERS), [*equal[0].roles, EVERY, ALL])
    some += cells(model, list(PARTS), range(N_LAYERS), ["middle", EVERY], by_head=True)
    with torch.no_grad():
        for one in equal:  # the other word is nearly this one
            embed[one.corrupt[2]] = before[one.clean[2]] + 1e-3 * (before[one.corrupt[2]] - before[one.clean[2]])
    try:
        of = runs(model, equal, SOME)
        a, b = (patching.per_pair(f(model, equal, SOME, some), of) for f in (patched, linear.attributed))
    finally:
        with torch.no_grad():
            embed.copy_(before)
    assert a.drop(columns=["value", "moved"]).equals(b.drop(columns=["value", "moved"]))
    assert np.abs(a.moved - b.moved).max() < 0.02 * np.abs(a.moved).max() and np.abs(a.moved).max() > 1e-5
    assert hooks_left(model) == 0


def test_attribution_is_patching_where_the_read_out_is_linear_and_not_where_a_norm_saturates(planted):
    """The planted head writes little into the stream that is read. Where it writes much, the norm makes up for it."""
    model, some_pairs, contrast = planted
    write, slopes = model.hf.model.layers[1].self_attn.o_proj.weight, []
    some = [Cell("z", 1, "end", 2), Cell("v", 1, "word", 1), Cell("z", 1, "end", 0), Cell("mlp_out", 0, "middle")]
    for times in (1, 40):
        with torch.no_grad():
            write[3] *= times
        of = runs(model, some_pairs, contrast)
        found, estimated = (effects(f(model, some_pairs, contrast, some), of) for f in (patched, linear.attributed))
        with torch.no_grad():
            write[3] /= times
        one = linear.agreement(found, estimated, ["direction"])
        assert (one.n == 4).all() and (one.pearson > 0.99).all() and (one.n_clear >= 2).all() and (one["size"] > 0.4).all()
        slopes += one.slope.tolist()
    assert np.allclose(slopes[:2], 1, atol=0.1) and min(slopes[2:]) > 3


# --- a planted circuit ---

SHORT, LONG, READ, END, BREAK = 301, 302, 303, 310, 320
CONTRAST = SimpleNamespace(these=[END], those=[BREAK])


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """In layer 1 head 2 looks from the token that is read to the mode word and writes the ending; all else is small noise.

    Dimension 0 of the stream: a mode word; 1: short (+) or long (-); 2: the token that is read; 3: the ending. The head's last
    pair of dimensions hardly turns with the position, so that it looks as far as one likes.
    """
    hf, d = grouped(1), 8
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.mul_(0.05)
        hf.config.rope_parameters["rope_theta"] = 1e8
        embed, attention = hf.model.embed_tokens.weight, hf.model.layers[1].self_attn
        embed[:, :4] = 0
        embed[:, 4:] *= 20
        for token, places in {SHORT: {0: 4, 1: 4}, LONG: {0: 4, 1: -4}, READ: {2: 4}}.items():
            for place, value in places.items():
                embed[token, place] = value
        attention.q_proj.weight[2 * d + 3, 2] = 10
        attention.k_proj.weight[1 * d + 3, 0] = 10
        attention.v_proj.weight[1 * d, 1] = 2
        attention.o_proj.weight[3, 2 * d] = 0.1  # little beside what stands in the stream: the final norm's scale stays
        hf.lm_head.weight[:, 3] = 0
        hf.lm_head.weight[END, 3], hf.lm_head.weight[BREAK, 3] = 1, -1
    folder = saved(hf, tmp_path_factory.mktemp("planted"))
    rng, found = random.Random(3), []
    for i in range(24):
        n, extra = rng.randint(4, 9), rng.randint(0, 2)
        filler = [rng.randrange(330, 600) for _ in range(n)]
        more = [rng.randrange(330, 600) for _ in range(extra)]
        clean, corrupt = [299, SHORT, *filler, READ], [299, LONG, *more, *filler, READ]
        at = {"word": (1, 1), "beside": (2, 2 + extra), "middle": (4, 4 + extra), "end": (n + 2, n + 2 + extra)}
        found.append(Pair(clean, corrupt, at, at["end"], f"unit {i // 2}"))
    return models.bridged(*models.load_hf(folder, "float64")), found, CONTRAST


def test_a_planted_head_is_found_and_nothing_else(planted):
    model, some_pairs, contrast = planted
    roles, of = list(some_pairs[0].roles), runs(model, some_pairs, contrast)
    assert (of.clean > 0.1).all() and (of.corrupt < -0.1).all()
    some = cells(model, list(PARTS), [0, 1], roles) + cells(model, list(PARTS), [0, 1], roles, by_head=True)
    found = effects(patched(model, some_pairs, contrast, some), of)
    assert (found.n == 24).all() and (found.n_units == 12).all()
    carries = {("resid_pre", 0, -1, "word"), ("resid_pre", 1, -1, "word"), ("z", 1, -1, "end"), ("attn_out", 1, -1, "end"),
               ("v", 1, -1, "word"), ("z", 1, 2, "end"), ("v", 1, 1, "word")}  # fmt: skip
    for row in found.itertuples():
        if (row.part, row.layer, row.head, row.role) in carries:
            assert 0.85 < row.effect < 1.15, row
        else:
            assert abs(row.effect) < 0.15, row
    heads = linear.contributions(model, some_pairs, contrast).groupby(["run", "part", "layer", "head"]).value.mean()
    moved = (heads["clean"] - heads["corrupt"]).abs().sort_values()
    assert moved.index[-1] == ("head", 1, 2) and moved.iloc[-1] > 5 * moved.iloc[-2]


def test_where_nothing_is_planted_nothing_is_claimed(planted):
    """Fillers that differ at random between the two texts move the answer at random, beside a word that moves it: of the many
    cells at these no more than the stated 5%, and what chance adds to 60 fillers, have an interval without 0."""
    model, _, contrast = planted
    rng, found, n = random.Random(9), [], 60
    for i in range(30):
        texts = [[299, word, *(rng.randrange(330, 600) for _ in range(n)), READ] for word in (SHORT, LONG)]
        at = {"word": (1, 1)} | {f"filler {j}": (2 + j, 2 + j) for j in range(n)}
        found.append(Pair(*texts, at, (n + 2, n + 2), f"unit {i}"))
    some = cells(model, ["resid_pre", "v"], [0, 1], [role for role in found[0].roles if role != "word"])
    of = effects(patched(model, found, contrast, some), runs(model, found, contrast))
    apart = (of.effect_low > 0) | (of.effect_high < 0)
    assert (of.effect != 0).all() and len(of) == 8 * n and 0 < apart.mean() < 0.05 + 2 * (0.05 * 0.95 / n) ** 0.5


# --- what may go wrong ---


def test_hooks_and_blocks_are_as_before_after_an_exception(model, pairs, monkeypatch):
    block, calls = model.bridge.blocks[-1].original_component, []
    mlp, blocks = block.mlp, list(model.bridge.blocks)

    def fails(logits, contrast):
        calls.append(len(logits))
        if len(calls) > 3:  # within a patched pass
            raise RuntimeError("planted")
        return metric_of(logits, contrast)

    monkeypatch.setattr("lib.measure.patched.metric_of", fails)
    with pytest.raises(RuntimeError, match="planted"):
        patched(model, pairs, SOME, cells(model, list(PARTS), [1], list(pairs[0].roles)), rows=4)
    assert hooks_left(model) == 0 and block.mlp is mlp and list(model.bridge.blocks) == blocks


def test_pairs_that_cannot_be_patched_say_so(model, pairs):
    with pytest.raises(ValueError, match="give a place up to there"):
        Pair([1, 2, 3], [1, 2, 3], {"late": (2, 1)}, (1, 1), "a")
    with pytest.raises(ValueError, match="only where both texts are equally long"):
        patched(model, [pair(0, longer=1)], SOME, [Cell("v", 0, ALL)])
    with pytest.raises(ValueError, match="give all of them the same"):
        patched(model, [pair(0), Pair([1, 2], [1, 3], {"other": (1, 1)}, (1, 1), "b")], SOME, [Cell("v", 0, "word")])


def test_effects_are_ratios_of_sums_with_the_intervals_of_stats(pairs):
    of = pd.DataFrame({"pair": [0, 1, 2, 3], "unit": list("aabb"), "clean": [2.0, 3, 1, 2], "corrupt": [0.0, 1, 0, -2]})
    values = np.array([[[1.0, 3, 0, 0]], [[1.0, 1, 0, 1]]])
    found = effects(patching.long([Cell("v", 0, "word")], DIRECTIONS, values), of).set_index("direction")
    assert found.effect[NOISING] == pytest.approx((1 + 0 + 1 + 2) / 9) and found.effect[DENOISING] == pytest.approx(4 / 9)
    e = stats.ratio([1, 0, 1, 2], [2, 2, 1, 4], list("aabb"))
    assert (found.effect_low[NOISING], found.n[NOISING], found.n_units[NOISING]) == (e.low, 4, 2)
