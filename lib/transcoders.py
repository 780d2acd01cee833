"""JumpReLU transcoders: one, or a stack of many of one shape; base + alpha * delta; the files of releases.

    p = x W_enc + b_enc,   f = relu(p) * (p > threshold),   y = f W_dec + b_dec  (+ x W_skip)

as in Gemma Scope (arXiv 2408.05147): no scaling, and `b_dec` is not subtracted from the input. Some bases
have an affine skip (arXiv 2501.18823), no delta has. A base and a delta are the same class; a delta's
target is what the base leaves, `y - base(x)`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib import arrays, files, hub
from lib.paths import replacing
from lib.profiles import Transcoders, local_or_hub

PARAMETERS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
"""Of every transcoder; some have `W_skip` besides."""


class Transcoder(nn.Module):
    """One transcoder, or a stack of them: every parameter may have leading dimensions.

    `W_enc` is (..., d_model, d_sae), `W_dec` (..., d_sae, d_model), `b_enc` and `threshold`
    (..., d_sae), `b_dec` (..., d_model), `W_skip`, if any, (..., d_model, d_model). Inputs broadcast over the
    leading dimensions, so that one input can feed many transcoders. The threshold is not trained by gradients.
    """

    def __init__(
        self, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, W_dec: Tensor, b_dec: Tensor, W_skip: Tensor | None = None
    ):
        super().__init__()
        self.W_enc, self.b_enc = nn.Parameter(W_enc), nn.Parameter(b_enc)
        self.W_dec, self.b_dec = nn.Parameter(W_dec), nn.Parameter(b_dec)
        self.register_buffer("threshold", threshold)
        self.W_skip = None if W_skip is None else nn.Parameter(W_skip)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that it computes with, by name, detached."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[-2]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[-1]

    def encode(self, x: Float[Tensor, "*n token d_model"]) -> Float[Tensor, "*n token d_sae"]:
        """Feature activations, never negative."""
        return features(x, self.W_enc, self.b_enc, self.threshold)

    def decode(
        self, f: Float[Tensor, "*n token d_sae"], x: Float[Tensor, "*n token d_model"] | None = None
    ) -> Float[Tensor, "*n token d_model"]:
        """The output for features `f` of the input `x`, which only a skip needs."""
        y = f @ self.W_dec + self.b_dec.unsqueeze(-2)
        if self.W_skip is None:
            return y
        if x is None:
            raise ValueError("this transcoder has an affine skip; give decode the input too")
        return y + x @ self.W_skip

    def forward(self, x: Float[Tensor, "*n token d_model"]) -> Float[Tensor, "*n token d_model"]:
        return self.decode(self.encode(x), x)

    def __getitem__(self, index) -> "Transcoder":
        """One member of a stack, or part of it; copies nothing and is frozen."""
        return Transcoder(**{name: tensor[index] for name, tensor in self.tensors.items()}).requires_grad_(False)

    @classmethod
    def stacked(cls, members: Sequence["Transcoder"]) -> "Transcoder":
        """A stack of copies of transcoders of one shape."""
        return cls(**{name: torch.stack([member.tensors[name] for member in members]) for name in members[0].tensors})

    @classmethod
    def initialised(cls, shape: tuple[int, ...], d_model: int, d_sae: int, seed: int, threshold: float = 0.0) -> "Transcoder":
        """An untrained stack: random encoder columns and decoder rows of length one, the same in all; zero biases."""
        draw = torch.Generator().manual_seed(seed)
        W_enc = nn.functional.normalize(torch.randn(d_model, d_sae, generator=draw), dim=-2)
        W_dec = nn.functional.normalize(torch.randn(d_sae, d_model, generator=draw), dim=-1)
        b_enc, b_dec = torch.zeros(d_sae), torch.zeros(d_model)
        one = (W_enc, b_enc, torch.full_like(b_enc, threshold), W_dec, b_dec)
        return cls(*(parameter.expand(*shape, *parameter.shape).clone() for parameter in one))


def features(
    x: Float[Tensor, "*n token d_model"],
    W_enc: Float[Tensor, "*n d_model d_sae"],
    b_enc: Float[Tensor, "*n d_sae"],
    threshold: Float[Tensor, "*n d_sae"],
) -> Float[Tensor, "*n token d_sae"]:
    """Activations of features: `relu(p)` where `p = x W_enc + b_enc` is above the threshold, else 0."""
    if W_enc.ndim == 2:
        p = nn.functional.linear(x, W_enc.mT, b_enc)
    else:
        p = shared(x, W_enc)
        p = p.add_(b_enc.unsqueeze(-2).to(p.dtype))
    # many times faster than `where` or a product with booleans
    active = torch.gt(p.detach(), threshold.clamp(min=0).unsqueeze(-2).to(p.dtype), out=torch.empty_like(p))
    return p.mul_(active)


def shared(a: Float[Tensor, "*n i j"], b: Float[Tensor, "*n j k"]) -> Float[Tensor, "*n i k"]:
    """`a @ b`, which would copy an `a` that many `b` share; contiguous, for products to come."""
    return torch.einsum("...ij,...jk->...ik", a, b).contiguous()


@dataclass(frozen=True)
class BaseDelta:
    """`base(x) + alpha * delta(x)`, in place of an MLP."""

    base: Transcoder
    delta: Transcoder
    alpha: float = 1.0

    def encode(self, x: Float[Tensor, "*n token d_model"]) -> tuple[Tensor, Tensor]:
        """The activations of the base's features and of the delta's."""
        return self.base.encode(x), self.delta.encode(x)

    def decode(self, f_base: Tensor, f_delta: Tensor, x: Tensor) -> Float[Tensor, "*n token d_model"]:
        return self.base.decode(f_base, x) + self.alpha * self.delta.decode(f_delta)

    def __call__(self, x: Float[Tensor, "*n token d_model"]) -> Float[Tensor, "*n token d_model"]:
        return self.decode(*self.encode(x), x)


# --- releases, in a folder or on the hub ---


@dataclass(frozen=True)
class Layout:
    """How a release names its files, and the arrays in them."""

    files: str
    """A regular expression, with `{layer}` and `{width}` left open; its group `l0` is the average L0."""
    arrays: dict[str, str]
    """Their name of each of ours. A threshold or a skip named here may be missing in `optional` layouts."""
    optional: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    """Which of our arrays they store transposed."""
    config: bool = False
    """Whether `config.json` beside a file says its L0."""


_LOWER = {name: name.lower() for name in PARAMETERS}
LAYOUTS = {
    # Gemma Scope
    "gemma-scope": Layout(
        r"layer_{layer}/width_{width}/average_l0_(?P<l0>\d+(\.\d+)?)/params\.npz", {name: name for name in PARAMETERS}
    ),
    # Gemma Scope 2, without an affine skip and with one, which it stores (d_in, d_out) as we do
    "gemma-scope-2": Layout(r"transcoder_all/layer_{layer}_width_{width}_l0_[a-z]+/params\.safetensors", _LOWER, config=True),
    "gemma-scope-2-affine": Layout(
        r"transcoder_all/layer_{layer}_width_{width}_l0_[a-z]+_affine/params\.safetensors",
        _LOWER | {"W_skip": "affine_skip_connection"},
        config=True,
    ),
    # circuit-tracer: one file a layer, encoder and skip as (out, in), ReLU where there is no threshold
    "circuit-tracer": Layout(
        r"layer_{layer}\.safetensors",
        {name: name for name in PARAMETERS} | {"threshold": "activation_function.threshold", "W_skip": "W_skip"},
        optional=("threshold", "W_skip"),
        transposed=("W_enc", "W_skip"),
    ),
}


def levels(settings: Transcoders, layer: int) -> dict[float, str]:
    """The files on offer for a layer, by their average L0, from the sparsest to the densest.

    The L0 is NaN where the release has one transcoder a layer and does not say.
    """
    layout, source, found = LAYOUTS[settings.layout], local_or_hub(settings.source), {}
    pattern = re.compile(layout.files.format(layer=layer, width=settings.width))
    for name in hub.files(source, settings.revision):
        if match := pattern.fullmatch(name):
            found[_l0(layout, match, source, settings.revision)] = name
    if not found:
        raise ValueError(
            f"{source}: no file of layer {layer} like {pattern.pattern}; check transcoders.source, .layout and .width"
        )
    return dict(sorted(found.items()))


def _l0(layout: Layout, match: re.Match, source: Path | str, revision: str | None) -> float:
    """What a release says of the average L0 of one of its files."""
    if layout.config:
        config = hub.file(source, match.string.rpartition("/")[0] + "/config.json", revision)
        return float(files.json_object(config)["l0"])
    return float(match.groupdict().get("l0", math.nan))


def choose(l0s: list[float], percentile: float) -> float:
    """The L0 at `percentile` of the sorted list, from 0 (the sparsest) to 1 (the densest), as the published study chose."""
    if not 0 <= percentile <= 1:
        raise ValueError(f"percentile {percentile} is outside 0..1; 0 is the sparsest level, 1 the densest")
    ordered = sorted(l0s)
    return ordered[min(int(percentile * len(ordered)), len(ordered) - 1)]


def load_level(settings: Transcoders, file: str, d_model: int | None = None) -> Transcoder:
    """One file of a release, frozen, in float32."""
    path = hub.file(local_or_hub(settings.source), file, settings.revision)
    return read(path, LAYOUTS[settings.layout], d_model)


def load_npz(path: Path, d_model: int | None = None) -> Transcoder:
    """A transcoder from a `params.npz` as Gemma Scope has them."""
    return read(path, LAYOUTS["gemma-scope"], d_model)


def read(path: Path, layout: Layout, d_model: int | None = None) -> Transcoder:
    """A transcoder from one file of a release, npz or safetensors; never unpickles.

    A damaged file, an array that is missing or unknown, shapes that fit neither one another nor `d_model`, and weights
    that are not finite are a one-line `ValueError`. Names and shapes are looked at before anything large is read.
    """
    held = arrays.shapes(path)
    names = {name: theirs for name, theirs in layout.arrays.items() if theirs in held or name not in layout.optional}
    if missing := [theirs for theirs in names.values() if theirs not in held]:
        raise ValueError(f"{path}: no array {', '.join(missing)}; expected {', '.join(layout.arrays.values())}")
    if unknown := sorted(set(held) - set(names.values())):
        raise ValueError(
            f"{path}: array {', '.join(unknown)} is not one of this layout ({', '.join(layout.arrays.values())}), and what it "
            "does would be lost; check transcoders.layout, or rename or remove it"
        )
    turned = {name: held[theirs][:: -1 if name in layout.transposed else 1] for name, theirs in names.items()}
    fit(path, turned, d_model)
    found = arrays.read(path, names.values())
    ours = {
        name: found[theirs].mT.contiguous() if name in layout.transposed else found[theirs] for name, theirs in names.items()
    }
    ours.setdefault("threshold", torch.zeros_like(ours["b_enc"]))
    return checked(path, ours, d_model)


def fit(path: Path | str, shapes: Mapping[str, Sequence[int]], d_model: int | None = None) -> None:
    """Raise a one-line `ValueError` for arrays of a transcoder whose shapes fit neither one another nor `d_model`."""
    d_in, d_sae = d_model or math.prod(shapes["b_dec"]), math.prod(shapes["b_enc"])
    right = dict(
        W_enc=(d_in, d_sae), b_enc=(d_sae,), threshold=(d_sae,), W_dec=(d_sae, d_in), b_dec=(d_in,), W_skip=(d_in, d_in)
    )
    for name, shape in shapes.items():
        if tuple(shape) != right[name]:
            raise ValueError(f"{path}: {name} is {tuple(shape)}, not {right[name]}; it is not for this model")


def checked(path: Path | str, weights: Mapping[str, Tensor], d_model: int | None = None) -> Transcoder:
    """A frozen transcoder of finite arrays whose shapes fit one another and `d_model`; else a one-line `ValueError`."""
    fit(path, {name: array.shape for name, array in weights.items()}, d_model)
    arrays.finite(path, weights, "train or download it again")
    return Transcoder(**weights).requires_grad_(False)


def save_npz(transcoder: Transcoder, path: Path, dtype: type = np.float32) -> None:
    """Write one transcoder as Gemma Scope does, whole or not at all; one that is not finite is a `ValueError`."""
    arrays.finite(path, transcoder.tensors, "training came apart: lower its lr")
    held = {name: getattr(transcoder, name).detach().float().cpu().numpy().astype(dtype) for name in PARAMETERS}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **held)
