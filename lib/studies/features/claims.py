"""The claims of the study of features, each with a rule over the tables of chapters 12 and 13."""

import numpy as np
import pandas as pd

from lib.book.paths import PUBLISHED
from lib.book.stats import Estimate, mean, over_units, spearman
from lib.studies.features.material import POOLINGS
from lib.studies.ledger import Finding, Rule, Tables, estimate, judged, surely, surely_below

STUDY = "features"
NEEDED = ("hooks", "general", "trends", "masks", "pairs", "words", "forms", "ranking", "sites", "probes", "effects")


def published(name: str) -> pd.DataFrame:
    """A table of the study's own (`data/published/README.md`)."""
    return pd.read_csv(PUBLISHED / STUDY / f"{name}.csv")


# --- rules ---


def sparse(tables: Tables) -> Finding:
    rows = tables["hooks"].set_index("hook")
    right, wrong = (estimate(rows.loc[name], "share_active") for name in ("right hook", "mismatched hook"))
    return Finding(right, surely_below(right, 0.01) and surely(wrong, 0.05), "texts")


def general(tables: Tables) -> Finding:
    e = over_units(tables["general"].in_half_of_kinds)
    return Finding(e, surely(e, 0.5))


def rare(tables: Tables) -> Finding:
    e = over_units(tables["general"].share_passing)
    return Finding(e, surely_below(e, 0.01))


def padding(tables: Tables) -> Finding:
    rows = tables["masks"].dropna(subset="effect").set_index("effect")
    pad, first = (estimate(rows.loc[name], "categories", clusters="n_templates") for name in ("padding", "first"))
    return Finding(pad, surely(pad, 0) and pad.value > first.value, "templates")


def _trend(figure: str, sign: int = 1):
    """The trend with depth under every pooling; the least certain decides."""

    def test(tables: Tables) -> Finding:
        rows = tables["trends"][tables["trends"].figure == figure]
        found = [estimate(row, "trend", clusters="n_templates") for _, row in rows.iterrows()]
        turned = [e if sign > 0 else Estimate(-e.value, -e.high, -e.low, e.n, e.clusters) for e in found]
        e = min(turned, key=lambda one: one.low)
        return Finding(e, len(found) == len(POOLINGS) and all(surely(one, 0) for one in turned), "templates")

    return test


def peaks(tables: Tables) -> Finding:
    both = [_trend(figure)(tables) for figure in ("peak", "peak_over_norm")]
    least = min(both, key=lambda found: found.effect.low)
    return Finding(least.effect, all(found.holds for found in both), "templates")


def leader(tables: Tables) -> Finding:
    shares = tables["trends"][tables["trends"].figure == "leader_changes"].trend
    e = Estimate(float(shares.min()), np.nan, np.nan, len(shares), len(shares))
    return Finding(e, bool(shares.min() >= 0.95), "poolings")


def operators(tables: Tables) -> Finding:
    row = tables["pairs"].set_index("kind").loc["maths"]
    e = estimate(row, "difference", clusters="n_nouns")
    words = tables["words"].auroc.iloc[0]
    return Finding(e, surely(e, 0) and abs(words - 0.5) <= 0.1, "nouns")


def syntax(tables: Tables) -> Finding:
    rows = tables["pairs"].set_index("kind").loc[["python", "conversation"]]
    found = [estimate(row, "difference", clusters="n_nouns") for _, row in rows.iterrows()]
    return Finding(min(found, key=lambda e: e.low), all(surely(e, 0) for e in found), "nouns")


def form(tables: Tables) -> Finding:
    rows = tables["forms"].query("measured == 'variance'")
    e = over_units(rows.form - rows.meaning)
    return Finding(e, surely(e, 0), "specialists", testable=bool((rows.meaning > 1e-9).any()))  # or all are about one topic


def topic(tables: Tables) -> Finding:
    row = tables["forms"].query("measured == 'cosine'").iloc[0]
    e = estimate(row, "difference", clusters="n_templates")
    return Finding(e, surely(e, 0), "templates", testable=not np.isnan(e.value))  # of one topic there is no other


def composite(tables: Tables) -> Finding:
    e = over_units(tables["ranking"].composite - tables["ranking"]["count"])
    return Finding(e, surely(e, 0), "kinds")


def mlp(tables: Tables) -> Finding:
    wide = tables["sites"].pivot_table(index=["kind", "layer"], columns="point", values="auroc")
    if not {"mlp_out", "resid_post"} <= set(wide.columns):
        return Finding(over_units([]), False, testable=False)
    difference = (wide.mlp_out - wide.resid_post).dropna()
    e = mean(difference, list(difference.index.get_level_values("kind")))
    return Finding(e, surely(e, 0), "kinds")


def combined(tables: Tables) -> Finding:
    rows = tables["probes"][tables["probes"].kind.isin(["python", "maths"])]
    difference = rows.probe - rows.single
    e = over_units(difference.groupby(rows.layer).mean())
    room = 1 - rows.single.mean() > 0.05
    return Finding(e, surely(e, 0.05), "layers", testable=bool(room))


def little(tables: Tables) -> Finding:
    rows = tables["effects"][tables["effects"].specialist]
    e = mean(rows.over_random, list(rows.kind))
    return Finding(e, surely(e, 0) and rows.flips.max() < 0.05, "kinds")


