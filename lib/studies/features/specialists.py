"""Specialists: features that tell one kind of text from all others, against what the best of many features does by chance.

A feature is chosen on some templates and judged on others. It is a *specialist* of a kind where its AUROC there is above the
95th percentile of the largest AUROC of any feature when the kinds of the templates are shuffled: the null has looked at as many
features as one looks at, and at the same number of templates.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from statsmodels.stats.multitest import multipletests

from lib.book import stats
from lib.book.auroc import auroc, aurocs
from lib.studies.features.material import Texts

PERMUTATIONS = 1000
RESAMPLES = 400
"""Of templates, within their kinds."""
COLUMNS = (
    "kind", "feature", "auroc_chosen", "auroc", "auroc_low", "auroc_high", "threshold", "passes", "d_prime", "n", "n_templates",
)  # fmt: skip
"""Of a table of specialists."""


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
    `threshold` that chance passes once in twenty; and `passes`. Features that are active in no text are left aside; where none
    is active in any, there is no row."""
    alive = np.flatnonzero((values > 0).any(0))
    judged, rows = ~texts.chosen_on, []
    if not len(alive):
        return pd.DataFrame(columns=COLUMNS).astype({"feature": int, "passes": bool})
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
    if not len(alive):
        return 0, 0
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
    """How many kinds have a specialist, in the texts as they are and in each resample; and which, (n,) by kind.

    A kind without a row in the table has none.
    """
    judged = ~texts.chosen_on
    passed = {kind: np.zeros(len(weights), dtype=bool) for kind in dict.fromkeys(texts.kind)} | {
        row.kind: resampled_aurocs(values[judged, row.feature], texts.kind[judged] == row.kind, weights) > row.threshold
        for row in table.itertuples()
    }
    return int(table.passes.sum()), sum(of.astype(int) for of in passed.values()), passed
