"""The claims of the study of lists, each with its rule, and what the study's own figures say."""

from collections.abc import Callable

import pandas as pd

from lib.studies.ledger import Rule, Tables, judged
from lib.studies.lists import artefacts, inside, rules

STUDY = "lists"
NEEDED = ("written", "along", "lens", "metric", "patching", "values", "features", "runs", "instead")


def _holds(id: str) -> Callable[[], bool]:
    return lambda: artefacts.DECIDED[id]().holds


RULES = [
    Rule("L1", "short lists have about 5 items, plain ones 10, long ones 30", "5, 10, 30",
         "mean of each, lists that ended, within 20% of these", rules.lengths, ("written",), _holds("L1")),
    Rule("L2", "most items are one token", "most", "share of items of one token above .5", rules.single_tokens, ("written",),
         _holds("L2")),
    Rule("L3", "blanks stand near the end", "the last few items",
         "share of items with a blank, last two less the others, above .2", rules.near_the_end, ("written",), _holds("L3")),
    Rule("L4", "usually only the last item has one", "in most cases",
         "of lists with a blank the share where the last item alone has one, above .5", rules.last_alone, ("written",),
         _holds("L4")),
    Rule("L5", "how many items hardly hangs on the topic", "very similar",
         "share of the variance of items between topics below .25", rules.little_by_topic, ("written",), _holds("L5")),
    Rule("L6", "blanks become more with temperature", "a correlation",
         "Spearman of a topic's share of blanks with temperature, above 0", rules.with_temperature, ("written",), _holds("L6")),
    Rule("L7", "long lists have hardly any blank at the end", "no longer abundant",
         "share of last items with a blank, short less long, above .5", rules.short_not_long, ("written",), _holds("L7")),
    Rule("L8", "the entropy at an item rises along the list", "increases gradually",
         "rank correlation with the item's number within a list, last item left out, above 0", rules.entropy_rises, ("along",)),
    Rule("L9", "asking for the other kind removes the rise, and the last item jumps", "flat, then up to 3.2",
         "that correlation less the one under the other request, above 0; and the last item's jump is larger there",
         rules.swapped, ("along",)),
    Rule("L10", "the end is first told in the last quarter of layers, and more with each item", "layers 20 to 26 of 26",
         "first layer at which the lens has more at the last item than before it; rank correlation with the item above 0",
         rules.late_in_depth, ("lens", "written")),
    Rule("L11", "the end shows at earlier layers than a blank", "items 1 to 5, another contrast",
         "first layer of a blank against a line break, less that of the end, above 0", rules.end_before_blank,
         ("lens", "written")),
    Rule("L12", "one word of the request moves the ending", "2.5 for one list",
         "log-odds of stopping, as asked less under the other request, above 0, at least 100 lists", inside.one_word,
         ("metric",)),
    Rule("L13", "few places carry it: the mode word early, late tokens later", "values at layers 4 to 19 of 26",
         "values: the top 5% of cells have half of all effect; the mode word's share falls with depth, by a tenth",
         inside.few_places,
         ("patching",)),
    Rule("L14", "values carry it, keys and queries hardly", "K and Q hardly",
         "effect of values less the larger of keys' and queries', above 0", inside.values, ("values",)),
    Rule("L15", "some features serve all topics, some few", "two families",
         "features of at least half of the topics, above the 99th percentile of a permutation", inside.families, ("features",),
         _holds("L15")),
    Rule("L16", "late residual features are shared more than attention's", "heatmaps",
         "overlap between topics, last residual site less the middle attention site, above 0", inside.late_and_shared,
         ("features",), _holds("L16")),
    Rule("L17", "without five features lists become longer", ".7 to 22.2 items more",
         "items with the edit less items resampled from the same place, above 1", inside.lengthens, ("runs",)),
    Rule("L18", "without the lowest layer's features a short list becomes a long one", "22.2 items more",
         "items with the edit within 20% of a long list's", inside.becomes_long, ("runs",), _holds("L18")),
    Rule("L19", "five edits eliminate the ending", "full elimination", "share of runs that still end, below .1",
         inside.eliminated, ("runs",), _holds("L19")),
    Rule("L20", "late attention features do little", "att 18 .72, att 22 .99", "Spearman of the effect with the layer, below 0",
         inside.effect_by_depth, ("runs",), _holds("L20")),
    Rule("L21", "steering or restricted sampling would do as well", "own caveat",
         "items with the edit less items steered or less items under a bias, at no higher price: one of them below 1",
         inside.as_well_without, ("runs", "instead")),
]  # fmt: skip


def ledger(tables: Tables) -> pd.DataFrame:
    """One row per claim, of the tables of `NEEDED` that are there."""
    return judged(STUDY, RULES, tables)
