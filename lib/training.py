"""The one trainer: a stack of transcoders, a stream of (x, target) batches, one optimizer.

All members of the stack learn at once, each on its own loss, from the same inputs and the same beginning;
Adam treats their parameters apart and each stops by its own validation loss, so a member learns what it would
learn alone. Bases and deltas differ in data only:

- a *base* (`l0` given) is held to a mean number of active features by moving its one threshold (its
  biases, where the threshold is at its floor), so what it is in training it is afterwards: a JumpReLU
  with the sparsity of BatchTopK (arXiv 2412.06410), without sorting;
- a *delta* keeps its threshold and pays `l1` times its mean activation, the published objective.

Features silent over the last `SILENCE` tokens have their bias raised until they fire again.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib import precision
from lib.paths import replacing
from lib.profiles import Training
from lib.transcoders import Transcoder, shared

SILENCE = 20_000
FLOOR = 1e-2  # of a threshold that is moved to hold an L0

Batch = tuple[Float[Tensor, "*n token d_model"], Float[Tensor, "*n token d_model"]]


class Checkpoint:
    """Where a training stood at its last check, in a file.

    `of` says which training; what another one left in the file is passed over. `ValueError` for a damaged file.
    """

    def __init__(self, path: Path, of: str, device: torch.device | str = "cpu"):
        self.path, self.of, self.state = path, of, {}
        if path.exists():
            try:
                state = torch.load(path, device, weights_only=True)
            except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
                raise ValueError(f"{path}: damaged or not a checkpoint; delete it to train from the start") from None
            self.state = state if state["of"] == of else {}

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.state.get("step", 0)

    def save(self, **state) -> None:
        with replacing(self.path) as temporary:
            torch.save({"of": self.of, **state}, temporary)


def train(
    stack: Transcoder,
    batches: Iterator[Batch],
    validation: Batch,
    settings: Training,
    l0: Float[Tensor, "*n"] | None = None,
    frozen: tuple[str, ...] = (),
    warm: bool = False,
    progress: str = "training",
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train `stack` in place; each member ends with its best parameters by validation loss.

    `warm`: it goes on from the stack's parameters, instead of first moving them to the targets.
    Parameters named in `frozen` keep what they began with, up to the scale of the targets.
    A `checkpoint` is written at every check. Where it holds the state of this training, that is gone on from, and
    `batches` begins at `checkpoint.step`; the result is the same, bit for bit.
    Returns the learning curves, one row per check and member: `step`, `member` (its index in the
    flattened leading dimensions), `loss` (mean squared error on the batch), `fvu` and `l0` on the
    validation tokens.
    """
    for name, parameter in stack.named_parameters():
        parameter.requires_grad_(name not in frozen)
    learning = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=settings.lr, betas=tuple(settings.betas), fused=True)
    silent = torch.zeros_like(stack.b_enc)  # tokens since a feature was last active
    best = {name: value.clone() for name, value in stack.state_dict().items()}
    best_fvu = stack.b_enc.new_full(stack.b_enc.shape[:-1], torch.inf)
    since_gain = torch.zeros_like(best_fvu)  # checks; a member that has had `patience` of them is done
    start, rows = 0, []
    if checkpoint and checkpoint.state:
        state = checkpoint.state
        stack.load_state_dict(state["stack"])
        optimizer.load_state_dict(state["optimizer"])
        silent, best, best_fvu, scale = state["silent"], state["best"], state["best_fvu"], state["scale"]
        start, since_gain, rows = state["step"], state["since_gain"], state["rows"]
    warmup, decay = settings.steps // 20 + 1, settings.steps // 2 + 1
    to_explain = variance(validation[1])
    for step in (bar := tqdm(range(start, settings.steps), desc=progress, mininterval=2)):
        if step % settings.check_every == 0 and (since_gain >= settings.patience).all():
            break
        x, target = next(batches)
        if step == 0:
            scale = _start(stack, x.float(), target.float(), l0, warm)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1, (step + 1) / warmup, (settings.steps - step) / decay)
        ramp = min(1, step / settings.l1_warmup) if settings.l1_warmup else 1
        with precision.products(getattr(torch, settings.precision), x.device) as dtype:
            if dtype == torch.float32:  # what is held in less
                x, target = x.float(), target.float()
            active, found = gradients(stack, x, target, scale, settings.l1 * ramp)
        for name, parameter in stack.named_parameters():
            if parameter.requires_grad:
                # fused Adam goes through memory in the parameter's order, whatever the gradient's is
                parameter.grad = found[name].to(parameter.dtype).contiguous()
        optimizer.step()
        with torch.no_grad():
            stack.W_dec.div_(stack.W_dec.norm(dim=-1, keepdim=True))
            silent = (silent + x.shape[-2]).masked_fill(active > 0, 0)
            if "b_enc" not in frozen:
                stack.b_enc.add_(2 * settings.lr * (silent > SILENCE))
            if l0 is not None:
                hold(stack, active.sum(-1) / x.shape[-2], l0, settings.lr, FLOOR)
        if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
            now, l0_now = validate(_scaled(stack, scale), validation, to_explain)
            learning = since_gain < settings.patience
            gain = learning & (now < best_fvu)
            best_fvu = torch.where(gain, now, best_fvu)
            for name, value in stack.state_dict().items():
                best[name][gain] = value[gain]
            since_gain = (since_gain + 1).masked_fill(gain, 0)
            with torch.no_grad():
                mse = (stack(x.float()) * scale[..., None] - target).square().mean((-1, -2))
            columns = [values.flatten().tolist() for values in (learning, mse, now, l0_now)]
            rows += [(step + 1, i, *values) for i, (on, *values) in enumerate(zip(*columns, strict=True)) if on]
            bar.set_postfix(fvu=f"{now.mean():.3f}", refresh=False)
            if checkpoint:
                checkpoint.save(
                    stack=stack.state_dict(), optimizer=optimizer.state_dict(), silent=silent, best=best, best_fvu=best_fvu,
                    scale=scale, step=step + 1, since_gain=since_gain, rows=rows,
                )  # fmt: skip
    stack.load_state_dict(best)
    stack.load_state_dict(_scaled(stack, scale).state_dict())
    stack.requires_grad_(False)
    return pd.DataFrame(rows, columns=["step", "member", "loss", "fvu", "l0"])


