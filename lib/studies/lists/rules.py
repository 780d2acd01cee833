"""The rules by which claims about lists, and about what a model says along them, are decided: over tables of chapter 16."""

import pandas as pd

from lib.book import stats
from lib.book.stats import Estimate
from lib.studies.ledger import Finding, Tables, surely, surely_below
from lib.studies.lists import readings, recount

ITEMS = {"short": 5, "plain": 10, "long": 30}
"""As published."""
WITHIN = 0.2


def mean_over_topics(values: pd.Series) -> Estimate:
    """The mean of a value for each topic."""
    return stats.over_units(values.dropna().to_numpy())


def ranked(by: pd.DataFrame) -> pd.Series:
    """For each row its rank correlation with the columns' names; 0 where all values are one."""
    return pd.Series(stats.spearman(by.columns, by, still=0), by.index)


# --- lists, over topics ---


def at_main(tables: Tables, mode: str | None = None, ended: bool = True) -> pd.DataFrame:
    """Lists at the temperature at which all modes were sampled."""
    rows = tables["written"]
    rows = rows[rows.temperature.isin(rows[rows["mode"] != "short"].temperature.unique())]
    rows = rows[(rows["mode"] == mode) | (mode is None)]
    return rows[rows.ended] if ended else rows


def blank_at(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per item: `topic`, `list`, `from_end` (1 is the last) and whether it ends in a `blank`."""
    found = []
    for row in rows.itertuples():
        blanks = {int(i) for i in str(row.blanks).split(";") if i not in ("", "nan")}
        found += [(row.topic, row.Index, row.items - i + 1, i in blanks) for i in range(1, int(row.items) + 1)]
    return pd.DataFrame(found, columns=["topic", "list", "from_end", "blank"])


def lengths(tables: Tables) -> Finding:
    found = {}
    for mode, n in ITEMS.items():
        rows = at_main(tables, mode)
        e = stats.mean(rows["items"] / n, rows.topic)
        found[mode] = e
    worst = max(found.values(), key=lambda e: abs(e.value - 1))
    return Finding(worst, all(abs(e.value - 1) <= WITHIN for e in found.values()), "topics")


def single_tokens(tables: Tables) -> Finding:
    rows = at_main(tables, ended=False)
    e = stats.ratio(rows.single, rows["items"], rows.topic)
    return Finding(e, surely(e, 0.5), "topics")


def near_the_end(tables: Tables) -> Finding:
    rows = blank_at(at_main(tables, "short"))
    e = _shares(rows, rows.from_end <= 2)
    return Finding(e, surely(e, 0.2), "topics", testable=bool(rows.blank.any()))


def _shares(rows: pd.DataFrame, inside: pd.Series) -> Estimate:
    """The share of blanks inside less that outside, by topic."""
    one, other = (rows[which].groupby("topic").blank.mean() for which in (inside, ~inside))
    return mean_over_topics(one - other)


def last_alone(tables: Tables) -> Finding:
    rows = blank_at(at_main(tables, "short"))
    of = rows[rows.blank].groupby(["list", "topic"]).from_end.max()
    e = stats.rate(of == 1, of.index.get_level_values("topic"))
    return Finding(e, surely(e, 0.5), "topics", testable=e.n > 0)


def little_by_topic(tables: Tables) -> Finding:
    e = recount.between_topics(at_main(tables, "short"))
    return Finding(e, surely_below(e, 0.25), "topics")


def with_temperature(tables: Tables) -> Finding:
    rows = tables["written"]
    rows = rows[(rows["mode"] == "short") & rows.ended].reset_index(drop=True)
    items = blank_at(rows).join(rows.temperature, on="list")
    by = items.groupby(["topic", "temperature"]).blank.mean().unstack("temperature").dropna()
    e = mean_over_topics(ranked(by))
    return Finding(e, surely(e, 0), "topics", testable=bool(items.blank.any()) and by.shape[1] > 2)


def short_not_long(tables: Tables) -> Finding:
    by = {}
    for mode in ("short", "long"):
        rows = blank_at(at_main(tables, mode))
        by[mode] = rows[rows.from_end == 1].groupby("topic").blank.mean()
    e = mean_over_topics(by["short"] - by["long"])
    return Finding(e, surely(e, 0.5), "topics", testable=bool((by["short"] + by["long"] > 0).any()))


# --- readings, over topics ---


def _panel(tables: Tables, mode: str, asked: str) -> pd.DataFrame:
    rows = tables["along"]
    return rows[(rows["mode"] == mode) & (rows.asked == asked)]


def entropy_rises(tables: Tables) -> Finding:
    e = readings.over_lists(readings.rise(_panel(tables, "short", "short"), "entropy", False))
    return Finding(e, surely(e, 0), "topics")


def swapped(tables: Tables) -> Finding:
    clean, other = (_panel(tables, "short", asked) for asked in ("short", "long"))
    rise = readings.paired(*(readings.rise(rows, "entropy", False) for rows in (clean, other)))
    jump = readings.paired(*(readings.jump(rows, "entropy") for rows in (other, clean)))
    return Finding(min(rise, jump, key=lambda e: e.low), surely(rise, 0) and surely(jump, 0), "topics")


def _lens(tables: Tables) -> pd.DataFrame:
    rows = tables["lens"]
    main = at_main(tables).temperature.unique()
    return rows[rows.temperature.isin(main)]


def late_in_depth(tables: Tables) -> Finding:
    of = readings.by_layer(_lens(tables), "stop")
    n = int(of.layer.max()) + 1
    told = of[of.jump_low > 0]
    first = int(told.layer.min()) if len(told) else n
    up = of[of.layer == n - 1].iloc[0]
    e = Estimate(up["rise"], up.rise_low, up.rise_high, int(up.n), int(up.n_topics))
    return Finding(e, first < n and first + 1 > 0.75 * n and surely(e, 0), "topics")


def end_before_blank(tables: Tables) -> Finding:
    rows = _lens(tables)
    if not {"blank", "end"} <= set(rows) or not blank_at(at_main(tables, "short")).blank.any():
        return Finding(stats.NOTHING, False, "topics", testable=False)
    e = mean_over_topics(readings.first_layer(rows, "blank") - readings.first_layer(rows, "end"))
    return Finding(e, surely(e, 0), "topics")
