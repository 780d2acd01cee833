"""The arithmetic of effects that rules share.

The tables that they look at are `exp1`, `exp2a` and `exp2b` of one protocol; of ours as they should be measured also `dial`,
experiment 2B with all layers replaced, and `extent`, experiment 2A with the first n layers replaced; of the published
`exp1_summary`.
"""

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from lib.book.stats import Estimate

STUDY = "tool"

SUBSETS = ("tool", "copy", "tool_ood")
BASE, FULL, RAW = "no_delta", "full", "raw"


def rate_of(row: pd.Series, column: str = "tool_call_rate") -> Estimate:
    """A rate with its interval; Wilson's of the prompts where the table has none."""
    n = int(row.n_examples)
    if f"{column}_low" in row:
        return Estimate(row[column], row[f"{column}_low"], row[f"{column}_high"], n, int(row.get("n_clusters", n)))
    low, high = proportion_confint(row[column] * n, n, method="wilson")
    return Estimate(row[column], low, high, n, n)


def minus(a: list[Estimate], b: list[Estimate]) -> Estimate:
    """The mean of some rates minus the mean of others, from the intervals that each has (MOVER, Zou and Donner 2008).

    Rates are taken as independent. Those of several layers are of the same prompts, so that a template which fails at all
    of them alike makes the interval of a mean over layers too narrow.
    """
    middle, low, high = zip(*([np.mean([e.value for e in x]), _half(x, "low"), _half(x, "high")] for x in (a, b)), strict=True)
    value = middle[0] - middle[1]
    n, units = a[0].n, min(e.clusters for e in [*a, *b])
    return Estimate(value, value - np.hypot(low[0], high[1]), value + np.hypot(high[0], low[1]), n, units)


def _half(rates: list[Estimate], end: str) -> float:
    """How far the mean of independent rates may be from their values, towards one end."""
    return np.sqrt(sum((e.value - getattr(e, end)) ** 2 for e in rates)) / len(rates)
