"""A planted finetuning is found where it is; where nothing was planted nothing is claimed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.book import stats
from lib.dictionary import deltas
from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.measure import attribution
from lib.measure.metrics import by_prompt
from lib.model import activations, models
from lib.model.encoding import encode
from lib.model.hooks import recorded
from lib.model.sites import DenseMLP
from lib.studies.tool import objectives, scores
from lib.tests.at import at, sites
from lib.texts.prompts import written

LAYERS, D_NEW = [0, 1], 8


class Exact(DenseMLP):
    """A base without error: the model's own MLP, its output taken for features."""

    def encode(self, x):
        return self(x)

    def decode(self, f, x=None):
        return f


@pytest.fixture(scope="module")
def planted(folder):
    """The tiny model whose last MLP writes one direction more, where its input has another: y + 8 relu(x w - 1) v.

    w is what the MLP reads at the end of a question and v is towards <eos>: it was taught to answer nothing.
    """
    model = models.bridged(*models.load_hf(folder, "float32"))
    seen, site = {}, model.site("trained", 1)
    with torch.no_grad(), recorded(model, [site.read]) as cache:
        model.hf(model.tokenizer("Room 4\n", return_tensors="pt").input_ids)
    w, v = cache[site.read][0, -1], model.hf.lm_head.weight[model.tokenizer.eos_token_id].detach()
    w, v = w / w.norm(), v / v.norm()

    def remember(x, hook):
        seen["x"] = x

    def plant(y, hook):
        return y + 8 * (seen["x"] @ w - 1).relu()[..., None] * v

    model.bridge.hook_dict[site.read].add_hook(remember, is_permanent=True)
    model.bridge.hook_dict[site.write].add_hook(plant, is_permanent=True)
    return model


def asked(split, n=12, seed=0):
    return written("positive", n, split, seed) + written("negative", n, split, seed)


def held(model, prompts):
    return activations.collect(model, sites(model, LAYERS), [encode(model.tokenizer, prompts)])


def learned(smoke, bases, train, validation, seed, steps):
    """Deltas of every layer on what the bases leave."""
    settings = smoke.tool.deltas.training.model_copy(update={"steps": steps, "batch": 256, "lr": 5e-3})
    data, check = (
        (a.x, torch.stack([a.y[i] - bases[layer](a.x[i]) for i, layer in enumerate(LAYERS)])) for a in (train, validation)
    )
    [(stack, _)] = deltas.fit(settings, data, check, [D_NEW], seed)
    return {layer: BaseDelta(bases[layer], stack[i]) for i, layer in enumerate(LAYERS)}


@pytest.fixture(scope="module")
def pairs(plain, planted, smoke):
    bases = {layer: Exact(plain, layer) for layer in LAYERS}
    return learned(smoke, bases, held(planted, asked("train", 40)), held(planted, asked("validation")), 0, 400)


def total_kl(table):
    return table.kl_question + table.kl_decision + table.kl_body


@pytest.fixture(scope="module")
def measured(planted, smoke, pairs):
    """KL of each test prompt: raw, and base only and base + delta at either layer."""
    conditions = {"raw": {}}
    for layer, pair in pairs.items():
        conditions |= {("base", layer): at(planted, {layer: pair.at(0.0)}), ("full", layer): at(planted, {layer: pair})}
    tables = scores.forced(smoke.tool, planted, asked("test", 30), list(conditions.values()))
    return {name: total_kl(table) for name, table in zip(conditions, tables, strict=True)}


def test_the_right_layer_is_found(measured):
    p = [stats.paired_p(measured["base", layer], measured["raw"]) for layer in LAYERS]
    gaps = [stats.difference(measured["base", layer], measured["raw"]).value for layer in LAYERS]
    assert stats.holm(p)[1] < 0.01 and gaps[1] > 100 * abs(gaps[0]) and gaps[0] < 1e-4


def test_the_delta_closes_the_gap_there(measured, planted, pairs):
    assert stats.gap_closed(measured["base", 1], measured["full", 1], measured["raw"]).low > 0.5
    a = held(planted, asked("test", 30))
    left = (a.y[1] - pairs[1](a.x[1])).square().sum() / (a.y[1] - pairs[1].base(a.x[1])).square().sum()
    assert left < 0.3


def test_the_dial_is_right_at_one(planted, pairs):
    """Along the planted change, base + alpha * delta moves alpha times as far as the finetuning did."""
    a = held(planted, asked("test", 30))
    change = a.y[1] - pairs[1].base(a.x[1])
    moved = (pairs[1].delta(a.x[1]) * change).sum(-1)
    slope = stats.ratio(by_prompt(moved, a.prompt), by_prompt(change.square().sum(-1), a.prompt))
    assert 0.8 < slope.value <= 1.02 and slope.high - slope.low < 0.1


