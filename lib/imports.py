"""What others made, read from their own files: sae-lens's transcoders as bases, and deltas trained elsewhere.

Weights are read as safetensors, as npz without objects, or as a pickle that holds plain tensors and
nothing else: a file that would run code is refused, and nothing in it runs.
"""

import math
import pickle
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import files, hub
from lib.paths import ROOT
from lib.profiles import Transcoders, local_or_hub
from lib.sites import site_for
from lib.transcoders import LAYOUTS, PARAMETERS, Transcoder, checked, levels, load_level, load_npz, read

if TYPE_CHECKING:
    from lib.models import LanguageModel

# --- bases ---


def on_offer(
    settings: Transcoders, layer: int, model: "LanguageModel | None" = None, source: str = ""
) -> dict[float, Callable[[], Transcoder]]:
    """The base transcoders to choose from in a layer, by their average L0; each is loaded when called.

    The source is in a layout of `lib.transcoders`; or a folder that holds folders as sae-lens saves them
    (`cfg.json`, `sae_weights.safetensors`), told apart by the layer of their `hook_name`; or a release by
    the name that sae-lens has for it, from which the ids of the layer and, where they have one, of
    `width` are taken. An L0 that is nowhere written is NaN. One that does not fit `model` is a `ValueError`: by its
    shapes, or by what sae-lens wrote of where it was trained; where only the model's name is not `source`, a warning.
    """
    d_model, fits = model and model.d_model, partial(_trained_there, model=model, layer=layer, source=source)
    folder = ROOT / settings.source
    if folder.is_dir() and any(folder.rglob("cfg.json")):
        places = _folders(folder, layer)
        loads = {l0: partial(load_sae_lens, place, d_model, fits) for l0, place in places.items()}
    elif not folder.is_dir() and "/" not in settings.source:
        if settings.revision:
            raise ValueError(f"{settings.source}: sae-lens loads the newest of a release; leave out transcoders.revision")
        ids = _ids(settings.source, layer, settings.width)
        loads = {l0: partial(load_release, settings.source, name, d_model, fits) for l0, name in ids.items()}
    else:
        files = levels(settings, layer)
        loads = {l0: partial(load_level, settings, file, d_model) for l0, file in files.items()}
    return dict(sorted(loads.items()))


def _folders(source: Path, layer: int) -> dict[float, Path]:
    """The sae-lens folders of a layer, by average L0."""
    found: dict[float, Path] = {}
    for file in sorted(source.rglob("cfg.json")):
        config = files.json_object(file)
        metadata = config.get("metadata", config)
        if f"blocks.{layer}." not in (metadata.get("hook_name") or ""):
            continue
        match = re.search(r"average_l0_(\d+(?:\.\d+)?)", file.relative_to(source).as_posix())
        l0 = float(match[1]) if match else math.nan
        if l0 in found:
            raise ValueError(f"{source}: {found[l0].name} and {file.parent.name} are of layer {layer} and L0 {l0:g}; keep one")
        found[l0] = file.parent
    if not found:
        raise ValueError(f"{source}: no cfg.json has a hook_name in blocks.{layer}; check transcoders.source")
    return found


def _ids(release: str, layer: int, width: str) -> dict[float, str]:
    """The ids of a layer in a release of sae-lens, by average L0; of two with the same, the one without a skip."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory().get(release)
    if known is None:
        raise ValueError(f"{release}: no such folder, no owner/name of the hub, and no release that sae-lens knows")
    ids = [i for i in known.saes_map if re.search(rf"(layer_|blocks\.){layer}(?!\d)", i)]
    ids = [i for i in ids if "width_" not in i or re.search(rf"width_{re.escape(width)}(?![\da-z])", i)]
    if not ids:
        raise ValueError(f"{release}: nothing for layer {layer} and width {width}; check transcoders.source and .width")
    return {float(known.expected_l0[i]) or math.nan: i for i in sorted(ids, reverse=True)}


def load_sae_lens(folder: Path, d_model: int | None = None, fits: "Fits | None" = None) -> Transcoder:
    """A transcoder from a folder that sae-lens saved, frozen, in float32."""
    from sae_lens import SAE

    for name in ("cfg.json", "sae_weights.safetensors"):
        files.present(folder / name)
    try:
        theirs = SAE.load_from_disk(folder, dtype="float32")
    except Exception as error:  # a damaged file may end in any of them
        raise ValueError(f"{folder}: sae-lens cannot load it ({files.first_line(error)}); save or download it again") from None
    return from_sae_lens(theirs, str(folder), d_model, fits)


def load_release(release: str, sae_id: str, d_model: int | None = None, fits: "Fits | None" = None) -> Transcoder:
    """A transcoder of a release of sae-lens, downloaded where it is not in the cache."""
    from sae_lens import SAE

    return from_sae_lens(SAE.from_pretrained(release, sae_id), f"{release}/{sae_id}", d_model, fits)


def from_sae_lens(theirs: torch.nn.Module, name: str, d_model: int | None = None, fits: "Fits | None" = None) -> Transcoder:
    """Ours from sae-lens's; `ValueError` for what is not a transcoder that ours can be."""
    from sae_lens import Transcoder as Theirs

    if not isinstance(theirs, Theirs):
        raise ValueError(f"{name}: {theirs.cfg.architecture()} is not a transcoder; name one that reads and writes an MLP")
    if theirs.cfg.normalize_activations != "none":
        raise ValueError(f"{name}: normalize_activations is {theirs.cfg.normalize_activations}; fold it into the weights")
    if fits:
        fits(name, theirs.cfg.metadata)
    weights = {key: getattr(theirs, key).detach() for key in PARAMETERS if hasattr(theirs, key)}
    if hasattr(theirs, "W_skip"):
        weights["W_skip"] = theirs.W_skip.detach().T.contiguous()  # theirs is (d_out, d_in)
    return checked(name, {"threshold": torch.zeros_like(weights["b_enc"])} | weights, d_model)


