"""The study's own lists, counted again without a model: items, blanks and entropies, with intervals over topics.

Lists of one topic resemble one another, so topics are the units of every interval. Every function takes a table of counts,
the study's own (`data/published/README.md`) unless another is given. Ablated runs are counted in `recount_runs`, and
`artefacts` says what both decide.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from statsmodels.duration.survfunc import SurvfuncRight

from lib.book.paths import PUBLISHED
from lib.book.stats import NOTHING, Estimate, columns, mean, over_units, rate, ratio, spearman

STUDY = "lists"
BY = ["template", "temperature"]
DATASET = 0.8
"""The temperature of the lists that the study explored; its sweep over others is a set of its own."""
NEAR = 2
"""How many items at the end count as near it."""
START, GOING_ON, END = "start", "start, the list goes on", "end"

Given = pd.DataFrame | None
"""A table in place of the study's own."""


@functools.cache
def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(PUBLISHED / STUDY / f"{name}.csv")


def published(name: str) -> pd.DataFrame:
    """A table of the study's own."""
    return _read(name).copy()


def lists(given: Given = None, template: str | None = None, ended: bool = False) -> pd.DataFrame:
    """The study's lists, of one template at the temperature of its dataset, or all; of those that ended, or all.

    Added are whether any item has a blank, whether the last has one, whether it alone has, and the share of the last two
    items with a blank less the share of the rest.
    """
    table = published("generations") if given is None else given.copy()
    if template:
        table = table[(table.template == template) & (table.temperature == DATASET)]
    if ended:
        table = table[table.ended == 1]
    where = [{int(i) for i in str(at).split(";")} if pd.notna(at) and at != "" else set() for at in table.blank_items]
    n = table["items"].to_numpy()
    near = np.array([sum(i > k - NEAR for i in at) for at, k in zip(where, n, strict=True)], float)
    blanks = np.array([len(at) for at in where], float)
    rest = np.where(n > NEAR, (blanks - near) / np.maximum(n - NEAR, 1), np.nan)
    last = np.array([k in at for at, k in zip(where, n, strict=True)], bool)
    return table.assign(
        where=where, blanks=blanks, any=blanks > 0, last=last, alone=last & (blanks == 1), near=near / NEAR - rest
    )


def _groups(given: Given, ended: bool = False) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Lists by template and temperature."""
    for keys, some in lists(given, ended=ended).groupby(BY, sort=False):
        yield dict(zip(BY, keys, strict=True)), some


def jackknife(of: Callable[..., np.ndarray | float], *tables: pd.DataFrame) -> list[Estimate]:
    """Figures of tables, each with a t interval from leaving out one topic at a time."""
    topics = sorted(set().union(*(table.topic for table in tables)))
    whole, k, n = np.atleast_1d(of(*tables)), len(topics), sum(map(len, tables))
    without = [np.atleast_1d(of(*(table[table.topic != topic] for table in tables))) for topic in topics]
    around = [over_units(k * value - (k - 1) * np.array(left)) for value, *left in zip(whole, *without, strict=True)]
    halves = [(e.high - e.low) / 2 for e in around]
    return [Estimate(float(v), float(v - half), float(v + half), n, k) for v, half in zip(whole, halves, strict=True)]


# --- how many items ---


def still(table: pd.DataFrame, until: int) -> np.ndarray:
    """Kaplan-Meier: the share of lists with more than 0, 1, ... items, below `until`; a cut list has at least its own."""
    found = SurvfuncRight(table["items"], table.ended)
    return np.r_[1.0, found.surv_prob][np.searchsorted(found.surv_times, np.arange(until), side="right")]


def survival(given: Given = None, template: str = "long") -> pd.DataFrame:
    """The share of a template's lists with more than so many items (Kaplan-Meier), and how many lists were seen so far."""
    some = lists(given, template)
    until = int(some["items"].max()) + 1
    found = jackknife(lambda table: still(table, until), some)
    rows = [{"items": k, **e.columns("still"), "lists": int((some["items"] >= k).sum())} for k, e in enumerate(found)]
    table = pd.DataFrame(rows)
    return table.assign(still_low=table.still_low.clip(0), still_high=table.still_high.clip(upper=1))


def items(given: Given = None) -> pd.DataFrame:
    """Items a list by template and temperature: the mean of lists that ended, and of all by Kaplan-Meier.

    A list that was cut is taken to have at least the items that it has. `all_items` is the mean up to the most items that
    any list has (so it is at least that), `median` the least number that half of lists do not exceed, as read off the curve
    of `survival`; both are missing where no list ended. The limit is one of tokens: lists of long items are cut early, which
    these figures do not mend. `items_where_cut` is the mean of lists that were cut, as they stand.
    """
    rows = []
    for keys, some in _groups(given):
        over, most = some[some.ended == 1], int(some["items"].max())
        done = still(some, most + 1) <= 0.5
        median = float(done.argmax()) if done.any() else np.nan
        [whole] = jackknife(lambda table, most=most: still(table, most).sum(), some) if len(over) else [NOTHING]
        found = {"items": mean(over["items"], over.topic), "all_items": whole}
        cut = some["items"][some.ended == 0].mean()
        of = {"median": median, "items_where_cut": cut, "ended": len(over), "n": len(some)}
        rows.append({**keys, **columns(found), **of, "n_topics": some.topic.nunique()})
    return pd.DataFrame(rows)


