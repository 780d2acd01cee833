"""Intervals and tests over the units that were sampled: Wilson for rates, a jackknife for means and ratios, sign flips, Holm.

Prompts that one template wrote stand or fall together, so templates are the units where they are given (`clusters`), and
a prompt is a unit of its own where not. Two conditions are always compared prompt by prompt. Layers and seeds are few:
`over_units` and `two_groups`. The coverage of every interval at the sizes it is used with is simulated in
`lib/tests/test_coverage.py`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import norm, permutation_test, rankdata, t
from statsmodels.stats.proportion import proportion_confint

FLIPS = 1999  # the smallest p is 1 / 2000, or 2 / 2^n where there are few units

Clusters = Sequence[Hashable] | None
"""The unit of each value, such as its template; None where every value is a unit of its own."""


@dataclass(frozen=True)
class Estimate:
    """A number, its 95% interval, and what it is from: `n` prompts (or layers, seeds, ...) in `clusters` sampled units."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def columns(self, name: str) -> dict[str, float]:
        """`name`, `name_low` and `name_high`, for a row of a table."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def __str__(self) -> str:
        units = f" in {self.clusters}" if self.clusters != self.n else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}{units}"


def columns(found: dict[str, Estimate]) -> dict[str, float]:
    """The columns of several estimates, by name."""
    return {column: value for name, estimate in found.items() for column, value in estimate.columns(name).items()}


NOTHING = Estimate(np.nan, np.nan, np.nan, 0, 0)


def _sums(clusters: Clusters, *values: np.ndarray) -> list[np.ndarray]:
    """The sums of some values over each unit."""
    if clusters is None:
        return list(values)
    ids, found = pd.factorize(np.asarray(clusters, dtype=object))
    return [np.bincount(ids, v, len(found)) for v in values]


def _jackknife(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The variance of sum(above) / sum(below) over units, each left out once, and its degrees of freedom.

    The latter are those of as many equal units as tell as much (Kish 1965), less one.
    """
    units, total = len(below), below.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (above.sum() - above) / (total - below)
        variance = (units - 1) / units * np.square(without - without.mean()).sum()
    return variance, max(1, total**2 / np.square(below).sum() - 1)


def rate(successes: ArrayLike, clusters: Clusters = None) -> Estimate:
    """The share of true values, with its 95% Wilson interval; nan for no values.

    In clusters n is first divided by the design effect, the variance between them over that of as many values alone,
    and made smaller for there being few of them (Korn and Graubard 1998; Franco et al. 2019): as many count as hold a
    value of the rarer kind, and two. Where all values agree no effect can be seen, and each cluster then counts as one
    value, the most cautious reading. Simulated with 36 to 44 templates and rates of .5 to .83 it holds the truth 94 to 98
    times of 100, the most where templates do not matter or are all or nothing; at .95 as seldom as 92 times. With eight
    templates it is 89 to 99 times.
    """
    successes = np.asarray(successes, dtype=bool).astype(float)
    if not len(successes):
        return NOTHING
    p, n = successes.mean(), len(successes)
    right, size = _sums(clusters, successes, np.ones(n))
    units = effective = len(size)
    if units < n and 0 < p < 1 and units > 1:
        between, freedom = _jackknife(right, size)
        telling = (right > 0).sum() if p < 0.5 else (right < size).sum()
        few = (norm.ppf(0.975) / t.ppf(0.975, min(freedom, telling + 2))) ** 2
        effective = few * n / max(1.0, between / (p * (1 - p) / n))
    low, high = proportion_confint(p * effective, effective, method="wilson")
    return Estimate(p, min(low, p), max(high, p), n, units)  # at 0 and 1 rounding may put the interval beside its rate


def ratio(numerator: ArrayLike, denominator: ArrayLike, clusters: Clusters = None) -> Estimate:
    """Sum of numerators over sum of denominators, with a 95% t interval from leaving out one unit at a time (jackknife).

    Each element is one prompt's share, so tokens of one prompt stay together. Covers means over tokens (denominator:
    tokens), fractions of variance unexplained (denominator: variance) and paired differences (numerator: the difference).
    The interval is missing where there is one unit alone. Where a few units hold much of the sum it is too narrow: of
    templates whose means are exponential it holds the truth 91 times of 100 with 39 of them, and 88 with eight.
    """
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    n, total = len(numerator), denominator.sum()
    if not n or not total:
        return NOTHING
    above, below = _sums(clusters, numerator, denominator)
    units, value = len(below), numerator.sum() / total
    if units == 1:
        return Estimate(value, np.nan, np.nan, n, 1)
    variance, freedom = _jackknife(above, below)
    half = t.ppf(0.975, freedom) * np.sqrt(variance)
    return Estimate(value, value - half, value + half, n, units)


