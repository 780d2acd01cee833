"""What changes with depth: how many kinds have a specialist, how many texts the commonest feature covers, how high peaks are.

Each is measured under each way of pooling a text, with an interval over templates: they are drawn again within their kinds, and
everything is told anew of those, with the features and thresholds that were chosen on other templates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.book import stats
from lib.dictionary.dictionaries import Dictionary
from lib.model import activations
from lib.model.activations import Activations
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.features.material import MASKS, POOLINGS, Texts, pooled
from lib.studies.features.specialists import categories, over_resamples, resamples, specialists

LATE = ("social", "conversation")
"""The kinds whose specialists were said to come late; the others early."""
STRONG = 0.9
"""Of the activations of all features of a layer: what is above this quantile counts as strong there."""


@dataclass(frozen=True)
class Drawn:
    """A figure of some layers, as it is and in each resample of templates."""

    value: Float[np.ndarray, " layer"]
    drawn: Float[np.ndarray, "layer n"]


def over_depth(figure: Drawn) -> tuple[float, np.ndarray]:
    """Spearman's correlation of a figure with depth, as it is and in each resample; 0 where the figure does not change."""
    values = np.column_stack([figure.value, figure.drawn]).T
    found = stats.spearman(np.arange(values.shape[1]), values, still=0)
    return float(found[0]), found[1:]


@dataclass(frozen=True)
class Depth:
    """What the layers compared have, under each way of pooling."""

    specialists: pd.DataFrame
    """A row per site, pooling and kind (`specialists.specialists`)."""
    by_layer: pd.DataFrame
    """A row per layer and pooling: `categories` with a specialist, `coverage`, `peak` and `peak_over_norm`, with intervals."""
    trends: pd.DataFrame
    """A row per pooling and figure: `trend`, Spearman's correlation with depth, with its interval; and per pooling `late_first`
    (how many layers later the late kinds have their first specialist) and `leader_changes` (the share of resamples in which the
    kind with the clearest specialist in the last layer leads in no other)."""


def depth(
    sites: Sequence[Site],
    saes: Mapping[Site, Dictionary],
    held: Activations,
    order: Sequence[Site],
    texts: Texts,
    seed: int = 0,
) -> Depth:
    """Of the layers of `sites`; `order` says which sites `held` is of, one after another."""
    judged, everything = ~texts.chosen_on, np.ones(len(texts), dtype=bool)
    on_judged, on_all = resamples(texts, judged, seed=seed), resamples(texts, everything, seed=seed)
    tables, rows, trends = [], [], []
    figures: dict[str, dict[str, list]] = {name: {} for name in POOLINGS}
    passed: dict[str, list[Mapping[str, np.ndarray]]] = {name: [] for name in POOLINGS}
    clear: dict[str, list[np.ndarray]] = {name: [] for name in POOLINGS}
    for site in sites:
        i = list(order).index(site)
        norm = float(held.x[i].norm(dim=-1).mean())
        for name, values in pooled(saes[site], held, i, len(texts)).items():
            table = specialists(values, texts, seed=seed)
            tables.append(table.assign(point=site.name, layer=site.layer, pooling=name))
            n, counts, which = categories(table, values, texts, on_judged)
            passed[name].append(
                {kind: np.append(one, table.set_index("kind").passes.get(kind, False)) for kind, one in which.items()}
            )
            clear[name].append(_clearness(table, values, texts, on_judged))
            positive = values[values > 0]
            strong = values > (np.quantile(positive, STRONG) if len(positive) else np.inf)
            covered, most = strong.mean(0).max(), values.max(1)
            coverage = (on_all @ strong.astype(np.float32) / on_all.sum(1, keepdims=True)).max(1)
            peaks = np.array([most[weights > 0].max() for weights in on_all])
            of_layer = {
                "categories": (n, counts), "coverage": (covered, coverage), "peak": (most.max(), peaks),
                "peak_over_norm": (most.max() / norm, peaks / norm),
            }  # fmt: skip
            row = {"point": site.name, "layer": site.layer, "pooling": name, "norm": norm}
            for figure, (value, drawn) in of_layer.items():
                row |= over_resamples(float(value), drawn, len(texts), len(set(texts.template))).columns(figure)
                figures[name].setdefault(figure, []).append((float(value), drawn))
            rows.append(row)
    units = len(set(texts.template))
    for name in POOLINGS:
        for figure, of_layers in figures[name].items():
            value, drawn = over_depth(Drawn(np.array([v for v, _ in of_layers]), np.stack([d for _, d in of_layers])))
            trends.append(
                {"pooling": name, "figure": figure, **over_resamples(value, drawn, len(texts), units).columns("trend")}
            )
        late = _late_first(passed[name])
        trends.append(
            {"pooling": name, "figure": "late_first", **over_resamples(late[-1], late[:-1], len(texts), units).columns("trend")}
        )
        share = _leader_changes(np.stack(clear[name]))
        trends.append({"pooling": name, "figure": "leader_changes", "trend": share})
    return Depth(
        pd.concat(tables, ignore_index=True), pd.DataFrame(rows), pd.DataFrame(trends).assign(n=len(texts), n_templates=units)
    )


