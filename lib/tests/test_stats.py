import numpy as np
import pytest

from lib.stats import difference, gap_closed, holm, mean, over_seeds, paired_p, rate, ratio


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


def test_gap_closed_by_hand():
    base, full, raw = [4.0, 6.0] * 20, [2.0, 3.0] * 20, [1.0, 1.0] * 20
    assert gap_closed(base, full, raw).value == pytest.approx((5 - 2.5) / (5 - 1))
    assert np.isnan(gap_closed(raw, full, raw).value), "where the base loses nothing there is no gap"


def test_differences_are_paired():
    a = np.arange(50.0)
    assert (difference(a + 1, a).low, difference(a + 1, a).high) == (1, 1)
    assert paired_p(a + 1, a) < 0.01 and paired_p(a, a) == 1


def test_sign_flips_by_hand():
    """Four differences of one sign: the two extreme of 16 sign patterns, p = 2/16."""
    assert paired_p([1, 2, 3, 4], [0, 0, 0, 0]) == pytest.approx(2 / 16)


def test_sign_flips_err_as_often_as_they_say():
    rng = np.random.default_rng(0)
    p = np.array([paired_p(rng.normal(size=30), rng.normal(size=30)) for _ in range(100)])
    assert (p < 0.05).mean() <= 0.12 and 0.3 < p.mean() < 0.7


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_spread_over_seeds_by_hand():
    """n = 4, standard deviation 2: half-width 3.1824 * 2 / 2."""
    estimate = over_seeds([10 - 3**0.5, 10 + 3**0.5, 10 - 3**0.5, 10 + 3**0.5])
    assert estimate.value == 10 and estimate.high - 10 == pytest.approx(3.1824, abs=1e-4) and estimate.n == 4
