"""Which base and which delta belong to a layer, d_new and percentile; and training all deltas at once."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.book.fingerprint import code, fingerprint
from lib.dictionary import deltas, elsewhere
from lib.dictionary.bases import load_base, load_bases
from lib.dictionary.dictionaries import BaseDelta, Transcoder
from lib.dictionary.layouts import load_npz, save_npz
from lib.dictionary.training import Batch, Checkpoint, train, validate, variance
from lib.model import activations, precision
from lib.model.encoding import Encoded
from lib.model.hooks import MLP
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile, Training


def delta_file(profile: Profile, model: LanguageModel, layer: int, d_new: int, percentile: float) -> Path:
    """Where a delta is kept, in the same format as a base; deltas of the model's site apart from others."""
    return profile.paths.deltas / model.site.name / f"layer_{layer}" / f"d_new_{d_new}_percentile_{percentile:g}" / "params.npz"


def load_delta(profile: Profile, model: LanguageModel, layer: int, d_new: int, percentile: float) -> Transcoder:
    """A trained delta."""
    return load_npz(delta_file(profile, model, layer, d_new, percentile), model.d_model).to(model.hf.device)


def load_pair(profile: Profile, model: LanguageModel, layer: int, d_new: int, percentile: float) -> BaseDelta:
    """`base + delta` of a layer, ready to replace its MLP."""
    base, _ = load_base(profile, model, layer, percentile)
    return BaseDelta(base, load_delta(profile, model, layer, d_new, percentile))


