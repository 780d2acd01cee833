from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import profiles
from lib.book import stats
from lib.dictionary.bases import load
from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.measure import evaluation
from lib.model import models
from lib.model.encoding import encode, tokens
from lib.model.hooks import replaced
from lib.profiles.tool import Protocol
from lib.studies.tool import scores
from lib.tests.at import at
from lib.texts.prompts import written
from lib.texts.tool import CALCULATOR


@pytest.fixture(scope="module")
def prompts():
    return written("positive", 5, "test", 0)


@pytest.fixture(scope="module")
def pair():
    return BaseDelta(Dictionary.initialised((), 32, 24, 0), Dictionary.initialised((), 32, 4, 1))


def test_question_and_answer_are_joined_as_they_are_generated(tiny, prompts):
    for p in prompts:
        q, a = tokens(tiny.tokenizer, p)
        assert q == tiny.tokenizer(f"{p.input}\n").input_ids
        assert tiny.tokenizer.decode(q + a) == f"<bos>{p.input}\n{p.target}<eos>"


@torch.no_grad()
def test_cross_entropy_of_the_answer_one_by_one(tiny, plain, smoke, prompts):
    """Batched and padded, against plain transformers on each prompt alone."""
    [forced] = scores.forced(smoke.tool, tiny, prompts)
    for i, p in enumerate(prompts):
        q, a = tokens(tiny.tokenizer, p)
        ids = torch.tensor([q + a])
        loss = plain(ids, labels=ids.masked_fill(torch.arange(len(q + a)) < len(q), -100)).loss
        assert forced.nats[i] / forced.tokens[i] == pytest.approx(loss.item(), rel=1e-4) and forced.tokens[i] == len(a)
        assert forced.tokens_all[i] == len(q + a) - 1


@torch.no_grad()
def test_activations_are_means_over_features_without_bos(tiny, smoke, prompts, pair):
    from lib.model import activations
    from lib.model.encoding import encode

    [forced] = scores.forced(smoke.tool, tiny, prompts, [at(tiny, {1: pair})])
    held = activations.collect(tiny, [tiny.site("trained", 1)], [encode(tiny.tokenizer, prompts)])
    assert forced.positions.sum() == len(held.prompt)
    for name, part in (("base", pair.base), ("delta", pair.delta)):
        f = part.encode(held.x[0])
        assert forced[f"{name}_acts"].sum() == pytest.approx(f.mean(-1).sum().item(), rel=1e-4)
        assert forced[f"{name}_l0"].sum() == pytest.approx((f > 0).sum().item())


@torch.no_grad()
def test_conditions_share_what_lies_below_and_nothing_else(tiny, smoke, prompts, pair):
    """Many conditions at once, from the shared lower layers, against each alone in a full forward pass."""
    half = BaseDelta(pair.base, pair.delta, 0.5)
    by_layer = [{1: half}, {}, {0: pair}, {0: half, 1: pair}, {1: pair}]
    conditions = [at(tiny, mlps) for mlps in by_layer]
    together = scores.forced(smoke.tool, tiny, prompts, conditions)
    for condition, forced in zip(conditions, together, strict=True):
        batch = encode(tiny.tokenizer, prompts)
        with replaced(tiny, condition):
            logits = tiny.hf(input_ids=batch.ids, attention_mask=batch.attention).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none")
        assert np.allclose(forced.nats, (loss * batch.answer[:, 1:]).sum(1), rtol=1e-4)
        assert np.allclose(forced.nats_all, (loss * batch.attention[:, 1:]).sum(1), rtol=1e-4)
    assert len({round(forced.nats.sum(), 3) for forced in together}) == len(conditions)


