"""Texts of one's own for the study of features, from files: each with its kind, or with what it says and in which form."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from lib.texts.jsonl import read_rows
from lib.texts.kinds import KINDS


class Labelled(NamedTuple):
    """A text of one of the seven kinds; `template`: what wrote it, the text itself where nothing is said."""

    text: str
    kind: str
    topic: str
    template: str


class Matched(NamedTuple):
    """A text that says something about a topic in some form; those with the same `meaning` say the same."""

    text: str
    form: str
    topic: str
    meaning: str


def labelled(path: Path) -> list[Labelled]:
    """Texts from a JSONL file of `text`, `kind` and, where they are known, `topic` and `template`.

    Features are chosen on half of each kind's templates and judged on the others, so each needs two. Raises `ValueError`, one
    line with the place and a remedy.
    """
    found = []
    for place, row in read_rows(path, ("text", "kind"), ("topic", "template")):
        if row["kind"] not in KINDS:
            raise ValueError(f"{place}: kind {row['kind']!r:.40} is unknown; use one of {', '.join(KINDS)}")
        found.append(Labelled(_said(place, row), row["kind"], row["topic"], row["template"] or row["text"]))
    templates = {kind: {one.template for one in found if one.kind == kind} for kind in KINDS}
    if few := [kind for kind, of in templates.items() if len(of) < 2]:
        raise ValueError(
            f"{path}: of kind {few[0]!r} there are texts of {len(templates[few[0]])} templates; each of "
            f"{', '.join(KINDS)} needs two, one to choose a feature on and one to judge it on"
        )
    return found


def matched(path: Path) -> list[Matched]:
    """Texts from a JSONL file of `text`, `form`, `topic` and `meaning`; every topic has two forms or more, and every meaning is
    there once in a form. Raises `ValueError`, one line with the place and a remedy."""
    found, forms, seen = [], defaultdict(set), {}
    for place, row in read_rows(path, Matched._fields):
        one = Matched(_said(place, row), row["form"], row["topic"], row["meaning"])
        if (key := one[1:]) in seen:
            raise ValueError(f"{place}: {', '.join(key)!r:.80} is at {seen[key]} too; a meaning has one text in each form")
        seen[key] = place
        forms[one.topic].add(one.form)
        found.append(one)
    if few := [topic for topic, of in forms.items() if len(of) < 2]:
        raise ValueError(f"{path}: topic {few[0]!r:.40} has texts in one form alone; add another, or leave the topic out")
    return found


def _said(place: str, row: dict) -> str:
    if not row["text"].strip():
        raise ValueError(f"{place}: the text is empty; write one, or leave the line out")
    return row["text"]
