"""The one trainer: stacks of transcoders, a stream of (x, target) batches, one optimizer.

All members of all stacks learn at once, each on its own loss, from the same inputs and the same beginning;
Adam treats their parameters apart and each stops by its own validation loss, so a member learns what it would
learn alone. Bases and deltas differ in data only:

- a *base* (`l0` given) is held to a mean number of active features by moving its one threshold (its
  biases, where the threshold is at its floor), so what it is in training it is afterwards: a JumpReLU
  with the sparsity of BatchTopK (arXiv 2412.06410), without sorting;
- a *delta* keeps its threshold and pays `l1` times its mean activation, the published objective.

Features silent over the last `SILENCE` tokens have their bias raised until they fire again.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary.checkpoint import Checkpoint
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.gradients import gradients
from lib.model import precision
from lib.profiles.organism import Training

SILENCE = 20_000
FLOOR = 1e-2  # of a threshold that is moved to hold an L0

Batch = tuple[Float[Tensor, "*n token d_model"], Float[Tensor, "*n token d_model"]]


class Learner:
    """A stack in training: what its members have reached, and which of them are done."""

    def __init__(self, stack: Dictionary, frozen: tuple[str, ...]):
        for name, parameter in stack.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.stack, self.frozen, self.rows = stack, frozen, []
        self.silent = torch.zeros_like(stack.b_enc)  # tokens since a feature was last active
        self.best = {name: value.clone() for name, value in stack.state_dict().items()}
        self.best_fvu = stack.b_enc.new_full(stack.b_enc.shape[:-1], torch.inf)
        self.since_gain = torch.zeros_like(self.best_fvu)  # checks

    def state(self) -> dict:
        """To be kept in a checkpoint."""
        return dict(vars(self), stack=self.stack.state_dict())

    def go_on(self, state: dict) -> None:
        """From a `state`."""
        self.stack.load_state_dict(state["stack"])
        vars(self).update({name: value for name, value in state.items() if name != "stack"})

    def set_gradients(self, found: dict[str, Tensor]) -> None:
        """The gradients of the next step."""
        for name, parameter in self.stack.named_parameters():
            if parameter.requires_grad:
                # fused Adam goes through memory in the parameter's order, whatever the gradient's is
                parameter.grad = found[name].to(parameter.dtype).contiguous()

    @torch.no_grad()
    def stepped(self, active: Float[Tensor, "*n d_sae"], tokens: int, lr: float, l0: Float[Tensor, "*n"] | None) -> None:
        """After a step, on so many tokens, at so many of which each feature was active."""
        self.stack.W_dec.div_(self.stack.W_dec.norm(dim=-1, keepdim=True))
        self.silent = (self.silent + tokens).masked_fill(active > 0, 0)
        if "b_enc" not in self.frozen:
            self.stack.b_enc.add_(2 * lr * (self.silent > SILENCE))
        if l0 is not None:
            adjust_threshold(self.stack, active.sum(-1) / tokens, l0, lr, FLOOR)

    @torch.no_grad()
    def check(self, step: int, batch: Batch, scale: Tensor, validation: Batch, to_explain: Tensor, patience: int) -> Tensor:
        """Keep what each member has reached where it is its best; its FVU now."""
        now, l0 = validate(_scaled(self.stack, scale), validation, to_explain)
        learning = self.since_gain < patience
        gain = learning & (now < self.best_fvu)
        self.best_fvu = torch.where(gain, now, self.best_fvu)
        for name, value in self.stack.state_dict().items():
            self.best[name][gain] = value[gain]
        self.since_gain = (self.since_gain + 1).masked_fill(gain, 0)
        x, target = batch
        mse = (self.stack(x.float()) * scale[..., None] - target).square().mean((-1, -2))
        columns = [values.flatten().tolist() for values in (learning, mse, now, l0)]
        self.rows += [(step, i, *values) for i, (on, *values) in enumerate(zip(*columns, strict=True)) if on]
        return now

    def finish(self, scale: Tensor) -> pd.DataFrame:
        self.stack.load_state_dict(self.best)
        self.stack.load_state_dict(_scaled(self.stack, scale).state_dict())
        self.stack.requires_grad_(False)
        return pd.DataFrame(self.rows, columns=["step", "member", "loss", "fvu", "l0"])


def train(
    stacks: Sequence[Dictionary],
    batches: Iterator[Batch],
    validation: Batch,
    settings: Training,
    l0: Float[Tensor, "*n"] | None = None,
    frozen: tuple[str, ...] = (),
    warm: bool = False,
    progress: str = "training",
    checkpoint: Checkpoint | None = None,
) -> list[pd.DataFrame]:
    """Train `stacks` of one shape but for their widths, in place; each member ends with its best parameters by validation loss.

    `warm`: they go on from their parameters, instead of first moving them to the targets.
    Parameters named in `frozen` keep what they began with, up to the scale of the targets.
    A `checkpoint` is written at every check. Where it holds the state of this training, that is gone on from, and
    `batches` begins at `checkpoint.step`; the result is the same, bit for bit.
    Returns the learning curves of each stack, one row per check and member: `step`, `member` (its index in the
    flattened leading dimensions), `loss` (mean squared error on the batch), `fvu` and `l0` on the
    validation tokens.
    """
    learners = [Learner(stack, frozen) for stack in stacks]
    learning = [parameter for stack in stacks for parameter in stack.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=settings.lr, betas=tuple(settings.betas), fused=True)
    start = 0
    if checkpoint and checkpoint.state:
        start, scale = checkpoint.step, checkpoint.state["scale"]
        optimizer.load_state_dict(checkpoint.state["optimizer"])
        for learner, state in zip(learners, checkpoint.state["learners"], strict=True):
            learner.go_on(state)
    warmup, decay = settings.steps // 20 + 1, settings.steps // 2 + 1
    to_explain = variance(validation[1])
    for step in (bar := tqdm(range(start, settings.steps), desc=progress, mininterval=2)):
        if step % settings.check_every == 0 and all((one.since_gain >= settings.patience).all() for one in learners):
            break
        x, target = next(batches)
        if step == 0:
            for stack in stacks:
                scale = _start(stack, x.float(), target.float(), l0, warm)  # of the targets, so the same for all
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1, (step + 1) / warmup, (settings.steps - step) / decay)
        ramp = min(1, step / settings.l1_warmup) if settings.l1_warmup else 1
        with precision.products(getattr(torch, settings.precision), x.device) as dtype:
            if dtype == torch.float32:  # what is held in less
                x, target = x.float(), target.float()
            of_each = gradients(stacks, x, target, scale, settings.l1 * ramp)
        for learner, (_, found) in zip(learners, of_each, strict=True):
            learner.set_gradients(found)
        optimizer.step()
        for learner, (active, _) in zip(learners, of_each, strict=True):
            learner.stepped(active, x.shape[-2], settings.lr, l0)
        if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
            now = [one.check(step + 1, (x, target), scale, validation, to_explain, settings.patience) for one in learners]
            bar.set_postfix(fvu=f"{torch.stack(now).mean():.3f}", refresh=False)
            if checkpoint:
                states = [learner.state() for learner in learners]
                checkpoint.save(learners=states, optimizer=optimizer.state_dict(), scale=scale, step=step + 1)
    return [learner.finish(scale) for learner in learners]


@torch.no_grad()
def adjust_threshold(
    stack: Dictionary, active: Float[Tensor, "*n"], l0: Float[Tensor, "*n"], lr: float, floor: float | Tensor
) -> None:
    """Move thresholds a step towards a mean number of active features of `l0`, where it is `active` now."""
    excess = (active / l0).clamp(0.1, 10).log()[..., None]
    stack.threshold.mul_((0.05 * excess).exp()).clamp_(min=floor)
    # a threshold can silence features but not wake them: where it is at its floor, biases rise instead
    stack.b_enc.sub_(lr * excess * (stack.threshold <= floor) * (excess < 0))


@torch.no_grad()
def validate(stack: Dictionary, validation: Batch, to_explain: Float[Tensor, "*n"], chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """FVU and L0 of every member on held-out tokens, given the `variance` of the targets."""
    x, target = validation
    error, active = 0.0, 0.0
    for a, b in zip(_chunks(x, chunk), _chunks(target, chunk), strict=True):
        f = stack.encode(a)
        error = error + torch.linalg.vector_norm(stack.decode(f, a).sub_(b), dim=(-1, -2)).square()
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
def _start(stack: Dictionary, x: Tensor, target: Tensor, l0: Tensor | None, warm: bool) -> Tensor:
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
def _scaled(stack: Dictionary, scale: Tensor) -> Dictionary:
    """The same transcoders with outputs `scale` times as large; the decoder rows keep their length."""
    scaled = dict(b_enc=stack.b_enc.detach() * scale, threshold=stack.threshold * scale, b_dec=stack.b_dec.detach() * scale)
    for name in {"W_enc", "W_skip"} & stack.tensors.keys():
        scaled[name] = stack.tensors[name] * scale[..., None]
    return stack.changed(**scaled)
