"""Activation patching: what one run of a model has at one place, put into another run (Vig et al. 2020; Meng et al. 2022).

Two texts differ in something, and the model goes on otherwise. One is run with an activation that the other one had: how
much of the difference goes over? *Noising* runs the clean text with something corrupt in it, and asks what is needed;
*denoising* runs the corrupt text with something clean in it, and asks what suffices (Heimersheim and Nanda, arXiv 2404.15255).

What is put in at once is a *cell*: a part of a layer at one role, at every role or at all positions, of all heads or of one.
Here are pairs, cells and how effects are told; `patched` does it, `linear` says what to expect of it.

`q` and `k` are before the rotary embedding (and before the norms of Qwen3 and Gemma 3): what a query asks or a key offers,
turned by the place where it comes to stand, not by that from which it was taken. All heads of `z` at once are the same as
`attn_out`, which is a function of them at each position. Several layers at once, and paths between parts, are not done here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from lib.book import stats
from lib.measure.metrics import log_odds
from lib.model.models import LanguageModel

PARTS = {
    "resid_pre": "hook_resid_pre", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
}  # fmt: skip
"""Parts of a layer and their hook points. `attn_out` and `mlp_out` are what is added to the stream, after Gemma's norms."""
OF_HEADS = ("z", "q", "k", "v")
"""Parts with a head dimension, (batch, pos, head, d_head): `z` and `q` have the heads, `k` and `v` the KV heads."""
WHOLE = -1
"""In the place of a head: all of them."""
EVERY, ALL = "every role", "all positions"
NOISING, DENOISING = DIRECTIONS = ("noising", "denoising")
CELL = ["part", "layer", "head", "role", "direction"]


