"""Which base and which delta belong to a layer, d_new and percentile; and training all deltas at once."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lib import activations, imports
from lib.models import LanguageModel
from lib.profiles import Profile, Training
from lib.training import Batch, train, validate
from lib.transcoders import BaseDelta, Transcoder, choose, load_npz, save_npz


def load_base(profile: Profile, model: LanguageModel, layer: int, percentile: float) -> tuple[Transcoder, float]:
    """The base transcoder of a layer at a percentile of the L0 levels on offer, and its average L0."""
    offer = imports.on_offer(profile.transcoders, layer, model.d_model)
    l0 = choose(list(offer), percentile)
    return offer[l0]().to(model.hf.device), l0


def delta_file(profile: Profile, model: LanguageModel, layer: int, d_new: int, percentile: float) -> Path:
    """Where a delta is kept, in the same format as a base; deltas of the model's site apart from others."""
    return profile.paths.deltas / model.site.name / f"layer_{layer}" / f"d_new_{d_new}_percentile_{percentile:g}" / "params.npz"


def load_pair(profile: Profile, model: LanguageModel, layer: int, d_new: int, percentile: float) -> BaseDelta:
    """`base + delta` of a layer, ready to replace its MLP."""
    base, _ = load_base(profile, model, layer, percentile)
    delta = load_npz(delta_file(profile, model, layer, d_new, percentile), model.d_model)
    return BaseDelta(base, delta.to(model.hf.device))


@torch.no_grad()
def left_by(bases: list[Transcoder], x: Tensor, y: Tensor) -> Tensor:
    """What each base leaves of one layer, `y - base(x)`, computed once: (base, token, d_model)."""
    left = [torch.cat([b - base(a) for a, b in zip(x.split(8192), y.split(8192), strict=True)]) for base in bases]
    return torch.stack(left)


def fit(
    settings: Training,
    data: Batch,
    validation: Batch,
    d_new: int,
    seed: int,
    frozen: tuple[str, ...] = (),
    progress: str = "deltas",
) -> tuple[Transcoder, pd.DataFrame]:
    """Deltas trained together, one for each leading index of the targets, and their learning curves.

    `data` and `validation` are inputs and targets held in memory, (*n, token, d_model) each; inputs broadcast.
    """
    x, target = data
    stack = Transcoder.initialised(target.shape[:-2], target.shape[-1], d_new, seed, settings.threshold).to(x.device)
    picks = activations.repeated(target.shape[-2], settings.batch, seed)
    batches = ((x[..., pick, :], target[..., pick, :]) for pick in picks)
    return stack, train(stack, batches, validation, settings, frozen=frozen, progress=progress)


def brought(
    source: str, bases: list[list[Transcoder]], layers: list[int], percentiles: list[float], d_new: int, validation: Batch
) -> tuple[Transcoder, pd.DataFrame]:
    """Deltas trained elsewhere, as `fit` returns them: a stack by layer and percentile, and one row each in place of curves."""
    rows = [
        [imports.load_delta(source, layer, d_new, p, base) for p, base in zip(percentiles, of_layer, strict=True)]
        for layer, of_layer in zip(layers, bases, strict=True)
    ]
    stack = Transcoder.stacked([Transcoder.stacked(row) for row in rows]).requires_grad_(False)
    fvu, l0 = (of_each.flatten().tolist() for of_each in validate(stack, validation))
    return stack, pd.DataFrame({"step": 0, "member": range(len(fvu)), "loss": torch.nan, "fvu": fvu, "l0": l0})


def train_deltas(
    profile: Profile,
    model: LanguageModel,
    layers: list[int],
    train_on: activations.Activations,
    validate_on: activations.Activations,
) -> pd.DataFrame:
    """Train and save the delta of every layer, d_new and percentile, on what its base leaves.

    All layers and percentiles of one d_new are one stack and learn together. Where the profile names a
    source of deltas, they are taken from there instead. Returns the learning curves:
    `layer, d_new, percentile, step, loss, fvu, l0`, where `fvu` is of the delta's own target.
    """
    percentiles, settings = profile.transcoders.percentiles, profile.deltas.training
    bases = [[load_base(profile, model, layer, p)[0] for p in percentiles] for layer in layers]
    target, validation_target = (
        torch.stack([left_by(bases[i], a.x[i], a.y[i]) for i in range(len(layers))]) for a in (train_on, validate_on)
    )  # (layer, percentile, token, d_model)
    data, validation = (train_on.x[:, None], target), (validate_on.x[:, None], validation_target)
    curves = []
    for d_new in profile.deltas.d_new:
        if profile.deltas.source:
            stack, curve = brought(profile.deltas.source, bases, layers, percentiles, d_new, validation)
        else:
            stack, curve = fit(settings, data, validation, d_new, profile.seed, progress=f"deltas of {d_new} features")
        member = curve.pop("member")
        curve.insert(0, "layer", member.map(lambda m: layers[m // len(percentiles)]))
        curve.insert(1, "d_new", d_new)
        curve.insert(2, "percentile", member.map(lambda m: percentiles[m % len(percentiles)]))
        curves.append(curve)
        for i, layer in enumerate(layers):
            for j, percentile in enumerate(percentiles):
                save_npz(stack[i, j], delta_file(profile, model, layer, d_new, percentile))
    return pd.concat(curves, ignore_index=True)
