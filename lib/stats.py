"""Intervals: Wilson for rates, bootstrap over prompts for everything that is a ratio of sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 1000


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
    # multinomial weights are the resampled counts of each prompt: (resample, prompt)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanpercentile((weights @ numerator) / (weights @ denominator), [2.5, 97.5])
    return Estimate(numerator.sum() / denominator.sum(), low, high, n)


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean, with a 95% percentile-bootstrap interval."""
    return ratio(values, np.ones(len(np.asarray(values))), seed)
