"""Texts of one's own for the study of features: files and what is wrong with them, and one meaning in several forms by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lib import profiles
from lib.book import paths
from lib.dictionary.dictionaries import Dictionary
from lib.model import activations
from lib.studies.features import claims, matched, material, pairs, specialists
from lib.studies.features import opened as opened_of
from lib.studies.features import tables as tables_of
from lib.studies.features.opened import Opened
from lib.texts import labelled
from lib.texts.kinds import KINDS
from lib.texts.labelled import Matched

PUBLISHED = {"Python": "python", "URLs": "url", "Math": "maths", "Non-English": "spanish", "Social": "social",
             "Formal": "formal", "Conversational": "conversation"}  # fmt: skip


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def seven(n: int = 4) -> list[dict]:
    return [{"text": f"some {kind} text {i}", "kind": kind, "template": f"t{i % 2}"} for kind in KINDS for i in range(n)]


def test_texts_of_a_file_have_their_kind_and_topic_and_are_their_own_template(tmp_path):
    rows = [*seven(), {"text": "x = 3", "kind": "python", "topic": "sums"}]
    found = labelled.labelled(tmp_path / written(tmp_path / "a.jsonl", rows))
    assert len(found) == len(rows) and found[0] == ("some python text 0", "python", "", "t0")
    assert found[-1] == ("x = 3", "python", "sums", "x = 3")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a b", "kind": "prose"}], r"a\.jsonl:1: kind 'prose' is unknown; use one of python, url"),
        ([{"text": " ", "kind": "url"}], r"a\.jsonl:1: the text is empty; write one"),
        ([{"text": "a b"}], r"a\.jsonl:1: field 'kind' is missing or not text"),
        ([{"text": "a b", "kind": "url", "topic": 3}], r"a\.jsonl:1: field 'topic' is not text"),
        (seven()[:-4], r"a\.jsonl: of kind 'conversation' there are texts of 0 templates; each of python.* needs two"),
        ([*seven()[:-4], *seven()[-4::2]], r"a\.jsonl: of kind 'conversation' there are texts of 1 templates"),
    ],
)
def test_what_is_wrong_with_a_file_of_texts_is_said_in_a_line(tmp_path, rows, said):
    written(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=said) as error:
        labelled.labelled(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("2+2", "sign", "sums", "1"), ("3+3", "sign", "sums", "2")], r"m\.jsonl: topic 'sums' has texts in one form alone"),
        ([("2+2", "sign", "sums", "1"), ("two", "word", "sums", "1"), ("2 + 2", "sign", "sums", "1")],
         r"m\.jsonl:3: 'sign, sums, 1' is at .*m\.jsonl:1 too; a meaning has one text in each form"),
        ([("", "sign", "sums", "1")], r"m\.jsonl:1: the text is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_of_meanings_is_said_in_a_line(tmp_path, rows, said):
    written(tmp_path / "m.jsonl", [dict(zip(Matched._fields, row, strict=True)) for row in rows])
    with pytest.raises(ValueError, match=said):
        labelled.matched(tmp_path / "m.jsonl")


def test_forms_and_meanings_by_hand(monkeypatch):
    """Two topics in two forms; two features a form, of which the topics' first forms share one."""
    monkeypatch.setattr(matched, "TOP", 2)
    rows = [Matched("", form, topic, str(m)) for topic in ("a", "b") for form in ("x", "y") for m in (0, 1)]
    values = np.zeros((8, 8))
    values[0:2, [0, 1]] = 1  # a, x
    values[2:4, [0, 2]] = 1  # a, y: one of its two features is that of x
    values[4:6, [1, 3]] = 1  # b, x: shares one with (a, x)
    values[6:8, [4, 5]] = 1  # b, y: shares none with any
    values[3] = 2 * values[0]  # the second meaning of (a, y) is as the first of (a, x), and longer
    values[2] *= 3  # so that y still has its own two
    found = matched.compared(values, rows).set_index("topic")
    assert found.jaccard["a"] == pytest.approx(1 / 3) and found.jaccard["b"] == 0
    assert found.jaccard_elsewhere["a"] == pytest.approx((1 / 3 + 0 + 0 + 0) / 4)
    # (x0, y0), (x1, y1) of a: cosines .5 and 1; (x0, y1), (x1, y0): 1 and .5
    assert found.meaning["a"] == pytest.approx(0.75) and found.topic_alone["a"] == pytest.approx(0.75)
    assert found.meaning["b"] == found.topic_alone["b"] == 0
    # rows of a against those of b: x with x .5, the row of y that is as x too, all others 0
    assert found.other["a"] == pytest.approx((2 * 0.5 * 2 + 1 * 0.5 * 2) / 16)
    assert found.n.tolist() == [4, 4] and found.n_meanings.tolist() == [2, 2] and found.forms.tolist() == [2, 2]


