"""The ledger: every published claim, one rule that decides it, and what the rule says of three sets of tables.

A rule looks at tables of experiments 1, 2A and 2B and gives an effect with its interval, whether the claim holds, and
whether these tables could have shown otherwise (`Finding`). It is asked of the published study's own tables, which it
describes and on which it must hold (`published`), of ours as they should be measured, and of ours measured as published.

The rules were first written after figures of experiments 1 to 2B existed, and were not edited until this version, which
`Claim.altered` tells of, rule by rule. They were altered because they failed on the very tables that the claims describe,
took six layers for a bootstrap sample, or took a ceiling for a refutation.

Where a mean is over layers its unit is the layer, with a t interval; where it is over the prompts of a layer, templates are
the unit in our tables, and in the published ones, which have neither intervals nor templates, the 20 prompts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from lib.paths import PUBLISHED
from lib.stats import NOTHING, Estimate, over_units, two_groups

STUDY = "tool"
REPRODUCED, REFUTED, ARTEFACT, UNTESTABLE = "reproduced", "not reproduced", "artefact of measurement", "not testable here"

Tables = Mapping[str, pd.DataFrame]
"""`exp1`, `exp2a` and `exp2b` of one protocol; of ours as they should be measured also `dial`, experiment 2B with all
layers replaced, and `extent`, experiment 2A with the first n layers replaced; of the published `exp1_summary`."""
SUBSETS = ("tool", "copy", "tool_ood")
BASE, FULL, RAW = "no_delta", "full", "raw"


@dataclass(frozen=True)
class Finding:
    """What a rule says of some tables."""

    effect: Estimate
    holds: bool
    unit: str = "layers"
    """What `effect.clusters` counts."""
    testable: bool = True
    """Whether these tables could have shown the claim and its opposite."""
    beside: Estimate = NOTHING
    """The same effect in the log-probability of a call, nats, which has no ceiling."""


@dataclass(frozen=True)
class Claim:
    """What was claimed, the published figure and its table, the rule in words, and the rule."""

    id: str
    name: str
    published: str
    rule: str
    test: Callable[[Tables], Finding]
    altered: str
    """How this version of the rule differs from the first, and why."""
    needs: tuple[str, ...] = field(default=("exp2a",))
    """The tables without which it cannot be asked."""


def published() -> dict[str, pd.DataFrame]:
    """The published study's tables (`data/published/README.md` names its repository)."""
    files = {"exp1_summary": "exp1_combo_summary", "exp1": "exp1_metrics_d128_p0.5",
             "exp2a": "exp2A_metrics_d128_p0.5", "exp2b": "exp2B_metrics_d128_p0.5"}  # fmt: skip
    found = {name: pd.read_csv(PUBLISHED / STUDY / f"{file}.csv") for name, file in files.items()}
    first = ["d_new", "percentile"]
    found["exp1_summary"] = found["exp1_summary"][first + [c for c in found["exp1_summary"] if c not in first]]
    return found


# --- reading tables ---


def surely(e: Estimate, above: float) -> bool:
    """Whether an effect is above a value for certain; where figures came without an interval the effect alone decides."""
    return bool(e.value > above and not e.low <= above)


def rate_of(row: pd.Series, column: str = "tool_call_rate") -> Estimate:
    """A rate with its interval; Wilson's of the prompts where the table has none."""
    n = int(row.n_examples)
    if f"{column}_low" in row:
        return Estimate(row[column], row[f"{column}_low"], row[f"{column}_high"], n, int(row.get("n_clusters", n)))
    low, high = proportion_confint(row[column] * n, n, method="wilson")
    return Estimate(row[column], low, high, n, n)


def minus(a: list[Estimate], b: list[Estimate]) -> Estimate:
    """The mean of some rates minus the mean of others, from the intervals that each has (MOVER, Zou and Donner 2008).

    Rates are taken as independent. Those of several layers are of the same prompts, so that a template which fails at all
    of them alike makes the interval of a mean over layers too narrow.
    """
    middle, low, high = zip(*([np.mean([e.value for e in x]), _half(x, "low"), _half(x, "high")] for x in (a, b)), strict=True)
    value = middle[0] - middle[1]
    n, units = a[0].n, min(e.clusters for e in [*a, *b])
    return Estimate(value, value - np.hypot(low[0], high[1]), value + np.hypot(high[0], low[1]), n, units)


def _half(rates: list[Estimate], end: str) -> float:
    """How far the mean of independent rates may be from their values, towards one end."""
    return np.sqrt(sum((e.value - getattr(e, end)) ** 2 for e in rates)) / len(rates)


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


# --- experiment 1 ---


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


# --- experiment 2A ---


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