def unrelated(tables: Tables) -> Finding:
    rows = tables["effects"]
    e = over_units([spearman(some.auroc, some.ce, still=0) for _, some in rows.groupby("kind") if len(some) > 3])
    return Finding(e, bool(e.low <= 0), "kinds")


# --- what the study itself has left ---


def _measured(words: str) -> pd.DataFrame:
    table = published("layers")
    return table[table.measured.str.contains(words, regex=False)].sort_values("layer")


LEFT = ("mean then encode (phase 3, after)", "encode then mean")


def _risen(column: str, sign: int = 1) -> bool:
    """Whether a figure rises with depth under every way of pooling that the study has left."""
    found = [spearman(rows.layer, sign * rows[column], still=0) for rows in map(_measured, LEFT)]
    return all(value > 0 for value in found)


def _on_operators() -> bool:
    """Whether its maths feature is stronger on operators outside maths texts than on words within them."""
    rows = published("tokens_layer_11_by_sort").query("specialist_for == 'Math'").set_index(["inside", "sort"])["mean"]
    return bool(rows[False, "operator"] > rows[True, "word"])


def _padding_hid() -> bool:
    before, after = (_measured(words).categories_with_a_specialist for words in ("phase 3, before", "phase 3, after"))
    return bool((after.to_numpy() > before.to_numpy()).all())


RULES = [
    Rule("F1", "dense before the SAE, sparse after", "12.6% of 24,576 latents on the wrong hook",
         "share of latents active below 1% on the right hook and above 5% on the mismatched one, for certain",
         sparse, ("hooks",)),
    Rule("F2", "most features are general", "a feature in 69 of 70 texts",
         "share of living features that are active in half of the kinds or more above .5, mean over layers", general,
         ("general",)),
    Rule("F3", "specialists are rare", "1 of 7 categories in the README, 7 of 7 in its notebook",
         "share of living features that pass FDR .05 for any kind below 1%, mean over layers", rare, ("general",)),
    Rule("F4", "padding hid the specialists", "0 1 1 1 categories before, 5 6 7 7 after",
         "main effect of padding in the mean on the number of kinds with a specialist above 0, and larger than the first "
         "token's",
         padding, ("masks",), _padding_hid),
    Rule("F5", "deeper layers have specialists for more kinds", "5 6 7 7, and 7 7 7 7 by another pooling",
         "Spearman of layer with the number of such kinds above 0 under each of four poolings",
         _trend("categories"), ("trends",),
         lambda: _risen("categories_with_a_specialist")),
    Rule("F6", "the commonest feature covers less with depth", "51 46 40 30%, and 99 99 96 87%",
         "trend of its coverage below 0 under each of four poolings", _trend("coverage", -1), ("trends",),
         lambda: _risen("active_in_of_70", -1)),
    Rule("F7", "peaks grow with depth", "12.9 22.6 28.0 37.0",
         "trend of the peak above 0, and of the peak over the size of the activation, under each of four poolings", peaks,
         ("trends",), lambda: _risen("its_activation")),
    Rule("F8", "code, maths and languages come early, social and conversation late", "Social from layer 10",
         "layers until the first specialist, late kinds less early ones, above 0 under each of four poolings",
         _trend("late_first"), ("trends",)),
    Rule("F9", "the leading kind changes at the last layer", "Math, Math, Math, Social",
         "the kind that leads in the last layer leads in no other, in 95% of resamples, under each of four poolings", leader,
         ("trends",)),
    Rule("F10", "the maths specialist detects operators, not topics", "+ 49.4, ^ 34.4, = 25.4",
         "its activation on operators in code less on words about maths above 0, and AUROC for maths texts without signs "
         "within "
         ".1 of .5", operators, ("pairs", "words"), _on_operators),
    Rule("F11", "Python's detects definitions, conversation's the first person", "I'm 21.24, need to finish 20.51",
         "activation with the form less with the meaning alone above 0 in minimal pairs, both", syntax, ("pairs",)),
    Rule("F12", "specialists follow form, not meaning", "Jaccard .13 of top 20 across forms",
         "share of variance by kind above that by topic, mean over specialists", form, ("forms",)),
    Rule("F13", "but the whole code follows topic", "cosine .50 to .61 within topic, .137 across",
         "cosine of codes of the same topic in other forms, less of other topics in the same form, above 0", topic, ("forms",)),
    Rule("F14", "frequency times strength ranks better than presence", "no figure",
         "AUROC of the ten leading features by composite less by count above 0, on other texts, mean over kinds", composite,
         ("ranking",)),
    Rule("F15", "MLP SAEs have stronger specialists", "not measured there",
         "AUROC of specialists at MLP outputs less in the residual stream above 0, same layers", mlp, ("sites",)),
    Rule("F16", "code and maths are carried by combinations", "no figure",
         "AUROC of a discriminant of ten features less of the best single one above .05", combined, ("probes",)),
    Rule("F17", "specialists cause little", "flips at most 4.9%",
         "cross-entropy of their own kind with the specialist off, less with a random direction as long, above 0, and "
         "fewer than "
         "5% of next tokens change", little, ("effects",)),
    Rule("F18", "selectivity does not tell effect", "rho -.55",
         "Spearman over features of AUROC with what ablation costs: its interval over kinds holds 0 or less", unrelated,
         ("effects",)),
]  # fmt: skip


def ledger(tables: Tables) -> pd.DataFrame:
    """One row per claim, of the tables of `NEEDED` that are there."""
    return judged(STUDY, RULES, tables)
