"""A trained delta in the formats of other libraries.

    python -m lib.export --profile nano --layer 3 --as sae-lens --to FOLDER [--alpha 0.5] [--push OWNER/NAME]

- `sae-lens`: a folder for base + delta as *one* transcoder of F + k features, with alpha in the delta's
  decoder rows, and one for the delta alone; both name the hook points that they read and write.
- `gemma-scope`: the same two as `params.npz`, by width and average L0; usable as a profile's `transcoders.source`.
- `circuit-tracer`: base + delta of every layer as a transcoder set, `config.yaml` and `layer_<i>.safetensors`.
- `hub`: as `sae-lens`, with a model card.

Without `--layer`, `--d-new` or `--percentile`: every layer studied, the widest delta, the middle L0 rank.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from lib import profiles
from lib.book.paths import replacing
from lib.dictionary import deltas
from lib.dictionary.bases import level
from lib.dictionary.dictionaries import BaseDelta, Dictionary, as_one
from lib.dictionary.layouts import save_npz
from lib.dictionary.release import Delta, Job, card
from lib.model import models
from lib.model.encoding import bos_id
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile


def collect(profile: Profile, layers: list[int] | None, d_new: int | None, rank: float | None, alpha: float) -> Job:
    """The trained deltas to export; a one-line `ValueError` for what was not trained or no library could use."""
    widest, middle = deltas.widest(profile)
    d_new, rank, name = d_new or widest, middle if rank is None else rank, profile.tool.protocol.site
    model, found = models.load(profile, profile.paths.finetuned), []
    if model.site(name, 0).scale != 1:
        raise ValueError(
            f"profile {profile.name}: tool.protocol.site {name!r} scales by sqrt(d_model), which no other library does; "
            "export under another site"
        )
    for layer in layers or models.layers_of(profile, model.n_layers):
        site = model.site(name, layer)
        file = deltas.delta_file(profile.paths.deltas, site, d_new, rank)
        if not file.exists():
            raise ValueError(
                f"{file}: no such delta; profile {profile.name} has d_new {profile.tool.deltas.d_new}, "
                f"L0 ranks {profile.transcoders.l0_ranks} and layers below {model.n_layers}, made by chapter 3"
            )
        load = partial(_pair, profile, model, site, d_new, rank, alpha)
        l0 = level(profile.transcoders, layer, rank)
        found.append(Delta(site, load, l0))
    return Job(profile, model, d_new, rank, found)


def _pair(profile: Profile, model: LanguageModel, site: Site, d_new: int, rank: float, alpha: float) -> BaseDelta:
    return deltas.load_pair(profile, model, site, d_new, rank).at(alpha)


def write_sae_lens(job: Job, folder: Path) -> None:
    """`layer_<i>/d_new_<k>_percentile_<p>/<part>/`: `cfg.json` and `sae_weights.safetensors`, by sae-lens itself."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    bos = bos_id(job.model.tokenizer)
    for delta, name, part, place in job.placed():
        metadata = SAEMetadata(
            model_name=job.profile.model.source, hook_name=delta.site.read, hook_name_out=delta.site.write,
            prepend_bos=bos >= 0, exclude_special_tokens=[bos] if bos >= 0 else False, profile=job.profile.name,
            part=name, d_new=job.d_new, percentile=job.rank, base=job.profile.transcoders.source,
            base_l0=None if math.isnan(delta.base_l0) else delta.base_l0,
        )  # fmt: skip
        kind, config = get_sae_class("jumprelu_transcoder" if part.W_skip is None else "jumprelu_skip_transcoder")
        size = {"d_in": part.d_model, "d_out": part.d_model, "d_sae": part.d_sae}
        theirs = kind(config(**size, apply_b_dec_to_input=False, metadata=metadata))
        theirs.load_state_dict(_tensors(part, ("W_skip",)))
        theirs.save_model(folder / place)


