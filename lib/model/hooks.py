"""Context managers that read, replace or edit what flows through a model, and always unhook.

- `recorded` remembers activations at hook points, and what dictionaries make of those at their sites;
- `replaced` puts something in the place of a part of the model (`lib.model.conditions`: many such at less cost);
- `edited` changes features and nothing else: what a dictionary cannot express stays as it was.

Each acts at every position and in every forward pass inside the block: prompts, cached decoding and
left-padded batches alike, and for one thread at a time: a second one that would hook the model waits.
The only exception is the BOS token, or the first of a text where there is none (`encoding.acted_on`):
dictionaries are not trained on it, so it keeps what the model writes. (`scope="prompt"` makes one more, to repeat
the published study.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.model.encoding import acted_on
from lib.model.models import LanguageModel
from lib.model.sites import Site

Replacement = Callable[[Float[Tensor, "batch pos d_in"]], Float[Tensor, "batch pos d_out"]]
"""What is written at a site, of what is read there."""
Condition = Mapping[Site, Replacement]
"""What stands in for the model's own at each site named; `{}` is the model as it is."""
Features = Tensor | tuple[Tensor, ...]
"""Activations (batch, pos, feature), of one dictionary or of several."""
Edit = Callable[[Site, Features], Features | None]
"""What is given the features of a site, and gives those to go on with; None leaves all as it is."""


class HasFeatures(Protocol):
    """A replacement by way of features."""

    def encode(self, x: Tensor) -> Features: ...

    def decode(self, f: Features, x: Tensor) -> Tensor: ...


class Record(dict[str, Tensor]):
    """What the last forward pass has left: activations by hook point, and in `features` those of each site."""

    def __init__(self, gradients: bool = False):
        super().__init__()
        self.gradients = gradients
        self.features: dict[Site, Features] = {}

    def keep(self, site: Site, f: Features) -> Features | None:
        """An `Edit` that changes nothing and remembers the features; with `gradients` they will have some."""
        if self.gradients:
            f = tuple(map(_variable, f)) if isinstance(f, tuple) else _variable(f)
        self.features[site] = f
        return f if self.gradients else None


def _variable(tensor: Tensor) -> Tensor:
    """A tensor that will have a gradient: itself, where it depends on one that will."""
    tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
    tensor.retain_grad()
    return tensor


class _EnoughError(Exception):
    """All that was to be recorded is."""


@contextmanager
def recorded(
    model: LanguageModel,
    points: Sequence[str] = (),
    dictionaries: Mapping[Site, HasFeatures] | None = None,
    gradients: bool = False,
    stop: bool = False,
) -> Iterator[Record]:
    """A record that each forward pass inside the block fills: activations at hook points, features at sites.

    The model computes what it would without. With `gradients` what is recorded takes part in autograd and has `.grad`
    after a backward pass: features as if the model were written through them, their error beside. With `stop` the block
    ends once all hook points and sites named were met, and nothing above them is run.
    """
    record, left = Record(gradients), {*points, *(dictionaries or {})}

    def met(what: str | Site) -> None:
        left.discard(what)
        if stop and not left:
            raise _EnoughError

    def keep(name: str):
        def hook(tensor, hook):
            record[name] = _variable(tensor) if gradients else tensor.detach()
            met(name)
            return record[name] if gradients else None

        return hook

    def features(site: Site, f: Features) -> Features | None:
        new = record.keep(site, f)
        met(site)
        return new

    try:
        with edited(model, dictionaries or {}, features), model.hooks([(name, keep(name)) for name in points]):
            yield record
    except _EnoughError:
        pass


