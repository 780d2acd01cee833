"""Patching at the cost of what changes: see `lib.measure.patching` for what it is.

1. Both texts of a pair are run once. They end where they are read, and only pairs of one length share a batch.
2. For each pair and cell the model is run again, but only what can differ: the blocks from the cell's own on, and the
   positions from the first one changed on. What stands before it is the run's own, and is taken from its keys and values.
   Of the last block's MLP only what is read is computed. Rows of a batch are (pair, cell).
3. Where what is put in is what stood there already, bit for bit, nothing is run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from lib.measure.patching import DIRECTIONS, WHOLE, Cell, Pair, Sets, Texts, batched, long, metric_of, places, taken
from lib.model.conditions import resumed
from lib.model.hooks import recorded
from lib.model.models import LanguageModel


@torch.no_grad()
def patched(
    model: LanguageModel, pairs: Sequence[Pair], contrast: Sets, some: Sequence[Cell], rows: int = 128, size: int = 32,
    directions: Sequence[str] = DIRECTIONS, progress: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """One row per cell, direction and pair: `value`, the metric with the cell patched, in nats.

    `rows`: at most so many (pair, cell) in a forward pass; `size`: pairs whose activations are held at once.
    """
    found, points = np.zeros((len(directions), len(some), len(pairs))), sorted({cell.point for cell in some})
    streams = {layer: f"blocks.{layer}.hook_in" for layer in sorted({cell.layer for cell in some})}
    for batch in tqdm(batched(pairs, size), desc=progress, disable=progress is None, mininterval=2):
        both = [_Run.of(model, [pairs[i] for i in batch], side, contrast, points, streams) for side in (0, 1)]
        for d, direction in enumerate(directions):
            own, other = both if direction == DIRECTIONS[0] else both[::-1]
            for layer in streams:
                numbers = [i for i, cell in enumerate(some) if cell.layer == layer]
                patches = [_Patch.of(some[i], list(pairs[0].roles), own, other) for i in numbers]
                found[d, np.array(numbers)[:, None], batch] = own.patched(layer, patches, rows).cpu().numpy()
    return long(some, directions, found)


@dataclass(frozen=True)
class _Run:
    """One side of some pairs as it is: what is put elsewhere, and what need not be run again where something is put in."""

    model: LanguageModel
    texts: Texts
    contrast: Sets
    cache: DynamicCache
    streams: Mapping[int, Float[Tensor, "pair pos d_model"]]
    seen: Mapping[str, Tensor]
    metric: Float[Tensor, " pair"]

    @classmethod
    def of(
        cls, model: LanguageModel, pairs: Sequence[Pair], side: int, contrast: Sets, points: Sequence[str],
        streams: Mapping[int, str],
    ) -> "_Run":  # fmt: skip
        texts, cache = Texts.of(model, pairs, side), DynamicCache()
        with recorded(model, [*points, *streams.values()]) as seen:
            metric = metric_of(texts.forward(model, cache), contrast)
        return cls(model, texts, contrast, cache, {layer: seen[name] for layer, name in streams.items()}, seen, metric)

    def patched(self, layer: int, patches: Sequence["_Patch"], rows: int) -> Float[Tensor, "patch pair"]:
        """The metric of every pair under every patch of a layer."""
        values = self.metric.repeat(len(patches), 1)
        first = torch.stack([patch.first for patch in patches])
        which, pair = torch.stack([patch.differs for patch in patches]).nonzero(as_tuple=True)
        order = first[which, pair].argsort(stable=True)  # rows that begin at about the same place share a pass
        for row in order.split(rows) if len(order) else ():
            patch, of = which[row], pair[row]
            values[patch, of] = self._forward(layer, patches, patch, of, int(first[patch, of].min()))
        return values

    def _forward(self, layer: int, patches: Sequence["_Patch"], which: Tensor, pair: Tensor, start: int) -> Tensor:
        """The metric of rows (patch, pair), run from a layer and a position on."""
        points: dict[str, list[int]] = {}
        for i in which.unique().tolist():
            points.setdefault(patches[i].cell.point, []).append(i)

        def put(own: Sequence[int]) -> Callable[..., Tensor]:
            def hook(tensor, hook):
                new = tensor.clone()
                for i in own:
                    row = (which == i).nonzero()[:, 0]
                    patches[i].put(new, row, pair[row], start)
                return new

            return hook

        cache = DynamicCache([
            (of.keys[pair, :, :start], of.values[pair, :, :start]) if i >= layer else
            (of.keys[:1, :, :start], of.values[:1, :, :start])  # of a block that is skipped the length alone is asked for
            for i, of in enumerate(self.cache.layers)
        ])  # fmt: skip
        with ExitStack() as stack:
            stack.enter_context(resumed(self.model, layer, self.streams[layer][pair, start:]))
            stack.enter_context(self.model.hooks([(point, put(own)) for point, own in points.items()]))
            if layer < self.model.n_layers - 1:
                stack.enter_context(_read_alone(self.model))
            texts = Texts(self.texts.ids[pair, start:], self.texts.at[pair])
            return metric_of(texts.forward(self.model, cache), self.contrast)


@dataclass(frozen=True)
class _Patch:
    """A cell for some pairs: where it is put in, what, and for which pairs it is anything else than what stood there."""

    cell: Cell
    at: Int[Tensor, "pair place"]
    counts: Bool[Tensor, "pair place"]
    values: Float[Tensor, "pair place *d"]
    differs: Bool[Tensor, " pair"]

    @classmethod
    def of(cls, cell: Cell, roles: Sequence[str], own: _Run, other: _Run) -> "_Patch":
        at, there, counts = places(cell.role, roles, own.texts, other.texts)
        new, old = taken(cell.of(other.seen[cell.point]), there), taken(cell.of(own.seen[cell.point]), at)
        return cls(cell, at, counts, new, ((new != old).flatten(2).any(-1) & counts).any(-1))

    @property
    def first(self) -> Int[Tensor, " pair"]:
        """The first position changed."""
        return self.at.masked_fill(~self.counts, torch.iinfo(self.at.dtype).max).amin(1)

    def put(self, new: Float[Tensor, "row pos *d"], row: Int[Tensor, " n"], pair: Int[Tensor, " n"], start: int) -> None:
        """Write it into some rows of a tensor that begins at a position."""
        each, place = self.counts[pair].nonzero(as_tuple=True)
        head = () if self.cell.head == WHOLE else (self.cell.head,)
        new[(row[each], self.at[pair[each], place] - start, *head)] = self.values[pair[each], place]


class _LastOnly(torch.nn.Module):
    """An MLP of which only the last position is computed."""

    def __init__(self, mlp: torch.nn.Module):
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        y = torch.zeros_like(x)
        y[:, -1:] = self.mlp(x[:, -1:])
        return y


@contextmanager
def _read_alone(model: LanguageModel) -> Iterator[None]:
    """Inside the block the last block's MLP runs where texts are read, and nowhere else."""
    with model.lock:
        block = model.bridge.blocks[-1].original_component
        mlp = block.mlp
        try:
            block.mlp = _LastOnly(mlp)
            yield
        finally:
            block.mlp = mlp
