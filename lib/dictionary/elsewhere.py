"""Deltas that others trained."""

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lib.book import files, hub
from lib.book.hub import local_or_hub
from lib.dictionary.dictionaries import PARAMETERS, Dictionary
from lib.dictionary.layouts import LAYOUTS, checked, load_npz, read


def load_delta(
    source: str, layer: int, d_new: int, percentile: float, base: Dictionary, revision: str | None = None
) -> Dictionary:
    """The delta of a layer, d_new and percentile in a folder or hub repository, on the base's device.

    Layouts (`PLACES`): our own, as trained and as `lib.export` writes them; the published study's
    checkpoints, and what it fused from them. Where the file holds the base too, that must be `base`.
    """
    place = local_or_hub(source)
    ends = {end.format(layer=layer, d_new=d_new, percentile=percentile): read for end, read in PLACES.items()}
    names = [(name, f"/{place}/{name}") for name in sorted(hub.files(place, revision))]
    found = [(name, read) for name, path in names for end, read in ends.items() if path.endswith(f"/{end}")]
    if len(found) != 1:
        have = " and ".join(name for name, _ in found) or "no file"
        raise ValueError(
            f"{source}: {have} for layer {layer}, d_new {d_new}, percentile {percentile:g}, where one is needed: "
            f"a path that ends in {' or '.join(ends)}; check tool.deltas.source and .d_new, transcoders.l0_ranks and .layers"
        )
    [(name, read)] = found
    path = hub.file(place, name, revision)
    delta = read(path, base)
    if delta.d_sae != d_new:
        raise ValueError(f"{path}: has {delta.d_sae} delta features, not {d_new}; it is not what its name says")
    return delta.to(base.W_enc.device)


def _whole(path: Path, base: Dictionary) -> Dictionary:
    return read(path, LAYOUTS["gemma-scope"], base.d_model)


def _checkpoint(path: Path, base: Dictionary) -> Dictionary:
    """The published study's state dict: `base_transcoder.*`, which it froze, and `delta_features.*`."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: refused, for it is not a pickle of plain tensors and could run code; save its state dict as such"
        ) from None
    except Exception as error:  # a damaged pickle may end in any of them
        raise ValueError(f"{path}: damaged ({files.first_line(error)}); make or download it again") from None
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: holds a {type(weights).__name__}, not a state dict; save one")
    _same(path, _member(path, weights, "base_transcoder.", base.d_model), base)
    return _member(path, weights, "delta_features.", base.d_model)


def _fused(path: Path, base: Dictionary) -> Dictionary:
    """What the published study fused: the base's features first, then the delta's; `b_dec` is the sum of both."""
    whole, n = load_npz(path, base.d_model), base.d_sae
    if whole.d_sae <= n:
        raise ValueError(f"{path}: has {whole.d_sae} features, not more than its base, {n}; it is not base and delta fused")
    b_dec = base.b_dec.cpu()
    ours = Dictionary(whole.W_enc[:, :n], whole.b_enc[:n], whole.threshold[:n], whole.W_dec[:n], b_dec)
    _same(path, ours, base)
    rest = whole.W_enc[:, n:], whole.b_enc[n:], whole.threshold[n:], whole.W_dec[n:], whole.b_dec - b_dec
    return Dictionary(*rest).requires_grad_(False)


PLACES: dict[str, Callable[[Path, Dictionary], Dictionary]] = {
    "layer_{layer}/d_new_{d_new}_percentile_{percentile:g}/params.npz": _whole,
    "layer_{layer}/d_new_{d_new}_percentile_{percentile:g}/delta/sae_weights.safetensors": _whole,
    "layer_{layer}_dnew_{d_new}_pctl_{percentile:.2f}/best_model.pt": _checkpoint,
    "fused_delta_{d_new}_pctl_{percentile:g}/layer_{layer}/params.npz": _fused,
}
"""How a path to a delta may end, and what reads it."""


def _member(path: Path, weights: dict[str, Tensor], prefix: str, d_model: int) -> Dictionary:
    """The transcoder whose tensors have a prefix."""
    missing = [prefix + name for name in PARAMETERS if not isinstance(weights.get(prefix + name), Tensor)]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(map(str, weights)) or 'nothing'}")
    return checked(path, {name: weights[prefix + name].float() for name in PARAMETERS}, d_model)


def _same(path: Path, theirs: Dictionary, base: Dictionary) -> None:
    """Raise where a delta was trained on another base than the one it is put on."""
    for name in PARAMETERS:
        a, b = getattr(theirs, name), getattr(base, name).cpu()
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-2, atol=1e-4):  # it may have been kept in half precision
            raise ValueError(
                f"{path}: was trained on another base ({name} differs); "
                "check transcoders.source, .width and .l0_ranks, which choose the base"
            )
