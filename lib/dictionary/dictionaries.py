"""Dictionaries of features: one, or a stack of many of one shape; base + alpha * delta.

    p = x W_enc + b_enc,   f = relu(p) * (p > threshold),   y = f W_dec + b_dec  (+ x W_skip)

An SAE writes what it reads, a transcoder what an MLP writes; base and delta are transcoders, and a delta's target is what
the base leaves, `y - base(x)`. All are one class, for this is what ReLU (threshold 0), JumpReLU (arXiv 2407.14435),
BatchTopK at inference (arXiv 2412.06410) and weight-tied Gated dictionaries (arXiv 2404.16014) compute; of TopK
(arXiv 2406.04093) only the `k` largest are left. Where `b_dec` is subtracted from an input first, `b_enc` holds that. Some
transcoders have an affine skip (arXiv 2501.18823), no delta has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.model.hooks import Replacement

PARAMETERS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
"""Of every dictionary; some have `W_skip` besides."""


class Dictionary(nn.Module):
    """One SAE or transcoder, or a stack of them: every parameter may have leading dimensions.

    `W_enc` is (..., d_model, d_sae), `W_dec` (..., d_sae, d_model), `b_enc` and `threshold`
    (..., d_sae), `b_dec` (..., d_model), `W_skip`, if any, (..., d_model, d_model). Inputs broadcast over the
    leading dimensions, so that one input can feed many dictionaries. The threshold is not trained by gradients. `k`: how
    many features are active at most (TopK).
    """

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        threshold: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        W_skip: Tensor | None = None,
        k: int | None = None,
    ):
        super().__init__()
        self.W_enc, self.b_enc = nn.Parameter(W_enc), nn.Parameter(b_enc)
        self.W_dec, self.b_dec = nn.Parameter(W_dec), nn.Parameter(b_dec)
        self.register_buffer("threshold", threshold)
        self.W_skip = None if W_skip is None else nn.Parameter(W_skip)
        self.k = k

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that it computes with, by name, detached."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[-2]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[-1]

    def encode(self, x: Float[Tensor, "*n token d_model"]) -> Float[Tensor, "*n token d_sae"]:
        """Feature activations, never negative."""
        f = activate(x, self.W_enc, self.b_enc, self.threshold)
        return f if self.k is None or self.k >= self.d_sae else f * _largest(f, self.k)

    def decode(
        self, f: Float[Tensor, "*n token d_sae"], x: Float[Tensor, "*n token d_model"] | None = None
    ) -> Float[Tensor, "*n token d_model"]:
        """The output for features `f` of the input `x`, which only a skip needs."""
        y = f @ self.W_dec + self.b_dec.unsqueeze(-2)
        if self.W_skip is None:
            return y
        if x is None:
            raise ValueError("this dictionary has an affine skip; give decode the input too")
        return y + x @ self.W_skip

    def forward(self, x: Float[Tensor, "*n token d_model"]) -> Float[Tensor, "*n token d_model"]:
        return self.decode(self.encode(x), x)

    def changed(self, **tensors: Tensor) -> "Dictionary":
        """The same with other tensors of these names, frozen."""
        return Dictionary(**self.tensors | tensors, k=self.k).requires_grad_(False)

    def __getitem__(self, index) -> "Dictionary":
        """One member of a stack, or part of it; copies nothing and is frozen."""
        return self.changed(**{name: tensor[index] for name, tensor in self.tensors.items()})

    @classmethod
    def stacked(cls, members: Sequence["Dictionary"]) -> "Dictionary":
        """A stack of copies of dictionaries of one shape."""
        tensors = {name: torch.stack([member.tensors[name] for member in members]) for name in members[0].tensors}
        return cls(**tensors, k=members[0].k)

    @classmethod
    def initialised(cls, shape: tuple[int, ...], d_model: int, d_sae: int, seed: int, threshold: float = 0.0) -> "Dictionary":
        """An untrained stack: random encoder columns and decoder rows of length one, the same in all; zero biases."""
        draw = torch.Generator().manual_seed(seed)
        W_enc = nn.functional.normalize(torch.randn(d_model, d_sae, generator=draw), dim=-2)
        W_dec = nn.functional.normalize(torch.randn(d_sae, d_model, generator=draw), dim=-1)
        b_enc, b_dec = torch.zeros(d_sae), torch.zeros(d_model)
        one = (W_enc, b_enc, torch.full_like(b_enc, threshold), W_dec, b_dec)
        return cls(*(parameter.expand(*shape, *parameter.shape).clone() for parameter in one))


def activate(
    x: Float[Tensor, "*n token d_model"],
    W_enc: Float[Tensor, "*n d_model d_sae"],
    b_enc: Float[Tensor, "*n d_sae"],
    threshold: Float[Tensor, "*n d_sae"],
) -> Float[Tensor, "*n token d_sae"]:
    """Activations of features: `relu(p)` where `p = x W_enc + b_enc` is above the threshold, else 0."""
    if W_enc.ndim == 2:
        p = nn.functional.linear(x, W_enc.mT, b_enc)
    else:
        p = shared(x, W_enc)
        p = p.add_(b_enc.unsqueeze(-2).to(p.dtype))
    # many times faster than `where` or a product with booleans
    active = torch.gt(p.detach(), threshold.clamp(min=0).unsqueeze(-2).to(p.dtype), out=torch.empty_like(p))
    return p.mul_(active)


def _largest(f: Float[Tensor, "*n token d_sae"], k: int) -> Float[Tensor, "*n token d_sae"]:
    """1 at the k largest of each token, else 0."""
    return torch.zeros_like(f).scatter_(-1, f.topk(k, -1).indices, 1.0)


def shared(a: Float[Tensor, "*n i j"], b: Float[Tensor, "*n j k"]) -> Float[Tensor, "*n i k"]:
    """`a @ b`, which would copy an `a` that many `b` share; contiguous, for products to come."""
    return torch.einsum("...ij,...jk->...ik", a, b).contiguous()


@dataclass(frozen=True)
class BaseDelta:
    """`base(x) + alpha * delta(x)`, in place of an MLP."""

    base: Dictionary
    delta: Dictionary
    alpha: float = 1.0

    def at(self, alpha: float) -> "BaseDelta":
        """The same at another dose; at 0 it is the base alone."""
        return replace(self, alpha=alpha)

    def encode(self, x: Float[Tensor, "*n token d_model"]) -> tuple[Tensor, Tensor]:
        """The activations of the base's features and of the delta's."""
        return self.base.encode(x), self.delta.encode(x)

    def decode(self, f: tuple[Tensor, Tensor], x: Tensor) -> Float[Tensor, "*n token d_model"]:
        return self.base.decode(f[0], x) + self.alpha * self.delta.decode(f[1])

    def __call__(self, x: Float[Tensor, "*n token d_model"]) -> Float[Tensor, "*n token d_model"]:
        return self.decode(self.encode(x), x)


@dataclass(frozen=True)
class Constant:
    """The same output everywhere; `Constant(0)` is zero ablation."""

    y: Float[Tensor, " d_model"]

    def __call__(self, x: Tensor) -> Tensor:
        return self.y.expand_as(x)


@dataclass(frozen=True)
class Affine:
    """x W + b."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@dataclass(frozen=True)
class Sum:
    """base(x) + extra(x), for an extra that is no transcoder."""

    base: Replacement
    extra: Replacement

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x) + self.extra(x)


class Once:
    """A function that is not run again on the very input that it was run on last."""

    def __init__(self, function: Replacement):
        self.function, self.last = function, (None, None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x is not self.last[0]:
            self.last = x, self.function(x)
        return self.last[1]


def as_one(pair: BaseDelta) -> Dictionary:
    """`base + alpha * delta` as one transcoder: the base's features, then the delta's with alpha in their decoder rows."""
    if pair.base.k is not None:
        raise ValueError(
            "the base is a TopK dictionary, and one of base and delta together would choose among the features of both"
        )
    base, delta, alpha = pair.base, pair.delta, pair.alpha
    skip = {} if base.W_skip is None else {"W_skip": base.W_skip.detach()}  # no delta has one
    return Dictionary(
        torch.cat([base.W_enc, delta.W_enc], -1),
        torch.cat([base.b_enc, delta.b_enc], -1),
        torch.cat([base.threshold, delta.threshold], -1),
        torch.cat([base.W_dec, alpha * delta.W_dec], -2),
        base.b_dec + alpha * delta.b_dec,
        **skip,
    ).requires_grad_(False)
