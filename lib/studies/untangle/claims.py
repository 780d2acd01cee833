"""The claims of the study of two tasks in a toy, each with its rule, and what the study's own figures say."""

import pandas as pd

from lib.book.paths import PUBLISHED
from lib.studies.ledger import Rule, Tables, judged, surely
from lib.studies.untangle import rules

STUDY = "untangle"
NEEDED = ("toys", "wrong", "selective", "sets", "areas", "gradients")


def published(name: str) -> pd.DataFrame:
    """A table of the study's own (`data/published/README.md`)."""
    return pd.read_csv(PUBLISHED / STUDY / f"{name}.csv")


# --- what the study itself has left ---


def _latents_named() -> bool:
    """Of the latents in both of its lists of five, whether the two losses differ threefold: 833 is .855 and .668."""
    wide = published("top_latents").pivot(index="latent", columns="task", values="loss").dropna()
    return bool((wide.max(axis=1) / wide.min(axis=1) > 3).all())


def _ablation(rule: str, ablated: tuple[float, float], other: float) -> bool:
    """Whether what one of its ablations of joining loses lies between two shares, and what sums lose is below another."""
    row = published("ablations").set_index("rule").loc[rule]
    return bool(ablated[0] <= 1 - row.join_right <= ablated[1] and 1 - row.sum_right < other)


def _dialled() -> bool:
    rows = published("ablations")
    return bool(rows.join_right.is_monotonic_decreasing and rows.sum_right.is_monotonic_decreasing)


def _epochs() -> bool:
    """Of its log: whether validation loss comes below .2 within ten times the epochs that training loss takes to .05."""
    log = published("training_log")
    train, validation = (log.epoch[log[name] < bound].min() for name, bound in (("train", 0.05), ("validation", 0.2)))
    return bool(validation / train < 10)


RULES = [
    Rule(
        "U1",
        "it learns both tasks",
        "98.1% of 1,000",
        "share right on pairs held out above .95, for each task",
        rules.learns,
        ("toys",),
    ),
    Rule(
        "U2",
        "the best validation loss is about .1",
        ".058 in the log, about .1 in the text",
        "median over seeds of the best validation cross-entropy, padding counted as published, at most .15",
        rules.best_loss,
        ("toys",),
        lambda: bool(published("training_log").best.min() <= 0.15),
    ),
    Rule(
        "U3",
        "wrong answers are off by one digit",
        "a picture",
        "of wrong answers the share with one wrong digit above .5",
        rules.off_by_one,
        ("wrong",),
    ),
    Rule(
        "U4",
        "tokens of numbers beat characters",
        "about .1 against 1 to 3",
        "cross-entropy a character, characters less numbers, above 0",
        rules.of_variant("characters", ("ce_per_character",), lambda found: surely(found[0], 0)),
        ("toys",),
    ),
    Rule(
        "U5",
        "a decoder alone is not enough",
        "no figure",
        "share right, encoder and decoder less a decoder alone, above 0 for each task",
        rules.of_variant("decoder alone", ("right_sum", "right_join"), lambda found: all(surely(e, 0) for e in found), -1),
        ("toys",),
    ),
    Rule(
        "U6",
        "the penalty makes the code sparse",
        "97% of latents active without, .1% with",
        "share active above .5 at lambda 0, and below .01 as published",
        rules.sparse,
        ("toys",),
    ),
    Rule(
        "U7",
        "single latents matter to one task",
        "a table of five latents a task",
        "share of latents that cost one task .01 nats and the other less than .001, above that of random directions",
        rules.single_latents,
        ("selective",),
    ),
    Rule(
        "U8",
        "the strict rule takes some of one task and nothing of the other",
        "4 to 12% lost, 0 of the other",
        "on test pairs .04 to .12 lost of the task taken out and less than .02 of the other, both ways",
        rules.strict,
        ("sets",),
        lambda: _ablation("strict", (0.04, 0.12), 0.02),
    ),
    Rule(
        "U9",
        "with tolerance most of one task goes for little of the other",
        "70 to 90% lost for 5 to 15%",
        "at the best tolerance on selection pairs, on test pairs above .7 lost of one and below .15 of the other, both ways",
        rules.tolerant,
        ("sets",),
        lambda: _ablation("tolerance 0.2", (0.7, 1.0), 0.15),
    ),
    Rule(
        "U10",
        "tolerance dials the trade",
        "strict, .1, .2: .88 .59 .30 and 1.00 .97 .94",
        "Spearman of tolerance with what is lost above .9, of both tasks and both ways",
        rules.dial,
        ("sets",),
        _dialled,
    ),
    Rule(
        "U11",
        "an SAE learnt with the model is better for it than one learnt afterwards",
        "no figure",
        "area under kept against lost, joint less post hoc, above 0, and post hoc has the lower cross-entropy",
        rules.joint_better,
        ("areas", "toys"),
    ),
    Rule(
        "U12",
        "latents learnt afterwards break both tasks",
        "no figure",
        "correlation over latents of what the two tasks lose, post hoc less joint, above 0",
        rules.break_both,
        ("selective",),
    ),
    Rule(
        "U13",
        "latents that both tasks need favour one",
        "833: .855 and .668",
        "median ratio of the two losses above 3",
        rules.favour,
        ("selective",),
        _latents_named,
    ),
    Rule(
        "U14",
        "half the weight decay and twice the epochs are steadier",
        "no figure",
        "ratio of spreads below 1: over seeds of the best validation loss, and over the later epochs",
        rules.steadier,
        ("toys",),
    ),
    Rule(
        "U15",
        "a higher or a lower learning rate is worse",
        "no figure",
        "cross-entropy at three times and a third of it above its own",
        rules.rates,
        ("toys",),
    ),
    Rule(
        "U16",
        "it does not grok",
        "validation falls with training in the log",
        "validation loss below .2 within ten times the epochs that training loss takes to .05, in every seed; log10",
        rules.no_grokking,
        ("toys",),
        _epochs,
    ),
    Rule(
        "U17",
        "the SAE stands for the hidden state",
        "no figure",
        "rise of cross-entropy through the SAE below .05 nats",
        rules.stands_for,
        ("toys",),
    ),
    Rule(
        "U18",
        "attributions tell no consistent difference of tasks",
        "no figure",
        "AUROC of the task from integrated gradients of the best neuron, on other examples, below .6",
        rules.attributions,
        ("gradients",),
    ),
]


def ledger(tables: Tables) -> pd.DataFrame:
    """One row per claim, of the tables of `NEEDED` that are there."""
    return judged(STUDY, RULES, tables)
