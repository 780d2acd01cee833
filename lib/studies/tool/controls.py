"""What else could stand where base + delta stands: the controls of chapter 8.

Each control is built at every layer from the same material, and measured as any condition is. A delta of
k features has k (2 d_model + 2) + d_model parameters; maps it is compared with are of that size or nearest.
"""

import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary import deltas
from lib.dictionary.dictionaries import Affine, BaseDelta, Constant, Dictionary, Sum
from lib.dictionary.training import train
from lib.model import activations
from lib.model.hooks import Condition, Replacement
from lib.model.sites import Site
from lib.studies.tool.ingredients import Control, Material


def reduced_rank(x: Float[Tensor, "token d_model"], target: Float[Tensor, "token d_model"], rank: int) -> Affine:
    """The affine map of this rank with the least squared error (Izenman 1975), in float64."""
    x64, t64 = x.double(), target.double()
    mean_x, mean_t = x64.mean(0), t64.mean(0)
    x64, t64 = x64 - mean_x, t64 - mean_t
    gram = x64.T @ x64
    full = torch.linalg.solve(gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram), x64.T @ t64)
    fitted = x64 @ full
    _, vectors = torch.linalg.eigh(fitted.T @ fitted)
    top = vectors[:, -rank:]
    weight = full @ top @ top.T
    return Affine(weight.float(), (mean_t - mean_x @ weight).float())


def shuffled(delta: Dictionary, seed: int) -> Dictionary:
    """The same features, each writing what another one wrote; no feature keeps its own decoder row."""
    order = torch.randperm(delta.d_sae, generator=torch.Generator().manual_seed(seed))
    rows = delta.W_dec.detach()
    mixed = torch.empty_like(rows)
    mixed[order] = rows[order.roll(1)]
    return delta.changed(W_dec=mixed)


def sparse(m: Material, mlps: Condition, on: str = "finetuned", frozen: tuple[str, ...] = (), **changes) -> list[Dictionary]:
    """Delta features of every site on what `mlps` leave of the `finetuned` or of the `original` model's MLPs."""
    train, validation = (m.train, m.validation) if on == "finetuned" else (m.original_train, m.original_validation)
    settings = m.settings.model_copy(update=changes)
    data, check = ((a.x, m.unexplained(mlps, a)) for a in (train, validation))
    [(stack, _)] = deltas.fit(settings, data, check, [m.d_new], m.seed, frozen, progress="control")
    return [stack[i] for i in range(len(m.sites))]


def held_at(m: Material, share: float) -> list[Dictionary]:
    """Delta features of every layer, of which a share is active at a token in the mean, held by the threshold, without L1."""
    data, check = ((a.x, m.unexplained(m.bases, a)) for a in (m.train, m.validation))
    settings, n = m.settings.model_copy(update={"l1": 0.0}), len(m.sites)
    stack = Dictionary.initialised((n,), data[0].shape[-1], m.d_new, m.seed, settings.threshold).to(data[0].device)
    picks = activations.repeated(data[0].shape[-2], settings.batch, m.seed)
    batches = (tuple(tensor.index_select(-2, pick) for tensor in data) for pick in picks)
    train([stack], batches, check, settings, torch.full((n,), share * m.d_new), progress="control")
    stack.requires_grad_(False)
    return [stack[i] for i in range(n)]


def gelu(m: Material) -> list[torch.nn.Sequential]:
    """For every layer d_new GELU units on what the base leaves: dense by construction, trained for as long as deltas are."""
    target, found, train_on = m.unexplained(m.bases, m.train), [], m.train.x
    for i in range(len(m.sites)):
        torch.manual_seed(m.seed)
        d, scale = train_on.shape[-1], target[i].std().clamp(min=1e-8)
        layer = torch.nn.Sequential(torch.nn.Linear(d, m.d_new), torch.nn.GELU(), torch.nn.Linear(m.d_new, d)).to(
            train_on.device
        )
        layer[2].bias.data = target[i].mean(0) / scale  # deltas begin at the mean of the targets too
        steps, optimizer = m.settings.steps, torch.optim.Adam(layer.parameters(), lr=3e-3)
        picks = activations.repeated(target.shape[-2], m.settings.batch, m.seed)
        for step in tqdm(range(steps), desc="dense control", mininterval=2):
            pick = next(picks)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, 2 * (1 - step / steps))
            loss = (layer(train_on[i].index_select(0, pick)) - target[i].index_select(0, pick) / scale).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        layer[2].weight.data *= scale
        layer[2].bias.data *= scale
        found.append(layer.requires_grad_(False))
    return found


def retrained(m: Material) -> dict[int, Dictionary] | None:
    """Whole transcoders, from the bases' parameters on, trained on the finetuned model at the bases' L0 there.

    None where the profile leaves it out.
    """
    if m.retrain is None:
        return None
    stack = Dictionary.stacked([m.bases[site] for site in m.sites])
    x, y = m.train.x, m.train.y
    active = [m.bases[site].encode(m.validation.x[i]).sign().sum(-1) for i, site in enumerate(m.sites)]
    l0 = torch.stack([a.mean() for a in active])
    picks = activations.repeated(y.shape[-2], m.retrain.batch, m.seed)
    batches = ((x.index_select(1, pick), y.index_select(1, pick)) for pick in picks)
    train([stack], batches, (m.validation.x, m.validation.y), m.retrain, l0, warm=True, progress="retraining")
    return _each(m, lambda i, _: stack[i])


def rank_for(d_model: int, d_new: int) -> int:
    """The rank of a linear map with as many parameters as d_new features: 2 d_model r = d_new (2 d_model + 2)."""
    return max(1, round(d_new * (2 * d_model + 2) / (2 * d_model)))


