"""Two things run by turns, and what is kept of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import quantile_test

from lib.book import fingerprint, results
from lib.book.paths import ROOT
from lib.model import precision
from lib.profiles.tables import Profile

COLUMNS = ["task", "size", "other", "ours_seconds", "other_seconds", "ratio", "ratio_low", "ratio_high", "n"]


class Run(NamedTuple):
    """What one run took, and the mean validation loss (FVU) that it reached where it trained."""

    seconds: float
    loss: float = np.nan


class Job(NamedTuple):
    """One row: two things to run by turns, and what is to be ready before the clock starts."""

    task: str
    size: str
    other: str
    ours: Callable[[], Run]
    theirs: Callable[[], Run]
    ready: Callable[[], object] = lambda: None


def timed(work: Callable[[], object]) -> Callable[[], Run]:
    """`work`, with the seconds that it takes; where it returns a number, that is its loss."""

    def run() -> Run:
        start = time.perf_counter()
        found = work()
        return Run(time.perf_counter() - start, found if isinstance(found, float) else np.nan)

    return run


def alternate(ours: Callable[[], Run], theirs: Callable[[], Run], runs: int) -> dict[str, float]:
    """The columns from `ours_seconds` on."""
    pairs = [(ours(), theirs()) for _ in range(runs)]
    a, b = (np.array([pair[i] for pair in pairs]) for i in (0, 1))  # (run, seconds and loss)
    ratios = b[:, 0] / a[:, 0]
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return {
        "ours_seconds": np.median(a[:, 0]), "other_seconds": np.median(b[:, 0]),
        "ratio": np.median(ratios), "ratio_low": interval.low, "ratio_high": interval.high, "n": runs,
        "ours_loss": np.median(a[:, 1]), "other_loss": np.median(b[:, 1]),
    }  # fmt: skip


def run(job: Job, runs: int) -> dict:
    """The row of a job."""
    job.ready()
    key = {"task": job.task, "size": job.size, "other": job.other}
    return key | alternate(job.ours, job.theirs, runs) | {"machine": precision.machine()}


def code(profile: Profile) -> str:
    """A mark of the code behind the bench, the profile, the versions and the machine that a row is from."""
    behind = fingerprint.code(ROOT / "lib/bench/report.py")
    return fingerprint.fingerprint(behind, profile, fingerprint.versions(), precision.machine())[:10]


def with_earlier(
    file: Path, keys: list[str], wanted: dict[tuple, Callable[[], dict]], mark: str, again: bool, whole: bool
) -> pd.DataFrame:
    """The table at `file` with all `wanted` rows: those it has from the same code, the others computed and written one by one.

    Rows that are not wanted stay as they are; where `whole`, that is all the table is to hold, they go.
    """
    rows = {}
    if file.exists():
        rows = {tuple(row[key] for key in keys): row for row in pd.read_csv(file, dtype={"code": str}).to_dict("records")}
    for i, (key, compute) in enumerate(wanted.items(), 1):
        shown = f"[{i}/{len(wanted)}] {', '.join(map(str, key))}"
        if not again and key in rows and rows[key]["code"] == mark:
            print(f"{shown}: kept", flush=True)
            continue
        print(f"{shown} ...", flush=True)
        start = time.perf_counter()
        rows[key] = {**dict(zip(keys, key, strict=True)), **compute(), "code": mark}
        results.save(pd.DataFrame(rows.values()), file)
        found = {k: f"{v:.4g}" for k, v in rows[key].items() if isinstance(v, float) and not np.isnan(v)}
        print(f"    {' '.join(f'{k} {v}' for k, v in found.items())} ({time.perf_counter() - start:.0f} s)", flush=True)
    table = pd.DataFrame([rows[key] for key in wanted] if whole else rows.values())
    if len(table):
        results.save(table, file)
    return table
