"""What an SAE learns from: vectors of about one length, without the few that are many times as long as all others.

Two things in a residual stream keep an SAE from it. It grows with depth, and a step of Adam moves what a feature reads by
the rate times the sum of |x|, so that with long vectors features come and go faster than a threshold can follow and no L0 is
held: vectors are scaled to a mean length of the square root of `d_model`, as in Gemma Scope (arXiv 2408.05147, section 3) and
sae-lens (`expected_average_only_in`). And a few tokens besides the first of a text have massive activations (Sun et al., arXiv
2402.17762), which are nearly all of the squared error: vectors longer than `OUTLIER` medians are left out, as in
dictionary_learning (`max_activation_norm_multiple`, 10 by its own advice).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.training import Batch, validate, variance

OUTLIER = 10.0
"""A token is an outlier where its vector is longer than so many times the median."""


@dataclass(frozen=True)
class Lengths:
    """How long vectors are at some sites, told by some tokens."""

    median: Float[Tensor, " site"]
    """Of their lengths."""
    scale: Float[Tensor, " site"]
    """What makes their mean length, outliers aside, the square root of `d_model`."""

    @classmethod
    def of(cls, x: Float[Tensor, "site token d_model"]) -> "Lengths":
        length = x.norm(dim=-1)
        median = length.median(-1).values
        usual = length <= OUTLIER * median[:, None]
        return cls(median, x.shape[-1] ** 0.5 * usual.sum(-1) / (length * usual).sum(-1))

    def outliers(self, x: Float[Tensor, "site token d_model"]) -> Bool[Tensor, "site token"]:
        """Which tokens are, at each site."""
        return x.float().norm(dim=-1) > OUTLIER * self.median[:, None]

    def learned_from(self, x: Float[Tensor, "site token d_model"]) -> Float[Tensor, "site 1 token d_model"]:
        """Scaled, and without the tokens that are outliers at any of the sites, which share their tokens."""
        kept = x[:, ~self.outliers(x).any(0)]
        return (kept.float() * self.scale[:, None, None]).to(x.dtype)[:, None]

    def batches(self, raw: Iterator[Batch]) -> Iterator[Batch]:
        """For the trainer, of batches (site, 1, token, d_model) of activations as they are; of an SAE x is the target too."""
        for x, _ in raw:
            x = self.learned_from(x[:, 0])
            yield x, x

    def unscaled(self, stack: Dictionary) -> Dictionary:
        """SAEs (site, 1) for activations as they are, of SAEs for scaled ones; decoder rows keep their length."""
        found, scale = stack.tensors, self.scale[:, None, None]
        return stack.changed(**{name: found[name] / scale for name in ("b_enc", "threshold", "b_dec")})


@torch.no_grad()
def told(sae: Dictionary, x: Float[Tensor, "token d_model"], outlier: Bool[Tensor, " token"]) -> dict[str, float]:
    """How good one SAE is on held-out activations as they are: `l0` and `fvu` without outliers and with them, the share of
    features that are `dead` there (never active without outliers), and numbers of tokens."""
    usual = x[~outlier]
    fvu, l0 = validate(sae, (usual, usual), variance(usual))
    fvu_of_all, l0_of_all = validate(sae, (x, x), variance(x))
    alive = torch.stack([(sae.encode(some) > 0).any(0) for some in usual.split(2048)]).any(0)
    return {
        "l0": float(l0), "fvu": float(fvu), "dead": float((~alive).float().mean()), "l0_with_outliers": float(l0_of_all),
        "fvu_with_outliers": float(fvu_of_all), "n_outliers": int(outlier.sum()), "n_tokens": len(x),
    }  # fmt: skip
