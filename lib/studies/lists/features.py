"""Which features of SAEs speak for the end of a list, at which tokens, and whether topics share them.

Attribution of a feature at a token: its activation times the gradient of the log-odds of stopping after the last item, what to
first order its removal would take away (attribution patching, Nanda 2023; with the error term beside the features, as in
Marks et al., arXiv 2403.19647).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lib.base.saes import saes as of_profile
from lib.dictionary.dictionaries import Dictionary
from lib.measure.metrics import log_odds
from lib.measure.patching import Pair
from lib.model.conditions import replaced_logits
from lib.model.encoding import Encoded, padded, token_mask
from lib.model.hooks import recorded
from lib.model.sites import Site
from lib.studies.lists.material import Opened

METRICS = ("stop", "log p")
"""Log-odds of stopping against a line break; and the log-probability of stopping, as the study also took it."""
KINDS = NECESSITY, OTHERS, SUFFICIENCY = "necessity", "random", "sufficiency"
KEPT = 50
"""Pairs of position and feature that are kept of each list and site, and as many of its request alone."""


def saes(o: Opened) -> dict[Site, Dictionary]:
    """The SAEs of the residual stream and of attention's outputs that chapter 12 has trained, or taken from a release."""
    return {site: sae for site, sae in of_profile(o.profile, o.model).items() if site.name != "mlp_out"}


@dataclass(frozen=True)
class Batch:
    """Some pairs' clean texts, padded on the right."""

    pairs: list[Pair]
    tokens: Encoded

    @property
    def reads(self) -> tuple[Tensor, Tensor]:
        """Rows, and where what comes next is asked."""
        return torch.arange(len(self.pairs)), torch.tensor([pair.reads[0] for pair in self.pairs])


def batches(o: Opened, pairs: Sequence[Pair], progress: str) -> Iterator[Batch]:
    rows = o.settings.rows
    for start in tqdm(range(0, len(pairs), rows), desc=progress, mininterval=2):
        some = list(pairs[start : start + rows])
        yield Batch(some, padded(o.model.tokenizer, [pair.clean for pair in some]).to(o.model.hf.device))


def metric(o: Opened, logits: Float[Tensor, "row vocab"], name: str) -> Float[Tensor, " row"]:
    """What is attributed, nats."""
    if name == "stop":
        return log_odds(logits.float(), o.endings.these, o.endings.those)
    return logits.float().log_softmax(-1)[:, o.endings.these].logsumexp(-1)


