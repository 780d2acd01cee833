"""How often each interval of `lib.book.stats` holds the truth, at the sizes it is used with: 95% within the simulation's error.

Truths are known because the values are drawn here: templates first, then prompts of each.
"""

import sys

import numpy as np
import pytest
from scipy.stats import binom

from lib.book import stats

DRAWS = 1500
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Each test draws the same whichever others run."""
    monkeypatch.setattr(sys.modules[__name__], "RNG", np.random.default_rng(0))


def covers(draw, interval, truth: float) -> float:
    """The share of draws whose interval holds the truth."""
    found = [interval(*draw()) for _ in range(DRAWS)]
    return float(np.mean([e.low - 1e-9 <= truth <= e.high + 1e-9 for e in found]))


SHARES = {39: np.repeat([4, 1], [15, 24]) / 84}
"""How often each template is drawn, where not evenly: of tool prompts, phrasings for every operator four times as often."""


def templates(units: int, n: int) -> np.ndarray:
    """The template of each of n prompts, drawn as often as in the prompts: evenly but for those of `SHARES`."""
    return np.sort(RNG.choice(units, n, p=SHARES.get(units)))


def rates_by_template(p: float, icc: float, units: int) -> np.ndarray:
    """Each template's own rate; `icc` of their variance is between templates (1: all or nothing)."""
    if icc in (0, 1):
        return np.full(units, p) if icc == 0 else (RNG.random(units) < p).astype(float)
    return RNG.beta(p * (1 / icc - 1), (1 - p) * (1 / icc - 1), units)


@pytest.mark.parametrize("icc", [0, 0.05, 0.3, 1])
@pytest.mark.parametrize(("units", "n"), [(36, 400), (39, 200), (39, 400), (44, 200), (44, 400)])
@pytest.mark.parametrize("p", [0.5, 0.83])
def test_rates_over_templates(units, n, p, icc):
    def draw():
        of = templates(units, n)
        return RNG.random(n) < rates_by_template(p, icc, units)[of], of

    # wide by up to three in a hundred where templates do not matter or are all or nothing, and the simulation errs by one
    assert 0.925 <= covers(draw, stats.rate, p) <= (0.98 if 0 < icc < 1 else 0.99)


@pytest.mark.parametrize(("p", "n"), [(0.5, 200), (0.83, 200), (0.95, 200), (0.5, 400), (0.83, 400), (0.95, 400)])
def test_rates_over_prompts(p, n):
    """Of so few numbers that no draws are needed: those of every count, as likely as each is."""
    found = [stats.rate(np.arange(n) < k) for k in range(n + 1)]
    held = [e.low <= p <= e.high for e in found]
    assert 0.93 <= binom.pmf(np.arange(n + 1), n, p) @ held <= 0.97


@pytest.mark.parametrize("icc", [0, 0.3, 1])
@pytest.mark.parametrize("lost", [0.02, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("units", [39, 44])
def test_differences_of_calls(units, lost, icc):
    """Nearly all prompts call, and a condition loses some of the calls. The t interval held 2% of all or nothing 55 times
    of 100; this one errs on the wide side."""

    def draw():
        of, called = templates(units, 400), RNG.random(400) < 0.98
        return called, called & (RNG.random(400) >= rates_by_template(lost, icc, units)[of]), of

    assert covers(draw, stats.rate_difference, 0.98 * lost) >= 0.93


@pytest.mark.parametrize("icc", [0, 0.3, 1])
@pytest.mark.parametrize("p", [0.95, 0.99])
def test_rates_near_their_bounds_err_on_the_wide_side(p, icc):
    def draw():
        of = templates(44, 400)
        return RNG.random(400) < rates_by_template(p, icc, 44)[of], of

    assert covers(draw, stats.rate, p) >= 0.92


@pytest.mark.parametrize("icc", [0, 0.3, 1])
def test_few_phrasings(icc):
    """The four that name the tag, and the eight sentences of a kind."""
    for units in (8, 16):

        def draw(units=units):
            of = templates(units, 200)
            return RNG.random(200) < rates_by_template(0.6, icc, units)[of], of

        assert covers(draw, stats.rate, 0.6) >= 0.93


@pytest.mark.parametrize("share", [0, 0.3, 1])
@pytest.mark.parametrize(("units", "n"), [(8, 200), (36, 400), (39, 200), (39, 400), (44, 400)])
def test_means_over_templates(units, n, share):
    def draw():
        of = templates(units, n)
        between, within = RNG.normal(size=units)[of], RNG.normal(size=n)
        return share**0.5 * between + (1 - share) ** 0.5 * within, of

    assert 0.93 <= covers(draw, stats.mean, 0) <= 0.97


@pytest.mark.parametrize("n", [200, 400])
def test_ratios_over_prompts(n):
    """Nats over tokens, skewed as cross-entropies are."""

    def draw():
        tokens = RNG.integers(5, 40, n)
        return tokens * RNG.exponential(size=n), tokens

    assert 0.93 <= covers(draw, stats.ratio, 1) <= 0.97


@pytest.mark.parametrize("share", [0, 0.5])
def test_gaps_closed(share):
    """The base loses 2 nats and the delta wins 1.5 of them back, more or less by template."""

    def draw():
        of = templates(36, 200)
        lost = 2 + share * RNG.normal(size=36)[of] + RNG.normal(size=200)
        return lost, lost - 0.75 * lost + 0.3 * RNG.normal(size=200), np.zeros(200), of

    assert 0.93 <= covers(draw, stats.gap_closed, 0.75) <= 0.97


@pytest.mark.parametrize("n", [5, 6])
def test_layers_and_seeds(n):
    """Six layers, five seeds. The bootstrap of six layers held the truth 86 times of 100."""
    assert 0.93 <= covers(lambda: (RNG.normal(size=n),), stats.over_units, 0) <= 0.97


@pytest.mark.parametrize(("a", "b"), [(4, 2), (5, 3), (3, 3)])
def test_groups_of_layers(a, b):
    """The bootstrap of four layers against two held it 75 times of 100."""
    assert 0.93 <= covers(lambda: (RNG.normal(size=a), RNG.normal(size=b)), stats.two_groups, 0) <= 0.97


def test_sign_flips_of_templates_err_one_time_in_twenty():
    def draw():
        of = templates(36, 200)
        return stats.paired_p(RNG.normal(size=36)[of] + RNG.normal(size=200), np.zeros(200), of)

    wrong = np.mean([draw() < 0.05 for _ in range(300)])
    assert wrong <= 0.085
