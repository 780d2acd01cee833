import numpy as np
import pytest

from lib.stats import mean, rate, ratio


def test_wilson_by_hand():
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662."""
    estimate = rate([True] * 81 + [False] * 182)
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert estimate.value == 81 / 263 and estimate.n == 263


def test_wilson_at_the_ends():
    assert rate([True] * 20).low == pytest.approx(0.8389, abs=1e-4)
    assert rate([True] * 20).high == pytest.approx(1)
    assert np.isnan(rate([]).value)


def test_ratio_is_of_sums_not_of_ratios():
    assert ratio([1, 9], [1, 3]).value == 2.5


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for i in range(200):
        tokens = rng.integers(1, 20, 60)
        estimate = ratio(tokens * rng.normal(3, 1, 60), tokens, seed=i)
        inside += estimate.low <= 3 <= estimate.high
    assert 0.89 <= inside / 200 <= 0.99


def test_mean_of_a_constant_has_no_width():
    estimate = mean([2.0] * 10)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2, 2, 2, 10)
