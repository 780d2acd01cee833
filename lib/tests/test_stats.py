import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr
from statsmodels.stats.multitest import multipletests

from lib.book.stats import (
    difference,
    gap_closed,
    holm,
    mean,
    over_units,
    paired_p,
    rate,
    rate_difference,
    ratio,
    spearman,
    two_groups,
)


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


def test_mean_of_a_constant_has_no_width():
    estimate = mean([2.0] * 10)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2, 2, 2, 10)


def test_gap_closed_by_hand():
    base, full, raw = [4.0, 6.0] * 20, [2.0, 3.0] * 20, [1.0, 1.0] * 20
    assert gap_closed(base, full, raw).value == pytest.approx((5 - 2.5) / (5 - 1))
    assert np.isnan(gap_closed(raw, full, raw).value), "where the base loses nothing there is no gap"
    assert np.isnan(gap_closed(raw, full, base).value), "nor where it is better than the raw model"


def test_differences_are_paired():
    a = np.arange(50.0)
    assert (difference(a + 1, a).low, difference(a + 1, a).high) == (1, 1)
    assert paired_p(a + 1, a) < 0.01 and paired_p(a, a) == 1


def test_sign_flips_by_hand():
    """Four differences of one sign: the two extreme of 16 sign patterns, p = 2/16."""
    assert paired_p([1, 2, 3, 4], [0, 0, 0, 0]) == pytest.approx(2 / 16)


def test_the_smallest_p_is_what_the_module_says():
    """Twenty differences of one sign: far rarer than one in 2000 flips, so the smallest p that flips can give."""
    assert paired_p(np.ones(20), np.zeros(20)) == pytest.approx(1 / 2000)


def test_templates_flip_whole():
    """Forty prompts of three templates are three signs: the two extreme of eight patterns."""
    assert paired_p(np.ones(40), np.zeros(40), [0] * 20 + [1] * 15 + [2] * 5) == pytest.approx(2 / 8)


PHRASINGS = np.repeat(range(16), 25)


def test_a_rate_over_phrasings_is_as_wide_as_their_resampling():
    """13 of 16 phrasings at 1, 3 at 0: prompts alone give .77 to .85; whole phrasings resampled .60 to 1."""
    wrote = PHRASINGS < 13
    alone, together = rate(wrote), rate(wrote, PHRASINGS)
    draws = np.random.default_rng(0).choice(np.arange(16) < 13, (4000, 16)).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    assert alone.high - alone.low < 0.08 and (together.n, together.clusters) == (400, 16)
    assert together.low < low and together.high == pytest.approx(high, abs=0.07) and together.value == alone.value


def test_clusters_of_one_are_prompts_and_equal_clusters_change_nothing_much():
    values = np.random.default_rng(0).random(400) < 0.7
    assert rate(values, range(400)) == rate(values)
    mixed = rate(values, np.arange(400) % 40)  # templates that do not matter
    assert mixed.high - mixed.low == pytest.approx(rate(values).high - rate(values).low, rel=0.25)


def test_where_all_agree_each_cluster_counts_once():
    assert rate([True] * 400, PHRASINGS).low == pytest.approx(rate([True] * 16).low)


def test_clustered_means_by_hand():
    """Clusters of means 1, 2, 3, equal in size: the t interval of three values, 2 +- 4.3027 / sqrt(3)."""
    values = [0.5, 1.5, 1, 3, 2.9, 3.1]
    e = mean(values, list("aabbcc"))
    assert (e.value, e.high) == pytest.approx((2, 2 + 4.3027 / 3**0.5), abs=1e-4) and (e.n, e.clusters) == (6, 3)


def test_sign_flips_err_as_often_as_they_say():
    rng = np.random.default_rng(0)
    p = np.array([paired_p(rng.normal(size=30), rng.normal(size=30)) for _ in range(100)])
    assert (p < 0.05).mean() <= 0.12 and 0.3 < p.mean() < 0.7


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    drawn = np.random.default_rng(0).uniform(size=(50, 12)) ** 3
    for p in (*drawn, [], [0.9, 0.8], [0.02, 0.02, np.nan]):
        wanted = multipletests(p, method="holm")[1] if len(p) else []
        assert holm(p) == pytest.approx(wanted, nan_ok=True)


def test_rank_correlations_of_many_rows_are_those_of_scipy():
    draw = np.random.default_rng(0)
    a, b = draw.integers(5, size=(20, 8)), draw.normal(size=(20, 8))  # with ties and without
    b[3] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's, of the row that does not vary
        theirs = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert np.isnan(theirs[3]) and np.allclose(spearman(a, b), theirs, equal_nan=True)
    assert spearman(a, b, still=0)[3] == 0 and np.isnan(spearman([1, np.nan], [1, 2], still=0))
    assert spearman(np.arange(8), b)[5] == pytest.approx(spearmanr(np.arange(8), b[5]).statistic)


def test_spread_over_units_by_hand():
    """n = 4, standard deviation 2: half-width 3.1824 * 2 / 2."""
    estimate = over_units([10 - 3**0.5, 10 + 3**0.5, 10 - 3**0.5, 10 + 3**0.5])
    assert estimate.value == 10 and estimate.high - 10 == pytest.approx(3.1824, abs=1e-4) and estimate.n == 4


def test_two_groups_are_those_of_scipy():
    from scipy.stats import ttest_ind

    a, b = [0.9, 0.8, 1.0, 0.95], [0.5, 0.7]
    e, interval = two_groups(a, b), ttest_ind(a, b).confidence_interval()
    assert (e.low, e.high) == pytest.approx((interval.low, interval.high))
    assert np.isnan(two_groups([1.0], [0.0]).low), "two layers have no interval"


def test_rates_that_agree_may_still_differ():
    """No prompt of 400 in 16 phrasings differs: each side may be as far off as 0 of 16 (Wilson: .194)."""
    e = rate_difference(np.ones(400), np.ones(400), PHRASINGS)
    assert (e.value, e.low, e.high) == pytest.approx((0, -0.1936, 0.1936), abs=1e-4) and (e.n, e.clusters) == (400, 16)
    assert rate_difference(PHRASINGS < 13, PHRASINGS < 0, PHRASINGS).low > 0.4
