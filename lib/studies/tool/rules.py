"""The rules that decide the published claims."""

import numpy as np
import pandas as pd

from lib.book.stats import NOTHING, Estimate, over_units, two_groups
from lib.studies.ledger import Finding, Tables, surely
from lib.studies.tool.findings import BASE, FULL, RAW, SUBSETS, minus, rate_of


def by_layer(tables: Tables, subset: str, condition: str, column: str = "tool_call_rate") -> pd.Series:
    """A column of experiment 2A by layer."""
    return rows_of(tables["exp2a"], subset, condition)[column]


def rows_of(table: pd.DataFrame, subset: str, condition: str) -> pd.DataFrame:
    """The rows of a subset and condition by layer."""
    return table[(table.subset == subset) & (table.condition == condition)].set_index("layer").sort_index()


def depth(layers: pd.Index) -> np.ndarray:
    """Where in the model each layer is: 0 the first of those measured, 1 the last."""
    layers = np.asarray(layers, float)
    return (layers - layers.min()) / max(1, layers.max() - layers.min())


def last_part(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The first layers, and the last three eighths of them (three of eight, as claimed)."""
    last = max(1, round(len(values) * 3 / 8))
    return values.iloc[:-last], values.iloc[-last:]


def middle_of(table: pd.DataFrame) -> float:
    """The middle one of a table's percentiles."""
    percentiles = sorted(table.percentile.unique())
    return percentiles[len(percentiles) // 2]


def widest(tables: Tables) -> pd.DataFrame:
    """Experiment 1 by layer: the widest delta at the middle percentile."""
    rows = tables["exp1"]
    return rows[(rows.d_new == rows.d_new.max()) & (rows.percentile == middle_of(rows))].set_index("layer")


def grid(tables: Tables, columns: str, d_new: int | None = None) -> pd.DataFrame:
    """Cosine of base + delta over `d_new` or percentile: a row for each layer, or one of means where only these are there."""
    rows, index = tables["exp1"].rename(columns={"full_mean_cos": "cos"}), "layer"
    if "exp1_summary" in tables:
        rows, index = tables["exp1_summary"].rename(columns={"mean_cos_full": "cos"}).assign(layer=0), "layer"
    other = "percentile" if columns == "d_new" else "d_new"
    fixed = middle_of(rows) if columns == "d_new" else rows.d_new.max()
    return rows[rows[other] == fixed].pivot(index=index, columns=columns, values="cos")


def log_prob(a: pd.Series | None, b: pd.Series | None) -> Estimate:
    """The mean over layers of a difference in `call_log_prob`, where tables have it."""
    return NOTHING if a is None or b is None else over_units(a - b)


def call_log_prob(tables: Tables, subset: str, condition: str) -> pd.Series | None:
    rows = rows_of(tables["exp2a"], subset, condition)
    return rows.get("call_log_prob")


def cosine(tables: Tables) -> Finding:
    rows = widest(tables)
    e = over_units(rows.full_mean_cos - rows.base_mean_cos)
    return Finding(e, surely(e, 0))


def cross_entropy(tables: Tables) -> Finding:
    rows = widest(tables)
    e = over_units(rows.dce_base - rows.dce_full)
    return Finding(e, surely(e, 0) and rows.dce_full.mean() <= 0.5 * rows.dce_base.mean())


def widths(tables: Tables) -> Finding:
    cos = grid(tables, "d_new")
    steps = cos.diff(axis=1).iloc[:, 1:]
    e = over_units(steps.iloc[:, 0] - steps.iloc[:, -1])
    return Finding(e, all(surely(over_units(steps[d]), 0) for d in steps) and (steps.shape[1] == 1 or surely(e, 0)))


def percentile(tables: Tables) -> Finding:
    cos = grid(tables, "percentile")
    e = over_units(cos[cos.columns.min()] - cos[cos.columns.max()])
    return Finding(e, surely(e, 0))


def harmful(tables: Tables) -> Finding:
    rises = [over_units(by_layer(tables, s, BASE, "mean_ce") - by_layer(tables, s, RAW, "mean_ce")) for s in SUBSETS]
    e = min(rises, key=lambda rise: rise.low)
    return Finding(e, all(surely(rise, 0.1) for rise in rises))


def collapse(tables: Tables) -> Finding:
    lost = by_layer(tables, "tool", RAW) - by_layer(tables, "tool", BASE)
    deep = depth(lost.index) >= 1 / 3
    e = over_units(lost[deep])
    raw, base = (call_log_prob(tables, "tool", c) for c in (RAW, BASE))
    return Finding(e, surely(e, 0.5), beside=log_prob(raw, base))


def first_layer(tables: Tables) -> Finding:
    e = rate_of(rows_of(tables["exp2a"], "copy", BASE).iloc[0])
    return Finding(e, surely(e, 0.05), "templates")


def told_apart(tables: Tables, layers: pd.Index, subset: str = "tool") -> list:
    """Of these layers those at which the base alone calls less than the raw model for certain."""
    raw, base = (rows_of(tables["exp2a"], subset, c) for c in (RAW, BASE))
    return [layer for layer in layers if surely(minus([rate_of(raw.loc[layer])], [rate_of(base.loc[layer])]), 0)]


def won_back(raw: float, base: float, full: float) -> float:
    return (full - base) / (raw - base)


def restores(tables: Tables) -> Finding:
    raw, base, full = (by_layer(tables, "tool", c) for c in (RAW, BASE, FULL))
    places = told_apart(tables, last_part(full)[0].index)
    beside = log_prob(call_log_prob(tables, "tool", FULL), call_log_prob(tables, "tool", BASE))
    if places:
        e = over_units([won_back(raw[i], base[i], full[i]) for i in places])
        return Finding(e, surely(e, 0.5) and full[places].mean() >= 0.9, beside=beside)
    if "extent" not in tables:
        return Finding(over_units(full - base), False, testable=False, beside=beside)
    sets = tables["extent"]
    at = {c: rows_of(sets, "tool", c).iloc[-1] for c in (RAW, BASE, FULL)}  # all layers
    e = minus([rate_of(at[FULL])], [rate_of(at[BASE])])
    return Finding(e, surely(e, 0.1) and at[FULL].tool_call_rate >= 0.9, "templates",
                   surely(minus([rate_of(at[RAW])], [rate_of(at[BASE])]), 0), beside)  # fmt: skip


def declines(tables: Tables) -> Finding:
    rows = rows_of(tables["exp2a"], "tool", FULL)
    first, last = (part.index for part in last_part(rows.tool_call_rate))
    e = minus([rate_of(rows.loc[i]) for i in first], [rate_of(rows.loc[i]) for i in last])
    nats = rows.get("call_log_prob")
    beside = NOTHING if nats is None else two_groups(nats[first], nats[last])
    apart = bool(told_apart(tables, rows.index))
    if not apart and "extent" in tables:  # the first layers together, and then the last ones too
        sets = {c: rows_of(tables["extent"], "tool", c) for c in (RAW, BASE, FULL)}
        e = minus([rate_of(sets[FULL].loc[len(first)])], [rate_of(sets[FULL].iloc[-1])])
        apart = surely(minus([rate_of(sets[RAW].iloc[-1])], [rate_of(sets[BASE].iloc[-1])]), 0)
    return Finding(e, surely(e, 0) and e.value > 0.05, "templates", apart, beside)


def ood(tables: Tables) -> Finding:
    raw, base, full = (
        [rate_of(row) for _, row in rows_of(tables["exp2a"], "tool_ood", c).iterrows()] for c in (RAW, BASE, FULL)
    )
    over, under = minus(full, base), minus(raw, full)
    beside = log_prob(call_log_prob(tables, "tool_ood", FULL), call_log_prob(tables, "tool_ood", BASE))
    layers = rows_of(tables["exp2a"], "tool_ood", FULL).index
    apart = bool(told_apart(tables, layers, "tool_ood"))
    return Finding(under, surely(over, 0) and surely(under, 0), "templates", apart, beside)


def activations(tables: Tables) -> Finding:
    found = []
    for name in ("mean_abs_base_acts", "mean_abs_delta_acts"):
        values = by_layer(tables, "tool", FULL, name)
        rest, last = last_part(values / values.mean())
        found.append(two_groups(last, rest))
    e = min(found, key=lambda estimate: estimate.low)
    return Finding(e, all(surely(one, 0) for one in found))


def doses(table: pd.DataFrame, subset: str, column: str) -> pd.DataFrame | None:
    """A column of experiment 2B by layer and alpha; None where tables lack it."""
    rows = table[table.subset == subset].dropna(subset="alpha").drop_duplicates(["layer", "alpha"])
    return rows.pivot(index="layer", columns="alpha", values=column) if column in rows else None


def rise(table: pd.DataFrame, subset: str, column: str = "tool_call_rate") -> Estimate:
    """Alpha 1 minus alpha 0: over layers, or over templates where all layers are one place."""
    found = doses(table, subset, column)
    if found is None:
        return NOTHING
    if len(found) > 1:
        return over_units(found[1.0] - found[0.0])
    rows = table[table.subset == subset].dropna(subset="alpha").drop_duplicates("alpha").set_index("alpha")
    return minus([rate_of(rows.loc[1.0], column)], [rate_of(rows.loc[0.0], column)])


def dose(tables: Tables) -> Finding:
    layer_wise = doses(tables["exp2b"], "tool", "tool_call_rate")
    raw = tables["exp2b"][(tables["exp2b"].subset == "tool") & (tables["exp2b"].condition == RAW)].tool_call_rate.mean()
    apart = (raw - layer_wise[0.0]).max() > 0.05
    table = tables["exp2b"] if apart or "dial" not in tables else tables["dial"]
    on_tool, on_ood = rise(table, "tool"), rise(table, "tool_ood")
    one_place = table.layer.nunique() == 1
    return Finding(on_tool, surely(on_tool, 0.1) and not surely(on_ood, 0.1), "templates" if one_place else "layers",
                   bool(apart or one_place), rise(table, "tool", "call_log_prob"))  # fmt: skip


def copies(tables: Tables) -> Finding:
    rows = tables["exp2b"].query("subset == 'copy' and alpha <= 1").dropna(subset="alpha")
    calls = doses(rows, "copy", "tool_call_rate")
    means = [over_units(calls[alpha]) for alpha in calls]
    e = max(means, key=lambda mean: mean.value)
    return Finding(e, e.value <= 0.05 and not any(rate_of(row).low > 0.05 for _, row in rows.iterrows()))


OVER_LAYERS = "interval over layers by t, not by resampling six of them"
