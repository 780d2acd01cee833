"""SAEs of several kinds, trained by sae-lens's own trainer and read back as ours; weights tied or not, L0 held at an aim."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.sae_lens import fit, from_sae_lens

RATE_OF_PENALTY = 0.1
"""How fast a penalty follows the logarithm of L0 over its aim, a step; that counts within a factor of two."""
DAMPING = 1.0
"""How much it follows a change of that, so that L0 does not swing about its aim."""

LOOKED_AT = 4096
"""Tokens, at most, from which thresholds are set."""


def _relu(d_in: int, d_sae: int, l0: float) -> nn.Module:
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    return StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=1.0))


def _gated(d_in: int, d_sae: int, l0: float) -> nn.Module:
    from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig

    return GatedTrainingSAE(GatedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=1.0))


def _topk(d_in: int, d_sae: int, l0: float) -> nn.Module:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    return TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=round(l0)))


def _batch_topk(d_in: int, d_sae: int, l0: float) -> nn.Module:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=l0, topk_threshold_lr=0.05))


def _jumprelu(d_in: int, d_sae: int, l0: float) -> nn.Module:
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    # as Anthropic trains them (2025): thresholds that start low learn little in few steps otherwise
    own = dict(
        jumprelu_sparsity_loss_mode="tanh", jumprelu_ste_to_input=True, jumprelu_bandwidth=2.0, jumprelu_init_threshold=0.1
    )  # fmt: skip
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=d_in, d_sae=d_sae, **own))


KINDS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "ReLU": _relu, "Gated": _gated, "TopK": _topk, "BatchTopK": _batch_topk, "JumpReLU": _jumprelu,
}  # fmt: skip
HELD = ("ReLU", "Gated", "JumpReLU")
"""Kinds whose L0 follows from a penalty, so that it has to be held."""


@dataclass(frozen=True)
class Variant:
    """One SAE."""

    kind: str
    """Of `KINDS`."""
    l0: float
    """Features active at a token that are aimed at."""
    tied: bool = False
    """Whether the decoder is the encoder transposed."""
    expansion: float = 5.0
    """Features, in multiples of `d_model`."""
    penalty: float | None = None
    """Of the L1 norm, in place of an aim (ReLU alone)."""
    tokens: int = 0
    """How many it learns from; 0: all that there are."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        aim = f"l0_{self.l0:g}" if self.penalty is None else f"penalty_{self.penalty:g}"
        return f"{self.kind}_{'tied' if self.tied else 'untied'}_{self.expansion:g}x_{aim}_{self.tokens}_{self.seed}"


class _Followed:
    """What is put before a class of sae-lens: it holds L0 by moving the penalty, and remembers what a step found."""

    aim: float | None
    factor: float
    excess: float = 0.0
    history: list[tuple[float, float, float]]
    snapshots: dict[int, Dictionary]

    def training_forward_pass(self, step_input):
        scaled = {name: value * self.factor for name, value in step_input.coefficients.items()}
        found = super().training_forward_pass(replace(step_input, coefficients=scaled))
        with torch.no_grad():
            f = found.feature_acts.detach()
            l0 = float((f > 0).sum() / len(f))
            mse = float(found.losses["mse_loss"] / found.sae_in.shape[-1])
            self.history.append((mse, float((f @ self.W_dec.detach().norm(dim=-1)).mean()), l0))
            if self.aim:
                excess = float(np.log(np.clip(l0 / self.aim, 0.5, 2)))
                self.factor *= float(np.exp(RATE_OF_PENALTY * excess + DAMPING * (excess - self.excess)))
                self.excess = excess
        if (step := len(self.history)) in self.snapshots:
            self.snapshots[step] = inference(self)
        return found


def made(variant: Variant, d_in: int, snapshots: Sequence[int] = ()) -> nn.Module:
    """sae-lens's SAE to be trained, which follows itself."""
    torch.manual_seed(variant.seed)
    sae = KINDS[variant.kind](d_in, round(variant.expansion * d_in), variant.l0)
    own = type(sae)
    body = {"untied": own}
    if variant.tied:
        sae.W_enc.data = nn.functional.normalize(sae.W_enc.data, dim=0)
        del sae._parameters["W_dec"]
        body["W_dec"] = property(lambda self: self.W_enc.T)
    sae.__class__ = type(own.__name__, (_Followed, own), body)
    sae.aim = variant.l0 if variant.penalty is None and variant.kind in HELD else None
    sae.factor = FIRST[variant.kind] if variant.penalty is None else variant.penalty
    sae.history, sae.snapshots = [], dict.fromkeys(snapshots)
    return sae