def writer(
    model: LanguageModel, scope: str = "all", only: Bool[Tensor, "batch pos"] | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What stands at a site in the end, of token ids and attention, of what the model has there and of what is to be.

    With `scope="prompt"` position 0 of every forward pass keeps what the model writes too, and so, with a
    key-value cache, does every generated token (`lib.profiles.tool.Protocol`). Where `only` is False, it does too.
    """

    def written(ids: Tensor, attention: Tensor, y: Tensor, new: Tensor) -> Tensor:
        acts = acted_on(model.tokenizer, ids, attention)
        if scope == "prompt":
            acts[:, 0] = False
        if only is not None:
            acts &= only
        return new.reshape(y.shape).to(y.dtype).where(acts.reshape(*acts.shape, *[1] * (y.ndim - 2)), y)

    return written


def read(site: Site, tensor: Tensor) -> Float[Tensor, "batch pos d_in"]:
    """What a dictionary reads, of a hook point's value; heads side by side."""
    x = tensor.flatten(2).float()
    return x if site.scale == 1 else x / site.scale


def _attention(ids: Tensor, given: Mapping) -> Tensor:
    """The attention mask of a forward pass, (batch, past + pos); where there is no padding `generate` gives none."""
    if given.get("attention_mask") is not None:
        return given["attention_mask"]
    cache = given.get("past_key_values")
    return ids.new_ones(len(ids), ids.shape[1] + (cache.get_seq_length() if cache is not None else 0))


@contextmanager
def _at_sites(
    model: LanguageModel,
    sites: Sequence[Site],
    write: Callable[[Site, tuple[Tensor, Tensor], Tensor, Tensor], Tensor | None],
    rows: slice,
) -> Iterator[None]:
    """Inside the block `write(site, (ids, attention), x, y)` says what stands at each site, of some rows of a batch; None:
    what stood."""
    seen: dict[Site, Tensor] = {}
    tokens: dict[str, Tensor] = {}

    def begin(module, args, given):
        ids = given["input_ids"] if "input_ids" in given else args[0]
        tokens.update(ids=ids, attention=_attention(ids, given))

    def remember(site: Site):
        def hook(tensor, hook):
            seen[site] = tensor

        return hook

    def at(site: Site):
        def hook(tensor, hook):
            x = tensor if site.read == site.write else seen.pop(site)
            new = write(site, (tokens["ids"][rows], tokens["attention"][rows]), read(site, x[rows]), tensor[rows])
            return None if new is None else tensor.slice_scatter(new, 0, rows.start, rows.stop)

        return hook

    hooks = []
    for site in sites:
        hooks += [(site.read, remember(site))] if site.read != site.write else []
        hooks += [(site.write, at(site))]
    with model.hooks(hooks):
        handle = model.hf.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def replaced(
    model: LanguageModel,
    condition: Condition,
    scope: str = "all",
    rows: slice = slice(None),
    edit: Edit | None = None,
    only: Bool[Tensor, "row pos"] | None = None,
) -> Iterator[None]:
    """Inside the block what the model writes at each site is the given function of what it reads there, in float32.

    `scope` and `only` are as in `writer`. Of a batch only `rows` are acted on, so that several such blocks, one in
    another, put a condition each on the rows of one batch. An `edit` is given the features of each replacement that has
    any, and what it gives is decoded in their place.
    """
    written = writer(model, scope, only)

    def write(site: Site, tokens: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return written(*tokens, y, outputs(site, condition[site], x, edit))

    with _at_sites(model, list(condition), write, rows):
        yield


def outputs(site: Site, replacement: Replacement | HasFeatures, x: Tensor, edit: Edit | None = None) -> Tensor:
    """What a replacement writes at a site, of what it reads there, its features edited."""
    if edit is None or not hasattr(replacement, "encode"):
        return replacement(x) * site.scale
    f = replacement.encode(x)
    new = edit(site, f)
    return replacement.decode(f if new is None else new, x) * site.scale


@contextmanager
def edited(
    model: LanguageModel, dictionaries: Mapping[Site, HasFeatures], edit: Edit, rows: slice = slice(None)
) -> Iterator[None]:
    """Inside the block the features that a dictionary finds at its site are as `edit` says, and the rest stays.

    `y + (f' - f) W_dec` stands where the model writes y: the reconstruction error is kept, so that features that are left
    as they are change nothing, bit for bit.
    """
    written = writer(model)

    def write(site: Site, tokens: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor | None:
        with torch.no_grad():
            f = dictionaries[site].encode(x)
        if (new := edit(site, f)) is None:
            return None
        change = (new - f) @ dictionaries[site].W_dec * site.scale
        return written(*tokens, y, y + change.reshape(y.shape).to(y.dtype))

    with _at_sites(model, list(dictionaries), write, rows):
        yield