@torch.no_grad()
def test_kl_and_logit_difference_one_by_one(tiny, plain, smoke, prompts, pair):
    """Batched and split, against torch's own KL on each prompt alone."""
    [forced] = scores.forced(smoke.tool, tiny, prompts, [at(tiny, {1: pair})])
    call_id = tiny.tokenizer("<tool_call>", add_special_tokens=False).input_ids[0]
    for row, p in zip(forced.itertuples(), prompts, strict=True):
        q, a = tokens(tiny.tokenizer, p)
        ids = torch.tensor([q + a])
        before = plain(ids).logits[0].log_softmax(-1)
        with replaced(tiny, at(tiny, {1: pair})):
            logits = tiny.hf(ids).logits[0]
        kl = torch.nn.functional.kl_div(logits.log_softmax(-1), before, log_target=True, reduction="none").sum(-1)
        first = len(q) - 1  # the position that predicts the answer's first token
        assert row.kl_question == pytest.approx(kl[:first].sum().item(), rel=1e-3)
        assert row.kl_decision == pytest.approx(kl[first].item(), rel=1e-3)
        assert row.kl_body == pytest.approx(kl[first + 1 : -1].sum().item(), rel=1e-3)
        copy_id = tiny.tokenizer(p.input, add_special_tokens=False).input_ids[0]
        assert row.logit_difference == pytest.approx((logits[first, call_id] - logits[first, copy_id]).item(), rel=1e-3)
    [raw] = scores.forced(smoke.tool, tiny, prompts)
    assert raw[["kl_question", "kl_decision", "kl_body"]].abs().max().max() < 1e-5


@torch.no_grad()
def test_the_published_format_has_neither_bos_nor_newline(tiny, plain, smoke, prompts):
    [forced] = scores.forced(smoke.tool, tiny, prompts, protocol=Protocol(ce_format="published"))
    for row, p in zip(forced.itertuples(), prompts, strict=True):
        q, a = (tiny.tokenizer(text, add_special_tokens=False).input_ids for text in (p.input, p.target))
        ids = torch.tensor([[*q, *a, tiny.tokenizer.eos_token_id]])
        loss = plain(ids, labels=ids.masked_fill(torch.arange(ids.shape[1]) < len(q), -100)).loss
        assert row.nats / row.tokens == pytest.approx(loss.item(), rel=1e-4) and row.tokens == len(a) + 1


def test_an_exact_answer_is_what_would_be_generated():
    """On `nano`, which answers some prompts to the letter and others not, most so with the sparsest base in place."""
    nano = profiles.load("nano")
    model = models.load(nano)
    asked = written("negative", 40, "test", 0) + written("positive", 10, "test", 0)
    [base] = load(nano, model, model.site("trained", 0), [0.0])
    conditions = [
        evaluation.RAW,
        {model.site("trained", 0): BaseDelta(base, Dictionary.initialised((), model.d_model, 4, 0), 0.1)},
    ]
    unknown = [False] * len(asked)
    forced = scores.forced(nano.tool, model, asked, conditions)
    # conditions that share a batch write what each writes by itself
    in_full = evaluation.generations(model, asked, conditions, [unknown] * 2, nano.tool.evaluation)
    assert in_full == [evaluation.generations(model, asked, [c], [unknown], nano.tool.evaluation)[0] for c in conditions]
    assert in_full[0] != in_full[1]
    for table, wrote in zip(forced, in_full, strict=True):
        assert table.exact.tolist() == [text == p.target for text, p in zip(wrote, asked, strict=True)]
        assert 0 < table.exact.sum() < len(asked)
    assert evaluation.generations(model, asked, conditions, [t.exact for t in forced], nano.tool.evaluation) == in_full


@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_what_one_pass_says_of_greedy_decoding_is_what_it_writes(scope):
    """On `nano`, of whose answers some are the targets and others are not."""
    nano = profiles.load("nano")
    model = models.load(nano)
    asked = written("negative", 30, "test", 0) + written("positive", 10, "test", 0)
    site = model.site("trained", 1)
    [base] = load(nano, model, site, [0.0])
    delta = Dictionary.initialised((), model.d_model, 4, 0)
    conditions = [{site: BaseDelta(base, delta, 0.1)}, evaluation.RAW, {site: BaseDelta(base, delta, 3.0)}]
    unknown = [[False] * len(asked)] * len(conditions)
    in_full = evaluation.generations(model, asked, conditions, unknown, nano.tool.evaluation, scope)
    seen = evaluation.greedy(model, asked, conditions, scope)
    assert seen == [[text == p.target for text, p in zip(wrote, asked, strict=True)] for wrote in in_full]
    assert all(0 < sum(of) < len(asked) for of in seen[:2])
    assert evaluation.generations(model, asked, conditions, seen, nano.tool.evaluation, scope) == in_full


