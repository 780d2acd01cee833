"""Streaming (x, y) at many sites in one forward pass.

`x` is what a dictionary reads and `y` what it should write, both (site, token, d_model) and in the
units of the site (`lib.model.sites`); of an SAE they are the same. They are of the tokens at which dictionaries act.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lib.model.encoding import Encoded, token_mask
from lib.model.hooks import read, recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site


@dataclass(frozen=True)
class Activations:
    """What flowed through some sites."""

    x: Float[Tensor, "site token d_model"]
    y: Float[Tensor, "site token d_model"]
    prompt: Int[Tensor, " token"]
    """Which prompt, of all those streamed, each token is from."""


Where = Callable[[PreTrainedTokenizerBase, Encoded], Bool[Tensor, "batch pos"]]
"""Which tokens of a batch are meant."""


@torch.no_grad()
def stream(
    model: LanguageModel, sites: Sequence[Site], batches: Iterable[Encoded], where: Where = token_mask
) -> Iterator[Activations]:
    """One `Activations` per batch, in float32, on the model's device; `ValueError` where one is not finite."""
    points = list(dict.fromkeys(name for site in sites for name in (site.read, site.write)))
    with recorded(model, points) as seen:
        start = 0
        for batch in batches:
            batch = batch.to(model.hf.device)
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=1)
            keep = where(model.tokenizer, batch)
            x = torch.stack([read(site, seen[site.read])[keep] for site in sites])
            y = torch.stack([read(site, seen[site.write])[keep] for site in sites])
            if not (finite := (x.isfinite() & y.isfinite()).flatten(1).all(1)).all():
                site = sites[int(finite.int().argmin())]
                raise ValueError(
                    f"layer {site.layer}: the model's activations are not finite there; choose another model.dtype, or other "
                    "weights"
                )
            yield Activations(x, y, start + keep.nonzero()[:, 0])
            start += len(batch.ids)


def collect(
    model: LanguageModel,
    sites: Sequence[Site],
    batches: list[Encoded],
    progress: str = "activations",
    device: torch.device | str | None = None,
    where: Where = token_mask,
) -> Activations:
    """All of `stream`, in memory: on `device`, or on the model's where it is left out."""
    prompts, start, n = [], 0, count(model, batches, where)
    for part in stream(model, sites, tqdm(batches, desc=progress, mininterval=2), where):
        if not prompts:
            x, y = (t.new_empty(len(sites), n, t.shape[-1], device=device or model.hf.device) for t in (part.x, part.y))
        here = slice(start, start := start + len(part.prompt))
        x[:, here], y[:, here] = part.x, part.y
        prompts.append(part.prompt)
    return Activations(x, y, torch.cat(prompts).to(x.device))


def count(model: LanguageModel, batches: Iterable[Encoded], where: Where = token_mask) -> int:
    """How many tokens `stream` gives."""
    return sum(int(where(model.tokenizer, batch).sum()) for batch in batches)


@dataclass(frozen=True)
class TokenMajor:
    """A tensor (*n, token, d_model) laid out token by token, in memory or in a file.

    It has a tensor's `shape`, `dtype` and `device`, slices `rows[..., i:j, :]`, and `index_select(-2, pick)`: laid out
    so, tokens drawn at random are copied whole, several times faster than layer by layer.
    """

    place: Float[Tensor, "token *n d_model"] | BinaryIO
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, index: tuple) -> Float[Tensor, "*n token d_model"]:
        return self.index_select(-2, torch.arange(*index[-2].indices(self.shape[-2])))

    def index_select(self, dim: int, pick: Int[Tensor, " token"]) -> Float[Tensor, "*n token d_model"]:
        *shape, _, d_model = self.shape
        if isinstance(self.place, Tensor):
            some = self.place.index_select(0, pick.to(self.device))
        else:
            # read, not mapped: the pages of a map would count as this process's memory; the system caches them either way
            some = torch.empty(len(pick), *shape, d_model, dtype=self.dtype, pin_memory=self.device.type == "cuda")
            to, size = _bytes(some), self.dtype.itemsize * math.prod(shape) * d_model
            for i, row in enumerate(pick.tolist()):
                os.preadv(self.place.fileno(), [to[i * size : (i + 1) * size]], row * size)
        return some.to(self.device, non_blocking=True).movedim(0, -2).contiguous()


