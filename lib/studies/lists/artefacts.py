"""The claims of the study that its own lists, runs and tables decide, each by the ledger's rule; the others need a model.

A rule is a function of the tables that it is about, the study's own unless others are given, so that it can be tried on
made-up ones. Claims about the dataset are asked of its short lists.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from lib.book.stats import NOTHING, Estimate, difference, mean, over_units, rate, ratio, spearman, two_groups
from lib.studies.ledger import Finding, surely, surely_below
from lib.studies.lists import recount, recount_runs
from lib.studies.lists.recount import Given, lists, published

TOPICS = "topics"
PROMISED = {"short": 5, "plain_selection": 10, "long": 30}
"""Items a list, as published."""
SHORT_SAE = "res_layer_0"
"""The SAE whose features are said to be about the word *short*."""
WITHIN = (0.8, 1.2)
"""A ratio that is within 20% of 1."""
PERMUTATIONS = 2000


def _within(e: Estimate) -> bool:
    return bool(WITHIN[0] <= e.value <= WITHIN[1])


def l1(given: Given = None) -> Finding:
    """Mean items of each template over the published number, lists that ended; the effect is the ratio farthest from 1."""
    found = []
    for template, promised in PROMISED.items():
        some = lists(given, template, ended=True)
        found.append(mean(some["items"] / promised, some.topic))
    told = [e for e in found if e.n]  # a template of which no list ended has no mean, and so is not within 20%
    worst = max(told, key=lambda e: abs(np.log(e.value)), default=NOTHING)
    return Finding(worst, all(_within(e) for e in found), TOPICS)


def l2(given: Given = None) -> Finding:
    """The share of items of one token in the dataset's short lists, above a half for certain."""
    some = lists(given, "short")
    e = ratio(some.single_token_items, some["items"], some.topic)
    return Finding(e, surely(e, 0.5), TOPICS)


def l3(given: Given = None) -> Finding:
    """The share of a list's last two items with a blank, less that of the rest, above .2 for certain."""
    some = lists(given, "short", ended=True).dropna(subset="near")
    e = mean(some.near, some.topic)
    return Finding(e, surely(e, 0.2), TOPICS)


def l4(given: Given = None) -> Finding:
    """Of short lists with a blank, the share in which the last item alone has one, above a half for certain."""
    some = lists(given, "short", ended=True).query("any")
    e = rate(some.alone, some.topic)
    return Finding(e, surely(e, 0.5), TOPICS)


def l5(given: Given = None) -> Finding:
    """The share of the variance of items that is between topics, in short lists, below .25 for certain."""
    e = recount.between_topics(lists(given, "short", ended=True))
    return Finding(e, surely_below(e, 0.25), TOPICS)


def l6(given: Given = None) -> Finding:
    """Spearman of items with a blank with temperature, mean over topics, above 0 for certain."""
    e = over_units(recount.by_temperature(given).spearman)
    return Finding(e, surely(e, 0), TOPICS)


def l7(given: Given = None) -> Finding:
    """The share of lists whose last item has a blank, short less long, lists that ended, above .5 for certain.

    Topics of which a long list ended are compared with themselves.
    """
    short, long = (lists(given, name, ended=True).groupby("topic")["last"].mean() for name in ("short", "long"))
    both = pd.concat([short, long], axis=1, keys=["short", "long"]).dropna()
    e = difference(both.short, both.long)
    return Finding(e, surely(e, 0.5), TOPICS)


def l15(given: Given = None, seed: int = 0) -> Finding:
    """Features that half of the topics or more have among their ten, less the 99th percentile where topics draw their own.

    A permutation gives a topic's counts to other features of the table, drawn evenly.
    """
    table = published("top_features_attn_7") if given is None else given
    has = pd.crosstab(table.topic, table.feature).to_numpy() > 0
    rng, half = np.random.default_rng(seed), len(has) / 2
    drawn = [int((rng.permuted(has, axis=1).sum(0) >= half).sum()) for _ in range(PERMUTATIONS)]
    more = float((has.sum(0) >= half).sum() - np.percentile(drawn, 99))
    e = Estimate(more, np.nan, np.nan, has.shape[1], len(has))
    return Finding(e, more > 0, TOPICS)


def l16(given: Given = None) -> Finding:
    """Jaccard between topics, SAEs of the late residual stream less those of middle attention, above 0 for certain."""
    table = recount_runs.overlap(given)
    late, middle = table[(table.kind == "residual") & table.late], table[(table.kind == "attention") & table.middle]
    e = two_groups(late.jaccard_between_topics, middle.jaccard_between_topics)
    return Finding(e, surely(e, 0), "SAEs")


def _runs(given: Given) -> pd.DataFrame:
    return published("ablation_rows") if given is None else given


def l18(given: Given = None, long: Given = None) -> Finding:
    """Mean items of runs without the features of *short*, over those of long lists, within 20% of 1; topics weigh alike.

    Long lists were mostly cut, so their mean is at least this and the ratio at most. Beside it, the same of means by
    Kaplan-Meier up to the most items of any such run.
    """
    runs, written = _runs(given).query("sae == @SHORT_SAE"), lists(long, "long")
    both = [table.groupby("topic")[name].mean() for table, name in ((runs, "items_ablated"), (written, "items"))]
    both = pd.concat(both, axis=1).dropna()
    e = ratio(both["items_ablated"], both["items"])
    runs = runs.assign(items=runs.items_ablated)
    most = int(runs["items"].max())
    [beside] = recount.jackknife(lambda a, b: recount.still(a, most).sum() / recount.still(b, most).sum(), runs, written)
    return Finding(e, _within(e), TOPICS, beside=beside)


def l19(given: Given = None) -> Finding:
    """The share of runs that still end, of the SAE with the fewest, below .1 for certain."""
    found = [rate(some.ended, some.topic) for _, some in _runs(given).groupby("sae")]
    e = min(found, key=lambda one: one.value)
    return Finding(e, surely_below(e, 0.1), TOPICS)


def _with_depth(runs: pd.DataFrame) -> Estimate:
    """Spearman of the items that an SAE's runs have more with its layer, mean over topics."""
    runs = runs.assign(more=runs.items_ablated - runs.items_base, layer=recount_runs.layer(runs.sae))
    found = runs.groupby(["topic", "sae"])[["more", "layer"]].mean().groupby("topic")
    return over_units([spearman(some.layer, some.more, still=0) for _, some in found])


def l20(given: Given = None) -> Finding:
    """Spearman over SAEs of items more with depth, mean over topics, below 0 for certain; beside it, attention alone."""
    runs = _runs(given)
    e, attention = _with_depth(runs), _with_depth(runs[runs.sae.str.startswith("attn")])
    return Finding(e, surely_below(e, 0), TOPICS, beside=attention)


DECIDED: dict[str, Callable[[], Finding]] = {
    "L1": l1, "L2": l2, "L3": l3, "L4": l4, "L5": l5, "L6": l6, "L7": l7, "L15": l15, "L16": l16, "L18": l18, "L19": l19,
    "L20": l20,
}  # fmt: skip
"""The rules by claim; each says of the study's own tables whether its claim holds on them."""