FIRST = {"ReLU": 0.1, "Gated": 0.1, "JumpReLU": 0.03, "TopK": 1.0, "BatchTopK": 1.0}
"""Penalties to begin with, for activations whose mean length is the square root of `d_model`."""


def plain(sae: nn.Module) -> nn.Module:
    """A copy as sae-lens has it: its own class, encoder and decoder apart."""
    copy = deepcopy(sae.state_dict())
    copy.setdefault("W_dec", copy["W_enc"].T.contiguous().clone())
    other = sae.untied(deepcopy(sae.cfg))
    other.load_state_dict(copy)
    return other


def inference(sae: nn.Module) -> Dictionary:
    """Ours, of what it has learned so far; for activations scaled as in training."""
    return from_sae_lens(for_use(plain(sae)), "an SAE in training")


def unscaled(sae: Dictionary, scale: float) -> Dictionary:
    """For activations as they are, of one for scaled ones."""
    found = sae.tensors
    return sae.changed(W_enc=found["W_enc"] * scale, W_dec=found["W_dec"] / scale, b_dec=found["b_dec"] / scale)


def for_use(sae: nn.Module) -> nn.Module:
    """sae-lens's SAE for use, of one of its SAEs in training, by way of what would be saved."""
    from sae_lens import SAE

    config, state = sae.cfg.get_inference_sae_cfg_dict(), dict(sae.state_dict())
    sae.process_state_dict_for_saving_inference(state)
    found = SAE.from_dict({**config, "metadata": dict(config["metadata"])})
    found.load_state_dict(state)
    return found


@dataclass(frozen=True)
class Trained:
    """What became of one SAE."""

    sae: nn.Module
    """sae-lens's own, of its own class, for activations as they are."""
    history: Float[np.ndarray, "step 3"]
    """Squared error a number, L1 a token and L0 of every step, in scaled activations."""
    snapshots: dict[int, Dictionary]
    """After some steps, for scaled activations."""
    seconds: float
    """Of training, its share of what was trained together."""


def train(
    x: Float[Tensor, "token d_model"], variants: Sequence[Variant], scale: float, steps: int, batch: int, lr: float,
    snapshots: Sequence[int] = (),
) -> list[Trained]:  # fmt: skip
    """Train SAEs on the same batches, by sae-lens's trainer, side by side.

    `x` is scaled so that its mean length is the square root of `d_model`, by `scale`; the SAEs that come back are for
    activations as they are. Those that learn from fewer tokens are given the first ones, again and again.
    """
    saes = {variant.name: made(variant, x.shape[-1], snapshots) for variant in variants}
    if len(saes) < len(variants):
        raise ValueError("two of the SAEs to be trained are the same; leave one out")
    amount = {variant.name: variant.tokens or len(x) for variant in variants}
    schedule = {"lr_end": lr / 10, "lr_warm_up_steps": steps // 20, "lr_decay_steps": steps // 4, "device": str(x.device)}

    def batches() -> Iterator[dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(0)
        while True:
            share = torch.rand(batch, generator=draw)
            drawn = {n: x[(share * n).long().clamp(max=n - 1)] for n in set(amount.values())}
            yield {str(n): some for n, some in drawn.items()}

    seconds = fit(saes, {name: str(n) for name, n in amount.items()}, batches(), steps, batch, lr, **schedule)
    found = []
    for variant, sae in zip(variants, saes.values(), strict=True):
        if variant.kind == "JumpReLU":
            set_thresholds(sae, x[:: len(x) // LOOKED_AT + 1], variant.l0)
        own = plain(sae)
        own.fold_activation_norm_scaling_factor(scale)
        found.append(Trained(own, np.array(sae.history), sae.snapshots, seconds))
    return found


@torch.no_grad()
def set_thresholds(sae: nn.Module, x: Float[Tensor, "token d_model"], l0: float) -> None:
    """Multiply all thresholds by one number, so that L0 on `x` is what was aimed at: in training it swings about that."""
    _, before = sae.encode_with_hidden_pre(x)
    over = (before / sae.threshold.clamp(min=1e-6)).flatten()
    k = round(l0 * len(x))
    last, following = over.topk(k + 1).values[-2:].tolist()
    if following > 0:  # or fewer are positive than are to be active
        sae.threshold.mul_((last + following) / 2)


def save(trained: nn.Module, folder: Path) -> None:
    """As sae-lens saves it for use: `cfg.json` and `sae_weights.safetensors`."""
    trained.save_inference_model(folder)