@torch.no_grad()
def gradients(
    stack: Transcoder,
    x: Float[Tensor, "*n token d_model"],
    target: Float[Tensor, "*n token d_model"],
    scale: Float[Tensor, "*n 1"],
    l1: float,
) -> tuple[Float[Tensor, "*n d_sae"], dict[str, Tensor]]:
    """At how many tokens each feature is active, and the gradient of each member's loss by the name of the parameter.

    The loss is the mean of `(y - target / scale)^2` plus `l1 / scale` times the mean of f. Written out, for where there
    are fewer features than dimensions the error need not be formed: with `G = W_dec W_dec^T`,

        (y - t) W_dec^T = f G + (b_dec - t) W_dec^T,   f^T (y - t) = f^T f W_dec + f^T (b_dec - t),

    which takes four products over d_model, not five, and no pass over a matrix of tokens x d_model.
    """
    f, one_over = stack.encode(x), 1 / scale[..., None]
    W_dec, b_dec, n = stack.W_dec, stack.b_dec.unsqueeze(-2), target.shape[-2]
    each = f.new_ones(1, n)  # sums over tokens as products: much faster than `sum`
    found = {}
    if stack.W_skip is None and stack.d_sae < stack.d_model:
        total = each @ f
        df = torch.addcmul(f @ (W_dec @ W_dec.mT) + b_dec @ W_dec.mT, target @ W_dec.mT, one_over, value=-1)
        found["W_dec"] = (f.mT @ f) @ W_dec + total.mT @ b_dec - (f.mT @ target) * one_over
        found["b_dec"] = total @ W_dec + n * b_dec - (each @ target) * one_over
    else:
        error = torch.addcmul(stack.decode(f, x), target, one_over, value=-1)
        df = error @ W_dec.mT
        found["W_dec"], found["b_dec"] = f.mT @ error, each @ error
        if stack.W_skip is not None:
            found["W_skip"] = shared(x.mT, error)
    squared = 2 / target.shape[-2:].numel()
    found = {name: gradient * squared for name, gradient in found.items()}
    active = f.sign()
    dp = df.mul_(squared).add_(l1 * one_over / f.shape[-2:].numel()).mul_(active)
    found["W_enc"], found["b_enc"] = shared(x.mT, dp), each @ dp
    found = {name: gradient.squeeze(-2) if name.startswith("b_") else gradient for name, gradient in found.items()}
    return (each @ active).squeeze(-2).float(), found