def _clearness(table: pd.DataFrame, values: np.ndarray, texts: Texts, weights: np.ndarray) -> Float[np.ndarray, "kind n"]:
    """How clearly the specialist of each kind tells it: the difference of means over the spread, in each resample; 0 for a kind
    without a row in the table."""
    judged, found = ~texts.chosen_on, {kind: np.zeros(len(weights)) for kind in dict.fromkeys(texts.kind)}
    for row in table.itertuples():
        v, inside = values[judged, row.feature], (texts.kind[judged] == row.kind).astype(np.float32)
        sides = []
        for of in (inside, 1 - inside):
            w = weights * of
            mean = w @ v / w.sum(1)
            sides.append((mean, w @ np.square(v) / w.sum(1) - mean**2))
        (a, va), (b, vb) = sides
        found[row.kind] = (a - b) / np.sqrt(np.maximum((va + vb) / 2, 1e-12))
    return np.stack(list(found.values()))


def _late_first(passed: Sequence[Mapping[str, np.ndarray]]) -> Float[np.ndarray, " n"]:
    """In each resample, and last as it is: the mean number of the layer where the late kinds first have a specialist, less that
    of the others; a kind that never has one counts as coming after the last layer."""
    first = {}
    for kind in passed[0]:
        there = np.stack([one[kind] for one in passed])  # (layer, n)
        first[kind] = np.where(there.any(0), there.argmax(0), len(passed))
    late, early = ([at for kind, at in first.items() if (kind in LATE) == yes] for yes in (True, False))
    return np.mean(late, 0) - np.mean(early, 0)


def _leader_changes(clear: Float[np.ndarray, "layer kind n"]) -> float:
    """The share of resamples in which the kind that leads in the last layer leads in no other; where no feature is active none
    leads."""
    leader = np.where(clear.any(1), clear.argmax(1), -1)  # (layer, n)
    return float(((leader[:-1] != leader[-1]) & (leader[-1] >= 0)).all(0).mean()) if len(leader) > 1 else 0.0


def masks(
    model: LanguageModel, sites: Sequence[Site], saes: Mapping[Site, Dictionary], texts: Texts, size: int, seed: int = 0
) -> pd.DataFrame:
    """How many kinds have a specialist when the mean of a text holds its padding or not, and its first token or not.

    It is encoded after the mean, as the published study did. A row per layer and cell; and with `effect` the main effect of
    each over layers, with its interval over templates.
    """
    pooling, judged = "mean, then encode", ~texts.chosen_on
    weights, cells, rows = resamples(texts, judged, seed=seed), {}, []
    for (padding, first), where in MASKS.items():
        held = activations.collect(model, sites, texts.batches(model, size), f"padding {padding}, first {first}", where=where)
        for i, site in enumerate(sites):
            values = pooled(saes[site], held, i, len(texts))[pooling]
            n, drawn, _ = categories(specialists(values, texts, seed=seed), values, texts, weights)
            cells.setdefault((padding, first), []).append((n, drawn))
            rows.append({"layer": site.layer, "padding": padding, "first": first, "categories": n})
    mean = {cell: (np.mean([n for n, _ in of]), np.mean([d for _, d in of], 0)) for cell, of in cells.items()}

    def main_effect(place: int) -> stats.Estimate:
        sides = [[mean[cell] for cell in mean if cell[place] == side] for side in ("out", "in")]
        (a, da), (b, db) = ((np.mean([v for v, _ in side]), np.mean([d for _, d in side], 0)) for side in sides)
        return over_resamples(float(a - b), da - db, len(texts), len(set(texts.template)))

    found = pd.DataFrame(rows)
    effects = [{"effect": name, **main_effect(place).columns("categories")} for place, name in enumerate(("padding", "first"))]
    return pd.concat([found, pd.DataFrame(effects)], ignore_index=True).assign(
        n=len(texts), n_templates=len(set(texts.template))
    )
