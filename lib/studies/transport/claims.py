"""The claims of the study of vehicles, each with its rule, and what the study's own figures say."""

import pandas as pd

from lib.book.paths import PUBLISHED
from lib.studies.ledger import Rule, Tables, judged
from lib.studies.transport import rules
from lib.studies.transport.trials import ACTIVATE, SUPPRESS

STUDY = "transport"
NEEDED = ("saes", "curves", "own", "texts", "moved", "wrote", "guide")


def published(name: str) -> pd.DataFrame:
    """A table of the study's own (`data/published/README.md`)."""
    return pd.read_csv(PUBLISHED / STUDY / f"{name}.csv")


def _fell() -> bool:
    """Whether the squared error and the L1 norm of its curves end below where they begin."""
    rows = published("curves")
    return all(some.value.iloc[-1] < some.value.iloc[0] for _, some in rows.groupby(["version", "weights", "figure"]))


RULES = [
    Rule("T1", "the SAE reconstructs", "ten numbers of one vector, to two decimals",
         "FVU of the published recipe on held-out stories and vehicles below .1, and cross-entropy recovered above .9",
         rules.reconstructs, ("saes",)),
    Rule("T2", "squared error and L1 fall together in training", "L1 249 to 70 a token",
         "Spearman of both with the step below 0 after the first tenth, published recipe", rules.falls_together,
         ("curves",), _fell),
    Rule("T3", "a word has a few features of its own", "counts 36 14 9 6 5 4 for car",
         "share of a vehicle's table in three features above that of other nouns, and for more than half of vehicles the "
         "leading feature leads no other word", rules.own_features, ("own",)),
    Rule("T4", "passing through the SAE alone changes the answer", "from Bus. to It depends",
         "share of greedy answers that change above .05", rules.through, ("texts",)),
    Rule("T5", "activating car makes it answer car", "one question",
         "probability of the car with its table added, less as it was, above .2, and above that with another vehicle's table",
         rules.moves(ACTIVATE, "car"), ("moved",)),
    Rule("T6", "activating bus likewise, at some cost of fluency", "one question",
         "the same for the bus, and its answers are more surprising to the model as it is", rules.bus, ("moved", "texts")),
    Rule("T7", "suppressing car makes it answer the other", "one question",
         "probability of the car as it was, less with its table off, above .2, and above that with another vehicle's table",
         rules.moves(SUPPRESS, "car", -1), ("moved",)),
    Rule("T8", "one feature is enough", "the third version edits one",
         "effect of the largest entry of the table above .8 of the whole table's", rules.one_is_enough, ("moved",)),
    Rule("T9", "activating a word steers what is written", "ten texts, quoted in part",
         "share of texts about other things that hold the vehicle's name, its table added less random features, above 0",
         rules.content, ("wrote",)),
    Rule("T10", "tied weights lose nothing and learn faster", "MSE at epoch 100 .0054 tied, .0025 untied",
         "FVU tied less untied within .01 of 0, and fewer steps to twice the final squared error", rules.tied, ("saes",)),
    Rule("T11", "JumpReLU, Gated, TopK and BatchTopK do better", "planned",
         "FVU at the same L0, each less ReLU, below 0", rules.kinds, ("saes",)),
    Rule("T12", "more text does better", "planned", "FVU falls at each step from the least text to all of it",
         rules.more_text, ("saes",)),
    Rule("T13", "it applies to larger models", "planned", "T1 to T12 on two sizes of one model", rules.kinds, ("sizes",)),
    Rule("T14", "cross-entropy tells more than squared error", "said",
         "|Spearman| over SAEs of cross-entropy added with how far edits move answers, less that of FVU, above 0",
         rules.guide, ("guide",)),
]  # fmt: skip


def ledger(tables: Tables) -> pd.DataFrame:
    """One row per claim, of the tables of `NEEDED` that are there."""
    return judged(STUDY, RULES, tables)
