"""Specialists: features that tell one kind of text from all others, against what the best of many features does by chance.

A feature is chosen on some templates and judged on others. It is a *specialist* of a kind where its AUROC there is above the
95th percentile of the largest AUROC of any feature when the kinds of the templates are shuffled: the null has looked at as many
features as one looks at, and at the same number of templates.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from statsmodels.stats.multitest import multipletests

from lib.book import stats
from lib.studies.features.material import Texts

PERMUTATIONS = 1000
RESAMPLES = 400
"""Of templates, within their kinds."""


def aurocs(values: Float[np.ndarray, "text feature"], positive: Bool[np.ndarray, "text label"]) -> np.ndarray:
    """The AUROC of every feature for every labelling, (feature, label); ties count half."""
    ranks = rankdata(values, axis=0).astype(np.float32)
    n = positive.sum(0).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks.T @ positive.astype(np.float32) - n * (n + 1) / 2) / (n * (len(values) - n))


def auroc(values: Float[np.ndarray, " text"], positive: Bool[np.ndarray, " text"], units: np.ndarray) -> stats.Estimate:
    """One feature's AUROC with its 95% interval over templates.

    It is the mean over positives of the share of negatives below them, and the other way round; the variance is the sum of
    those of the two means (DeLong 1988), each over templates. With twelve templates of the kind whose texts go together it
    holds the truth 88 times of 100.
    """
    a, b = values[positive], values[~positive]
    if not len(a) or not len(b):
        return stats.NOTHING
    above = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    of_a, of_b = stats.mean(above.mean(1), units[positive]), stats.mean(above.mean(0), units[~positive])
    half = np.hypot(of_a.high - of_a.value, of_b.high - of_b.value)
    return stats.Estimate(
        of_a.value, of_a.value - half, min(1.0, of_a.value + half), len(values), of_a.clusters + of_b.clusters
    )


def shuffled_kinds(texts: Texts, which: Bool[np.ndarray, " text"], n: int, seed: int) -> dict[str, np.ndarray]:
    """For each kind `n` labellings of the texts `which`, (text, n): the kinds of their templates shuffled."""
    templates, index = np.unique(texts.template[which], return_inverse=True)
    of = np.array([one.split(":")[0] for one in templates])
    draw = np.random.default_rng(seed)
    orders = np.stack([draw.permutation(len(of)) for _ in range(n)], 1)  # (template, n)
    return {kind: (of == kind)[orders][index] for kind in dict.fromkeys(texts.kind)}


def specialists(
    values: Float[np.ndarray, "text feature"], texts: Texts, permutations: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """One row per kind: the feature chosen, its AUROC where it was chosen and, with an interval, where it is judged; the
    `threshold` that chance passes once in twenty; and `passes`. Features that are active in no text are left aside."""
    alive = np.flatnonzero((values > 0).any(0))
    judged, rows = ~texts.chosen_on, []
    if not len(alive):
        raise ValueError("no feature is active in any of the texts; choose other texts or SAEs")
    here, there = values[texts.chosen_on][:, alive], values[judged][:, alive]
    null = shuffled_kinds(texts, judged, permutations, seed)
    for kind in dict.fromkeys(texts.kind):
        chosen_by = aurocs(here, (texts.kind[texts.chosen_on] == kind)[:, None])[:, 0]
        best = int(np.nanargmax(chosen_by))
        e = auroc(there[:, best], texts.kind[judged] == kind, texts.template[judged])
        threshold = float(np.nanquantile(np.nanmax(aurocs(there, null[kind]), 0), 0.95))
        inside = there[texts.kind[judged] == kind, best]
        outside = there[texts.kind[judged] != kind, best]
        spread = np.sqrt((inside.var() + outside.var()) / 2) or 1.0
        rows.append({
            "kind": kind, "feature": int(alive[best]), "auroc_chosen": float(chosen_by[best]), **e.columns("auroc"),
            "threshold": threshold, "passes": bool(e.value > threshold), "d_prime": (inside.mean() - outside.mean()) / spread,
            "n": e.n, "n_templates": e.clusters,
        })  # fmt: skip
    return pd.DataFrame(rows)


def passing_share(
    values: Float[np.ndarray, "text feature"], texts: Texts, permutations: int = 200, seed: int = 0
) -> tuple[int, int]:
    """Of how many living features and kinds the AUROC is larger than by chance (Benjamini and Hochberg at .05): how many
    features pass for one kind or more, and how many are alive.

    On the texts that features are judged on. p of a feature is told by those of all features under shuffled kinds together.
    """
    judged = ~texts.chosen_on
    alive = np.flatnonzero((values > 0).any(0))
    there, p = values[judged][:, alive], []
    null = shuffled_kinds(texts, judged, permutations, seed)
    for kind, labels in null.items():
        by_chance = np.sort(aurocs(there, labels).ravel())
        found = aurocs(there, (texts.kind[judged] == kind)[:, None])[:, 0]
        p.append((1 + len(by_chance) - np.searchsorted(by_chance, found - 1e-7)) / (1 + len(by_chance)))
    passed = multipletests(np.concatenate(p), method="fdr_bh")[0].reshape(len(p), -1)
    return int(passed.any(0).sum()), len(alive)


# --- over templates that might have been drawn ---


def resamples(texts: Texts, which: Bool[np.ndarray, " text"], n: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "n text"]:
    """How often each of the texts `which` counts when templates are drawn again, with replacement, within their kinds."""
    templates, index = np.unique(texts.template[which], return_inverse=True)
    of = np.array([one.split(":")[0] for one in templates])
    draw = np.random.default_rng(seed)
    counts = np.zeros((n, len(templates)), np.float32)
    for kind in dict.fromkeys(of):
        own = np.flatnonzero(of == kind)
        picks = draw.integers(len(own), size=(n, len(own)))
        for k in range(len(own)):
            counts[:, own[k]] = (picks == k).sum(1)
    return counts[:, index]


def resampled_aurocs(
    values: Float[np.ndarray, " text"], positive: Bool[np.ndarray, " text"], weights: Float[np.ndarray, "n text"]
) -> Float[np.ndarray, " n"]:
    """One feature's AUROC in each resample."""
    a, b, wa, wb = values[positive], values[~positive], weights[:, positive], weights[:, ~positive]
    above = ((a[:, None] > b) + 0.5 * (a[:, None] == b)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return ((wa @ above) * wb).sum(1) / (wa.sum(1) * wb.sum(1))


def over_resamples(value: float, drawn: np.ndarray, n: int, units: int) -> stats.Estimate:
    """A figure with the 95% interval of what it is in resamples (percentiles)."""
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return stats.Estimate(value, float(min(low, value)), float(max(high, value)), n, units)


def categories(
    table: pd.DataFrame, values: Float[np.ndarray, "text feature"], texts: Texts, weights: Float[np.ndarray, "n text"]
) -> tuple[int, np.ndarray, Mapping[str, np.ndarray]]:
    """How many kinds have a specialist, in the texts as they are and in each resample; and which, (n,) by kind."""
    judged = ~texts.chosen_on
    passed = {
        row.kind: resampled_aurocs(values[judged, row.feature], texts.kind[judged] == row.kind, weights) > row.threshold
        for row in table.itertuples()
    }
    return int(table.passes.sum()), sum(of.astype(int) for of in passed.values()), passed
