import pytest
import torch

from lib import evaluation
from lib.encoding import question, tokens
from lib.prompts import generate
from lib.transcoders import BaseDelta, Transcoder


@pytest.fixture(scope="module")
def prompts():
    return generate("positive", 5, "test", 0)


@pytest.fixture(scope="module")
def pair():
    return BaseDelta(Transcoder.initialised((), 32, 24, 0), Transcoder.initialised((), 32, 4, 1))


def test_question_and_answer_are_joined_as_they_are_generated(tiny, prompts):
    for p in prompts:
        q, a = tokens(tiny.tokenizer, p)
        assert q == tiny.tokenizer(question(p.input)).input_ids
        assert tiny.tokenizer.decode(q + a) == f"<bos>{p.input}\n{p.target}<eos>"


@torch.no_grad()
def test_cross_entropy_of_the_answer_one_by_one(tiny, plain, smoke, prompts):
    """Batched and padded, against plain transformers on each prompt alone."""
    forced = evaluation.teacher_forced(tiny, prompts, smoke.evaluation)
    for i, p in enumerate(prompts):
        q, a = tokens(tiny.tokenizer, p)
        ids = torch.tensor([q + a])
        loss = plain(ids, labels=ids.masked_fill(torch.arange(len(q + a)) < len(q), -100)).loss
        assert forced.nats[i] / forced.tokens[i] == pytest.approx(loss.item(), rel=1e-4) and forced.tokens[i] == len(a)
        assert forced.tokens_all[i] == len(q + a) - 1


@torch.no_grad()
def test_activations_are_means_over_features_without_bos(tiny, smoke, prompts, pair):
    from lib import activations
    from lib.encoding import encode

    forced = evaluation.teacher_forced(tiny, prompts, smoke.evaluation, {1: pair})
    held = activations.collect(tiny, [1], [encode(tiny.tokenizer, prompts)])
    assert forced.positions.sum() == len(held.prompt)
    for name, part in (("base", pair.base), ("delta", pair.delta)):
        wanted = part.encode(held.x[0]).mean(-1).sum().item()
        assert forced[name].sum() == pytest.approx(wanted, rel=1e-4)


def test_a_watched_replacement_is_the_replacement(pair):
    x = torch.randn(2, 3, 32)
    assert torch.allclose(evaluation.Watched(pair)(x), pair(x), atol=1e-5)
    assert torch.allclose(evaluation.Watched(BaseDelta(pair.base, pair.delta, 0.0))(x), pair.base(x), atol=1e-5)


def test_a_row_has_published_columns_intervals_and_n(tiny, smoke, prompts, pair):
    row, wrote = evaluation.evaluate(tiny, prompts, smoke.evaluation, {0: pair})
    published = "mean_ce tool_call_rate valid_tool_format_rate math_correct_rate mean_abs_base_acts mean_abs_delta_acts".split()
    assert set(published) | {f"{c}_{end}" for c in published for end in ("low", "high")} <= set(row)
    assert row["n_examples"] == len(wrote) == 5 and row["n_tokens"] == sum(len(tokens(tiny.tokenizer, p)[1]) for p in prompts)
    assert all(row[f"{c}_low"] <= row[c] <= row[f"{c}_high"] for c in published)
