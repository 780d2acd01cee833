"""The one trainer: a stack of transcoders, a stream of (x, target) batches, one optimizer.

All members of the stack learn at once, each on its own loss, from the same inputs; Adam treats their
parameters apart, so a member learns what it would learn alone. Bases and deltas differ in data only:

- a *base* (`l0` given) is held to a mean number of active features by moving its one threshold (its
  biases, where the threshold is at its floor), so what it is in training it is afterwards: a JumpReLU
  with the sparsity of BatchTopK (arXiv 2412.06410), without sorting;
- a *delta* keeps its threshold and pays `l1` times its mean activation, the published objective.

Features silent over the last `SILENCE` tokens have their bias raised until they fire again.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.profiles import Training
from lib.transcoders import Transcoder

SILENCE = 20_000
FLOOR = 1e-2  # of a threshold that is moved to hold an L0

Batch = tuple[Float[Tensor, "*n token d_model"], Float[Tensor, "*n token d_model"]]


def train(
    stack: Transcoder,
    batches: Iterator[Batch],
    validation: Batch,
    settings: Training,
    l0: Float[Tensor, "*n"] | None = None,
    frozen: tuple[str, ...] = (),
    warm: bool = False,
    progress: str = "training",
) -> pd.DataFrame:
    """Train `stack` in place; each member ends with its best parameters by validation loss.

    `warm`: it goes on from the stack's parameters, instead of first moving them to the targets.
    Parameters named in `frozen` keep what they began with, up to the scale of the targets.
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
    checks_without_gain, rows = 0, []
    dtype = getattr(torch, settings.precision)
    warmup, decay = settings.steps // 20 + 1, settings.steps // 2 + 1
    for step in (bar := tqdm(range(settings.steps), desc=progress, mininterval=2)):
        x, target = next(batches)
        if step == 0:
            scale = _start(stack, x, target, l0, warm)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1, (step + 1) / warmup, (settings.steps - step) / decay)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            f = stack.encode(x)
            y = stack.decode(f, x)
        mse = (y - target / scale[..., None]).square().mean((-1, -2))
        loss = mse.sum()
        if settings.l1:
            ramp = min(1, step / settings.l1_warmup) if settings.l1_warmup else 1
            loss = loss + (settings.l1 * ramp / scale[..., 0] * f.mean((-1, -2))).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            stack.W_dec.div_(stack.W_dec.norm(dim=-1, keepdim=True))
            # tokens at which each feature is active; as a matrix product, many times faster than a sum of booleans
            active = (f.new_ones(1, f.shape[-2]) @ f.detach().sign()).squeeze(-2).float()
            silent = (silent + x.shape[-2]).masked_fill(active > 0, 0)
            if "b_enc" not in frozen:
                stack.b_enc.add_(2 * settings.lr * (silent > SILENCE))
            if l0 is not None:
                hold(stack, active.sum(-1) / x.shape[-2], l0, settings.lr, FLOOR)
        if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
            now, l0_now = validate(_scaled(stack, scale), validation)
            gain = now < best_fvu
            best_fvu = torch.where(gain, now, best_fvu)
            for name, value in stack.state_dict().items():
                best[name][gain] = value[gain]
            checks_without_gain = 0 if gain.any() else checks_without_gain + 1
            rows += [
                (step + 1, i, *values)
                for i, values in enumerate(
                    zip(
                        (mse * scale[..., 0] ** 2).flatten().tolist(),
                        now.flatten().tolist(),
                        l0_now.flatten().tolist(),
                        strict=True,
                    )
                )
            ]
            bar.set_postfix(fvu=f"{now.mean():.3f}", refresh=False)
            if checks_without_gain == settings.patience:
                break
    stack.load_state_dict(best)
    stack.load_state_dict(_scaled(stack, scale).state_dict())
    stack.requires_grad_(False)
    return pd.DataFrame(rows, columns=["step", "member", "loss", "fvu", "l0"])


@torch.no_grad()
def hold(stack: Transcoder, active: Float[Tensor, "*n"], l0: Float[Tensor, "*n"], lr: float, floor: float | Tensor) -> None:
    """Move thresholds a step towards a mean number of active features of `l0`, where it is `active` now."""
    excess = (active / l0).clamp(0.1, 10).log()[..., None]
    stack.threshold.mul_((0.05 * excess).exp()).clamp_(min=floor)
    # a threshold can silence features but not wake them: where it is at its floor, biases rise instead
    stack.b_enc.sub_(lr * excess * (stack.threshold <= floor) * (excess < 0))


@torch.no_grad()
def validate(stack: Transcoder, validation: Batch, chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """FVU and L0 of every member on held-out tokens."""
    x, target = validation
    n = target.shape[-2]
    error, active = 0.0, 0.0
    for i in range(0, n, chunk):
        f = stack.encode(x[..., i : i + chunk, :])
        error = error + (stack.decode(f, x[..., i : i + chunk, :]) - target[..., i : i + chunk, :]).square().sum((-1, -2))
        active = active + (f > 0).sum((-1, -2))
    return error / (target - target.mean(-2, keepdim=True)).square().sum((-1, -2)), active / n


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