@torch.no_grad()
def left_by(
    bases: Sequence[Sequence[MLP]],
    x: Float[Tensor, "layer token d_model"],
    y: Float[Tensor, "layer token d_model"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "layer base token d_model"]:
    """What each base of each layer leaves, `y - base(x)`, in `dtype`, as the products of the bases where the device can."""
    left = y.new_empty(len(bases), len(bases[0]), *y.shape[1:], dtype=dtype)
    with precision.products(dtype, x.device):
        for i, of_layer in enumerate(bases):
            for j, base in enumerate(of_layer):
                for a, b, out in zip(x[i].split(2048), y[i].split(2048), left[i, j].split(2048), strict=True):
                    torch.sub(b, base(a), out=out)
    return left


def dtypes(profile: Profile) -> tuple[torch.dtype, torch.dtype]:
    """Of what deltas are trained on and of what they are validated on."""
    return getattr(torch, profile.memory.dtype), torch.float32


def held_size(profile: Profile, tokens: Sequence[int], layers: int, percentiles: int, d_model: int) -> tuple[int, bool]:
    """Bytes of the inputs and targets of so many tokens of training and validation, and whether they go to files."""
    a_number = layers * (1 + percentiles) * d_model
    size = a_number * sum(n * dtype.itemsize for n, dtype in zip(tokens, dtypes(profile), strict=True))
    return size, size > profile.memory.data_gb * 1e9


def targets(
    profile: Profile, model: LanguageModel, layers: list[int], percentiles: list[float], splits: Sequence[list[Encoded]]
) -> list[Batch]:
    """Of training and of validation, inputs (layer, 1, token, d_model) and what the bases leave of the outputs (layer,
    percentile, token, d_model).

    One pass of the model for all layers, in which each base is run once on each token. Held in memory, or in
    files under the profile's data where both splits together are more than `memory.data_gb`; see `dtypes`.
    """
    bases = load_bases(profile, model, layers, percentiles)
    counts = [activations.count(model, batches) for batches in splits]
    _, to_files = held_size(profile, counts, len(layers), len(percentiles), model.d_model)

    def parts(batches: list[Encoded], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for part in activations.stream(model, layers, tqdm(batches, desc="activations", mininterval=2)):
            yield part.x[:, None].to(dtype), left_by(bases, part.x, part.y, dtype)

    folder, each = profile.paths.data if to_files else None, zip(splits, counts, dtypes(profile), strict=True)
    return [activations.hold(parts(batches, dtype), n, folder) for batches, n, dtype in each]


def fit(
    settings: Training,
    data: Batch,
    validation: Batch,
    widths: Sequence[int],
    seed: int,
    frozen: tuple[str, ...] = (),
    progress: str = "deltas",
    checkpoint: Path | None = None,
) -> list[tuple[Transcoder, pd.DataFrame]]:
    """Deltas trained together: for each d_new of `widths` one for each leading index of the targets, and learning curves.

    `data` and `validation` are inputs and targets, (*n, token, d_model) each, as tensors or `activations.Rows`; inputs
    broadcast. Training that finds its own `checkpoint` goes on from it, to the same result.
    """
    x, target = data
    shape, d_model = target.shape[:-2], target.shape[-1]
    stacks = [Transcoder.initialised(shape, d_model, d_new, seed, settings.threshold).to(x.device) for d_new in widths]
    kept = checkpoint and Checkpoint(checkpoint, _of(settings, data, validation, list(widths), seed, frozen), x.device)
    picks = islice(activations.repeated(target.shape[-2], settings.batch, seed), kept.step if kept else 0, None)
    batches = ((x.index_select(-2, pick), target.index_select(-2, pick)) for pick in picks)  # much faster than x[..., pick, :]
    curves = train(stacks, batches, validation, settings, frozen=frozen, progress=progress, checkpoint=kept)
    return list(zip(stacks, curves, strict=True))


def _of(settings: Training, data: Batch, validation: Batch, *more: object) -> str:
    """What tells one training from another: its settings, its data, and the code."""
    tensors = [tensor for tensor in (*data, *validation) if tensor is not None]
    parts = (t[..., i : i + 2**16, :] for t in tensors for i in range(0, t.shape[-2], 2**16))
    return fingerprint(settings, [[*t.shape] for t in tensors], list(more), parts, code(__file__))


def brought(
    profile: Profile, model: LanguageModel, layers: list[int], d_new: int, validation: Batch
) -> tuple[Transcoder, pd.DataFrame]:
    """Deltas trained elsewhere, as `fit` returns them: a stack by layer and percentile, and one row each in place of curves."""

    def delta(layer: int, percentile: float) -> Transcoder:
        base, _ = load_base(profile, model, layer, percentile)
        return elsewhere.load_delta(profile.deltas.source, layer, d_new, percentile, base, profile.deltas.revision)

    rows = [Transcoder.stacked([delta(layer, p) for p in profile.transcoders.percentiles]) for layer in layers]
    stack = Transcoder.stacked(rows).requires_grad_(False)
    fvu, l0 = (of_each.flatten().tolist() for of_each in validate(stack, validation, variance(validation[1])))
    return stack, pd.DataFrame({"step": 0, "member": range(len(fvu)), "loss": torch.nan, "fvu": fvu, "l0": l0})


def groups(profile: Profile, layers: list[int]) -> list[list[int]]:
    """Layers whose bases and deltas are in memory together (`memory.layers`)."""
    at_once = profile.memory.layers or len(layers)
    return [layers[i : i + at_once] for i in range(0, len(layers), at_once)]


def train_deltas(
    profile: Profile, model: LanguageModel, layers: list[int], train_on: list[Encoded], validate_on: list[Encoded]
) -> pd.DataFrame:
    """Train and save the delta of every layer, d_new and percentile, on what its base leaves.

    All layers (or `memory.layers` of them at once), d_new and percentiles learn together, from the same batches.
    Interrupted, it goes on from its last checkpoint to the same result. Where the profile names a source of deltas,
    they are taken from there instead. Returns the learning curves:
    `layer, d_new, percentile, step, loss, fvu, l0`, where `fvu` is of the delta's own target.
    """
    percentiles, widths, curves, done = profile.transcoders.percentiles, profile.deltas.d_new, [], []
    for chunk in groups(profile, layers):
        data, validation = targets(profile, model, chunk, percentiles, (train_on, validate_on))
        if profile.deltas.source:
            found = [brought(profile, model, chunk, d_new, validation) for d_new in widths]
        else:
            kept = profile.paths.deltas / f"{model.site.name}.layers_{chunk[0]}_{chunk[-1]}.checkpoint"
            done.append(kept)
            found = fit(profile.deltas.training, data, validation, widths, profile.seed, checkpoint=kept)
        for d_new, (stack, curve) in zip(widths, found, strict=True):
            for i, layer in enumerate(chunk):
                for j, percentile in enumerate(percentiles):
                    save_npz(stack[i, j], delta_file(profile, model, layer, d_new, percentile))
            members = pd.MultiIndex.from_product([chunk, [d_new], percentiles], names=["layer", "d_new", "percentile"])
            curves.append(pd.concat([members[curve.pop("member")].to_frame(index=False), curve], axis=1))
        del data, validation  # before the next layers' are made
    for kept in done:
        kept.unlink()
    return pd.concat(curves, ignore_index=True)


def widest(profile: Profile) -> tuple[int, float]:
    """The largest d_new and the middle percentile, with which experiment 2 is done."""
    percentiles = profile.transcoders.percentiles
    return max(profile.deltas.d_new), percentiles[len(percentiles) // 2]


def pairs(profile: Profile, model: LanguageModel, layers: Sequence[int]) -> dict[int, BaseDelta]:
    """base + delta of every layer, the widest at the middle percentile."""
    return {layer: deltas.load_pair(profile, model, layer, *widest(profile)) for layer in layers}
