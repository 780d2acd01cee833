"""From a word to its features: what an SAE makes of the tokens of a vehicle's name, and of the token before it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.book import stats
from lib.book.auroc import auroc, aurocs
from lib.dictionary.dictionaries import Dictionary
from lib.model.hooks import read, recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.transport.material import NOUNS, at_word
from lib.texts.vehicles import VEHICLES

TOP = 30
"""Features that a word's table holds, as published."""
PERMUTATIONS = 200
LAST = 3
"""How many leading features are called a word's own."""


@dataclass(frozen=True)
class Words:
    """What flows at a site where a word stands in sentences, and right before it."""

    table: pd.DataFrame
    """One row per sentence: `name`, `template`, `text`."""
    at: Float[Tensor, "token d_model"]
    sentence: Int[Tensor, " token"]
    """Which sentence each token is of."""
    before: Float[Tensor, "sentence d_model"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel, site: Site, table: pd.DataFrame) -> "Words":
        at, sentence, before = [], [], []
        for start in range(0, len(table), 64):
            some = table.iloc[start : start + 64]
            batch, where = at_word(model, some.text.tolist(), some.name.tolist())
            batch, where = batch.to(model.hf.device), where.to(model.hf.device)
            with recorded(model, [site.read]) as seen:
                model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=1)
            x = read(site, seen[site.read])
            rows = torch.arange(len(some), device=x.device)
            at.append(x[where])
            sentence.append(start + where.nonzero()[:, 0])
            before.append(x[rows, where.int().argmax(1) - 1])
        return cls(table, torch.cat(at), torch.cat(sentence), torch.cat(before))

    @torch.no_grad()
    def features(self, sae: Dictionary) -> Float[Tensor, "sentence feature"]:
        """The mean activation of each feature over a word's tokens."""
        f = sae.encode(self.at)
        return self._mean(f)

    @property
    def vectors(self) -> Float[Tensor, "sentence d_model"]:
        """The mean vector over a word's tokens."""
        return self._mean(self.at)

    def _mean(self, values: Tensor) -> Tensor:
        n = torch.bincount(self.sentence, minlength=len(self.table)).clamp(min=1)[:, None]
        return values.new_zeros(len(self.table), values.shape[1]).index_add_(0, self.sentence, values) / n

    def by_name(self, values: Float[Tensor, "sentence column"]) -> dict[str, Float[Tensor, " column"]]:
        """The mean of some values over the sentences of each name."""
        names = self.table.name.to_numpy()
        return {name: values[torch.from_numpy(np.flatnonzero(names == name))].mean(0) for name in dict.fromkeys(names)}


def largest(v: Float[Tensor, " feature"], k: int = TOP) -> Float[Tensor, " feature"]:
    """A table with its `k` largest entries alone."""
    kept = torch.zeros_like(v)
    best = v.topk(min(k, len(v))).indices
    kept[best] = v[best]
    return kept


def tables(words: Words, sae: Dictionary) -> dict[str, Float[Tensor, " feature"]]:
    """Of every name the mean activations at its tokens, of the features that are largest there."""
    return {name: largest(v) for name, v in words.by_name(words.features(sae)).items()}


@torch.no_grad()
def counts(words: Words, sae: Dictionary) -> dict[str, Float[Tensor, " feature"]]:
    """The published table: how often a feature is among the `TOP` largest at the token *before* the word."""
    f = sae.encode(words.before)
    hit = torch.zeros_like(f).scatter_(1, f.topk(min(TOP, f.shape[1])).indices, 1.0) * (f > 0)
    names = words.table.name.to_numpy()
    return {name: hit[torch.from_numpy(np.flatnonzero(names == name))].sum(0) for name in dict.fromkeys(names)}


def taken_as_indices(counted: Float[Tensor, " feature"]) -> Float[Tensor, " index"]:
    """The latents that the study's first code edits: its vector of counts, read as a list of indices.

    Every count that occurs is an index; so these are the latents 0, 1, 2, ... up to the largest count, the same few whatever
    the word is.
    """
    return counted.round().long().unique()


def own(words: Words, sae: Dictionary, where: str = "at") -> pd.DataFrame:
    """One row per vehicle or other noun: the share of its table in its three largest entries, its leading feature, and whether
    that leads no other name. `where`: at the word's own tokens, or at the token `before`, which has to foresee it."""
    values = words.features(sae) if where == "at" else sae.encode(words.before).detach()
    found = words.by_name(values)
    leading = {name: int(v.argmax()) for name, v in found.items()}
    rows = []
    for name, v in found.items():
        top = v.topk(min(TOP, len(v))).values
        rows.append({
            "name": name, "vehicle": name in VEHICLES, "where": where,
            "in_three": float(top[:LAST].sum() / top.sum().clamp(min=1e-9)),
            "leading": leading[name], "strength": float(top[0]),
            "alone": sum(feature == leading[name] for feature in leading.values()) == 1,
        })  # fmt: skip
    return pd.DataFrame(rows)


def told(words: Words, sae: Dictionary, seed: int = 0) -> pd.DataFrame:
    """One row per vehicle: the AUROC of the feature that tells its sentences from those about other vehicles.

    Chosen on half of the sentences' templates and judged on the other half; `threshold` is the 95th percentile of the largest
    AUROC of any feature when the vehicles of each template are shuffled.
    """
    table, values = words.table, words.features(sae).cpu().numpy()
    mine = table.name.isin(list(VEHICLES)).to_numpy()
    table, values = table[mine].reset_index(drop=True), values[mine]
    values = values[:, (values > 0).any(0)]
    draw = np.random.default_rng(seed)
    on = np.isin(table.template, draw.permutation(np.unique(table.template))[: table.template.nunique() // 2])
    names = list(dict.fromkeys(table.name))
    label = table.name.to_numpy()[:, None] == np.array(names)
    best = np.nan_to_num(aurocs(values[on], label[on]), nan=0.5).argmax(0)
    threshold = by_chance(values[~on], table[~on], draw)
    rows = []
    for i, name in enumerate(names):
        e = auroc(values[~on][:, best[i]], label[~on][:, i], table.template.to_numpy()[~on])
        rows.append({"name": name, **e.columns("auroc"), "n": e.n, "n_templates": table.template[~on].nunique(),
                     "threshold": threshold, "passes": bool(e.value > threshold)})  # fmt: skip
    return pd.DataFrame(rows)


def by_chance(values: Float[np.ndarray, "text feature"], table: pd.DataFrame, draw: np.random.Generator) -> float:
    """The largest AUROC of any feature for a vehicle whose sentence of each template was drawn at random, 95th percentile."""
    templates = table.template.to_numpy()
    label: Bool[np.ndarray, "text permutation"] = np.zeros((len(table), PERMUTATIONS), dtype=bool)
    for template in np.unique(templates):
        own = np.flatnonzero(templates == template)
        label[draw.choice(own, PERMUTATIONS), np.arange(PERMUTATIONS)] = True
    return float(np.quantile(np.nan_to_num(aurocs(values, label), nan=0.5).max(0), 0.95))


def concentration(table: pd.DataFrame) -> stats.Estimate:
    """How much more of its table a vehicle has in three features than another noun."""
    return stats.two_groups(table[table.vehicle].in_three, table[~table.vehicle].in_three)


EVERY = (*VEHICLES, *NOUNS)