def attributed(o: Opened, pairs: Sequence[Pair], dictionaries: Mapping[Site, Dictionary]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For each list and site the pairs of token and feature with the largest attributions of either sign, in all of it and in
    the request alone; and the sums.

    The first: `pair`, `topic`, `point`, `layer`, `metric`, `position` (in the clean text), `feature`, `activation`, `score`
    (nats). The second, of all tokens and features: `features`, `error` (what the SAE leaves out, times the gradient) and
    `absolute` (the features' scores without their signs).
    """
    o.model.hf.requires_grad_(False)
    found, sums, points = [], [], list({site.write for site in dictionaries})
    start = 0
    for batch in batches(o, pairs, "attribution"):
        row, reads = batch.reads
        for name in METRICS:
            with torch.enable_grad(), recorded(o.model, points, dictionaries, gradients=True) as seen:
                ids = batch.tokens
                logits = o.model.hf(input_ids=ids.ids, attention_mask=ids.attention, use_cache=False).logits
                metric(o, logits[row, reads], name).sum().backward()
            acts = token_mask(o.model.tokenizer, batch.tokens)[..., None]
            for site, f in seen.features.items():
                score = (f.detach() * f.grad * acts).float()  # (row, pos, feature)
                y, gradient = seen[site.write].detach().float(), seen[site.write].grad.float()
                error = y.flatten(2) / site.scale - dictionaries[site].decode(f.detach())
                beside = (error * gradient.flatten(2) * acts * site.scale).sum((1, 2))
                keys = {"point": site.name, "layer": site.layer, "metric": name}
                for i, pair in enumerate(batch.pairs):
                    own = keys | {"pair": start + i, "topic": pair.unit}
                    of = score[i]
                    sums.append(
                        own | {"features": float(of.sum()), "error": float(beside[i]), "absolute": float(of.abs().sum())}
                    )
                    asked = pair.roles["turn"][0] + 2  # the request's tokens, with its hyphen
                    best = torch.cat([strongest(of), strongest(of[:asked])]).unique()
                    at, feature = best // of.shape[1], best % of.shape[1]
                    values = of[at, feature]
                    active = f.detach()[i, at, feature]
                    found += [
                        own | {"position": int(a), "feature": int(b), "activation": float(c), "score": float(d)}
                        for a, b, c, d in zip(at, feature, active, values, strict=True) if d
                    ]  # fmt: skip
        start += len(batch.pairs)
    return pd.DataFrame(found), pd.DataFrame(sums)


def strongest(score: Float[Tensor, "pos feature"]) -> Int[Tensor, " pair"]:
    """The places of the `KEPT` largest, of either sign, in the flattened table."""
    return score.abs().flatten().topk(min(KEPT, score.numel())).indices


# --- the features of a topic ---


def by_topic(found: pd.DataFrame, k: int, metric: str = "stop") -> pd.DataFrame:
    """For each topic and site the k features that speak the most for stopping, over its lists and all tokens.

    `score`: the mean over lists, nats.
    """
    some = found[found.metric == metric]
    n = some.groupby("topic").pair.nunique()
    keys = ["point", "layer", "topic", "feature"]
    total = some.groupby(keys).score.sum().reset_index()
    total["score"] /= total.topic.map(n)
    total = total[total.score > 0].sort_values("score", ascending=False)
    return total.groupby(keys[:3]).head(k).reset_index(drop=True)


def at_positions(found: pd.DataFrame, pairs: Sequence[Pair], k: int, metric: str = "stop") -> pd.DataFrame:
    """For each topic and site the k pairs of position and feature in the request that speak the most for stopping.

    Requests about one topic are the same tokens, so a position means the same in all of its lists; `from_end` counts back from
    the end of the request, which is 1.
    """
    length = found.pair.map({number: pair.roles["turn"][0] + 2 for number, pair in enumerate(pairs)})  # the hyphen is its last
    some = found.assign(from_end=length - found.position)
    some = some[(some.metric == metric) & (some.from_end >= 1)]
    n = found.groupby("topic").pair.nunique()
    keys = ["point", "layer", "topic", "position", "from_end", "feature"]
    total = some.groupby(keys).agg(score=("score", "sum"), activation=("activation", "mean")).reset_index()
    total["score"] /= total.topic.map(n)
    total = total[total.score > 0].sort_values("score", ascending=False)
    return total.groupby(keys[:3]).head(k).reset_index(drop=True)


def jaccard(sets: pd.DataFrame) -> pd.DataFrame:
    """How much of their features two topics share, for each site and pair of two topics: the share of their union."""
    rows = []
    for (point, layer), of in sets.groupby(["point", "layer"]):
        by = {topic: set(some.feature) for topic, some in of.groupby("topic")}
        names = sorted(by)
        for i, a in enumerate(names):
            rows += [
                {"point": point, "layer": layer, "topic": a, "other": b, "jaccard": len(by[a] & by[b]) / len(by[a] | by[b])}
                for b in names[i + 1 :]
            ]
    return pd.DataFrame(rows)


# --- how many features does it take? ---


@torch.no_grad()
def curve(
    o: Opened, pairs: Sequence[Pair], dictionaries: Mapping[Site, Dictionary], found: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """For each list, site and k: what becomes of the log-odds of stopping, teacher-forced, when features are edited.

    `necessity`: the list's k strongest pairs of token and feature are set to 0 in the clean run. `random`: as many other active
    ones of the same tokens are, near them in the length of what they write. `sufficiency`: all features but these k are given
    what they have in the corrupt run, token by token; with k = 0 all are. The SAE's error is kept. `clean`, `corrupt` and
    `value` are nats.
    """
    rows, start, draw = [], 0, np.random.default_rng(seed)
    some = found[(found.metric == "stop") & (found.score > 0)].sort_values("score", ascending=False)
    chosen = {key: of for key, of in some.groupby(["point", "layer", "pair"])}
    edits = [(kind, k) for kind in KINDS for k in ((0, *o.settings.k) if kind == SUFFICIENCY else o.settings.k)]
    for batch in batches(o, pairs, "curves"):
        row, reads = batch.reads
        other = padded(o.model.tokenizer, [pair.corrupt for pair in batch.pairs]).to(o.model.hf.device)
        both, plain = [], []
        for ids, at in ((batch.tokens, reads), (other, torch.tensor([pair.reads[1] for pair in batch.pairs]))):
            with recorded(o.model, (), dictionaries) as seen:
                logits = o.model.hf(input_ids=ids.ids, attention_mask=ids.attention, use_cache=False).logits
            both.append(seen.features)
            plain.append(metric(o, logits[row, at], "stop").tolist())
        for site, sae in dictionaries.items():
            f, of_other, length = both[0][site], both[1][site], sae.W_dec.norm(dim=-1)
            of_pairs = [chosen.get((site.name, site.layer, start + i)) for i in range(len(batch.pairs))]
            conditions = []
            for kind, k in edits:
                index = [(i, a, b) for i, of in enumerate(of_pairs) if of is not None
                         for a, b in zip(of.position[:k], of.feature[:k], strict=True)]  # fmt: skip
                conditions.append({site: Edited(sae, f, partial(edit_of, kind, f, of_other, index, length, draw))})
            for (kind, k), logits in zip(edits, replaced_logits(o.model, batch.tokens, conditions), strict=True):
                values = metric(o, logits[row, reads], "stop").tolist()
                rows += [
                    {"point": site.name, "layer": site.layer, "kind": kind, "k": k, "pair": start + i, "topic": pair.unit,
                     "clean": plain[0][i], "corrupt": plain[1][i], "value": values[i]}
                    for i, pair in enumerate(batch.pairs)
                ]  # fmt: skip
        start += len(batch.pairs)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Edited:
    """What stands at an SAE's site once its features are others; the error stays."""

    sae: Dictionary
    f: Float[Tensor, "row pos feature"]
    new: Callable[[], Float[Tensor, "row pos feature"]]

    def __call__(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        return x + (self.new() - self.f) @ self.sae.W_dec


def edit_of(
    kind: str, f: Tensor, other: Tensor, index: Sequence[tuple[int, int, int]], length: Tensor, draw: np.random.Generator
) -> Float[Tensor, "row pos feature"]:
    """The features to go on with; `index` names row, position and feature of each that is edited."""
    new = f.clone()
    if kind == SUFFICIENCY:
        n = min(f.shape[1], other.shape[1])
        new[:, :n] = other[:, :n]
        for i, a, b in index:
            new[i, a, b] = f[i, a, b]
    for i, a, b in index if kind != SUFFICIENCY else ():
        if kind == OTHERS:
            b = like(f[i, a] * length, b, {feature for row, at, feature in index if (row, at) == (i, a)}, draw)
        new[i, a, b] = 0
    return new


def like(writes: Float[Tensor, " feature"], feature: int, but: set[int], draw: np.random.Generator) -> int:
    """Another active feature of the same token: one of the five whose contributions are nearest in length, at random.

    Where none is left, a feature that is not active, so that nothing is taken away.
    """
    active = [i for i in writes.nonzero()[:, 0].tolist() if i not in but]
    if not active:
        return int((writes == 0).nonzero()[0, 0]) if (writes == 0).any() else feature
    active.sort(key=lambda i: abs(float(writes[i] - writes[feature])))
    return int(draw.choice(active[:5]))
