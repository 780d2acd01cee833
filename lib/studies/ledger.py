"""What every study's ledger is made of: findings, and the verdicts that rules force."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from pandas.io.formats.style import Styler

from lib.book import results
from lib.book.results import Made
from lib.book.stats import NOTHING, Estimate

REPRODUCED, REFUTED, ARTEFACT, UNTESTABLE = "reproduced", "not reproduced", "artefact of measurement", "not testable here"

Tables = Mapping[str, pd.DataFrame]


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
    """The same effect in another measure, which has no ceiling."""


@dataclass(frozen=True)
class Rule:
    """What was claimed, the published figure, the rule in words and as a function of tables."""

    id: str
    claim: str
    published: str
    rule: str
    test: Callable[[Tables], Finding]
    needs: tuple[str, ...]
    """The tables without which it cannot be asked."""
    artefacts: Callable[[], bool] | None = None
    """Whether it holds on what the study itself has left, where that decides."""


def surely(e: Estimate, above: float) -> bool:
    """Whether an effect is above a value for certain; where figures came without an interval the effect alone decides."""
    return bool(e.value > above and not e.low <= above)


def surely_below(e: Estimate, value: float) -> bool:
    """Whether an effect is below a value for certain."""
    return bool(e.value < value and not e.high >= value)


def estimate(row: pd.Series, name: str, n: str = "n", clusters: str | None = None) -> Estimate:
    """A figure of a table with its interval."""
    size = int(row.get(n, 0) or 0)
    low, high = (row.get(f"{name}{end}", float("nan")) for end in ("_low", "_high"))
    return Estimate(float(row[name]), float(low), float(high), size, int(row.get(clusters, size) if clusters else size))


def judged(study: str, rules: list[Rule], tables: Tables) -> pd.DataFrame:
    """One row per claim: its rule's effect and interval, what that is over, whether it holds, and the verdict that follows.

    Also whether it holds on the study's own artefacts, where they decide. A claim whose tables are not there is *not testable
    here*.
    """
    rows = []
    for rule in rules:
        row = {"study": study, "id": rule.id, "claim": rule.claim, "published": rule.published, "rule": rule.rule,
               "holds_on_artefacts": rule.artefacts() if rule.artefacts else None}  # fmt: skip
        if any(name not in tables or not len(tables[name]) for name in rule.needs):
            rows.append(row | {"verdict": UNTESTABLE})
            continue
        found = rule.test(tables)
        row |= found.effect.columns("effect") | {
            "n": found.effect.n, "unit": found.unit, "n_units": found.effect.clusters, "holds": found.holds,
        }  # fmt: skip
        verdict = UNTESTABLE if not found.testable else REPRODUCED if found.holds else REFUTED
        rows.append(row | {"verdict": verdict})
    return pd.DataFrame(rows)


def of_study(
    profile: Made, study: str, needed: Sequence[str], judge: Callable[[Tables], pd.DataFrame], redraw: bool
) -> pd.DataFrame:
    """A study's ledger, `claims_<study>.csv`, of its tables `<study>_<name>.csv`, as far as these are there."""
    files = {name: profile.paths.results / f"{study}_{name}.csv" for name in needed}

    def judged_of_files() -> pd.DataFrame:
        return judge({name: pd.read_csv(file) for name, file in files.items() if file.exists()})

    return results.table(profile, f"claims_{study}.csv", judged_of_files, redraw, reads=list(files.values()))


def shown(ledger: pd.DataFrame) -> Styler:
    """For reading: claim, published figure, effect, what that is over, and verdict; with the study where there are several."""
    named = ["study"] if ledger.study.nunique() > 1 else []
    table = results.with_intervals(ledger, [*named, "id", "claim", "published"], ["effect"])
    table["over"] = (ledger.n_units.map("{:.0f} ".format) + ledger.unit).where(ledger.n_units.notna(), "")
    table["holds on the study's own"] = ledger.holds_on_artefacts.map({True: "yes", False: "no"}).fillna("")
    return results.texts(table.assign(verdict=ledger.verdict))


COMMON = {
    "holds_on_published_tables": "holds_on_artefacts", "effect_corrected": "effect", "effect_corrected_low": "effect_low",
    "effect_corrected_high": "effect_high", "n_corrected": "n", "unit_corrected": "unit", "n_units_corrected": "n_units",
    "holds_corrected": "holds",
}  # fmt: skip
"""What a ledger with two protocols calls the columns that every study's has."""
COLUMNS = [
    "study", "id", "claim", "published", "rule", "holds_on_artefacts", "effect", "effect_low", "effect_high", "n", "unit",
    "n_units", "holds", "verdict",
]  # fmt: skip


def of_all(ledgers: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The ledgers of several studies as one, with the columns that all have."""
    return pd.concat([one.rename(columns=COMMON).reindex(columns=COLUMNS) for one in ledgers], ignore_index=True)


def beside(ledgers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per claim with the verdict on each model, and, where they differ, what would decide between them."""
    every = pd.concat([one[["study", "id", "claim"]] for one in ledgers.values()])
    found = every.drop_duplicates(["study", "id"], ignore_index=True)
    keys = pd.MultiIndex.from_frame(found[["study", "id"]])
    for model, one in ledgers.items():
        found[model] = one.set_index(["study", "id"]).verdict.reindex(keys).to_numpy()
    found["what would decide"] = [_decides(set(row.dropna())) for _, row in found[list(ledgers)].iterrows()]
    return found


def _decides(verdicts: set[str]) -> str:
    if len(verdicts) < 2:
        return ""
    if UNTESTABLE in verdicts:
        return "a setting in which the claim and its opposite can be told apart on every model: more replaced, sparser, harder"
    if ARTEFACT in verdicts:
        return "the published site, scope and format on a third model: here they make the pattern on one model only"
    return "a third model, and for this claim the published one: it is decided on both, so it depends on the model"