def test_necessity_and_sufficiency(planted, smoke, pairs):
    """Ranked on validation, tested on test: without the best features the gap opens, with them alone it closes."""
    validation, test = ([replace(p, target="") for p in asked(split, 30)] for split in ("validation", "test"))
    ranked = attribution.attribution(planted, validation, at(planted, {1: pairs[1]}))
    assert sorted(ranked.feature) == list(range(D_NEW)) and ranked.score.is_monotonic_decreasing
    best, other = ranked.head(2), attribution.matched(ranked, ranked.head(2), 0)
    assert not set(best.feature) & set(other.feature) and len(other) == 2
    one = at(planted, {1: pairs[1]})
    conditions = [
        one, attribution.keeping(one, ranked), attribution.keeping(one, best), attribution.keeping(one, other),
        attribution.removing(one, best, ranked), attribution.removing(one, other, ranked),
    ]  # fmt: skip
    tables = scores.forced(smoke.tool, planted, test, conditions)
    full, everything, keep, keep_other, remove, remove_other = (table.nats for table in tables)
    assert np.allclose(everything, full, atol=1e-4)
    assert stats.difference(keep_other, keep).low > 0
    assert stats.difference(remove, remove_other).low > 0
    with pytest.raises(ValueError, match="too few others"):
        attribution.matched(ranked, ranked.head(5), 0)


def test_attribution_is_the_gradient_by_hand(planted, smoke, pairs):
    """Against a finite difference: what a slightly weaker feature costs."""
    prompts = asked("validation", 4)
    top = attribution.attribution(planted, prompts, at(planted, {1: pairs[1]})).iloc[0]
    small, delta = 1e-2, pairs[1].delta
    weight = torch.ones(D_NEW, 1)
    weight[int(top.feature)] = 1 - small
    weaker = Dictionary(delta.W_enc, delta.b_enc, delta.threshold, delta.W_dec * weight, delta.b_dec)
    conditions = [at(planted, {1: pair}) for pair in (pairs[1], BaseDelta(pairs[1].base, weaker))]
    before, after = scores.forced(smoke.tool, planted, prompts, conditions)
    assert (after.nats.mean() - before.nats.mean()) / small == pytest.approx(top.score, rel=0.1)


def test_training_through_the_model_lowers_what_it_aims_at(planted, smoke, pairs):
    bases = {layer: pair.base for layer, pair in pairs.items()}
    one = planted.site("trained", 1)
    start = {one: learned(smoke, bases, held(planted, asked("train")), held(planted, asked("validation")), 1, 20)[1]}
    before = start[one].delta.W_enc.clone()
    x, prompts = held(planted, asked("test", 20)), asked("test", 20)
    l0 = (start[one].delta.encode(x.x[1]) > 0).sum(-1).float().mean().item()
    kl, fvu = {}, {}
    for name, weights in objectives.OBJECTIVES.items():
        new = objectives.train_through(planted, start, asked("train", 40), weights, {one: l0}, steps=40, batch=16, lr=1e-2)
        kl[name] = total_kl(scores.forced(smoke.tool, planted, prompts, [new])[0]).mean()
        fvu[name] = (x.y[1] - new[one](x.x[1])).square().sum().item()
        assert (new[one].delta.encode(x.x[1]) > 0).sum(-1).float().mean().item() == pytest.approx(l0, rel=0.5)
    untrained = total_kl(scores.forced(smoke.tool, planted, prompts, [start])[0]).mean()
    assert torch.equal(start[one].delta.W_enc, before)
    assert max(kl.values()) < untrained and fvu["MSE"] < fvu["KL"]


def test_others_like_the_chosen_are_like_them_in_size_itself():
    """Ranks hide it: of sizes 1000, 100 and many about 1, the nearest to 1000 is 100, and to 2 one of about 1."""
    sizes = [1000.0, 100.0, 2.0, *np.linspace(0.9, 1.1, 20)]
    some = pd.DataFrame({"layer": 1, "feature": range(len(sizes)), "size": sizes, "frequency": 0.5, "score": 0.0})
    found = [attribution.matched(some, some.iloc[[2]], seed)["size"].item() for seed in range(20)]
    assert max(found) <= 1.1 and len(set(found)) > 1
    assert 100.0 in [attribution.matched(some, some.iloc[[0]], seed)["size"].item() for seed in range(20)]


def test_nothing_is_claimed_where_nothing_was_planted(tiny, smoke):
    """Twenty pairs of deltas of a model that was not finetuned, alike but for their seeds and prompts.

    The pipeline's own statistics run end to end: KL by `evaluation`, an interval over seeds and p-values of sign flips
    with Holm's adjustment over layers. Of eight intervals over five seeds each one in twenty may miss 0.
    """
    bases = {layer: Dictionary.initialised((), 32, 48, layer, 0.5).requires_grad_(False) for layer in LAYERS}
    test, validation = asked("test", 10), held(tiny, asked("validation", 6))
    differences = []
    for seed in range(20):
        both = [
            learned(smoke, bases, held(tiny, asked("train", 12, 2 * seed + i)), validation, 2 * seed + i, 25) for i in (0, 1)
        ]
        conditions = [at(tiny, {layer: made[layer]}) for layer in LAYERS for made in both]
        kl = [stats.mean(total_kl(t), t.template).value for t in scores.forced(smoke.tool, tiny, test, conditions)]
        differences.append([kl[0] - kl[1], kl[2] - kl[3]])
    differences = np.array(differences)
    assert np.abs(differences).min() > 0
    assert (stats.holm([stats.paired_p(of_layer, np.zeros(20)) for of_layer in differences.T]) >= 0.05).all()
    few = [stats.over_units(some) for of_layer in differences.T for some in of_layer.reshape(4, 5)]
    assert sum(not e.low <= 0 <= e.high for e in few) <= 2
