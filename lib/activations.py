"""Streaming (x, y) at the site of many layers in one forward pass.

`x` is what an MLP's transcoder reads and `y` what it should write, both (layer, token, d_model) and in
the units of the model's site (`lib.sites`); BOS and padding are left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lib.encoding import Encoded, bos_id
from lib.hooks import capture
from lib.models import LanguageModel


@dataclass(frozen=True)
class Activations:
    """What flowed through the sites of some layers."""

    x: Float[Tensor, "layer token d_model"]
    y: Float[Tensor, "layer token d_model"]
    prompt: Int[Tensor, "token"]
    """Which prompt, of all those streamed, each token is from."""


@torch.no_grad()
def stream(model: LanguageModel, layers: list[int], batches: Iterable[Encoded]) -> Iterator[Activations]:
    """One `Activations` per batch, in float32, on the model's device."""
    sites, scale = [model.site.at(layer) for layer in layers], model.site.scale(model.d_model)
    bos = bos_id(model.tokenizer)
    with capture(model, [name for site in sites for name in site]) as cache:
        start = 0
        for batch in batches:
            batch = batch.to(model.hf.device)
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
            keep = batch.attention.bool() & (batch.ids != bos)  # (batch, pos)
            x = torch.stack([cache[read][keep] for read, _ in sites]).float() / scale
            y = torch.stack([cache[write][keep] for _, write in sites]).float() / scale
            yield Activations(x, y, start + keep.nonzero()[:, 0])
            start += len(batch.ids)


def collect(model: LanguageModel, layers: list[int], batches: list[Encoded], progress: str = "activations") -> Activations:
    """All of `stream`, in memory."""
    parts = list(stream(model, layers, tqdm(batches, desc=progress, mininterval=2)))
    return Activations(
        torch.cat([p.x for p in parts], 1), torch.cat([p.y for p in parts], 1), torch.cat([p.prompt for p in parts])
    )


def shuffled(parts: Iterable[Activations], batch: int, buffer: int, seed: int) -> Iterator[Activations]:
    """Batches of tokens drawn at random from a buffer of about `buffer` tokens of a stream.

    Half the buffer is handed out each time it is full, so that memory does not grow with the stream.
    """
    draw = torch.Generator().manual_seed(seed)
    held, n = [], 0
    for part in parts:
        held.append(part)
        n += len(part.prompt)
        if n < buffer:
            continue
        x, y = torch.cat([p.x for p in held], 1), torch.cat([p.y for p in held], 1)
        prompt, order = torch.cat([p.prompt for p in held]), torch.randperm(n, generator=draw)
        *out, rest = order.split([batch] * (n // 2 // batch) + [n - n // 2 // batch * batch])
        for pick in out:
            yield Activations(x[:, pick], y[:, pick], prompt[pick])
        held, n = [Activations(x[:, rest], y[:, rest], prompt[rest])], len(rest)


def repeated(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Indices below `n`, batch after batch, epoch after epoch, each epoch in a new order."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=draw)
        for i in range(0, max(1, n - batch + 1), batch):
            yield order[i : i + batch]