# --- experiment 2B ---


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
CLAIMS = [
    Claim(
        "D1", "base + delta is nearer in cosine than base alone", "0.707 against 0.457, mean of 26 layers",
        "mean over layers of the difference, interval above 0", cosine, OVER_LAYERS, ("exp1",),
    ),
    Claim(
        "D2", "base + delta costs far less cross-entropy than base alone", "rise of 0.13 against 12.6 nats, mean of 26 layers",
        "interval of the difference above 0 and at most half the rise, all tokens", cross_entropy, OVER_LAYERS, ("exp1",),
    ),
    Claim(
        "D3", "a larger d_new is better, with diminishing returns", "cosine 0.651, 0.681, 0.707",
        "every step up in cosine above 0, the first step larger than the last", widths,
        OVER_LAYERS + "; the published means, which have no interval, are judged by their values", ("exp1",),
    ),
    Claim(
        "D4", "a higher percentile is worse", "cosine 0.702 at .25, 0.675 at .75",
        "cosine at the lowest minus the highest percentile above 0", percentile,
        OVER_LAYERS + "; the published means, which have no interval, are judged by their values", ("exp1",),
    ),
    Claim(
        "D5", "base alone is harmful on all subsets", "answer CE 4.88 to 18.03, 1.16 to 15.83, 3.03 to 17.82",
        "rise in CE of the answer above 0.1 nats on each subset; the least certain is shown", harmful, OVER_LAYERS,
    ),
    Claim(
        "D6", "base alone makes tool calls collapse at middle and high layers",
        "calls 1.00 to 0.14, mean of the last five of 8 layers",
        "calls lost on tool prompts above 0.5, mean over layers at a third of the depth or more", collapse,
        OVER_LAYERS + "; middle and high layers, as claimed, instead of all",
    ),
    Claim(
        "D7", "base alone at layer 0 makes copy prompts call", "calls 1.00 of copy prompts",
        "rate of calls there above 0.05", first_layer, "interval over templates",
    ),
    Claim(
        "D8", "base + delta restores the tool at low and middle layers", "calls 0.99 at the first five of 8 layers",
        "of the calls that the base alone loses there more than half won back, to a rate of 0.9; where no single layer loses "
        "any, all layers at once: over base alone by more than 0.1, to 0.9", restores,
        "asked where there is something to restore; all layers at once where single ones lose nothing",
    ),
    Claim(
        "D9", "base + delta declines at the last layers", "calls 0.85 at the last three of 8 layers, 0.99 before",
        "calls in the last three eighths of layers lower by more than 0.05, interval above 0; where no single layer loses any "
        "without its delta, the first layers replaced together against all", declines,
        "the last three of eight instead of a third; interval from those of the rates, for the published rates vary little "
        "between layers; nothing is decided where raw and base alone cannot be told apart",
    ),
    Claim(
        "D10", "on OOD base + delta beats base alone and stays below raw", "calls 0.86, between 0.38 and 1.00",
        "calls over base alone above 0, and raw over base + delta above 0, means over layers", ood,
        "interval from those of the rates, over templates: three phrasings of 16 had decided it",
    ),
    Claim(
        "D11", "activations of base and delta grow at the last layers", "largest there",
        "last three eighths over the rest, relative to the mean, above 0 for both; the smaller is shown", activations,
        "t interval of two groups of layers; three of eight instead of a third",
    ),
    Claim(
        "D12", "dose-response on tool prompts, none clear on OOD", "calls 0.30 to 0.85 on tool, 0.40 to 0.65 on OOD",
        "calls at alpha 1 minus alpha 0 above 0.1 on tool and not on OOD; tool is shown; all layers at once where single "
        "layers lose nothing at alpha 0", dose,
        "asked with all layers replaced where single ones show nothing, instead of taking a ceiling for a refutation",
        ("exp2b",),
    ),
    Claim(
        "D13", "copies stay near 0 over alpha", "calls at most 0.05, mean of two layers",
        "mean over layers of calls at most 0.05 at each alpha up to 1, and no layer above it for certain", copies,
        "alpha up to 1, as claimed; the mean decides, for 20 prompts without a call leave up to 0.16", ("exp2b",),
    ),
]  # fmt: skip


BY_ID = {claim.id: claim for claim in CLAIMS}


def usable(corrected: Tables, claim: Claim) -> bool:
    """Whether a model is one of which the claim can be asked: it calls, and its bases describe its MLPs at all."""
    if "exp1" in claim.needs:
        return bool(corrected["exp1"].base_fvu.mean() < 1)
    return bool(corrected["exp2a"].query("subset == 'tool' and condition == 'raw'").tool_call_rate.mean() >= 0.5)


def verdict(corrected: Finding, as_published: Finding) -> str:
    """What the findings under two protocols make of a claim."""
    if not corrected.testable:
        return UNTESTABLE
    if corrected.holds:
        return REPRODUCED
    return ARTEFACT if as_published.holds else REFUTED


def ledger(corrected: Tables, as_published: Tables) -> pd.DataFrame:
    """One row per claim: its rule's effects and findings on ours, measured rightly and as published, whether it holds on the
    published tables, and the verdict.

    A claim whose tables are not there, or of which this model cannot be asked, is *not testable here*.
    """
    rows, theirs = [], published()
    for claim in CLAIMS:
        row = {"study": STUDY, "id": claim.id, "claim": claim.name, "published": claim.published, "rule": claim.rule,
               "holds_on_published_tables": claim.test(theirs).holds}  # fmt: skip
        if any(name not in tables for name in claim.needs for tables in (corrected, as_published)):
            rows.append(row | {"verdict": UNTESTABLE})
            continue
        ours, wrong = claim.test(corrected), claim.test(as_published)
        row |= {"verdict": verdict(ours, wrong) if usable(corrected, claim) else UNTESTABLE}
        for name, found in (("corrected", ours), ("as_published", wrong)):
            row |= found.effect.columns(f"effect_{name}") | {f"holds_{name}": found.holds, f"n_{name}": found.effect.n}
            row |= {f"unit_{name}": found.unit, f"n_units_{name}": found.effect.clusters}
        rows.append(row | ours.beside.columns("call_log_prob"))
    return pd.DataFrame(rows)
