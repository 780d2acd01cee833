"""Prompts, and rows of any kind, in JSONL."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lib.book import files
from lib.book.paths import replacing
from lib.texts.prompts import SUBSETS, Prompt


def read_jsonl(path: Path | str) -> list[Prompt]:
    """Prompts from a JSONL file of `input`, `target`, `label` and, where it is known, `template`; others are ignored.

    Raises `ValueError`, one line with file, line number and remedy, for a line that is not JSON, lacks
    a field or has an unknown label, and for a file without prompts.
    """
    prompts = []
    for place, row in read_rows(path, ("input", "target", "label"), ("template",)):
        if row["label"] not in SUBSETS:
            raise ValueError(f"{place}: label {row['label']!r:.40} is unknown; use one of {', '.join(SUBSETS)}")
        prompts.append(Prompt(row["input"], row["target"], row["label"], row["template"]))
    return prompts


def by_subset(prompts: Iterable[Prompt], n: int | None = None) -> dict[str, list[Prompt]]:
    """The prompts of each of `SUBSETS`, the first `n` of each where `n` is given."""
    prompts = list(prompts)
    return {subset: [p for p in prompts if p.subset == subset][:n] for subset in SUBSETS.values()}


def templates(prompts: Iterable[Prompt | str]) -> list[str]:
    """The sampled unit of each prompt: its template, or itself where it has none, as a text has."""
    return [p if isinstance(p, str) else p.template or f"{p.input}\n{p.target}" for p in prompts]


def at_most(prompts: Iterable[Prompt], n: int | None = None) -> list[Prompt]:
    """The first `n` prompts of each subset, in the order in which they stand; all where `n` is left out."""
    prompts = list(prompts)
    chosen = {id(p) for subset in by_subset(prompts, n).values() for p in subset}
    return [p for p in prompts if id(p) in chosen]


def read_rows(path: Path | str, fields: Iterable[str], optional: Iterable[str] = ()) -> list[tuple[str, dict]]:
    """The objects of a JSONL file, each with its place (`file:line`); blank lines are skipped.

    Every one of `fields` must be there and be a string; one of `optional` is empty where it is left out.
    """
    rows = []
    for number, line in enumerate(files.text(Path(path)).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = files.parsed(place, line)
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not an object; write {{...}} with {', '.join(fields)}")
        for field in fields:
            if not isinstance(row.get(field), str):
                raise ValueError(f"{place}: field {field!r} is missing or not text; add it to this line")
        for field in optional:
            if not isinstance(row.setdefault(field, ""), str):
                raise ValueError(f"{place}: field {field!r} is not text; write one, or leave it out")
        rows.append((place, row))
    if not rows:
        raise ValueError(f"{path}: the file is empty; write at least one line")
    return rows


def write_jsonl(rows: Iterable[Prompt | dict], path: Path) -> None:
    """Write rows as JSONL, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row if isinstance(row, dict) else asdict(row), ensure_ascii=False) + "\n")