def _bytes(tensor: Tensor) -> memoryview:
    """What a contiguous tensor in host memory holds; numpy has no bfloat16."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")


def stored(parts: Iterable[tuple[Tensor, ...]], n: int, folder: Path | None = None) -> tuple[TokenMajor, ...]:
    """Tensors (*n, token, d_model) that come part by part, `n` tokens in all, each in one piece.

    In memory, on the device they came on; or, where a folder is given, in files there. The files have no name, so that
    they are gone with the rows, or with the process, however it ends. `ValueError` where the disk has no room.
    """
    found: list[TokenMajor] = []
    start = 0
    for part in parts:
        if not found:
            shapes = [torch.Size([*tensor.shape[:-2], n, tensor.shape[-1]]) for tensor in part]
            if folder:
                _check_room(folder, sum(t.element_size() * shape.numel() for t, shape in zip(part, shapes, strict=True)))
            for tensor, shape in zip(part, shapes, strict=True):
                rows = (n, *shape[:-2], shape[-1])
                place = tempfile.TemporaryFile(dir=folder) if folder else tensor.new_empty(rows)
                found.append(TokenMajor(place, shape, tensor.dtype, tensor.device))
        for rows, tensor in zip(found, part, strict=True):
            some = tensor.movedim(-2, 0).contiguous()
            if folder:
                rows.place.write(_bytes(some.cpu()))
            else:
                rows.place[start : start + len(some)] = some
        start += len(some)
    for rows in found:
        if folder:
            rows.place.flush()
    return tuple(found)


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: activations need {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; "
            "free some, raise tool.memory.data_gb, or lower tool.memory.layers in the profile"
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
            yield Activations(x.index_select(1, pick), y.index_select(1, pick), prompt[pick])
        held, n = [Activations(x[:, rest], y[:, rest], prompt[rest])], len(rest)


def rounds(
    model: LanguageModel,
    sites: Sequence[Site],
    rows: Sequence[Encoded],
    at_once: int,
    passes: int,
    batch: int,
    seed: int,
    start: int = 0,
) -> Iterator[Activations]:
    """Batches of tokens, from a step on: of `at_once` batches of rows, then of the next ones, in a new order at each pass.

    What a step is given depends on its number alone, for all rows are full; after the last rows come the first again. Held
    in the dtype of the model.
    """
    groups = [rows[i : i + at_once] for i in range(0, len(rows) - at_once + 1, at_once)] or [rows]
    steps = [max(1, count(model, group) // batch) for group in groups]
    number, group = start, 0
    while number >= passes * steps[group % len(groups)]:
        number, group = number - passes * steps[group % len(groups)], group + 1
    while True:
        some = groups[group % len(groups)]
        parts = [(p.x.to(model.hf.dtype), p.y.to(model.hf.dtype), p.prompt) for p in stream(model, sites, some)]
        x, y, prompt = (torch.cat(of_all, -1 if of_all[0].ndim == 1 else 1) for of_all in zip(*parts, strict=True))
        of_each = steps[group % len(groups)]
        for step in range(number, passes * of_each):
            draw = torch.Generator().manual_seed(hash((seed, group, step // of_each)) % 2**63)
            pick = torch.randperm(len(prompt), generator=draw)[step % of_each * batch :][:batch]
            yield Activations(x.index_select(1, pick), y.index_select(1, pick), prompt[pick])
        number, group = 0, group + 1


def repeated(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Indices below `n`, batch after batch, epoch after epoch, each epoch in a new order."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=draw)
        for i in range(0, max(1, n - batch + 1), batch):
            yield order[i : i + batch]
