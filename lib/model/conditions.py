"""The model under many conditions: what lies below a replacement is run once for all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.model.encoding import Encoded
from lib.model.hooks import Condition, Edit, outputs, read, recorded, replaced, writer
from lib.model.models import LanguageModel
from lib.model.sites import Site


class _Skipped(torch.nn.Module):
    """In place of a block: passes the residual stream on, or one of its own."""

    def __init__(self, stream: Tensor | None = None):
        super().__init__()
        self.stream = stream

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return hidden_states if self.stream is None else self.stream


@contextmanager
def resumed(model: LanguageModel, block: int, stream: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
    """Inside the block forward passes skip all the model's blocks below one, which is given this residual stream."""
    with model.lock:
        blocks = model.bridge.blocks
        skipped = list(blocks)[:block]
        try:
            for i in range(block):
                blocks[i] = _Skipped(stream if i == block - 1 else None)
            yield
        finally:
            for i, one in enumerate(skipped):
                blocks[i] = one


def start(condition: Condition) -> tuple[int, Site | None] | None:
    """Where a forward pass under a condition can begin: at which block, and of which site what is written is then known.

    What lies below the lowest site is the model's own. Where that site alone is replaced in its layer and ends the block,
    the next block can be given what it leaves. None for the model as it is.
    """
    if not condition:
        return None
    lowest = min(site.layer for site in condition)
    first, *others = (site for site in condition if site.layer == lowest)
    return (lowest, None) if others or not first.ends_block else (lowest + 1, first)


def by_start(conditions: Sequence[Condition]) -> list[tuple[tuple[int, Site | None] | None, list[Condition]]]:
    """Conditions that follow one another and have the same `start`, with it."""
    return [(begin, list(alike)) for begin, alike in groupby(conditions, key=start)]


@torch.no_grad()
def replaced_logits(
    model: LanguageModel,
    batch: Encoded,
    conditions: Sequence[Condition],
    scope: str = "all",
    rows: int = 0,
    edit: Callable[[int], Edit | None] = lambda place: None,
    at: Int[Tensor, " some"] | None = None,
    only: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[Float[Tensor, "batch pos vocab"]]:
    """The logits of a batch under each condition, one after another: what `replaced` gives, at less cost.

    What lies below a condition's `start` is run once for all. Conditions of one start, where they follow one another, are
    given the very same input, and run as one batch of up to `rows` rows. `edit` gives that of each condition, by its place.
    Logits are of the positions `at` alone where these are given: with a large vocabulary they cost as much as the blocks.
    """
    batch, written = batch.to(model.hf.device), writer(model, scope, only)
    n = len(batch.ids)

    def forward(times: int = 1) -> Tensor:
        ids, attention = batch.ids.repeat(times, 1), batch.attention.repeat(times, 1)
        return model.hf(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=0 if at is None else at).logits

    starts = {begin for begin in map(start, conditions) if begin}
    points = {f"blocks.{block}.hook_in" for block, site in starts if site is None and block}
    points |= {name for _, site in starts if site for name in (site.read, site.write, site.added_to) if name}
    with recorded(model, sorted(points)) as seen:
        raw = forward()
    inputs = {site: read(site, seen[site.read]) for _, site in starts if site}

    def stream(site: Site, condition: Condition, edit: Edit | None) -> Tensor:
        """What a block leaves whose end is replaced."""
        y = written(batch.ids, batch.attention, seen[site.write], outputs(site, condition[site], inputs[site], edit))
        return y if site.added_to is None else seen[site.added_to] + y

    def together(begin: tuple[int, Site | None], some: Sequence[tuple[int, Condition]]) -> Tensor:
        block, known = begin
        with ExitStack() as stack:
            if known:
                streams = [stream(known, condition, edit(place)) for place, condition in some]
                stack.enter_context(resumed(model, block, torch.cat(streams)))
            elif block:
                stack.enter_context(resumed(model, block, seen[f"blocks.{block}.hook_in"].repeat(len(some), 1, 1)))
            for i, (place, condition) in enumerate(some):
                if above := {site: one for site, one in condition.items() if site != known}:
                    stack.enter_context(replaced(model, above, scope, slice(i * n, (i + 1) * n), edit(place), only))
            return forward(len(some))

    at_once, place = max(1, rows // n), 0
    for begin, alike in by_start(conditions):
        for some in (alike[i : i + at_once] for i in range(0, len(alike), at_once)):
            placed = list(enumerate(some, place))
            place += len(some)
            yield from [raw] * len(some) if begin is None else together(begin, placed).split(n)
