"""Lists that are written while features are edited, each beside the same request without an edit.

The study began its ablated runs before the last item of a list that had already been written, so that they could not be
shorter. Here every run begins right after the request, and is compared with other draws from the same place at the same
temperature.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import Dictionary
from lib.measure.patching import Pair
from lib.model.encoding import padded
from lib.model.hooks import edited, recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.lists.features import like
from lib.studies.lists.material import Opened, continuations, request, topics

RESAMPLED, AT, EVERYWHERE, RANDOM, ADDED = "resampled", "at its tokens", "everywhere", "random features", "added"


@dataclass
class Change:
    """What is done to a site's features in the rows of a batch.

    `at` are edits at single tokens of the request, (row, position, feature, value); `everywhere` are features of each row that
    are 0 at all tokens, the written ones too. Padding is on the left, so positions are counted from the request's end.
    """

    at: Sequence[tuple[int, int, int, float]] = ()
    everywhere: Sequence[Sequence[int]] = ()

    def __call__(self, site: Site, f: Float[Tensor, "row pos feature"]) -> Tensor:
        new = f.clone()
        for row, features in enumerate(self.everywhere):
            if features:
                new[row, :, list(features)] = 0
        if f.shape[1] > 1:  # the request; later tokens come one by one
            for row, position, feature, value in self.at:
                new[row, position, feature] = value
        return new


@dataclass(frozen=True)
class Chosen:
    """What is edited at a site, by topic: pairs of position and feature in the request, and features."""

    site: Site
    sae: Dictionary
    at: Mapping[str, pd.DataFrame]
    features: Mapping[str, pd.DataFrame]

    @classmethod
    def of(cls, dictionaries: Mapping[Site, Dictionary], at: pd.DataFrame, features: pd.DataFrame) -> "list[Chosen]":
        """Of every site, from the tables of `features.at_positions` and `features.by_topic`."""

        def own(table: pd.DataFrame, site: Site) -> dict[str, pd.DataFrame]:
            some = table[(table.point == site.name) & (table.layer == site.layer)]
            return {topic: rows for topic, rows in some.groupby("topic")}

        return [cls(site, sae, own(at, site), own(features, site)) for site, sae in dictionaries.items()]

    def edit(self, pairs: Sequence[Pair], numbers: Sequence[int]) -> "Change":
        """The same edit at its tokens for texts that are there, padded on the right."""
        some = [(row, self.at.get(pairs[number].unit)) for row, number in enumerate(numbers)]
        return Change([
            (row, int(n), int(j), 0.0) for row, of in some if of is not None
            for n, j in zip(of.position, of.feature, strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One list that is to be written."""

    edit: str
    mode: str
    topic: str
    sample: int
    at: tuple[tuple[int, int, float], ...] = ()
    """Position (counted from the request's end, -1), feature and value,"""
    everywhere: tuple[int, ...] = ()
    """and features that are 0 at all tokens."""


def written(o: Opened, every: Sequence[Run], seed: int, head: dict, within=None) -> pd.DataFrame:
    """What the model writes after the request of each run, and whether and where it ended."""
    asked = [request(o.profile, o.model.tokenizer, one.mode, one.topic) for one in every]
    wrote = continuations(o, asked, o.settings.temperature, seed, None, within)
    keys = [(one.edit, one.mode, one.topic, one.sample) for one in every]
    return pd.concat([pd.DataFrame(keys, columns=["edit", "mode", "topic", "sample"]).assign(**head), wrote], axis=1)


def runs(o: Opened, chosen: Sequence[Chosen]) -> pd.DataFrame:
    """A row per topic, sample, mode, edit and site; what each run wrote.

    Short requests: resampled, with the topic's strongest features off at their tokens of the request, off everywhere, and as
    many others off at the same tokens. Long ones: resampled, and with these features given what they have in the short request
    (the other direction). Runs of a site share batches.
    """
    held, draw = held_in_requests(o, chosen), np.random.default_rng(o.profile.seed)
    keys = [(topic, i) for topic in topics(o.profile) for i in range(o.settings.runs)]
    plain = [Run(RESAMPLED, mode, *key) for mode in ("short", "long") for key in keys]
    found = [written(o, plain, o.profile.seed + 77, {"point": "", "layer": -1})]
    for number, one in enumerate(tqdm(chosen, desc="lists under edits")):
        every = [run for topic, i in keys for run in edits(one, topic, i, held[one.site, topic], draw)]
        head = {"point": one.site.name, "layer": one.site.layer}
        found.append(written(o, every, o.profile.seed + 100 * (number + 1), head, partial(_editing, o.model, one, every)))
    return pd.concat(found, ignore_index=True)


def edits(
    one: Chosen, topic: str, sample: int, clean: Float[Tensor, "pos feature"], draw: np.random.Generator
) -> Iterator[Run]:
    """The four edits of a topic's request at a site; `clean` are the features of the short one."""
    of = one.at.get(topic)
    places = [] if of is None else [(-int(n), int(j)) for n, j in zip(of.from_end, of.feature, strict=True)]
    writes, own = clean * one.sae.W_dec.norm(dim=-1), {n: {j for at, j in places if at == n} for n, _ in places}
    others = tuple((n, like(writes[n], j, own[n], draw), 0.0) for n, j in places)
    yield Run(AT, "short", topic, sample, tuple((n, j, 0.0) for n, j in places))
    yield Run(RANDOM, "short", topic, sample, others)
    yield Run(ADDED, "long", topic, sample, tuple((n, j, float(clean[n, j])) for n, j in places))
    everywhere = one.features[topic].feature.tolist() if topic in one.features else []
    yield Run(EVERYWHERE, "short", topic, sample, everywhere=tuple(everywhere))


def _editing(model: LanguageModel, one: Chosen, every: Sequence[Run], rows: Sequence[int]) -> AbstractContextManager:
    """The edits of a batch, of the numbers of its runs."""
    at = [(row, *edit) for row, number in enumerate(rows) for edit in every[number].at]
    return edited(model, {one.site: one.sae}, Change(at, [every[number].everywhere for number in rows]))


@torch.no_grad()
def held_in_requests(o: Opened, chosen: Sequence[Chosen]) -> dict[tuple[Site, str], Float[Tensor, "pos feature"]]:
    """The features of every topic's short request at every site."""
    found, asked = {}, {topic: request(o.profile, o.model.tokenizer, "short", topic) for topic in topics(o.profile)}
    batch = padded(o.model.tokenizer, list(asked.values())).to(o.model.hf.device)
    with recorded(o.model, (), {one.site: one.sae for one in chosen}) as seen:
        o.model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=1)
    for site, f in seen.features.items():
        found |= {(site, topic): f[row, : len(ids)] for row, (topic, ids) in enumerate(asked.items())}
    return found