class Sets(Protocol):
    """Two sets of token ids that are set against one another."""

    @property
    def these(self) -> Sequence[int]: ...

    @property
    def those(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in something, and where the same things stand in each."""

    clean: Sequence[int]
    corrupt: Sequence[int]
    """Token ids; they may differ in length."""
    roles: Mapping[str, tuple[int, int]]
    """What stands where, in the clean text and in the corrupt one."""
    reads: tuple[int, int]
    """The position whose next token is asked for. What comes after it is not read."""
    unit: str
    """What was sampled: intervals are over units."""

    def __post_init__(self):
        for role, at in self.roles.items():
            for place, read, ids in zip(at, self.reads, (self.clean, self.corrupt), strict=True):
                if not 0 <= place <= read < len(ids):
                    raise ValueError(f"{role!r} is at {place} of {len(ids)} tokens, read at {read}; give a place up to there")


@dataclass(frozen=True)
class Cell:
    """What is put in at once."""

    part: str
    layer: int
    role: str
    head: int = WHOLE

    @property
    def point(self) -> str:
        return f"blocks.{self.layer}.{PARTS[self.part]}"

    def of(self, values: Float[Tensor, "pair pos *d"]) -> Float[Tensor, "pair pos *d"]:
        """Its head's part of what stands at its hook point."""
        return values if self.head == WHOLE else values[:, :, self.head]


def n_heads(model: LanguageModel, part: str) -> int:
    """How many heads a part has: those of queries, or of keys and values."""
    config = model.hf.config
    heads = config.num_attention_heads
    return getattr(config, "num_key_value_heads", heads) if part in ("k", "v") else heads


def cells(
    model: LanguageModel, parts: Sequence[str], layers: Sequence[int], roles: Sequence[str], by_head: bool = False
) -> list[Cell]:
    """Every part at every role in every layer; with `by_head` every head of it, for parts that have any."""
    heads = {part: range(n_heads(model, part)) if by_head else [WHOLE] for part in parts if not by_head or part in OF_HEADS}
    return [Cell(part, layer, role, head) for layer in layers for part in heads for role in roles for head in heads[part]]


def metric_of(logits: Float[Tensor, "row vocab"], contrast: Sets) -> Float[Tensor, " row"]:
    """Log-odds of the first set of next tokens against the second, in nats: the logit difference of two single tokens."""
    return log_odds(logits.double(), contrast.these, contrast.those)


# --- both runs ---


@dataclass(frozen=True)
class Texts:
    """One side of some pairs that are read at one position, up to there: nothing is padded."""

    ids: Int[Tensor, "pair pos"]
    at: Int[Tensor, "pair role"]

    @classmethod
    def of(cls, model: LanguageModel, pairs: Sequence[Pair], side: int) -> "Texts":
        """Side 0 is clean, 1 corrupt."""
        ids = [(pair.clean, pair.corrupt)[side][: pair.reads[side] + 1] for pair in pairs]
        at = [[place[side] for place in pair.roles.values()] for pair in pairs]
        return cls(torch.tensor(ids, device=model.hf.device), torch.tensor(at, device=model.hf.device))

    def forward(self, model: LanguageModel, cache: Cache | None = None) -> Float[Tensor, "pair vocab"]:
        """The logits where each text is read; run is what a cache does not hold."""
        return model.hf(self.ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1).logits[:, -1]


def batched(pairs: Sequence[Pair], size: int) -> list[list[int]]:
    """Numbers of pairs, those of one length together; `ValueError` where pairs name other roles than the first."""
    if any(list(pair.roles) != list(pairs[0].roles) for pair in pairs):
        raise ValueError("pairs have different roles, or in another order; give all of them the same")
    alike: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        alike.setdefault(pair.reads, []).append(i)
    return [own[start : start + size] for own in alike.values() for start in range(0, len(own), size)]


@torch.no_grad()
def runs(model: LanguageModel, pairs: Sequence[Pair], contrast: Sets, size: int = 64) -> pd.DataFrame:
    """One row per pair: `unit`, and the metric of both runs as they are, `clean` and `corrupt`, in nats."""
    found = pd.DataFrame({"pair": range(len(pairs)), "unit": [pair.unit for pair in pairs], "clean": 0.0, "corrupt": 0.0})
    for batch in batched(pairs, size):
        for side, name in enumerate(("clean", "corrupt")):
            texts = Texts.of(model, [pairs[i] for i in batch], side)
            found.loc[batch, name] = metric_of(texts.forward(model), contrast).cpu().numpy()
    return found


Places = tuple[Int[Tensor, "pair place"], Int[Tensor, "pair place"], Bool[Tensor, "pair place"]]


def places(role: str, roles: Sequence[str], into: Texts, of: Texts) -> Places:
    """Where a cell's role stands in the run that is changed and in the other one; and which of these places count.

    Of several roles that stand at one place the first counts. `ValueError` for all positions of texts of unequal length.
    """
    if role == ALL:
        if into.ids.shape != of.ids.shape:
            raise ValueError("all positions can be patched only where both texts are equally long; name roles instead")
        every = torch.arange(into.ids.shape[1], device=into.ids.device).expand(into.ids.shape)
        return every, every, torch.ones_like(into.ids, dtype=torch.bool)
    if role == EVERY:
        again = (into.at[:, :, None] == into.at[:, None, :]).tril(-1).any(-1)
        return into.at, of.at, ~again
    at = [list(roles).index(role)]
    return into.at[:, at], of.at[:, at], torch.ones_like(into.at[:, at], dtype=torch.bool)


def taken(values: Float[Tensor, "pair pos *d"], at: Int[Tensor, "pair place"]) -> Float[Tensor, "pair place *d"]:
    """What stands at some places of each row."""
    return values[torch.arange(len(at), device=at.device)[:, None], at]


# --- effects ---


def long(some: Sequence[Cell], directions: Sequence[str], values: np.ndarray) -> pd.DataFrame:
    """One row per cell, direction and pair, of values (direction, cell, pair)."""
    rows = [(cell.part, cell.layer, cell.head, cell.role, direction) for direction in directions for cell in some]
    n = values.shape[-1]
    table = pd.DataFrame(rows, columns=CELL).loc[np.repeat(np.arange(len(rows)), n)].reset_index(drop=True)
    return table.assign(pair=np.tile(np.arange(n), len(rows)), value=values.reshape(-1))


def per_pair(found: pd.DataFrame, of: pd.DataFrame) -> pd.DataFrame:
    """With `moved` and `gap`, nats a pair: how far the answer went over, and how far away the other run's is.

    Noising takes `clean - value` of `clean - corrupt` away, denoising gives `value - corrupt` of it back. `of`: see `runs`.
    """
    both = found.merge(of, on="pair", how="left")
    moved = np.where(both.direction == NOISING, both.clean - both.value, both.value - both.corrupt)
    return both.assign(moved=moved, gap=both.clean - both.corrupt)


def effects(found: pd.DataFrame, of: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """One row per cell and direction: `effect`, the share of clean - corrupt that goes over, with its 95% interval over units.

    A ratio of sums over pairs: 1 is all of it, 0 nothing, and below 0 the answer goes the other way.
    """
    rows = []
    for keys, some in per_pair(found, of).groupby(list(by), sort=False):
        e = stats.ratio(some.moved, some.gap, some.unit.to_numpy())
        rows.append({**dict(zip(by, keys, strict=True)), **e.columns("effect"), "n": e.n, "n_units": e.clusters})
    return pd.DataFrame(rows)
