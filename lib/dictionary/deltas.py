"""Which base and which delta belong to a site, d_new and L0 rank; and training all deltas at once."""

from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.book.fingerprint import code, fingerprint
from lib.dictionary import bases, elsewhere
from lib.dictionary.checkpoint import Checkpoint
from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.dictionary.layouts import load_npz, save_npz
from lib.dictionary.training import Batch, train, validate, variance
from lib.model import activations, precision
from lib.model.encoding import Encoded
from lib.model.hooks import Replacement
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.organism import Training
from lib.profiles.tables import Profile


def delta_file(folder: Path, site: Site, d_new: int, rank: float) -> Path:
    """Where a delta is kept, in the same format as a base; deltas of sites of one name together."""
    return folder / site.name / f"layer_{site.layer}" / f"d_new_{d_new}_percentile_{rank:g}" / "params.npz"


def load_delta(profile: Profile, model: LanguageModel, site: Site, d_new: int, rank: float) -> Dictionary:
    """A trained delta."""
    return load_npz(delta_file(profile.paths.deltas, site, d_new, rank), model.d_model).to(model.hf.device)


def load_pair(profile: Profile, model: LanguageModel, site: Site, d_new: int, rank: float) -> BaseDelta:
    """`base + delta` of a site, ready to replace its MLP."""
    [base] = bases.load(profile, model, site, [rank])
    return BaseDelta(base, load_delta(profile, model, site, d_new, rank))


