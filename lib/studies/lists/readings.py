"""What a model says at the last token of each item: how unsure it is, how far it would stop, and from which layer on.

The study read the entropy at the line break before an item, and at the last item elsewhere. Here every reading is taken at
the item's last token, before a blank, where the list may go on or stop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from lib.book import stats
from lib.book.stats import Estimate
from lib.measure.metrics import log_odds
from lib.model.encoding import Encoded, padded
from lib.model.hooks import recorded
from lib.studies.lists import recount
from lib.studies.lists.material import LEAST, OTHER, Opened, main, parsed, request
from lib.studies.lists.places import spelled


@dataclass(frozen=True)
class Asked:
    """A list that was written, after a request that may be another's."""

    number: int
    """Of the list."""
    mode: str
    """As which it was written,"""
    asked: str
    """and for which it is asked here."""
    topic: str
    ids: list[int]
    at: list[int]
    """The last token of each item,"""
    blanks: list[bool]
    """and whether a blank was written after it."""

    @property
    def keys(self) -> list[dict]:
        """What names a row of a table, for each item; `from_end` counts back from the last, which is 1, and `stopped` says
        whether a blank or the end came after it."""
        n = len(self.at)
        named = {"list": self.number, "topic": self.topic, "mode": self.mode, "asked": self.asked, "n_items": n}
        stopped = [*self.blanks[:-1], True]
        return [named | {"item": i + 1, "from_end": n - i, "stopped": stopped[i]} for i in range(n)]


def under(o: Opened, lists: pd.DataFrame, modes: Sequence[str], swap: bool) -> list[Asked]:
    """Lists of some modes that ended, after their own request and, with `swap`, after the other's; like lengths together."""
    found = []
    rows = lists[lists["mode"].isin(modes) & lists.ended & (lists["items"] > 0)]
    for row in rows.itertuples():
        for asked in (row.mode, OTHER[row.mode]) if swap else (row.mode,):
            before = request(o.profile, o.model.tokenizer, asked, row.topic)
            items = parsed(row.text)
            of, blanks = spelled(o.model.tokenizer, before, items), [item.endswith(" ") for item in items]
            found.append(Asked(row.Index, row.mode, asked, row.topic, of.ids, of.items, blanks))
    return sorted(found, key=lambda one: len(one.ids))


def _batches(o: Opened, every: Sequence[Asked], progress: str) -> Iterator[tuple[list[Asked], Encoded]]:
    rows = o.settings.rows
    for start in tqdm(range(0, len(every), rows), desc=progress, mininterval=2):
        some = list(every[start : start + rows])
        yield some, padded(o.model.tokenizer, [one.ids for one in some]).to(o.model.hf.device)


@torch.no_grad()
def along(o: Opened, lists: pd.DataFrame) -> pd.DataFrame:
    """A row per item of every short and long list, after its own request and after the other's.

    `entropy` and `varentropy` of the next token, in nats and nats squared; `stop`, `blank` and `end`, log-odds against a line
    break in nats; `p_blank`, `p_end`, `p_line`, probabilities.
    """
    rows, ends = [], o.endings
    for some, batch in _batches(o, under(o, main(o.profile, lists), ("short", "long"), True), "items"):
        logits = o.model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        for logits_of, one in zip(logits, some, strict=True):
            of = logits_of[one.at].float()
            log_p = of.log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            columns = {
                "entropy": entropy, "varentropy": (log_p.exp() * (log_p + entropy[:, None]).square()).sum(-1),
                **{name: log_odds(of, *both) for name, both in ends.contrasts.items() if both[0]},
                **{f"p_{name}": log_p[:, ids].exp().sum(-1)
                   for name, ids in (("blank", ends.blank), ("end", ends.end), ("line", ends.line))},
            }  # fmt: skip
            values = {name: value.tolist() for name, value in columns.items()}
            rows += [key | {name: value[i] for name, value in values.items()} for i, key in enumerate(one.keys)]
    return pd.DataFrame(rows)


@torch.no_grad()
def each_token(o: Opened, ids: Sequence[int]) -> pd.DataFrame:
    """Of one text: each token, and the log-odds of stopping after it."""
    batch = padded(o.model.tokenizer, [ids]).to(o.model.hf.device)
    logits = o.model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits[0]
    stop = log_odds(logits.float(), o.endings.these, o.endings.those).tolist()
    return pd.DataFrame({"position": range(len(ids)), "token": [o.model.tokenizer.decode([i]) for i in ids], "stop": stop})


