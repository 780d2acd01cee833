"""sae-lens's dictionaries as ours: SAEs and transcoders, from a folder that it saved or from a release that it knows; and
its trainer.

What it does to an input before the encoder is folded into the weights where that is exact, and refused where it is not.
"""

import contextlib
import io
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.book import files
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import checked, subtract_b_dec
from lib.model.models import LanguageModel
from lib.model.sites import Site

Fits = Callable[[str, object], None]
"""What looks at sae-lens's metadata of the dictionary of that name, and raises where it was trained elsewhere."""


def folders(source: Path, layer: int) -> dict[float, Path]:
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


def ids(release: str, layer: int, width: str) -> dict[float, str]:
    """The ids of a layer in a release of sae-lens, by average L0; of two with the same, the one without a skip."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory().get(release)
    if known is None:
        raise ValueError(f"{release}: no such folder, no owner/name of the hub, and no release that sae-lens knows")
    named = [i for i in known.saes_map if re.search(rf"(layer_|blocks\.){layer}(?!\d)", i)]
    named = [i for i in named if "width_" not in i or re.search(rf"width_{re.escape(width)}(?![\da-z])", i)]
    if not named:
        raise ValueError(f"{release}: nothing for layer {layer} and width {width}; check transcoders.source and .width")
    return {float(known.expected_l0[i]) or math.nan: i for i in sorted(named, reverse=True)}


def load_sae_lens(folder: Path, d_model: int | None = None, fits: Fits | None = None) -> Dictionary:
    """A dictionary from a folder that sae-lens saved, frozen, in float32."""
    from sae_lens import SAE

    for name in ("cfg.json", "sae_weights.safetensors"):
        files.present(folder / name)
    try:
        theirs = SAE.load_from_disk(folder, dtype="float32")
    except Exception as error:  # a damaged file may end in any of them
        raise ValueError(f"{folder}: sae-lens cannot load it ({files.first_line(error)}); save or download it again") from None
    return from_sae_lens(theirs, str(folder), d_model, fits)


def load_release(release: str, sae_id: str, d_model: int | None = None, fits: Fits | None = None) -> Dictionary:
    """One of a release of sae-lens, downloaded where it is not in the cache."""
    from sae_lens import SAE

    return from_sae_lens(SAE.from_pretrained(release, sae_id), f"{release}/{sae_id}", d_model, fits)


def from_sae_lens(theirs: torch.nn.Module, name: str, d_model: int | None = None, fits: Fits | None = None) -> Dictionary:
    """Ours from sae-lens's; `ValueError` for what ours cannot compute exactly."""
    config, kind = theirs.cfg, theirs.cfg.architecture()
    if kind not in KINDS:
        raise ValueError(f"{name}: a {kind} dictionary computes what ours cannot; known: {', '.join(KINDS)}")
    if config.normalize_activations != "none":
        raise ValueError(f"{name}: normalize_activations is {config.normalize_activations}; fold it into the weights")
    if fits:
        fits(name, config.metadata)
    found = {key: tensor.detach() for key, tensor in theirs.state_dict().items()}
    weights = {key: found[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec") if key in found}
    k = KINDS[kind](config, found, weights)
    weights.setdefault("threshold", torch.zeros_like(weights["b_enc"]))
    if getattr(config, "apply_b_dec_to_input", False) and "transcoder" not in kind:
        subtract_b_dec(weights)
    if reads_centred(config.metadata):
        weights["W_enc"] = weights["W_enc"] - weights["W_enc"].mean(0)  # as good as to take the mean off what is read
    if "W_skip" in found:
        weights["W_skip"] = found["W_skip"].T.contiguous()  # theirs is (d_out, d_in)
    return checked(name, weights, d_model, k)


def reads_centred(metadata: object) -> bool:
    """Whether an SAE was trained on a model whose weights transformer-lens had centred.

    What such a model writes to the residual stream has no mean over d_model; every later norm takes it away anyway.
    """
    point = (getattr(metadata, "hook_name", None) or "").split(".")[-1]
    loaded = getattr(metadata, "model_from_pretrained_kwargs", None) or {}
    return bool(loaded.get("center_writing_weights")) and (point.startswith("hook_resid") or point.endswith("_out"))


def _relu(config, found: dict, weights: dict) -> None:
    if "threshold" in found:  # of a JumpReLU, and of a BatchTopK as it is saved
        weights["threshold"] = found["threshold"]


def _gated(config, found: dict, weights: dict) -> None:
    """Where the gate is open, a + b_gate > 0, the magnitude a e^r + b_mag is above b_mag - e^r b_gate."""
    grown = found["r_mag"].exp()
    weights["W_enc"], weights["b_enc"] = found["W_enc"] * grown, found["b_mag"]
    weights["threshold"] = found["b_mag"] - grown * found["b_gate"]


def _topk(config, found: dict, weights: dict) -> int:
    if config.rescale_acts_by_decoder_norm:
        norm = found["W_dec"].norm(dim=-1)
        weights |= {"W_enc": found["W_enc"] * norm, "b_enc": found["b_enc"] * norm, "W_dec": found["W_dec"] / norm[:, None]}
    return config.k


KINDS: dict[str, Callable] = {
    "standard": _relu, "jumprelu": _relu, "gated": _gated, "topk": _topk, "transcoder": _relu, "skip_transcoder": _relu,
    "jumprelu_transcoder": _relu, "jumprelu_skip_transcoder": _relu,
}  # fmt: skip
"""What fits the weights of each of sae-lens's architectures to ours, and gives their `k`."""


def trained_there(name: str, metadata: object, model: LanguageModel | None, site: Site | None, source: str) -> None:
    """Compare sae-lens's metadata with where a site reads and writes.

    A hook point has several names, any of which will do. An SAE names one alone, which it reads and writes.
    """
    if model is None or site is None:
        return
    reads = getattr(metadata, "hook_name", None)
    writes = getattr(metadata, "hook_name_out", None) or (reads if site.read == site.write else None)
    for key, said, wanted in (("hook_name", reads, site.read), ("hook_name_out", writes, site.write)):
        if said and model.points.get(said) is not model.points[wanted]:
            raise ValueError(f"{name}: its {key} is {said}, but here {wanted} is meant; name a dictionary trained there")
    trained_on = getattr(metadata, "model_name", None)
    if source and trained_on and Path(trained_on).name.lower() != Path(source).name.lower():
        warnings.warn(f"{name}: was trained on {trained_on}, and the model is {source}", stacklevel=2)


def fit(
    saes: dict[str, nn.Module], reads: dict[str, str], batches: Iterator[dict[str, Tensor]], steps: int, batch: int, lr: float,
    **others,
) -> float:  # fmt: skip
    """Train SAEs of sae-lens side by side by its own trainer; the seconds of each.

    Each learns from the activations that the batches hold under the name that `reads` gives for it. `others` are further
    settings of `SAETrainerConfig`; without them the learning rate stays as it is.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    config = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, logger=LoggingConfig(log_to_wandb=False),
        **{"lr_end": lr, **others},
    )  # fmt: skip
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        MultiSAETrainer(config, saes, reads, batches).fit()
    return (time.perf_counter() - began) / len(saes)
