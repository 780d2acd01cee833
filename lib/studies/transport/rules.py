"""The rules by which the claims about vehicles are decided, over the tables of chapters 14 and 15."""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from lib.book import stats
from lib.book.stats import NOTHING, Estimate, over_units
from lib.studies.ledger import Finding, Tables, estimate, surely, surely_below
from lib.studies.transport import effects, words
from lib.studies.transport.saes import at_l0
from lib.studies.transport.trials import ACTIVATE, LARGEST, RANDOM, RAW, THROUGH

# --- SAEs, over seeds ---


def reconstructs(tables: Tables) -> Finding:
    rows = tables["saes"][tables["saes"].group == "published recipe"]
    fvu, apart, recovered = (over_units(rows[name]) for name in ("fvu", "fvu_vehicle", "recovered"))
    worst = max(fvu, apart, key=lambda e: e.high)
    return Finding(worst, surely_below(worst, 0.1) and surely(recovered, 0.9), "seeds")


def falls_together(tables: Tables) -> Finding:
    rows = tables["curves"].dropna(subset="penalty")
    rows = rows[rows.step >= rows.step.max() / 10]
    found = [
        over_units([spearmanr(one.step, one[name]).statistic for _, one in rows.groupby("seed")]) for name in ("mse", "l1")
    ]
    least = max(found, key=lambda e: e.high)
    return Finding(least, all(surely_below(e, 0) for e in found), "seeds")


def tied(tables: Tables) -> Finding:
    rows, keys = tables["saes"][tables["saes"].kind == "ReLU"], ["seed"]
    one = rows[rows.group == "tied"].set_index(keys)
    other = rows[(rows.group == "frontier") & rows.l0.isin(one.l0.unique())].set_index(keys)
    loss, steps = (over_units(one[name] - other[name]) for name in ("fvu", "to_twice"))
    same = bool(-0.01 < loss.low and loss.high < 0.01)
    return Finding(loss, same and surely_below(steps, 0), "seeds", testable=loss.n > 1)


def kinds(tables: Tables) -> Finding:
    rows = tables["saes"][tables["saes"].group == "frontier"]
    levels = sorted(rows.l0.unique())
    found = at_l0(rows, levels[len(levels) // 2]).unstack("kind")
    differences = [over_units(found[kind] - found["ReLU"]) for kind in found if kind != "ReLU"]
    least = max(differences, key=lambda e: e.high)
    return Finding(least, all(surely_below(e, 0) for e in differences), "seeds")


def more_text(tables: Tables) -> Finding:
    rows = tables["saes"][tables["saes"].kind == "ReLU"]
    less = rows[rows.group == "less text"]
    full = rows[(rows.group == "frontier") & rows.l0.isin(less.l0.unique())].assign(tokens=np.inf)
    wide = pd.concat([less, full]).pivot_table(index="seed", columns="tokens", values="fvu").sort_index(axis=1)
    steps = [over_units(wide.iloc[:, i] - wide.iloc[:, i + 1]) for i in range(wide.shape[1] - 1)]
    whole = over_units(wide.iloc[:, 0] - wide.iloc[:, -1])
    return Finding(whole, all(surely(e, 0) for e in steps), "seeds")


# --- a word's features ---


def own_features(tables: Tables) -> Finding:
    rows = tables["own"][tables["own"]["where"] == "at"]
    more, alone = words.concentration(rows), stats.rate(rows[rows.vehicle].alone)
    return Finding(more, surely(more, 0) and surely(alone, 0.5), "names")


# --- edits, over pairs ---


def through(tables: Tables) -> Finding:
    rows = tables["texts"]
    raw, changed = (rows[rows.method == name].set_index("question") for name in (RAW, THROUGH))
    differs = (changed.text.fillna("") != raw.text.fillna("").reindex(changed.index)).to_numpy()
    e = stats.rate(differs, changed.pair.to_numpy())
    return Finding(e, surely(e, 0.05), "pairs")


def _moves(tables: Tables, method: str, target: str, sign: int) -> tuple[Estimate, Estimate]:
    """How far an edit of a vehicle's features moves its probability, and how much further than another vehicle's do."""
    rows = tables["moved"].fillna({"target": ""})
    rows = rows[(rows.target == target) & (rows.method == method) & (rows["where"] == "all")]
    if rows.empty:
        return NOTHING, NOTHING
    moved, over = (estimate(rows.iloc[0], name, clusters="n_pairs") for name in ("moved", "over_other"))
    if sign > 0:
        return moved, over
    return tuple(Estimate(-e.value, -e.high, -e.low, e.n, e.clusters) for e in (moved, over))


def moves(method: str, target: str, sign: int = 1):
    """A rule about what an edit of one vehicle's features does; untestable where no such pair was judged."""

    def test(tables: Tables) -> Finding:
        moved, over = _moves(tables, method, target, sign)
        return Finding(moved, surely(moved, 0.2) and surely(over, 0), "pairs", testable=moved.n > 0)

    return test


def bus(tables: Tables) -> Finding:
    found = moves(ACTIVATE, "bus")(tables)
    rows = tables["texts"][(tables["texts"].one == "bus") & tables["texts"].best]
    raw, edited = (rows[rows.method == name].set_index("question") for name in (RAW, ACTIVATE))
    cost = stats.difference(edited.surprise, raw.surprise.reindex(edited.index), edited.pair.to_numpy())
    return replace(found, holds=found.holds and surely(cost, 0))


def one_is_enough(tables: Tables) -> Finding:
    rows = tables["moved"].fillna({"target": ""})
    rows = rows[(rows.target == "") & (rows["where"] == "all")].set_index("method")
    share, whole = estimate(rows.loc[LARGEST], "of_whole", clusters="n_pairs"), estimate(rows.loc[ACTIVATE], "moved")
    return Finding(share, surely(share, 0.8), "pairs", testable=surely(whole, 0))


def content(tables: Tables) -> Finding:
    rows = tables["wrote"]
    number = rows.groupby(["method", "dose"]).cumcount()
    wide = rows.assign(number=number)[rows.method.isin([ACTIVATE, RANDOM])]
    wide = wide.pivot(index=["dose", "number", "vehicle"], columns="method", values="holds").reset_index()
    chosen = wide[wide.number % 2 == 0].groupby("dose")[[ACTIVATE, RANDOM]].mean()
    dose = (chosen[ACTIVATE] - chosen[RANDOM]).idxmax()
    judged = wide[(wide.number % 2 == 1) & (wide.dose == dose)]
    e = stats.rate_difference(judged[ACTIVATE].astype(bool), judged[RANDOM].astype(bool), judged.vehicle.to_numpy())
    return Finding(e, surely(e, 0), "vehicles")


def guide(tables: Tables) -> Finding:
    e = effects.better_guide(tables["guide"])
    return Finding(e, surely(e, 0), "SAEs")
