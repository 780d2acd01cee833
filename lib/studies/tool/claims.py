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

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from lib.book.paths import PUBLISHED
from lib.studies.ledger import ARTEFACT, REFUTED, REPRODUCED, UNTESTABLE, Finding, Tables
from lib.studies.tool.findings import STUDY
from lib.studies.tool.rules import (
    OVER_LAYERS,
    activations,
    collapse,
    copies,
    cosine,
    cross_entropy,
    declines,
    dose,
    first_layer,
    harmful,
    ood,
    percentile,
    restores,
    widths,
)


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
