"""What makes the calls that are left at alpha 0: the finetuned attention, or the error of the base transcoders?

A base stands for the MLP of the *original* model, so at alpha 0 the finetuned model differs from one of finetuned
attention and original MLPs by the bases' error alone. That error can be put in by shares, and noise of its size in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.model.hooks import Condition, Replacement
from lib.model.sites import Site


@dataclass(frozen=True)
class WithError:
    """The original MLP with a share of its base's error."""

    mlp: Replacement
    base: Replacement
    share: float

    def __call__(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        return y + self.share * (self.base(x) - y)


@dataclass(frozen=True)
class WithNoise:
    """The original MLP with noise as long as its base's error, in directions drawn anew at each token."""

    mlp: Replacement
    base: Replacement
    seed: int

    def __call__(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(self.seed)).to(y)
        return y + noise / noise.norm(dim=-1, keepdim=True) * (self.base(x) - y).norm(dim=-1, keepdim=True)


def conditions(mlps: Mapping[Site, Replacement], bases: Mapping[Site, Replacement], seed: int = 0) -> dict[str, Condition]:
    """What stands for all MLPs of the finetuned model, from the original ones to the bases, by name."""
    found = {"original MLPs": dict(mlps)}
    for share in (0.25, 0.5, 0.75):
        found[f"{share:.0%} of the bases' error"] = {i: WithError(mlps[i], bases[i], share) for i in mlps}
    found["bases: all of their error"] = dict(bases)
    found["noise as long as the error"] = {i: WithNoise(mlps[i], bases[i], seed + i.layer) for i in mlps}
    return found