def _each(m: Material, make: Callable[[int, Site], Replacement]) -> Condition:
    """`make(i, site)` for every site."""
    return {site: make(i, site) for i, site in enumerate(m.sites)}


def _on_bases(m: Material, extras: list[Dictionary], alpha: float = 1.0) -> Condition:
    return _each(m, lambda i, site: BaseDelta(m.bases[site], extras[i], alpha))


def _constants(m: Material, outputs: Tensor) -> Condition:
    """Each base plus the mean over tokens of `outputs`."""
    return _each(m, lambda i, site: Sum(m.bases[site], Constant(outputs[i].mean(0))))


def _linear(m: Material, delta: list[Dictionary]) -> Condition:
    target, rank = m.unexplained(m.bases, m.train), rank_for(delta[0].d_model, m.d_new)
    return _each(m, lambda i, site: Sum(m.bases[site], reduced_rank(m.train.x[i], target[i], rank)))


def _dense(m: Material, delta: list[Dictionary]) -> Condition:
    units = gelu(m)
    return _each(m, lambda i, site: Sum(m.bases[site], units[i]))


def _same_model(m: Material, delta: list[Dictionary]) -> Condition:
    """Trained to give what one MLP of the original model has over itself: nothing, up to rounding."""
    return _on_bases(m, sparse(m, m.original_mlps, "original"))


def _adapter(m: Material, delta: list[Dictionary]) -> Condition:
    branch = sparse(m, m.original_mlps)
    return _each(m, lambda i, site: Sum(m.original_mlps[site], branch[i]))


def _features(d: int, k: int) -> int:
    return k * (2 * d + 2) + d


CONTROLS = {  # name: (what it is, how it is made of the material and the deltas, trained parameters from d_model and k)
    "base": ("the frozen base alone", lambda m, delta: _on_bases(m, delta, 0.0), lambda d, k: 0),
    "delta": ("base + delta, the treatment", lambda m, delta: _on_bases(m, delta), _features),
    "oracle": ("the finetuned MLP itself", lambda m, delta: m.finetuned_mlps, lambda d, k: 0),
    "zero": ("zero ablation", lambda m, delta: _each(m, lambda i, _: Constant(0 * m.train.y[i, 0])), lambda d, k: 0),
    "mean": ("mean ablation", lambda m, delta: _each(m, lambda i, _: Constant(m.train.y[i].mean(0))), lambda d, k: d),
    "bias": ("base + a constant", lambda m, delta: _constants(m, m.unexplained(m.bases, m.train)), lambda d, k: d),
    "difference": (
        "base + the mean finetuned-minus-base output",
        lambda m, delta: _constants(m, m.train.y - m.original_train.y), lambda d, k: d,
    ),
    "linear": ("base + a linear map of as many parameters", _linear, lambda d, k: 2 * d * rank_for(d, k) + d),
    "no_penalty": (
        "delta without threshold and L1, which weigh so little that it is the treatment again",
        lambda m, delta: _on_bases(m, sparse(m, m.bases, threshold=0.0, l1=0.0)), _features,
    ),
    "dense": (
        "base + a GELU layer as wide, all of it active everywhere",
        _dense, lambda d, k: k * (2 * d + 1) + d,
    ),
    "quarter": ("delta with a quarter of its features active", lambda m, delta: _on_bases(m, held_at(m, 1 / 4)), _features),
    "eighth": ("delta with an eighth of its features active", lambda m, delta: _on_bases(m, held_at(m, 1 / 8)), _features),
    "sixteenth": ("delta with a sixteenth of them active", lambda m, delta: _on_bases(m, held_at(m, 1 / 16)), _features),
    "frozen_encoder": (
        "delta with a random encoder, decoder trained",
        lambda m, delta: _on_bases(m, sparse(m, m.bases, frozen=("W_enc", "b_enc"))), lambda d, k: k * d + d,
    ),
    "frozen_decoder": (
        "delta with a random decoder, encoder trained",
        lambda m, delta: _on_bases(m, sparse(m, m.bases, frozen=("W_dec",))), lambda d, k: k * (d + 2) + d,
    ),
    "shuffled": (
        "delta whose features write one another's outputs",
        lambda m, delta: _on_bases(m, [shuffled(f, m.seed) for f in delta]), lambda d, k: 0,
    ),
    "same_model": ("delta of the original model against itself", _same_model, _features),
    "base_error": (
        "delta trained on the original model's error", lambda m, delta: _on_bases(m, sparse(m, m.bases, "original")), _features,
    ),
    "attention_only": ("the original model's MLPs, finetuned attention", lambda m, delta: m.original_mlps, lambda d, k: 0),
    "retrained": (
        "the transcoder retrained in full (solution A)", lambda m, delta: retrained(m), None,
    ),
    "adapter": ("sparse branch beside the original model's MLP (arXiv 2602.20904)", _adapter, _features),
}  # fmt: skip


def build(m: Material) -> dict[str, Control]:
    """Every one of `CONTROLS` that the profile has, with its size and the seconds that it took."""
    began, found = time.perf_counter(), {}
    delta = sparse(m, m.bases)
    taken = {"delta": time.perf_counter() - began}
    for name, (_, make, size) in CONTROLS.items():
        began = time.perf_counter()
        if (mlps := make(m, delta)) is None:
            continue
        seconds, d = taken.get(name, time.perf_counter() - began), m.train.x.shape[-1]
        parameters = size(d, m.d_new) if size else m.bases[m.sites[0]].d_sae * (2 * d + 2) + d
        found[name] = Control(mlps, parameters, seconds)
    return found