@torch.no_grad()
def hold(stack: Transcoder, active: Float[Tensor, "*n"], l0: Float[Tensor, "*n"], lr: float, floor: float | Tensor) -> None:
    """Move thresholds a step towards a mean number of active features of `l0`, where it is `active` now."""
    excess = (active / l0).clamp(0.1, 10).log()[..., None]
    stack.threshold.mul_((0.05 * excess).exp()).clamp_(min=floor)
    # a threshold can silence features but not wake them: where it is at its floor, biases rise instead
    stack.b_enc.sub_(lr * excess * (stack.threshold <= floor) * (excess < 0))


@torch.no_grad()
def validate(stack: Transcoder, validation: Batch, to_explain: Float[Tensor, "*n"], chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """FVU and L0 of every member on held-out tokens, given the `variance` of the targets."""
    x, target = validation
    error, active = 0.0, 0.0
    for a, b in zip(_chunks(x, chunk), _chunks(target, chunk), strict=True):
        f = stack.encode(a)
        error = error + (stack.decode(f, a) - b).square().sum((-1, -2))
        active = active + f.sign().sum((-1, -2))
    return error / to_explain, active / target.shape[-2]


def variance(y: Float[Tensor, "*n token d_model"], chunk: int = 2048) -> Float[Tensor, "*n"]:
    """Squared distance from the mean, summed over tokens and dimensions."""
    mean = sum(some.sum(-2, keepdim=True) for some in _chunks(y, chunk)) / y.shape[-2]
    return sum((some - mean).square().sum((-1, -2)) for some in _chunks(y, chunk))


def _chunks(y: Tensor, chunk: int) -> Iterator[Tensor]:
    """Some tokens after others, so that what is held in files need not all be in memory."""
    return (y[..., i : i + chunk, :] for i in range(0, y.shape[-2], chunk))


@torch.no_grad()
def _start(stack: Transcoder, x: Tensor, target: Tensor, l0: Tensor | None, warm: bool) -> Tensor:
    """Begin at the mean of the targets; and, where an L0 is aimed at, at a threshold that gives it.

    Returns the scale of the targets, (..., 1): training is on targets of standard deviation one, so
    that a learning rate means the same at every layer, and the scale is folded back in at the end.
    """
    scale = target.std((-1, -2)).clamp(min=1e-8).expand(stack.b_enc.shape[:-1])[..., None].clone()
    if warm:
        stack.load_state_dict(_scaled(stack, 1 / scale).state_dict())
        return scale
    stack.b_dec.add_(target.mean(-2) / scale)
    stack.threshold.div_(scale)
    if l0 is not None:
        p = x[..., :256, :] @ stack.W_enc + stack.b_enc.unsqueeze(-2)
        for index in torch.cartesian_prod(*map(torch.arange, l0.shape)):
            index = tuple(index.tolist()) if index.ndim else (index.item(),)
            values = p[index].flatten()
            keep = int(l0[index] * p.shape[-2])
            stack.threshold[index] = values.kthvalue(len(values) - keep).values.clamp(min=FLOOR)
    return scale


@torch.no_grad()
def _scaled(stack: Transcoder, scale: Tensor) -> Transcoder:
    """The same transcoders with outputs `scale` times as large; the decoder rows keep their length."""
    scaled = dict(stack.tensors, b_enc=stack.b_enc * scale, threshold=stack.threshold * scale, b_dec=stack.b_dec * scale)
    for name in {"W_enc", "W_skip"} & scaled.keys():
        scaled[name] = scaled[name] * scale[..., None]
    return Transcoder(**scaled)