def mean(values: ArrayLike, clusters: Clusters = None) -> Estimate:
    """The mean, with its interval as in `ratio`."""
    return ratio(values, np.ones(len(np.asarray(values))), clusters)


def difference(a: ArrayLike, b: ArrayLike, clusters: Clusters = None) -> Estimate:
    """The mean of a - b over paired prompts, with its interval as in `ratio`."""
    return mean(np.asarray(a, float) - np.asarray(b, float), clusters)


def rate_difference(a: ArrayLike, b: ArrayLike, clusters: Clusters = None) -> Estimate:
    """The share of true a minus the share of true b over paired prompts, with a 95% interval that has a width everywhere.

    The difference of two rates, that of prompts with a alone and that of prompts with b alone, each with its interval of
    `rate`, put together as Zou and Donner (2008) do. A t interval of values that are nearly all 0 is far too narrow, and
    where a and b agree everywhere it has no width at all.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if not len(a):
        return NOTHING
    only_a, only_b = rate(a & ~b, clusters), rate(b & ~a, clusters)
    value = only_a.value - only_b.value
    low = value - np.hypot(only_a.value - only_a.low, only_b.high - only_b.value)
    high = value + np.hypot(only_a.high - only_a.value, only_b.value - only_b.low)
    return Estimate(value, low, high, only_a.n, only_a.clusters)


def gap_closed(base: ArrayLike, full: ArrayLike, raw: ArrayLike, clusters: Clusters = None) -> Estimate:
    """(base - full) / (base - raw): how much of what the base loses the delta wins back; 1 is all of it.

    Values are losses, of which less is better. Missing where the base is not worse than the raw model for certain (the
    lower end of base - raw is not above 0): then there is no gap to close.
    """
    base, full, raw = (np.asarray(values, float) for values in (base, full, raw))
    return ratio(base - full, base - raw, clusters) if difference(base, raw, clusters).low > 0 else NOTHING


def paired_p(a: ArrayLike, b: ArrayLike, clusters: Clusters = None, seed: int = 0) -> float:
    """Two-sided p of no difference between paired values: the signs of the differences flipped at random.

    Units are flipped whole; all flips are tried where they are few.
    """
    (d,) = _sums(clusters, np.asarray(a, float) - np.asarray(b, float))
    if not np.abs(d).max(initial=0) > 1e-12:
        return 1.0
    return permutation_test(
        (d,), lambda x, axis: np.abs(x.sum(axis)), permutation_type="samples", alternative="greater", vectorized=True,
        n_resamples=FLIPS, batch=500, rng=np.random.default_rng(seed),
    ).pvalue  # fmt: skip


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values adjusted for their being a family (Holm 1979): below 0.05 means a false claim in at most 5% of families.

    statsmodels has it, too, and collects garbage as it does so: a walk through every library that is imported.
    """
    p = np.asarray(p_values, float)
    order, adjusted = p.argsort(), np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def spearman(a: ArrayLike, b: ArrayLike, still: float = np.nan) -> np.ndarray:
    """Spearman's rank correlation along the last axis, for every row at once; `still` where either does not vary."""
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(values, axis=-1) for values in (a, b)))
    spread = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread == 0, still, (a * b).sum(-1) / spread)


def over_units(values: ArrayLike) -> Estimate:
    """The mean over a few layers or seeds and its 95% t interval; n is their number.

    Of six values that are as skewed as exponential ones it holds the truth 88 times of 100.
    """
    return mean(np.asarray(values, float))


def over_seeds(table: pd.DataFrame, by: list[str], names: list[str]) -> pd.DataFrame:
    """A row per group: the mean of each of some columns over its seeds, with intervals, and `n_seeds`.

    Rows of one seed are averaged first: seeds were sampled, and directions or places of what one seed made were not.
    """
    rows = []
    for keys, of in table.groupby(by, sort=False) if by else [((), table)]:
        found = {name: over_units(of.groupby("seed")[name].mean().dropna()) for name in names}
        rows.append(dict(zip(by, keys, strict=True)) | columns(found) | {"n_seeds": of.seed.nunique()})
    return pd.DataFrame(rows, columns=None if rows else [*by, "n_seeds"])


def two_groups(a: ArrayLike, b: ArrayLike) -> Estimate:
    """mean(a) - mean(b) of two groups of layers, with the 95% t interval of a common variance.

    With two layers in one group a variance for each (Welch) holds the truth as often, but is twice as wide. Where the
    smaller group varies three times as much as the larger this interval holds it only 82 times of 100.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    n, value = len(a) + len(b), a.mean() - b.mean()
    if n < 3:
        return Estimate(value, np.nan, np.nan, n, n)
    pooled = (np.square(a - a.mean()).sum() + np.square(b - b.mean()).sum()) / (n - 2)
    half = t.ppf(0.975, n - 2) * np.sqrt(pooled * (1 / len(a) + 1 / len(b)))
    return Estimate(value, value - half, value + half, n, n)
