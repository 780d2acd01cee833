"""What others made, read from their own files: sae-lens's transcoders as bases, and deltas trained elsewhere.

Weights are read as safetensors, as npz without objects, or as a pickle that holds plain tensors and
nothing else: a file that would run code is refused, and nothing in it runs.
"""

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lib.book import files
from lib.dictionary.dictionaries import PARAMETERS, Transcoder
from lib.dictionary.layouts import checked
from lib.model.sites import site_for

if TYPE_CHECKING:
    from lib.model.models import LanguageModel

# --- bases ---


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