def test_a_row_has_published_columns_intervals_and_n(tiny, smoke, prompts, pair):
    [found] = scores.measure(smoke.tool, tiny, prompts, [at(tiny, {0: pair})])
    row = scores.summary(found)
    published = "mean_ce tool_call_rate valid_tool_format_rate math_correct_rate mean_abs_base_acts mean_abs_delta_acts".split()
    assert set(published) | {f"{c}_{end}" for c in published for end in ("low", "high")} <= set(row)
    assert row["n_examples"] == len(found.generation) == 5 and row["n_tokens"] == sum(
        len(tokens(tiny.tokenizer, p)[1]) for p in prompts
    )
    assert all(row[f"{c}_low"] <= row[c] <= row[f"{c}_high"] for c in published)


def test_intervals_are_over_templates(smoke, tiny):
    """Sixteen prompts of four templates: a condition's figures are as sure as four units allow, not sixteen."""
    prompts = [replace(p, template=f"template {i % 4}") for i, p in enumerate(written("positive", 16, "test", 0))]
    [found] = scores.forced(smoke.tool, tiny, prompts)
    assert found.template.tolist() == [p.template for p in prompts]
    found[[*scores.OUTCOMES]] = False
    found["tool_call_rate"] = found.template.isin(["template 0", "template 1", "template 2"])
    row = scores.summary(found)
    assert (row["n_examples"], row["n_clusters"]) == (16, 4)
    expected = stats.rate(found.tool_call_rate, found.template)
    assert (row["tool_call_rate_low"], row["tool_call_rate_high"]) == (expected.low, expected.high)
    assert expected.low < stats.rate(found.tool_call_rate).low - 0.1


def test_the_log_probability_of_a_call_is_that_of_transformers(smoke, tiny, plain):
    prompts = written("positive", 3, "test", 0)
    [found] = scores.forced(smoke.tool, tiny, prompts)
    call = tiny.tokenizer(CALCULATOR.open, add_special_tokens=False).input_ids[0]
    for i, p in enumerate(prompts):
        ids = tiny.tokenizer(f"{p.input}\n", return_tensors="pt").input_ids
        with torch.no_grad():
            expected = plain(ids).logits[0, -1].log_softmax(-1)[call].item()
        assert found.call_log_prob[i] == pytest.approx(expected, abs=1e-4)


def test_logits_that_are_not_finite_are_told_with_the_layers_replaced(tiny, smoke, prompts, pair):
    with pytest.raises(ValueError, match=r"logits are not finite \(with \[1\] layers replaced\)"):
        scores.forced(smoke.tool, tiny, prompts, [evaluation.RAW, at(tiny, {1: pair.at(float("nan"))})])


def test_a_contrast_of_sets_is_that_of_their_probabilities(tiny, plain, prompts):
    """Sets of several tokens and of one, by hand from plain transformers."""
    these, those = [[5, 9, 11], [7], [8], [6, 5], [4]], [[6], [8, 9], [3, 4, 5], [7], [10]]
    [found] = evaluation.teacher_forced(tiny, prompts, contrast=evaluation.Contrast("bus", these, those))
    for i, p in enumerate(prompts):
        ids = tiny.tokenizer(f"{p.input}\n", return_tensors="pt").input_ids
        with torch.no_grad():
            p_next = plain(ids).logits[0, -1].double().softmax(-1)
        assert found.bus_log_prob[i] == pytest.approx(p_next[these[i]].sum().log().item(), abs=1e-4)
        odds = (p_next[these[i]].sum() / p_next[those[i]].sum()).log().item()
        assert found.logit_difference[i] == pytest.approx(odds, abs=1e-4)
