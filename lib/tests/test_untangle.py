"""The toy's two tasks: tokens there and back, splits without a pair on two sides, and what the published split leaks."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from lib.book.paths import ROOT
from lib.studies.untangle import data

COMPANION = ROOT.parent / "shared" / "data" / "companions" / "untangle" / "tokenised_answers.csv"


@pytest.fixture(scope="module")
def published():
    return data.examples(100)


@pytest.mark.parametrize("name", ["numbers", "characters", "pairs"])
def test_every_text_comes_back_from_its_tokens(published, name):
    how = data.tokenizer(name, 100)
    assert len(published) == 20_000
    for texts in (published.question, published.answer):
        ids = data.encoded(texts, how)
        assert [how.decode(row) for row in ids] == list(texts)
        for before, after in pairwise(ids.T):  # padding stands at the end alone
            assert not ((before == data.PAD) & (after != data.PAD)).any()


def test_the_published_vocabulary_and_a_cut_by_hand(published):
    how = data.tokenizer("numbers", 100)
    assert len(how.tokens) == 204
    assert [how.tokens[i] for i in how.encode("B12C34E")] == ["B", "12", "C", "34", "E"]
    assert [how.tokens[i] for i in how.encode("B1234E")] == ["B", "123", "4", "E"]
    assert [how.tokens[i] for i in how.encode("B9905E")] == ["B", "99", "0", "5", "E"]
    assert [data.tokenizer("pairs", 100).tokens[i] for i in data.tokenizer("pairs", 100).encode("905")] == ["90", "5"]
    one = published[(published.a == 47) & (published.b == 23)].set_index("task")
    assert one.answer.to_dict() == {"+": "B70E", "C": "B4723E"}
    with pytest.raises(ValueError, match=r"'B1\?2E': no token for '\?' at position 2"):
        how.encode("B1?2E")


def test_answers_are_cut_as_the_study_cuts_them(published):
    how = data.tokenizer("numbers", 100)
    joined = published[published.task == data.JOIN]
    kinds = data.cut(joined, how)
    assert kinds.value_counts().to_dict() == {"a b": 8111, "cut elsewhere": 1611, "one token": 278}
    assert (data.cut(published[published.task == data.SUM], how) == "one token").all()
    if not COMPANION.exists():
        pytest.skip("the companions' data are not here")
    digits = [joined[name].astype(str).str.len().rename(f"digits_{name}") for name in ("a", "b")]
    ours = kinds.groupby([*digits, kinds.rename("tokens_of_the_concatenation")]).size()
    theirs = pd.read_csv(COMPANION).set_index(list(ours.index.names)).pairs
    assert ours.to_dict() == theirs.to_dict()


def test_no_pair_is_on_two_sides(published):
    for seed in range(3):
        parts = data.split(published, 0.3, 0.2, seed)
        pair = published[["a", "b"]].min(axis=1) * 100 + published[["a", "b"]].max(axis=1)
        assert (pd.Series(parts).groupby(pair).nunique() == 1).all()
        shares = np.bincount(parts) / len(parts)
        np.testing.assert_allclose(shares, [0.3, 0.2, 0.5], atol=0.01)
        assert not data.leaks(published, parts).seen.any()
    assert (data.split(published, 0.3, 0.2, 0) != data.split(published, 0.3, 0.2, 1)).any()


def test_the_published_split_leaks_what_chance_says(published):
    """Each relative of an example is in training with probability .3, so 1 - .7 ** 2 have one of two there."""
    parts = data.split(published, 0.3, 0.7, 0, by="example")
    assert set(parts) == {0, 1}
    seen = data.leaks(published, parts).set_index("relative")
    np.testing.assert_allclose(seen.seen / seen.n, [0.3, 0.3, 0.51], atol=0.02)


def test_what_leaks_by_hand():
    table = data.examples(3)
    parts = np.full(len(table), 1)
    parts[(table.a == 1) & (table.b == 2) & (table.task == data.SUM)] = 0
    seen = data.leaks(table, parts).set_index("relative").seen
    assert seen.to_dict() == {"turned around": 1, "in the other task": 1, "either": 2}  # 2+1, and 1C2
