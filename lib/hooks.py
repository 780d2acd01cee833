"""Context managers that read or replace what flows through a model, and always unhook.

Each acts at every position and in every forward pass inside the block: prompts, cached decoding and
left-padded batches alike. The only exception is a BOS token, recognised by its id and not by its
position: transcoders are not trained on it, so it keeps the dense MLP's output. (`scope="prompt"`
makes one more, to repeat the published study.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from lib.encoding import Encoded, bos_id
from lib.models import LanguageModel

MLP = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


@contextmanager
def capture(model: LanguageModel, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that each forward pass inside the block fills, by hook point name."""
    cache: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(tensor, hook):
            cache[name] = tensor.detach()

        return hook

    with model.bridge.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        yield cache


@contextmanager
def replaced(model: LanguageModel, mlps: Mapping[int, MLP], scope: str = "all", rows: slice = slice(None)) -> Iterator[None]:
    """Inside the block the MLP of each given layer is the given function of the site's input, in float32.

    With `scope="prompt"` position 0 of every forward pass keeps the dense MLP too, and so, with a
    key-value cache, does every generated token (`lib.profiles.Protocol`). Of a batch only `rows` are acted on,
    so that several such blocks, one in another, put a condition each on the rows of one batch.
    """
    scale, bos = model.site.scale(model.d_model), bos_id(model.tokenizer)
    seen: dict[int | str, Tensor] = {}

    def remember(key):
        def hook(tensor, hook):
            seen[key] = tensor

        return hook

    def write(layer: int, mlp: MLP):
        def hook(tensor, hook):
            dense = seen["ids"][rows] == bos  # (batch, pos)
            if scope == "prompt":
                dense[:, 0] = True
            new = (mlp(seen.pop(layer)[rows].float() / scale) * scale).to(tensor.dtype)
            return tensor.slice_scatter(tensor[rows].where(dense[..., None], new), 0, rows.start, rows.stop)

        return hook

    hooks = [("embed.hook_in", remember("ids"))]
    for layer, mlp in mlps.items():
        read, out = model.site.at(layer)
        hooks += [(read, remember(layer)), (out, write(layer, mlp))]
    with model.bridge.hooks(fwd_hooks=hooks):
        yield


class Skipped(torch.nn.Module):
    """In place of a block: hands the residual stream on."""

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return hidden_states


@contextmanager
def resumed(model: LanguageModel, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Inside the block forward passes skip the layers below `layer` and go on from the residual stream given."""
    blocks = model.bridge.blocks
    below = list(blocks)[:layer]
    try:
        for i in range(layer):
            blocks[i] = Skipped()
        with model.bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_in", lambda tensor, hook: stream)]):
            yield
    finally:
        for i, block in enumerate(below):
            blocks[i] = block


@torch.no_grad()
def logits_under(
    model: LanguageModel, batch: Encoded, conditions: Sequence[Mapping[int, MLP]], scope: str = "all"
) -> Iterator[Float[Tensor, "batch pos vocab"]]:
    """The logits of a batch with each set of MLPs in place, one after another; `{}` is the model as it is.

    A replacement leaves everything below it as it was, so the layers below are run once for all.
    """
    batch = batch.to(model.hf.device)

    def forward() -> Tensor:
        return model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits

    starts = sorted({min(mlps) for mlps in conditions if mlps})
    with capture(model, [f"blocks.{layer}.hook_in" for layer in starts]) as streams:
        raw = forward()
    for mlps in conditions:
        if mlps:
            with resumed(model, min(mlps), streams[f"blocks.{min(mlps)}.hook_in"]), replaced(model, mlps, scope):
                yield forward()
        else:
            yield raw