def between_topics(some: pd.DataFrame) -> Estimate:
    """The share of variance that lies between topics, as a random effect; the interval is a jackknife's, of log F."""

    def log_f(table: pd.DataFrame) -> np.ndarray:
        topic, found = pd.factorize(table.topic)
        x, n, k = table["items"].to_numpy(float), len(table), len(found)
        means = (np.bincount(topic, x) / np.bincount(topic))[topic]
        between, within = np.square(means - x.mean()).sum(), np.square(x - means).sum()
        return np.log(between * (n - k) / np.float64(within * (k - 1)))

    sizes = some.groupby("topic").size()
    each = (len(some) - np.square(sizes).sum() / len(some)) / np.float64(len(sizes) - 1)  # lists a topic, were they even
    with np.errstate(divide="ignore", invalid="ignore"):  # where lists of a topic agree F is infinite
        [e] = jackknife(log_f, some)
    share = [float(1 - each / (np.exp(f) - 1 + each)) for f in (e.value, e.low, e.high)]
    return Estimate(*share, e.n, e.clusters)


def variance_by_topic(given: Given = None) -> pd.DataFrame:
    """The share of the variance of items, over lists that ended, that is between topics, by template and temperature.

    It is the intraclass correlation of the analysis of variance: what a topic that was not asked would share, with the
    noise of five lists a topic taken off (eta squared would keep it). Lists have five items or ten, so an F interval,
    which takes them for normal, is too narrow; one from leaving out topics, on log F, held the truth 93 to 98 times of
    100 in simulations of such lists.
    """
    rows = [{**keys, **(e := between_topics(some)).columns("share"), "n": e.n, "n_topics": e.clusters}
            for keys, some in _groups(given, True)]  # fmt: skip
    return pd.DataFrame(rows).dropna(subset="share", ignore_index=True)


def single_tokens(given: Given = None) -> pd.DataFrame:
    """The share of items that are one token, by template and temperature, items of all lists."""
    rows = [{**keys, **(e := ratio(some.single_token_items, some["items"], some.topic)).columns("share"),
             "n": int(some["items"].sum()), "n_topics": e.clusters} for keys, some in _groups(given)]  # fmt: skip
    return pd.DataFrame(rows)


# --- blanks ---


def blanks(given: Given = None, until: int = 10) -> pd.DataFrame:
    """The share of items with a blank, by template, temperature and position, counted from the start and from the end.

    From the start it is told once more for those lists alone that go on after the item. From the end only lists that
    ended count: a list that was cut has no end.
    """
    rows = []
    for side, ended, more in ((START, False, 0), (GOING_ON, False, 1), (END, True, 0)):
        for keys, some in _groups(given, ended):
            for k in range(1, until + 1):
                there = some[some["items"] >= k + more]
                places = zip(there["where"], there["items"], strict=True)
                e = rate([(n + 1 - k if side == END else k) in where for where, n in places], there.topic)
                if e.n:
                    at = {"counted_from": side, "position": k}
                    rows.append({**keys, **at, **e.columns("share"), "n": e.n, "n_topics": e.clusters})
    return pd.DataFrame(rows)


def only_last(given: Given = None) -> pd.DataFrame:
    """Where blanks stand, by template and temperature, in lists that ended.

    `last`: the share whose last item has one; `alone`: of lists with a blank, the share in which the last item alone has
    one; `near`: share of a list's last two items with a blank less that of the rest, mean over lists.
    """
    rows = []
    for keys, some in _groups(given, True):
        have, long_enough = some[some["any"]], some.dropna(subset="near")
        found = {"last": rate(some["last"], some.topic), "alone": rate(have.alone, have.topic),
                 "near": mean(long_enough.near, long_enough.topic)}  # fmt: skip
        rows.append({**keys, **columns(found), "with_blank": len(have), "n": len(some), "n_topics": some.topic.nunique()})
    return pd.DataFrame(rows)


def by_temperature(given: Given = None) -> pd.DataFrame:
    """Items with a blank a list, by topic and temperature of the sweep, and the Spearman correlation (0 where all agree)."""
    sweep = lists(given).query("template == 'short_by_temperature'")
    wide = sweep.pivot_table(index="topic", columns="temperature", values="blanks")
    found = spearman(wide.columns, wide, still=0)
    return wide.rename(columns=str).assign(spearman=found).reset_index().rename_axis(columns=None)


# --- entropy ---


def entropies(given: Given = None) -> pd.DataFrame:
    """Entropy in nats by reading of the short lists, counted from the start and from the end, with how many lists have it.

    Every reading but a list's last was taken at the line break before an item, the last one elsewhere: so the last is
    left out from the start, and stands apart, as 1, from the end. `padded` is the mean when lists without the reading
    count as 0, as they do where short lists are filled up with zeros.
    """
    table = published("entropy_short") if given is None else given
    n_lists, rows = len(table[["topic", "sample"]].drop_duplicates()), []
    for side, column, some in ((START, "reading", table[table.from_end > 1]), (END, "from_end", table)):
        for k, at in some.groupby(column):
            e, padded = mean(at.entropy_nats, at.topic), at.entropy_nats.sum() / n_lists
            rows.append({"counted_from": side, "reading": k, **e.columns("entropy"), "padded": padded, "n": e.n,
                         "n_topics": e.clusters})  # fmt: skip
    return pd.DataFrame(rows)