@torch.no_grad()
def lens(o: Opened, lists: pd.DataFrame) -> pd.DataFrame:
    """A row per item of every short list, temperature and layer: the same log-odds, read off the residual stream after that
    layer as if it were the last (the logit lens, nostalgebraist 2020). Gemma-2's soft-capping of logits is left out."""
    norm, unembed = o.model.bridge.ln_final, o.model.hf.get_output_embeddings().weight
    contrasts = {name: both for name, both in o.endings.contrasts.items() if both[0]}
    asked = sorted({token for both in contrasts.values() for ids in both for token in ids})
    place, directions = {token: i for i, token in enumerate(asked)}, unembed[asked].float()
    names, rows = [f"blocks.{layer}.hook_resid_post" for layer in range(o.model.n_layers)], []
    for temperature, of in lists.groupby("temperature"):
        for some, batch in _batches(o, under(o, of, ("short",), False), f"lens, temperature {temperature:g}"):
            with recorded(o.model, names) as seen:
                o.model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=1)
            stream = torch.stack([seen[name] for name in names], 1)  # (row, layer, pos, d_model)
            for one, h in zip(some, stream, strict=True):
                logits = norm(h[:, one.at]).float() @ directions.T  # (layer, item, token)
                values = {
                    name: log_odds(logits, *([place[i] for i in ids] for ids in both)).tolist()
                    for name, both in contrasts.items()
                }
                rows += [
                    key | {"temperature": temperature, "layer": layer, **{name: of[layer][i] for name, of in values.items()}}
                    for layer in range(len(names)) for i, key in enumerate(one.keys)
                ]  # fmt: skip
    return pd.DataFrame(rows)


# --- what readings come to ---


def rise(rows: pd.DataFrame, value: str, last: bool) -> pd.Series:
    """For each list the rank correlation of a value with the number of the item; without the last item, or with it.

    By list and topic. It is left out where there are fewer than three items, or all have one value.
    """
    some = rows if last else rows[rows.from_end > 1]
    found = {}
    for key, of in some.groupby(["list", "topic"]):
        if len(of) >= LEAST and of[value].nunique() > 1:
            found[key] = spearmanr(of["item"], of[value]).statistic
    return pd.Series(found.values(), _keys(found), dtype=float)


def _keys(found: dict) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(list(found), names=["list", "topic"]) if found else pd.MultiIndex.from_arrays([[], []])


def jump(rows: pd.DataFrame, value: str) -> pd.Series:
    """For each list what the value has at the last item, less the mean of those before."""
    before = rows[rows.from_end > 1].groupby(["list", "topic"])[value].mean()
    return rows[rows.from_end == 1].groupby(["list", "topic"])[value].first() - before


def over_lists(values: pd.Series) -> Estimate:
    """The mean over lists, topics being what was sampled."""
    values = values.dropna()
    return stats.mean(values.to_numpy(), values.index.get_level_values("topic").to_numpy())


def paired(one: pd.Series, other: pd.Series) -> Estimate:
    """The mean difference over lists that have both."""
    return over_lists((one - other).dropna())


def panels(rows: pd.DataFrame, by: str, value: str = "entropy", least: int = 20) -> pd.DataFrame:
    """The mean of a value at each item, counted from the start (`item`) or from the end (`from_end`), for each mode and
    request; only the lists that are so long count, and places with fewer than `least` are left out."""
    found = []
    for (mode, asked, place), of in rows.groupby(["mode", "asked", by]):
        if len(of) >= least:
            e = stats.mean(of[value].to_numpy(), of.topic.to_numpy())
            found.append({"mode": mode, "asked": asked, by: place, **e.columns(value), "n": e.n, "n_topics": e.clusters})
    return pd.DataFrame(found)


def by_layer(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """For each layer how much more the lens says at the last item than at those before, over lists, and the rise with the
    item's number."""
    found = []
    for layer, of in rows.groupby("layer"):
        more, up = over_lists(jump(of, value)), over_lists(rise(of, value, True))
        found.append({"contrast": value, "layer": layer, **stats.columns({"jump": more, "rise": up}), "n": more.n,
                      "n_topics": more.clusters})  # fmt: skip
    return pd.DataFrame(found)


def first_layer(rows: pd.DataFrame, value: str) -> pd.Series:
    """For each topic the first layer from which on the last item has more than those before; the number of layers where
    none."""
    n, found = int(rows.layer.max()) + 1, {}
    for topic, of in rows.groupby("topic"):
        above = [float(jump(some, value).mean()) > 0 for _, some in of.groupby("layer")]
        found[0, topic] = n - int(np.argmin(above[::-1])) if not all(above) else 0
    return pd.Series(found.values(), _keys(found), dtype=float)


def going_on(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of lists that go on after so many `items`; cut ones count for as long as they were seen (Kaplan-Meier)."""
    until = int(rows["items"].max()) + 2
    return pd.DataFrame({"items": range(until), "going_on": recount.still(rows, until), "lists": len(rows)})