def test_a_code_that_is_the_meaning_and_one_that_is_the_form():
    """Planted: features of what is said make forms agree, features of the form do not."""
    rows = [Matched("", form, topic, str(m)) for topic in "ab" for form in ("sign", "word") for m in range(6)]
    said = {key: i for i, key in enumerate(dict.fromkeys((row.topic, row.meaning) for row in rows))}
    by_meaning, by_form = np.zeros((2, len(rows), 40))
    for i, row in enumerate(rows):
        by_meaning[i, said[row.topic, row.meaning]] = 1
        by_form[i, 30 + (row.form == "word")] = 1
    meaning, form = (matched.compared(values, rows) for values in (by_meaning, by_form))
    assert (meaning.meaning == 1).all() and (meaning.topic_alone == 0).all() and (meaning.jaccard > 0.5).all()
    assert (form.meaning == 0).all() and (form.other == 0.5).all()


@pytest.fixture
def opened(tiny, monkeypatch, tmp_path):
    """The study on texts of a file, at two layers of a tiny model."""

    def of(**files) -> Opened:
        profile = profiles.load("smoke", "features")
        profile = profile.model_copy(
            update={"features": profile.features.model_copy(update={"sites": {"resid_post": [0, 1]}, **files})}
        )
        own = [replace(tiny.site("resid_post", 0), layer=layer) for layer in range(2)]
        texts = material.texts(profile, tiny)
        held = activations.collect(tiny, own, texts.batches(tiny, 64))
        monkeypatch.setattr(opened_of, "compared", lambda profile, model: own)
        return Opened(profile, tiny, dict.fromkeys(own, Dictionary.initialised((), 32, 60, 3)), texts, held)

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for module in ("profiles.tables", "studies.features.material", "studies.features.matched"):
        monkeypatch.setattr(f"lib.{module}.ROOT", tmp_path)
    return of


def judged(o: Opened) -> pd.DataFrame:
    """The ledger from the tables that need no other work than these texts."""
    read = {"general": tables_of.general(o), "forms": tables_of.forms(o), "probes": tables_of.probes(o),
            "sites": tables_of.sites(o), "ranking": tables_of.ranking(o), "trends": tables_of.layers(o).trends}  # fmt: skip
    return claims.ledger(read)


def test_the_study_runs_on_texts_without_topics(opened, tmp_path):
    written(tmp_path / "mine.jsonl", seven(8))
    o = opened(texts_file="mine.jsonl")
    assert len(o.texts) == 56 and set(o.texts.topic) == {""} and o.profile.inputs == [tmp_path / "mine.jsonl"]
    for kind in KINDS:
        own = o.texts.template[o.texts.kind == kind]
        assert set(own) == {f"{kind}: t0", f"{kind}: t1"} and o.texts.chosen_on[o.texts.kind == kind].sum() == 4
    found = judged(o).set_index("id").verdict
    assert found["F12"] == found["F13"] == "not testable here", "texts about nothing in particular say nothing of topics"
    assert found["F6"] != "not testable here"


def test_a_text_of_one_token_is_refused_by_its_file(opened, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(material.encoding, "length", lambda tokenizer, text: 1 if text == "x" else 5)
    written(tmp_path / "mine.jsonl", [*seven(), {"text": "x", "kind": "url"}])
    with pytest.raises(ValueError, match=r"mine\.jsonl: the text 'x' is 1 token, and the first is left out"):
        opened(texts_file="mine.jsonl")


def test_the_books_own_pairs_are_one_meaning_in_two_forms(opened, tmp_path):
    written(tmp_path / "mine.jsonl", seven())
    found = matched.matched(opened(texts_file="mine.jsonl"))
    assert set(found.topic) == set(pairs.PAIRS) and set(found.layer) == {0, 1} and (found.forms == 2).all()
    assert found[["jaccard", "meaning", "topic_alone", "other"]].notna().all(axis=None)
    assert (found.n == found.topic.map({kind: 2 * len(both) for kind, (_, both) in pairs.PAIRS.items()})).all()


def test_the_published_texts_are_an_input(opened, shared, tmp_path):
    folder = shared / "companions" / "features"
    rows = json.loads((folder / "texts.json").read_text())
    written(tmp_path / "published.jsonl", [{"text": row["text"], "kind": PUBLISHED[row["category"]]} for row in rows])
    several = [
        {"text": text, "form": form, "topic": one["topic"], "meaning": str(one["pair"])}
        for one in json.loads((folder / "matched_pairs.json").read_text()) for form, text in one["forms"].items()
    ]  # fmt: skip
    written(tmp_path / "matched.jsonl", several)
    o = opened(texts_file="published.jsonl", matched_file="matched.jsonl")
    assert len(o.texts) == 70 and o.texts.chosen_on.sum() == 35 and len(np.unique(o.texts.template)) == 70
    assert sorted(o.texts.text) == sorted(row["text"] for row in rows)
    assert len(specialists.specialists(o.values(o.middle), o.texts, permutations=50)) == 7
    found = matched.matched(o)
    assert found[found.layer == 0].n.sum() == len(several) == 688 and found.topic.nunique() == 7
    assert found[["jaccard", "jaccard_elsewhere", "meaning", "topic_alone", "other"]].notna().all(axis=None)
    assert found.groupby("topic").forms.first().to_dict() == {"python": 2} | {
        topic: 3 for topic in ("non_english", "social", "formal", "conversational", "math_simple", "math_complex")
    }
