"""The rules by which the claims about places, features and edits are decided, over the tables of chapters 17 and 18."""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from lib.book import stats
from lib.book.stats import Estimate
from lib.measure.patching import NOISING, WHOLE
from lib.studies.ledger import Finding, Tables, surely, surely_below
from lib.studies.lists import features
from lib.studies.lists.patch import by_depth
from lib.studies.lists.rules import WITHIN, mean_over_topics, ranked
from lib.studies.lists.runs import AT, RESAMPLED

MANY = 100
"""Pairs without which the effect of a word is not told."""
FEW = 0.05
"""The share of cells that is meant by a few."""
FALL = 0.1
"""How far a share has to fall, from the first layer with any effect to the last, for more than noise."""


# --- places, over topics ---


def one_word(tables: Tables) -> Finding:
    rows = tables["metric"]
    e = stats.difference(rows.clean, rows.corrupt, rows.unit)
    return Finding(e, surely(e, 0) and len(rows) >= MANY, "topics", testable=len(rows) >= MANY)


def few_places(tables: Tables) -> Finding:
    cells = tables["patching"]
    cells = cells[(cells.part == "v") & (cells["head"] == WHOLE) & (cells.direction == NOISING)]
    share, at_word = concentration(cells), by_depth(cells).set_index("layer").share
    falls = len(at_word) > 1 and spearmanr(at_word.index, at_word).statistic < 0 and at_word.iloc[0] - at_word.iloc[-1] > FALL
    return Finding(share, bool(share.value > 0.5 and falls), "cells", testable=len(cells) > 0)


def concentration(cells: pd.DataFrame) -> Estimate:
    """The share of all absolute effect that the largest twentieth of cells (layer, role) have; n cells."""
    sizes = np.sort(cells.effect.abs().to_numpy())[::-1]
    few = max(1, round(FEW * len(sizes)))
    return Estimate(float(sizes[:few].sum() / sizes.sum()), np.nan, np.nan, len(sizes), few) if len(sizes) else stats.NOTHING


def values(tables: Tables) -> Finding:
    rows = tables["values"]
    e = stats.difference(rows.v, rows[["q", "k"]].max(axis=1), rows.unit)
    return Finding(e, surely(e, 0), "topics")


# --- features, over topics ---


def families(tables: Tables) -> Finding:
    e, beyond = shared_by_half(tables["features"])
    return Finding(e, e.value > beyond, "sites and features", testable=e.n > 0)


def shared_by_half(sets: pd.DataFrame, draws: int = 200, seed: int = 0) -> tuple[Estimate, float]:
    """How many features are among the strongest of at least half of the topics, and the 99th percentile where each topic's are
    drawn from all that any topic has, as many as it has at each site."""
    keys, draw = ["point", "layer"], np.random.default_rng(seed)
    half = sets.topic.nunique() / 2
    pools = {key: (of.feature.unique(), of.groupby("topic").size().to_numpy()) for key, of in sets.groupby(keys)}

    def count(of: list[np.ndarray]) -> int:
        return int((pd.Series(np.concatenate(of)).value_counts() >= half).sum())

    value = sum(count([of.feature.to_numpy()]) for _, of in sets.groupby(keys))
    by_chance = [
        sum(count([draw.choice(pool, n, replace=False) for n in sizes]) for pool, sizes in pools.values()) for _ in range(draws)
    ]
    return Estimate(value, np.nan, np.nan, len(sets), sets.topic.nunique()), float(np.quantile(by_chance, 0.99))


def late_and_shared(tables: Tables) -> Finding:
    of = features.jaccard(tables["features"])
    layers = {point: sorted(some.layer.unique()) for point, some in of.groupby("point")}
    if not {"resid_post", "attn_out"} <= set(layers):
        return Finding(stats.NOTHING, False, "topics", testable=False)
    attn = layers["attn_out"]
    ends = {"resid_post": layers["resid_post"][-1], "attn_out": attn[len(attn) // 2]}
    late, middle = (shared_by_topic(of[(of.point == point) & (of.layer == layer)]) for point, layer in ends.items())
    e = mean_over_topics(late - middle)
    return Finding(e, surely(e, 0), "topics")


def shared_by_topic(of: pd.DataFrame) -> pd.Series:
    """Each topic's mean overlap with the others, of one site."""
    both = pd.concat([of[["topic", "jaccard"]], of[["other", "jaccard"]].rename(columns={"other": "topic"})])
    return both.groupby("topic").jaccard.mean()


# --- edits, over topics ---


def means(rows: pd.DataFrame, value: str = "items") -> pd.Series:
    """The mean of each topic."""
    return rows.astype({value: float}).groupby("topic")[value].mean()


def best_site(tables: Tables, edit: str = AT) -> tuple[tuple[str, int] | None, pd.DataFrame, pd.DataFrame]:
    """The site whose edit lengthens short lists the most on the first half of the samples; the runs of the others under it, and
    without an edit."""
    rows = tables["runs"]
    rows = rows[rows["mode"] == "short"]
    plain, some = rows[rows.edit == RESAMPLED], rows[rows.edit == edit]
    if some.empty:
        return None, some, plain
    first = some[some["sample"] % 2 == 0].groupby(["point", "layer"])["items"].mean()
    point, layer = first.idxmax()
    return (point, layer), some[(some.point == point) & (some.layer == layer) & (some["sample"] % 2 == 1)], plain


def lengthens(tables: Tables) -> Finding:
    site, edited, plain = best_site(tables)
    e = mean_over_topics(means(edited) - means(plain))
    return Finding(e, surely(e, 1), "topics", testable=site is not None)


def becomes_long(tables: Tables) -> Finding:
    rows = tables["runs"]
    long = rows[(rows["mode"] == "long") & (rows.edit == RESAMPLED)]
    some = rows[(rows.edit == AT) & (rows.point == "resid_post") & (rows["mode"] == "short")]
    some = some[some.layer == some.layer.min()]
    e = mean_over_topics(means(some) / means(long))
    return Finding(e, abs(e.value - 1) <= WITHIN, "topics", testable=e.n > 0)


def eliminated(tables: Tables) -> Finding:
    site, edited, _ = best_site(tables)
    e = stats.rate(edited.ended, edited.topic)
    none = stats.rate(edited.ended & False, edited.topic)  # with few topics not even this is below for certain
    return Finding(e, surely_below(e, 0.1), "topics", testable=site is not None and (surely_below(none, 0.1) or e.low > 0.1))


def effect_by_depth(tables: Tables) -> Finding:
    rows = tables["runs"]
    some = rows[(rows.edit == AT) & (rows.point == "attn_out")]
    by = some.groupby(["topic", "layer"])["items"].mean().unstack("layer")
    if by.shape[1] < 3:
        return Finding(stats.NOTHING, False, "topics", testable=False)
    e = mean_over_topics(ranked(by))
    return Finding(e, surely_below(e, 0), "topics")


def as_well_without(tables: Tables) -> Finding:
    _, edited, _ = best_site(tables)
    others = tables["instead"]
    found = [mean_over_topics(means(edited) - means(of)) for _, of in others.groupby("edit")]
    best = min(found, key=lambda e: e.high)
    return Finding(best, surely_below(best, 1), "topics", testable=best.n > 0)
