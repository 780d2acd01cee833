"""How releases lay out dictionaries in files."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.book import arrays, files, hub
from lib.book.hub import local_or_hub
from lib.book.paths import replacing
from lib.dictionary.dictionaries import PARAMETERS, Dictionary
from lib.profiles.tables import Transcoders


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
    config: str = ""
    """The file beside it that says more of it, if there is one."""
    l0: str = "l0"
    """What its average L0 is called there."""
    folded: Callable[[dict[str, Tensor], dict], int] | None = None
    """What fits the weights to ours, given that file, and says their `k`."""


def subtract_b_dec(weights: dict[str, Tensor]) -> None:
    """Let `b_enc` do what subtracting `b_dec` from an input first would."""
    weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]


def _sparsify(weights: dict[str, Tensor], config: dict) -> int:
    if config.get("activation", "topk") != "topk":
        raise ValueError(f"its activation is {config['activation']}, which ours cannot be")
    if not config.get("transcode"):
        subtract_b_dec(weights)
    return int(config["k"])


_LOWER = {name: name.lower() for name in PARAMETERS}

LAYOUTS = {
    # Gemma Scope
    "gemma-scope": Layout(
        r"layer_{layer}/width_{width}/average_l0_(?P<l0>\d+(\.\d+)?)/params\.npz", {name: name for name in PARAMETERS}
    ),
    # Gemma Scope 2, without an affine skip and with one, which it stores (d_in, d_out) as we do
    "gemma-scope-2": Layout(
        r"transcoder_all/layer_{layer}_width_{width}_l0_[a-z]+/params\.safetensors", _LOWER, config="config.json"
    ),
    "gemma-scope-2-affine": Layout(
        r"transcoder_all/layer_{layer}_width_{width}_l0_[a-z]+_affine/params\.safetensors",
        _LOWER | {"W_skip": "affine_skip_connection"},
        config="config.json",
    ),
    # circuit-tracer: one file a layer, encoder and skip as (out, in), ReLU where there is no threshold
    "circuit-tracer": Layout(
        r"layer_{layer}\.safetensors",
        {name: name for name in PARAMETERS} | {"threshold": "activation_function.threshold", "W_skip": "W_skip"},
        optional=("threshold", "W_skip"),
        transposed=("W_enc", "W_skip"),
    ),
    # EleutherAI's sparsify: TopK, a folder for each module of the model that it was trained on
    "sparsify": Layout(
        r"(.+[./])?(layers|h)\.{layer}(\.mlp)?/sae\.safetensors",
        {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"},
        optional=("W_skip",),
        transposed=("W_enc", "W_skip"),
        config="cfg.json",
        l0="k",
        folded=_sparsify,
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
        return float(files.json_object(_config(layout, match.string, source, revision))[layout.l0])
    return float(match.groupdict().get("l0", math.nan))


def _config(layout: Layout, file: str, source: Path | str, revision: str | None) -> Path:
    """The file that says more of another one, fetched where it is not here."""
    return hub.file(source, f"{file.rpartition('/')[0]}/{layout.config}", revision)


def load_level(settings: Transcoders, file: str, d_model: int | None = None) -> Dictionary:
    """One file of a release, frozen, in float32."""
    source, layout = local_or_hub(settings.source), LAYOUTS[settings.layout]
    path = hub.file(source, file, settings.revision)
    if layout.folded:
        _config(layout, file, source, settings.revision)  # so that it lies beside
    return read(path, layout, d_model)


def load_npz(path: Path, d_model: int | None = None) -> Dictionary:
    """A transcoder from a `params.npz` as Gemma Scope has them."""
    return read(path, LAYOUTS["gemma-scope"], d_model)


def read(path: Path, layout: Layout, d_model: int | None = None) -> Dictionary:
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
    k = None
    if layout.folded:
        config = path.with_name(layout.config)
        try:
            k = layout.folded(ours, files.json_object(config))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{config}: {files.first_line(error)}; check transcoders.layout") from None
    return checked(path, ours, d_model, k)


def fit(path: Path | str, shapes: Mapping[str, Sequence[int]], d_model: int | None = None) -> None:
    """Raise a one-line `ValueError` for arrays of a transcoder whose shapes fit neither one another nor `d_model`."""
    d_in, d_sae = d_model or math.prod(shapes["b_dec"]), math.prod(shapes["b_enc"])
    right = dict(
        W_enc=(d_in, d_sae), b_enc=(d_sae,), threshold=(d_sae,), W_dec=(d_sae, d_in), b_dec=(d_in,), W_skip=(d_in, d_in)
    )
    for name, shape in shapes.items():
        if tuple(shape) != right[name]:
            raise ValueError(f"{path}: {name} is {tuple(shape)}, not {right[name]}; it is not for this model")


def checked(path: Path | str, weights: Mapping[str, Tensor], d_model: int | None = None, k: int | None = None) -> Dictionary:
    """A frozen dictionary of finite arrays whose shapes fit one another and `d_model`; else a one-line `ValueError`."""
    fit(path, {name: array.shape for name, array in weights.items()}, d_model)
    arrays.finite(path, weights, "train or download it again")
    return Dictionary(**weights, k=k).requires_grad_(False)


def save_npz(transcoder: Dictionary, path: Path, dtype: type = np.float32) -> None:
    """Write one transcoder as Gemma Scope does, whole or not at all; one that is not finite is a `ValueError`."""
    if transcoder.k is not None or transcoder.W_skip is not None:
        raise ValueError(f"{path}: Gemma Scope's layout has no place for a TopK or an affine skip; use another format")
    arrays.finite(path, transcoder.tensors, "training came apart: lower its lr")
    held = {name: getattr(transcoder, name).detach().float().cpu().numpy().astype(dtype) for name in PARAMETERS}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **held)