@torch.no_grad()
def unexplained(
    of_sites: Sequence[Sequence[Replacement]],
    x: Float[Tensor, "site token d_model"],
    y: Float[Tensor, "site token d_model"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "site base token d_model"]:
    """What each base of each site leaves, `y - base(x)`, in `dtype`, as the products of the bases where the device can."""
    left = y.new_empty(len(of_sites), len(of_sites[0]), *y.shape[1:], dtype=dtype)
    with precision.products(dtype, x.device):
        for i, of_site in enumerate(of_sites):
            for j, base in enumerate(of_site):
                for a, b, out in zip(x[i].split(2048), y[i].split(2048), left[i, j].split(2048), strict=True):
                    torch.sub(b, base(a), out=out)
    return left


def dtypes(profile: Profile) -> tuple[torch.dtype, torch.dtype]:
    """Of what deltas are trained on and of what they are validated on."""
    return getattr(torch, profile.tool.memory.dtype), torch.float32


def held_size(profile: Profile, tokens: Sequence[int], layers: int, ranks: int, d_model: int) -> tuple[int, bool]:
    """Bytes of the inputs and targets of so many tokens of training and validation, and whether they go to files."""
    a_number = layers * (1 + ranks) * d_model
    size = a_number * sum(n * dtype.itemsize for n, dtype in zip(tokens, dtypes(profile), strict=True))
    return size, size > profile.tool.memory.data_gb * 1e9


def targets(
    profile: Profile, model: LanguageModel, sites: Sequence[Site], ranks: Sequence[float], splits: Sequence[list[Encoded]]
) -> list[Batch]:
    """Of training and of validation, inputs (site, 1, token, d_model) and what the bases leave of the outputs (site, rank,
    token, d_model).

    One pass of the model for all sites, in which each base is run once on each token. Held in memory, or in
    files under the profile's data where both splits together are more than `tool.memory.data_gb`; see `dtypes`.
    """
    loaded = [bases.load(profile, model, site, ranks) for site in sites]
    counts = [activations.count(model, batches) for batches in splits]
    _, to_files = held_size(profile, counts, len(sites), len(ranks), model.d_model)

    def parts(batches: list[Encoded], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for part in activations.stream(model, sites, tqdm(batches, desc="activations", mininterval=2)):
            yield part.x[:, None].to(dtype), unexplained(loaded, part.x, part.y, dtype)

    folder, each = profile.paths.data if to_files else None, zip(splits, counts, dtypes(profile), strict=True)
    return [activations.stored(parts(batches, dtype), n, folder) for batches, n, dtype in each]


def fit(
    settings: Training,
    data: Batch,
    validation: Batch,
    widths: Sequence[int],
    seed: int,
    frozen: tuple[str, ...] = (),
    progress: str = "deltas",
    checkpoint: Path | None = None,
) -> list[tuple[Dictionary, pd.DataFrame]]:
    """Deltas trained together: for each d_new of `widths` one for each leading index of the targets, and learning curves.

    `data` and `validation` are inputs and targets, (*n, token, d_model) each, as tensors or `activations.TokenMajor`; inputs
    broadcast. Training that finds its own `checkpoint` goes on from it, to the same result.
    """
    x, target = data
    shape, d_model = target.shape[:-2], target.shape[-1]
    stacks = [Dictionary.initialised(shape, d_model, d_new, seed, settings.threshold).to(x.device) for d_new in widths]
    earlier = checkpoint and Checkpoint(checkpoint, _of(settings, data, validation, list(widths), seed, frozen), x.device)
    picks = islice(activations.repeated(target.shape[-2], settings.batch, seed), earlier.step if earlier else 0, None)
    batches = ((x.index_select(-2, pick), target.index_select(-2, pick)) for pick in picks)  # much faster than x[..., pick, :]
    curves = train(stacks, batches, validation, settings, frozen=frozen, progress=progress, checkpoint=earlier)
    return list(zip(stacks, curves, strict=True))


def _of(settings: Training, data: Batch, validation: Batch, *more: object) -> str:
    """What tells one training from another: its settings, its data, and the code."""
    tensors = [tensor for tensor in (*data, *validation) if tensor is not None]
    parts = (t[..., i : i + 2**16, :] for t in tensors for i in range(0, t.shape[-2], 2**16))
    return fingerprint(settings, [[*t.shape] for t in tensors], list(more), parts, code(__file__))


def trained_elsewhere(
    profile: Profile, model: LanguageModel, sites: Sequence[Site], d_new: int, validation: Batch
) -> tuple[Dictionary, pd.DataFrame]:
    """Deltas of the profile's source, as `fit` returns them: a stack by site and rank, and one row each in place of curves."""
    settings, ranks = profile.tool.deltas, profile.transcoders.l0_ranks

    def delta(site: Site, rank: float, base: Dictionary) -> Dictionary:
        return elsewhere.load_delta(settings.source, site.layer, d_new, rank, base, settings.revision)

    loaded = [bases.load(profile, model, site, ranks) for site in sites]
    rows = [
        Dictionary.stacked([delta(site, rank, base) for rank, base in zip(ranks, of_site, strict=True)])
        for site, of_site in zip(sites, loaded, strict=True)
    ]
    stack = Dictionary.stacked(rows).requires_grad_(False)
    fvu, l0 = (of_each.flatten().tolist() for of_each in validate(stack, validation, variance(validation[1])))
    return stack, pd.DataFrame({"step": 0, "member": range(len(fvu)), "loss": torch.nan, "fvu": fvu, "l0": l0})


def groups(profile: Profile, layers: Sequence) -> list[Sequence]:
    """Layers, or their sites, whose bases and deltas are in memory together (`tool.memory.layers`)."""
    at_once = profile.tool.memory.layers or len(layers)
    return [layers[i : i + at_once] for i in range(0, len(layers), at_once)]


def train_deltas(
    profile: Profile, model: LanguageModel, sites: Sequence[Site], train_on: list[Encoded], validate_on: list[Encoded]
) -> pd.DataFrame:
    """Train and save the delta of every site, d_new and L0 rank, on what its base leaves.

    All sites (or `tool.memory.layers` of them at once), d_new and ranks learn together, from the same batches.
    Interrupted, it goes on from its last checkpoint to the same result. Where the profile names a source of deltas,
    they are taken from there instead. Returns the learning curves:
    `layer, d_new, percentile, step, loss, fvu, l0`, where `fvu` is of the delta's own target.
    """
    ranks, settings, curves, done = profile.transcoders.l0_ranks, profile.tool.deltas, [], []
    for chunk in groups(profile, sites):
        layers = [site.layer for site in chunk]
        data, validation = targets(profile, model, chunk, ranks, (train_on, validate_on))
        if settings.source:
            found = [trained_elsewhere(profile, model, chunk, d_new, validation) for d_new in settings.d_new]
        else:
            done.append(profile.paths.deltas / f"{chunk[0].name}.layers_{layers[0]}_{layers[-1]}.checkpoint")
            found = fit(settings.training, data, validation, settings.d_new, profile.seed, checkpoint=done[-1])
        for d_new, (stack, curve) in zip(settings.d_new, found, strict=True):
            for (i, site), (j, rank) in product(enumerate(chunk), enumerate(ranks)):
                save_npz(stack[i, j], delta_file(profile.paths.deltas, site, d_new, rank))
            members = pd.MultiIndex.from_product([layers, [d_new], ranks], names=["layer", "d_new", "percentile"])
            curves.append(pd.concat([members[curve.pop("member")].to_frame(index=False), curve], axis=1))
        del data, validation  # before the next layers' are made
    for checkpoint in done:
        checkpoint.unlink()
    return pd.concat(curves, ignore_index=True)


def widest(profile: Profile) -> tuple[int, float]:
    """The largest d_new and the middle L0 rank, with which experiment 2 is done."""
    ranks = profile.transcoders.l0_ranks
    return max(profile.tool.deltas.d_new), ranks[len(ranks) // 2]


def pairs(profile: Profile, model: LanguageModel, sites: Sequence[Site]) -> dict[Site, BaseDelta]:
    """base + delta at every site, the widest at the middle L0 rank."""
    return {site: load_pair(profile, model, site, *widest(profile)) for site in sites}
