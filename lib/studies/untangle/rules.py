"""The rules by which the claims about the toy are decided, over the tables of chapters 19 and 20.

The units are seeds.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lib.book.stats import Estimate, over_units, spearman
from lib.studies.ledger import Finding, Tables, surely, surely_below
from lib.studies.untangle import toys
from lib.studies.untangle.ablate import OTHER, TASKS
from lib.studies.untangle.toys import AS_IT_IS

# --- figures by seed ---


def _over_seeds(values: ArrayLike) -> Estimate:
    """The mean and its interval over the seeds that have a value: none has a share of what it has nothing of."""
    return over_units(pd.Series(values, dtype=float).dropna())


def _of(table: pd.DataFrame, toy: str, column: str) -> pd.Series:
    return table[table.toy == toy].set_index("seed")[column]


def _against(tables: Tables, variant: str, column: str) -> pd.Series:
    """A variant less the toy as it is, of the same seed and as many epochs; empty where it was not trained."""
    both = toys.beside(tables["toys"].toy, variant)
    own, other = (_of(tables["toys"], name, column) for name in both) if both else [pd.Series(dtype=float)] * 2
    return other - own


def of_variant(variant: str, columns: tuple[str, ...], holds: Callable[[list[Estimate]], bool], sign: int = 1):
    """A rule about what a variant changes; untestable where it was not trained. The first column is the effect."""

    def test(tables: Tables) -> Finding:
        found = [_over_seeds(sign * _against(tables, variant, column)) for column in columns]
        return Finding(found[0], holds(found), "seeds", testable=found[0].n > 1)

    return test


def _least(found: list[Estimate]) -> Estimate:
    return min(found, key=lambda e: e.low)


def _most(found: list[Estimate]) -> Estimate:
    return max(found, key=lambda e: e.high)


# --- rules ---


def learns(tables: Tables) -> Finding:
    e = _least([_over_seeds(_of(tables["toys"], AS_IT_IS, f"right_{task}")) for task in TASKS])
    return Finding(e, surely(e, 0.95), "seeds")


def best_loss(tables: Tables) -> Finding:
    with_padding, without = (_of(tables["toys"], AS_IT_IS, name) for name in ("best_ce_published", "best_ce"))
    e = _over_seeds(with_padding)
    median = Estimate(float(with_padding.median()), e.low, e.high, e.n, e.clusters)
    return Finding(median, bool(with_padding.median() <= 0.15), "seeds", beside=_over_seeds(without))


def off_by_one(tables: Tables) -> Finding:
    rows = tables["wrong"][tables["wrong"].kind == "one digit"]
    e = _over_seeds(rows.share)
    return Finding(e, surely(e, 0.5), "seeds", testable=e.n > 1)


def sparse(tables: Tables) -> Finding:
    dense = toys.beside(tables["toys"].toy, "lambda 0")
    e = _over_seeds(_of(tables["toys"], AS_IT_IS, "share_active"))
    if not dense:
        return Finding(e, False, "seeds", testable=False)
    none = _over_seeds(_of(tables["toys"], dense[1], "share_active"))
    return Finding(e, surely(none, 0.5) and surely_below(e, 0.01), "seeds", beside=none)


def single_latents(tables: Tables) -> Finding:
    rows = tables["selective"][tables["selective"].toy == AS_IT_IS]
    wide = rows.pivot(index="seed", columns="of", values="selective")
    e = _over_seeds(wide["latents"] - wide["random directions"])
    return Finding(e, surely(e, 0), "seeds")


def _drops(tables: Tables, task: str, where: Callable[[pd.DataFrame], pd.DataFrame]) -> tuple[Estimate, Estimate]:
    """What is lost of a task that is taken out, and of the other, by the sets of latents that `where` picks, one a seed."""
    of = tables["sets"]
    rows = where(of[(of.toy == AS_IT_IS) & (of.method == "latents") & (of.task == task)])
    return _over_seeds(rows[f"lost_{task}"]), _over_seeds(rows[f"lost_{OTHER[task]}"])


def strict(tables: Tables) -> Finding:
    found = [_drops(tables, task, lambda of: of[of.strength == 0]) for task in TASKS]
    holds = all(0.04 <= ablated.value <= 0.12 and surely_below(other, 0.02) for ablated, other in found)
    return Finding(_most([other for _, other in found]), holds, "seeds", beside=found[0][0])


def tolerant(tables: Tables) -> Finding:
    def best(task: str):
        def where(of: pd.DataFrame) -> pd.DataFrame:
            gain = of[f"lost_{task}_select"] - of[f"lost_{OTHER[task]}_select"]
            return of.loc[gain.fillna(0).groupby(of.seed).idxmax()]

        return where

    found = [_drops(tables, task, best(task)) for task in TASKS]
    holds = all(surely(ablated, 0.7) and surely_below(other, 0.15) for ablated, other in found)
    return Finding(_least([ablated for ablated, _ in found]), holds, "seeds", beside=_most([other for _, other in found]))


def dial(tables: Tables) -> Finding:
    of = tables["sets"][(tables["sets"].toy == AS_IT_IS) & (tables["sets"].method == "latents")]
    found = []
    for task in TASKS:
        for lost in (f"lost_{task}", f"lost_{OTHER[task]}"):
            each = [spearman(rows.strength, rows[lost], still=0) for _, rows in of[of.task == task].groupby("seed")]
            found.append(_over_seeds(each))
    e = _least(found)
    return Finding(e, all(one.value > 0.9 for one in found), "seeds")


def joint_better(tables: Tables) -> Finding:
    rows = tables["areas"][tables["areas"].method == "latents"].groupby(["toy", "seed"]).area.mean().unstack("toy")
    if not (both := toys.beside(rows, POST_HOC)):
        return Finding(_over_seeds([]), False, "seeds", testable=False)
    e = _over_seeds(rows[both[0]] - rows[both[1]])
    worse = _over_seeds(-_against(tables, POST_HOC, "ce"))
    return Finding(e, surely(e, 0) and surely(worse, 0), "seeds", beside=worse)


def break_both(tables: Tables) -> Finding:
    rows = tables["selective"][tables["selective"].of == "latents"].pivot(index="seed", columns="toy", values="correlation")
    if not (both := toys.beside(rows, POST_HOC)):
        return Finding(_over_seeds([]), False, "seeds", testable=False)
    e = _over_seeds(rows[both[1]] - rows[both[0]])
    return Finding(e, surely(e, 0), "seeds", testable=e.n > 1)


def favour(tables: Tables) -> Finding:
    rows = tables["selective"].query("of == 'latents'")
    e = _over_seeds(rows[rows.toy == AS_IT_IS].ratio)
    return Finding(e, surely(e, 3), "seeds", testable=e.n > 1)


POST_HOC = "post hoc"
STEADY = "half the decay, twice as long"


def steadier(tables: Tables) -> Finding:
    """Seeds are resampled in both; a resample of one seed alone has no spread and is left out."""
    table = tables["toys"]
    if not (both := toys.beside(table.toy, STEADY)):
        return Finding(_over_seeds([]), False, "seeds", testable=False)
    its, mine = (table[table.toy == name] for name in both)

    def ratios(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float]:
        spread = b.best_ce.std()
        return a.best_ce.std() / spread if spread else np.nan, a.late_sd.mean() / b.late_sd.mean()

    draw, n = np.random.default_rng(0), len(mine)
    drawn = [ratios(*(rows.iloc[draw.integers(n, size=n)] for rows in (mine, its))) for _ in range(999)]
    ends = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    found = [Estimate(float(v), float(low), float(high), n, n) for v, low, high in zip(ratios(mine, its), *ends, strict=True)]
    return Finding(_most(found), all(surely_below(one, 1) for one in found), "seeds")


def rates(tables: Tables) -> Finding:
    found = [_over_seeds(_against(tables, name, "ce")) for name in ("rate x 3", "rate / 3")]
    e = _least(found)
    return Finding(e, all(surely(one, 0) for one in found), "seeds", testable=min(one.n for one in found) > 1)


def no_grokking(tables: Tables) -> Finding:
    """Untestable where training never comes below its bound; where validation never does, the gap has no end."""
    rows = tables["toys"][tables["toys"].toy == AS_IT_IS].dropna(subset="epochs_to_train")
    gap = (rows.epochs_to_validation / rows.epochs_to_train).fillna(np.inf)
    e = _over_seeds(np.log10(gap[np.isfinite(gap)]))
    return Finding(e, bool(len(gap) and (gap < 10).all()), "seeds", testable=len(gap) > 1)


def stands_for(tables: Tables) -> Finding:
    e = _over_seeds(_of(tables["toys"], AS_IT_IS, "ce_through"))
    return Finding(e, surely_below(e, 0.05), "seeds")


def attributions(tables: Tables) -> Finding:
    e = _over_seeds(tables["gradients"].auroc)
    return Finding(e, surely_below(e, 0.6), "seeds")
