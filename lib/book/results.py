"""Tables on disk: computed once, then read; figures are drawn from what was read."""

import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
from pandas.io.formats.style import Styler

from lib.book.fingerprint import of_table
from lib.book.paths import Paths, note, replacing, written

pd.set_option("styler.format.escape", "html")  # what a table shows may be a model's, a prompt's or a profile's text


class Made(Protocol):
    """What a table asks of a profile."""

    paths: Paths
    inputs: list[Path]
    made: list[Path]


def table(
    profile: Made, name: str, compute: Callable[[], pd.DataFrame], redraw: bool, reads: Sequence[Path] | None = None
) -> pd.DataFrame:
    """A CSV among a profile's results: read where what it was made from has not changed since, else computed and written.

    It is made from `compute` with all that this uses (`lib.book.fingerprint`), and from the files `reads`: the prompts, the
    finetuned model and the deltas, unless others are named. Whatever else `compute` wrote must be there too. To `redraw`
    only, the table is read as it is. What is returned was read from the file, so a redrawn figure equals the first.
    """
    at = profile.paths
    path, record = at.results / name, at.results / ".made" / f"{Path(name).stem}.json"
    if redraw:
        if not path.exists():
            raise FileNotFoundError(f"{path}: nothing to redraw from; run `make all` first")
        return pd.read_csv(path)
    reads = profile.made if reads is None else reads
    of = of_table(compute, [*profile.inputs, *reads])
    made = json.loads(record.read_text()) if path.exists() and record.exists() else {}
    if made.get("of") == of and all((at.data / file).exists() for file in made["besides"]):
        note([path, *(at.data / file for file in made["besides"])])
        print(f"{name}: as computed on {made['on']}, in {made['seconds']:.0f} s; what it is made from has not changed since")
        return pd.read_csv(path)
    began, before = time.time(), len(written)
    found = compute()
    besides = {os.path.relpath(file, at.data) for file in written[before:] if file.exists()}
    save(found, path)
    said = {"of": of, "on": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - began, 1), "besides": sorted(besides)}
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(said) + "\n")
    return pd.read_csv(path)


def save(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV, whole or not at all. A lone carriage return in a text would end its row, were the text not quoted."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    broken = any(texts.iloc[:, i].astype(str).str.contains("\r").any() for i in range(texts.shape[1]))
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL)


def with_intervals(frame: pd.DataFrame, keep: list[str], names: list[str]) -> pd.DataFrame:
    """For reading: the columns `keep`, and each of `names` as `value [low, high]`, empty where there is none."""
    shown = frame[keep].copy()
    for name in names:
        cells = zip(frame[name], frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
        digits = 5 if 0 < frame[name].abs().max() < 0.02 else 3
        shown[name] = [
            "" if pd.isna(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for value, low, high in cells
        ]
    return shown


def texts(frame: pd.DataFrame) -> Styler:
    """For reading: text that may hold anything, shown as it is; tags in it are not markup."""
    return frame.style.hide().format(escape="html").set_properties(**{"text-align": "left", "white-space": "pre-wrap"})


def renamed(frame: pd.DataFrame, name: str, to: str) -> pd.DataFrame:
    """`frame` with `name` and its interval under another name, whatever had that name before dropped."""
    ends = ("", "_low", "_high")
    return frame.drop(columns=[f"{to}{end}" for end in ends], errors="ignore").rename(
        columns={f"{name}{end}": f"{to}{end}" for end in ends}
    )
