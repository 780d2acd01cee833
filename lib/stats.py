"""Intervals and tests, all over prompts: Wilson for rates, bootstrap for ratios of sums, sign flips for pairs, Holm.

Two conditions are always compared prompt by prompt. Seeds are another matter: `over_seeds`.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import permutation_test, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 1000
FLIPS = 1999  # the smallest p is 1 / 2000


@dataclass(frozen=True)
class Estimate:
    """A number, its 95% interval, and how many prompts (or examples) it is from."""

    value: float
    low: float
    high: float
    n: int

    def columns(self, name: str) -> dict[str, float]:
        """`name`, `name_low` and `name_high`, for a row of a table."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


def columns(found: dict[str, Estimate]) -> dict[str, float]:
    """The columns of several estimates, by name."""
    return {column: value for name, estimate in found.items() for column, value in estimate.columns(name).items()}


NOTHING = Estimate(np.nan, np.nan, np.nan, 0)


def rate(successes: ArrayLike) -> Estimate:
    """The share of true values, with its 95% Wilson interval; nan for no values."""
    successes = np.asarray(successes, dtype=bool)
    if not len(successes):
        return NOTHING
    low, high = proportion_confint(successes.sum(), len(successes), method="wilson")
    return Estimate(successes.mean(), low, high, len(successes))


def ratio(numerator: ArrayLike, denominator: ArrayLike, seed: int = 0) -> Estimate:
    """Sum of numerators over sum of denominators, with a 95% percentile-bootstrap interval.

    Each element is one prompt's share, so prompts are resampled whole and tokens of one prompt stay
    together. Covers means over tokens (denominator: tokens), fractions of variance unexplained
    (denominator: variance) and paired differences (numerator: the difference).
    """
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    n = len(numerator)
    if not n or not denominator.sum():
        return NOTHING
    weights = _resampled(n, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanpercentile((weights @ numerator) / (weights @ denominator), [2.5, 97.5])
    return Estimate(numerator.sum() / denominator.sum(), low, high, n)


@functools.lru_cache(maxsize=8)
def _resampled(n: int, seed: int) -> np.ndarray:
    """How often each of n prompts is drawn in each resample: (resample, prompt)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean, with a 95% percentile-bootstrap interval."""
    return ratio(values, np.ones(len(np.asarray(values))), seed)


def difference(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Estimate:
    """The mean of a - b over paired prompts, with a 95% percentile-bootstrap interval."""
    return mean(np.asarray(a, float) - np.asarray(b, float), seed)


def gap_closed(base: ArrayLike, full: ArrayLike, raw: ArrayLike, seed: int = 0) -> Estimate:
    """(base - full) / (base - raw): how much of what the base loses the delta wins back; 1 is all of it.

    Missing where the base loses nothing for certain (the interval of base - raw holds 0): then there is
    no gap to close.
    """
    base, full, raw = (np.asarray(values, float) for values in (base, full, raw))
    gap = difference(base, raw, seed)
    return NOTHING if not gap.low * gap.high > 0 else ratio(base - full, base - raw, seed)


def paired_p(a: ArrayLike, b: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of no difference between paired values: the signs of the differences flipped at random."""
    d = np.asarray(a, float) - np.asarray(b, float)
    if not d.any():
        return 1.0
    return permutation_test(
        (d,), lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True, n_resamples=FLIPS, batch=500,
        rng=np.random.default_rng(seed),
    ).pvalue  # fmt: skip


def holm(p_values: ArrayLike) -> np.ndarray:
    """p-values adjusted for their being a family (Holm 1979): below 0.05 means a false claim in at most 5% of families."""
    return multipletests(np.asarray(p_values, float), method="holm")[1]


def over_seeds(values: ArrayLike) -> Estimate:
    """The mean over seeds and its 95% t interval; n is the number of seeds."""
    values = np.asarray(values, float)
    n = len(values)
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else np.nan
    return Estimate(values.mean(), values.mean() - half, values.mean() + half, n)
