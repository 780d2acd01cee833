"""The ledger: every published claim, a rule that decides it, and what the rule says under two protocols.

The rules were written before the figures. A rule looks at the tables of experiments 1, 2A and 2B of one
protocol and gives the effect with an interval, and whether the claim holds. Where a figure is a mean over
layers its interval resamples layers, and n is their number.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.stats import Estimate, difference

Tables = dict[str, pd.DataFrame]
"""`exp1`, `exp2a` and `exp2b` of one protocol."""
Finding = tuple[Estimate, bool]


@dataclass(frozen=True)
class Claim:
    """What was claimed, the published figure, the rule in words, and the rule."""

    name: str
    published: str
    rule: str
    test: Callable[[Tables], Finding]


def _widest(tables: Tables) -> pd.DataFrame:
    """Experiment 1 by layer: the widest delta at the middle percentile."""
    rows = tables["exp1"]
    percentiles = sorted(rows.percentile.unique())
    return rows[(rows.d_new == rows.d_new.max()) & (rows.percentile == percentiles[len(percentiles) // 2])].set_index("layer")


def _by_layer(tables: Tables, subset: str, condition: str, column: str = "tool_call_rate") -> pd.Series:
    """A column of experiment 2A by layer."""
    rows = tables["exp2a"]
    return rows[(rows.subset == subset) & (rows.condition == condition)].set_index("layer")[column].sort_index()


def _thirds(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The low and middle layers, and the last third."""
    last = max(1, len(values) // 3)
    return values.iloc[:-last], values.iloc[-last:]


def _two_means(a: pd.Series, b: pd.Series, seed: int = 0) -> Estimate:
    """mean(a) - mean(b) of two groups of layers, with a 95% bootstrap interval within the groups."""
    draw = np.random.default_rng(seed)
    resampled = [draw.choice(x.to_numpy(), (1000, len(x))).mean(1) for x in (a, b)]
    low, high = np.percentile(resampled[0] - resampled[1], [2.5, 97.5])
    return Estimate(a.mean() - b.mean(), low, high, len(a) + len(b))


def _cosine(tables: Tables) -> Finding:
    rows = _widest(tables)
    e = difference(rows.full_mean_cos, rows.base_mean_cos)
    return e, e.low > 0


def _cross_entropy(tables: Tables) -> Finding:
    rows = _widest(tables)
    e = difference(rows.dce_base, rows.dce_full)
    return e, e.low > 0 and rows.dce_full.mean() <= 0.5 * rows.dce_base.mean()


def _widths(tables: Tables) -> Finding:
    rows = tables["exp1"]
    percentiles = sorted(rows.percentile.unique())
    middle = rows[rows.percentile == percentiles[len(percentiles) // 2]]
    grid = middle.pivot(index="layer", columns="d_new", values="full_mean_cos")
    steps = [difference(grid[b], grid[a]) for a, b in zip(grid.columns, grid.columns[1:], strict=False)]
    per_layer = grid.diff(axis=1).iloc[:, 1:]
    e = difference(per_layer.iloc[:, 0], per_layer.iloc[:, -1])
    return e, all(step.low > 0 for step in steps) and (len(steps) == 1 or e.low > 0)


def _percentile(tables: Tables) -> Finding:
    rows = tables["exp1"]
    grid = rows[rows.d_new == rows.d_new.max()].pivot(index="layer", columns="percentile", values="full_mean_cos")
    e = difference(grid[grid.columns.max()], grid[grid.columns.min()])
    return e, e.high < 0


def _harmful(tables: Tables) -> Finding:
    rises = [
        difference(_by_layer(tables, subset, "no_delta", "mean_ce"), _by_layer(tables, subset, "raw", "mean_ce"))
        for subset in ("tool", "copy", "tool_ood")
    ]
    e = min(rises, key=lambda rise: rise.low)
    return e, e.low > 0.1


def _collapse(tables: Tables) -> Finding:
    e = difference(_by_layer(tables, "tool", "raw"), _by_layer(tables, "tool", "no_delta"))
    return e, e.low > 0.5


def _layer_0(tables: Tables) -> Finding:
    rows = tables["exp2a"]
    row = rows[(rows.subset == "copy") & (rows.condition == "no_delta")].sort_values("layer").iloc[0]
    e = Estimate(row.tool_call_rate, row.tool_call_rate_low, row.tool_call_rate_high, int(row.n_examples))
    return e, e.low > 0.05


def _restores(tables: Tables) -> Finding:
    full, _ = _thirds(_by_layer(tables, "tool", "full"))
    base, _ = _thirds(_by_layer(tables, "tool", "no_delta"))
    e = difference(full, base)
    return e, e.low > 0.1 and full.mean() >= 0.9


def _declines(tables: Tables) -> Finding:
    e = _two_means(*_thirds(_by_layer(tables, "tool", "full")))
    return e, e.low > 0.05


def _ood(tables: Tables) -> Finding:
    raw, base, full = (_by_layer(tables, "tool_ood", condition) for condition in ("raw", "no_delta", "full"))
    e = difference(full, base)
    return e, e.low > 0 and difference(raw, full).low > 0


def _activations(tables: Tables) -> Finding:
    found = []
    for name in ("mean_abs_base_acts", "mean_abs_delta_acts"):
        values = _by_layer(tables, "tool", "full", name)
        rest, last = _thirds(values / values.mean())
        found.append(_two_means(last, rest))
    e = min(found, key=lambda estimate: estimate.low)
    return e, e.low > 0


def _rise(tables: Tables, subset: str) -> Estimate:
    """Calls at alpha 1 minus calls at alpha 0, over layers."""
    rows = tables["exp2b"]
    grid = rows[rows.subset == subset].dropna(subset="alpha").pivot(index="layer", columns="alpha", values="tool_call_rate")
    return difference(grid[1.0], grid[0.0])


def _dose(tables: Tables) -> Finding:
    e = _rise(tables, "tool")
    return e, e.low > 0.1 and not _rise(tables, "tool_ood").low > 0.1


def _copies(tables: Tables) -> Finding:
    rows = tables["exp2b"]
    row = rows[rows.subset == "copy"].dropna(subset="alpha").sort_values("tool_call_rate").iloc[-1]
    e = Estimate(row.tool_call_rate, row.tool_call_rate_low, row.tool_call_rate_high, int(row.n_examples))
    return e, e.high <= 0.05


CLAIMS = [
    Claim(
        "base + delta is nearer in cosine than base alone", "0.707 against 0.457",
        "mean over layers of the difference, interval above 0", _cosine,
    ),
    Claim(
        "base + delta costs far less cross-entropy than base alone", "rise of 0.13 against 12.6 nats",
        "interval of the difference above 0 and at most half the rise, all tokens", _cross_entropy,
    ),
    Claim(
        "a larger d_new is better, with diminishing returns", "cosine 0.651, 0.681, 0.707",
        "every step up in cosine above 0, the first step larger than the last", _widths,
    ),
    Claim(
        "a higher percentile is worse", "cosine 0.702 at .25, 0.675 at .75",
        "cosine at the highest minus the lowest percentile below 0", _percentile,
    ),
    Claim(
        "base alone is harmful on all subsets", "answer CE 4.88 to 18.03, 1.16 to 15.83, 3.03 to 17.82",
        "rise in CE of the answer above 0.1 nats on each subset; the smallest is shown", _harmful,
    ),
    Claim(
        "base alone makes tool calls collapse", "calls 1.00 to 0.39, mean of 8 layers",
        "calls lost on tool prompts above 0.5, mean over layers", _collapse,
    ),
    Claim(
        "base alone at layer 0 makes copy prompts call", "calls 1.00 of copy prompts",
        "rate of calls there above 0.05", _layer_0,
    ),
    Claim(
        "base + delta restores the tool at low and middle layers", "calls 0.99 at the first five of 8 layers",
        "over base alone by more than 0.1, to a mean of at least 0.9, first two thirds of layers", _restores,
    ),
    Claim(
        "base + delta declines at the last layers", "calls 0.85 at the last three of 8 layers",
        "calls in the last third lower by more than 0.05", _declines,
    ),
    Claim(
        "on OOD base + delta beats base alone and stays below raw", "calls 0.86, between 0.38 and 1.00",
        "calls over base alone above 0, and raw over base + delta above 0", _ood,
    ),
    Claim(
        "activations of base and delta grow at the last layers", "largest there",
        "last third over the rest, relative to the mean, above 0 for both; the smaller is shown", _activations,
    ),
    Claim(
        "dose-response on tool prompts, none clear on OOD", "calls 0.30 to 0.85 on tool, 0.40 to 0.65 on OOD",
        "calls at alpha 1 minus alpha 0 above 0.1 on tool and not on OOD; tool is shown", _dose,
    ),
    Claim(
        "copies stay near 0 over alpha", "calls at most 0.05",
        "the highest rate of calls at any layer and alpha, interval up to 0.05", _copies,
    ),
]  # fmt: skip


def verdict(corrected: bool, published: bool) -> str:
    """What the two protocols' findings make of a claim."""
    if corrected:
        return "reproduced"
    return "artefact of measurement" if published else "not reproduced"


def ledger(corrected: Tables, published: Tables) -> pd.DataFrame:
    """One row per claim: effects and findings under both protocols, and the verdict.

    A claim whose tables are missing is *not testable here*.
    """
    rows = []
    for claim in CLAIMS:
        row = {"claim": claim.name, "published": claim.published, "rule": claim.rule}
        try:
            findings = {name: claim.test(tables) for name, tables in (("corrected", corrected), ("as_published", published))}
        except KeyError:
            rows.append(row | {"verdict": "not testable here"})
            continue
        for name, (effect, holds) in findings.items():
            row |= effect.columns(f"effect_{name}") | {f"n_{name}": effect.n, f"holds_{name}": bool(holds)}
        rows.append(row | {"verdict": verdict(row["holds_corrected"], row["holds_as_published"])})
    return pd.DataFrame(rows)