def write_gemma_scope(job: Job, folder: Path) -> None:
    """`layer_<i>/width_<n>/average_l0_<l0>/params.npz`; L0 is the base's, and the delta's of the validation prompts."""
    l0 = job.rows("deltas")
    for delta, name, part, _ in job.placed():
        layer = delta.site.layer
        if part.W_skip is not None:
            raise ValueError(f"layer {layer}: its base has an affine skip, Gemma Scope's layout none; use another format")
        if math.isnan(delta.base_l0):
            raise ValueError(f"layer {layer}: its base says no L0, Gemma Scope's layout does; use another format")
        measured = l0[l0.layer == layer].delta_l0 if len(l0) else l0
        if not len(measured):
            path = job.profile.paths.results / "deltas.csv"
            raise ValueError(f"{path}: has no L0 of layer {layer}'s delta, which the layout asks for; run chapter 3")
        average = measured.iloc[0] + (0 if name == "delta" else delta.base_l0)
        save_npz(part, folder / f"layer_{layer}/width_{part.d_sae}/average_l0_{average:.1f}/params.npz")


def write_circuit_tracer(job: Job, folder: Path) -> None:
    """`config.yaml` and `layer_<i>.safetensors` for every layer of the model, with `W_enc` (F, d_model) as it has it."""
    have, widths = [delta.site.layer for delta in job.deltas], set()
    if have != list(range(job.model.n_layers)):
        raise ValueError(f"circuit-tracer wants every layer from 0 to {job.model.n_layers - 1}, not {have}; leave out --layer")
    for delta in job.deltas:
        part = as_one(delta.load())
        widths.add(part.d_sae)
        if len(widths) > 1:
            raise ValueError(f"circuit-tracer wants equal widths in all layers, not {sorted(widths)}; use bases of one width")
        tensors = _tensors(part, ("W_enc", "W_skip"))
        # its JumpReLU has no relu before the threshold
        tensors["activation_function.threshold"] = tensors.pop("threshold").clamp(min=0)
        save_file(tensors, folder / f"layer_{delta.site.layer}.safetensors")
    within = f"blocks.{job.deltas[0].site.layer}."
    config = {
        "model_name": job.profile.model.source,
        "model_kind": "transcoder_set",
        "feature_input_hook": job.deltas[0].site.read.removeprefix(within),
        "feature_output_hook": job.deltas[0].site.write.removeprefix(within),
    }
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))


def _tensors(transcoder: Dictionary, transposed: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """What a transcoder computes with, ready to be saved; the arrays named as (out, in)."""
    tensors = {name: tensor.float().cpu() for name, tensor in transcoder.tensors.items()}
    return {name: (tensor.T if name in transposed else tensor).contiguous() for name, tensor in tensors.items()}


def write_hub(job: Job, folder: Path) -> None:
    """As for sae-lens, with a model card."""
    write_sae_lens(job, folder)
    (folder / "README.md").write_text(card(job), encoding="utf-8")


FORMATS: dict[str, Callable[[Job, Path], None]] = {
    "sae-lens": write_sae_lens,
    "gemma-scope": write_gemma_scope,
    "circuit-tracer": write_circuit_tracer,
    "hub": write_hub,
}


def export(job: Job, form: str, to: Path) -> None:
    """Write a folder, whole or not at all; one that is there with something in it is left alone."""
    if to.exists() and (to.is_file() or any(to.iterdir())):
        raise ValueError(f"{to}: is there already; name a new folder")
    with replacing(to) as temporary:
        temporary.mkdir()
        FORMATS[form](job, temporary)


def push(folder: Path, repo: str) -> None:
    """Upload a folder to a model repository of the hub, made if it is not there."""
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Delta transcoders")
    except OSError as error:  # all of the hub's
        why = str(error).strip().split("\n")[0]
        raise ValueError(f"{repo}: not uploaded ({why}); log in with `.venv/bin/hf auth login`; {folder} is whole") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    parser.add_argument("--layer", type=int, nargs="+", help="the layers; all that the profile studies where left out")
    parser.add_argument("--d-new", type=int)
    parser.add_argument("--percentile", type=float, help="the base's place among the L0 levels, 0 the sparsest, 1 the densest")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--as", dest="form", choices=FORMATS, required=True)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository of the hub")
    given = parser.parse_args()
    try:
        job = collect(profiles.load(given.profile), given.layer, given.d_new, given.percentile, given.alpha)
        export(job, given.form, given.to)
        if given.push:
            push(given.to, given.push)
    except ValueError as error:
        sys.exit(str(error))
    print(f"{given.to}: layers {', '.join(str(delta.site.layer) for delta in job.deltas)}, as {given.form}")


if __name__ == "__main__":
    main()