Fits = Callable[[str, object], None]
"""What looks at sae-lens's metadata of the transcoder of that name, and raises where it was trained elsewhere."""


def _trained_there(name: str, metadata: object, model: "LanguageModel | None", layer: int, source: str) -> None:
    """Compare sae-lens's metadata with where transcoders of a model's layer read and write.

    A hook point has several names, any of which will do.
    """
    if model is None:
        return
    there = site_for(model.hf.config.model_type, "gemma-scope").at(layer)
    for key, wanted in zip(("hook_name", "hook_name_out"), there, strict=True):
        said = getattr(metadata, key, None)
        if said and model.points.get(said) is not model.points[wanted]:
            raise ValueError(f"{name}: its {key} is {said}, but here {wanted} is meant; name a transcoder trained there")
    trained_on = getattr(metadata, "model_name", None)
    if source and trained_on and Path(trained_on).name.lower() != Path(source).name.lower():
        warnings.warn(f"{name}: was trained on {trained_on}, and the model is {source}", stacklevel=2)


# --- deltas ---


def load_delta(
    source: str, layer: int, d_new: int, percentile: float, base: Transcoder, revision: str | None = None
) -> Transcoder:
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
            f"a path that ends in {' or '.join(ends)}; check deltas.source and .d_new, transcoders.percentiles and .layers"
        )
    [(name, read)] = found
    path = hub.file(place, name, revision)
    delta = read(path, base)
    if delta.d_sae != d_new:
        raise ValueError(f"{path}: has {delta.d_sae} delta features, not {d_new}; it is not what its name says")
    return delta.to(base.W_enc.device)


def _whole(path: Path, base: Transcoder) -> Transcoder:
    return read(path, LAYOUTS["gemma-scope"], base.d_model)


def _checkpoint(path: Path, base: Transcoder) -> Transcoder:
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


def _fused(path: Path, base: Transcoder) -> Transcoder:
    """What the published study fused: the base's features first, then the delta's; `b_dec` is the sum of both."""
    whole, n = load_npz(path, base.d_model), base.d_sae
    if whole.d_sae <= n:
        raise ValueError(f"{path}: has {whole.d_sae} features, not more than its base, {n}; it is not base and delta fused")
    b_dec = base.b_dec.cpu()
    ours = Transcoder(whole.W_enc[:, :n], whole.b_enc[:n], whole.threshold[:n], whole.W_dec[:n], b_dec)
    _same(path, ours, base)
    rest = whole.W_enc[:, n:], whole.b_enc[n:], whole.threshold[n:], whole.W_dec[n:], whole.b_dec - b_dec
    return Transcoder(*rest).requires_grad_(False)


PLACES: dict[str, Callable[[Path, Transcoder], Transcoder]] = {
    "layer_{layer}/d_new_{d_new}_percentile_{percentile:g}/params.npz": _whole,
    "layer_{layer}/d_new_{d_new}_percentile_{percentile:g}/delta/sae_weights.safetensors": _whole,
    "layer_{layer}_dnew_{d_new}_pctl_{percentile:.2f}/best_model.pt": _checkpoint,
    "fused_delta_{d_new}_pctl_{percentile:g}/layer_{layer}/params.npz": _fused,
}
"""How a path to a delta may end, and what reads it."""


def _member(path: Path, weights: dict[str, Tensor], prefix: str, d_model: int) -> Transcoder:
    """The transcoder whose tensors have a prefix."""
    missing = [prefix + name for name in PARAMETERS if not isinstance(weights.get(prefix + name), Tensor)]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(map(str, weights)) or 'nothing'}")
    return checked(path, {name: weights[prefix + name].float() for name in PARAMETERS}, d_model)


def _same(path: Path, theirs: Transcoder, base: Transcoder) -> None:
    """Raise where a delta was trained on another base than the one it is put on."""
    for name in PARAMETERS:
        a, b = getattr(theirs, name), getattr(base, name).cpu()
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-2, atol=1e-4):  # it may have been kept in half precision
            raise ValueError(
                f"{path}: was trained on another base ({name} differs); "
                "check transcoders.source, .width and .percentiles, which choose the base"
            )
