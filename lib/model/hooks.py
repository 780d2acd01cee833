"""Context managers that read or replace what flows through a model, and always unhook.

Each acts at every position and in every forward pass inside the block: prompts, cached decoding and
left-padded batches alike, and for one thread at a time: a second one that would hook the model waits.
The only exception is a BOS token, recognised by its id and not by its position: transcoders are not
trained on it, so it keeps the dense MLP's output. (`scope="prompt"` makes one more, to repeat the
published study.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from lib.model.encoding import Encoded, bos_id
from lib.model.models import LanguageModel

MLP = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


@contextmanager
def capture(model: LanguageModel, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that each forward pass inside the block fills, by hook point name."""
    cache: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(tensor, hook):
            cache[name] = tensor.detach()

        return hook

    with model.hooks([(name, keep(name)) for name in names]):
        yield cache


def standing_in(model: LanguageModel, scope: str = "all") -> Callable[[MLP, Tensor, Tensor, Tensor], Tensor]:
    """What an MLP writes in the model's place, of itself, token ids, its input and what the model writes there.

    With `scope="prompt"` position 0 of every forward pass keeps what the model writes too, and so, with a
    key-value cache, does every generated token (`lib.profiles.tables.Protocol`).
    """
    scale, bos = model.site.scale(model.d_model), bos_id(model.tokenizer)

    def written(mlp: MLP, ids: Tensor, x: Tensor, y: Tensor) -> Tensor:
        dense = ids == bos  # (batch, pos)
        if scope == "prompt":
            dense[:, 0] = True
        return y.where(dense[..., None], (mlp(x) * scale).to(y.dtype))

    return written


@contextmanager
def replaced(model: LanguageModel, mlps: Mapping[int, MLP], scope: str = "all", rows: slice = slice(None)) -> Iterator[None]:
    """Inside the block the MLP of each given layer is the given function of the site's input, in float32.

    `scope` is as in `standing_in`. Of a batch only `rows` are acted on, so that several such blocks, one in
    another, put a condition each on the rows of one batch.
    """
    written = standing_in(model, scope)
    seen: dict[int | str, Tensor] = {}

    def remember(key):
        def hook(tensor, hook):
            seen[key] = tensor

        return hook

    def write(layer: int, mlp: MLP):
        def hook(tensor, hook):
            x = seen.pop(layer)[rows].float() / model.site.scale(model.d_model)
            new = written(mlp, seen["ids"][rows], x, tensor[rows])
            return tensor.slice_scatter(new, 0, rows.start, rows.stop)

        return hook

    hooks = [("embed.hook_in", remember("ids"))] if mlps else []
    for layer, mlp in mlps.items():
        read, out = model.site.at(layer)
        hooks += [(read, remember(layer)), (out, write(layer, mlp))]
    with model.hooks(hooks):
        yield


class HandsOn(torch.nn.Module):
    """In place of a block: hands on the residual stream that it is given, or one of its own."""

    def __init__(self, stream: Tensor | None = None):
        super().__init__()
        self.stream = stream

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return hidden_states if self.stream is None else self.stream


@contextmanager
def resumed(model: LanguageModel, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Inside the block forward passes skip all blocks up to that of `layer` and go on from what it is to have left."""
    with model.lock:
        blocks = model.bridge.blocks
        skipped = list(blocks)[: layer + 1]
        try:
            for i in range(layer):
                blocks[i] = HandsOn()
            blocks[layer] = HandsOn(stream)
            yield
        finally:
            for i, block in enumerate(skipped):
                blocks[i] = block


def by_lowest(conditions: Sequence[Mapping[int, MLP]]) -> list[tuple[int | None, list[Mapping[int, MLP]]]]:
    """Conditions that follow one another and have the same lowest layer, with that layer; None where none is replaced."""
    return [(first, list(alike)) for first, alike in groupby(conditions, key=lambda mlps: min(mlps, default=None))]


@torch.no_grad()
def logits_under(
    model: LanguageModel, batch: Encoded, conditions: Sequence[Mapping[int, MLP]], scope: str = "all", rows: int = 0
) -> Iterator[Float[Tensor, "batch pos vocab"]]:
    """The logits of a batch with each set of MLPs in place, one after another; `{}` is the model as it is.

    A replacement leaves everything up to its lowest layer's MLP as it was, so that is run once for all: each
    condition begins with what its lowest MLP adds to the residual stream. All MLPs lowest at one layer are given
    the very same input; such conditions, where they follow one another, run as one batch of up to `rows` rows.
    """
    batch, written = batch.to(model.hf.device), standing_in(model, scope)
    n = len(batch.ids)

    def forward(times: int = 1) -> Tensor:
        ids, attention = batch.ids.repeat(times, 1), batch.attention.repeat(times, 1)
        return model.hf(input_ids=ids, attention_mask=attention, use_cache=False).logits

    middle = "blocks.{}.ln2.hook_in"
    lowest = sorted({min(mlps) for mlps in conditions if mlps})
    with capture(model, [name for layer in lowest for name in (*model.site.at(layer), middle.format(layer))]) as seen:
        raw = forward()
    inputs = {layer: seen[model.site.at(layer)[0]].float() / model.site.scale(model.d_model) for layer in lowest}

    def together(first: int, some: Sequence[Mapping[int, MLP]]) -> Tensor:
        added = [written(mlps[first], batch.ids, inputs[first], seen[model.site.at(first)[1]]) for mlps in some]
        with ExitStack() as stack:
            stack.enter_context(resumed(model, first, torch.cat([seen[middle.format(first)] + y for y in added])))
            for i, mlps in enumerate(some):
                if above := {layer: mlp for layer, mlp in mlps.items() if layer != first}:
                    stack.enter_context(replaced(model, above, scope, slice(i * n, (i + 1) * n)))
            return forward(len(some))

    at_once = max(1, rows // n)
    for first, alike in by_lowest(conditions):
        for some in (alike[i : i + at_once] for i in range(0, len(alike), at_once)):
            yield from [raw] * len(some) if first is None else together(first, some).split(n)
