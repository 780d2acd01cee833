"""What latents do for the two tasks, and what is lost and kept when some are taken out.

The SAE stands beside the last hidden state, which only the output layer reads. So without latent j the logits are
`logits - z_j (W_out d_j)`, exactly, and a whole set is taken out by one product. Latents are chosen on validation examples, and
what taking them out does is told on test examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib.studies.untangle import learn
from lib.studies.untangle.data import PAD
from lib.studies.untangle.learn import Learned

TASKS = ("sum", "join")
OTHER = dict(zip(TASKS, TASKS[::-1], strict=True))
TESTED = 1000
"""Examples of each task, at most, on which latents are chosen, and others on which sets of them are judged."""
CHUNK = 2**19  # logits at once: they stay in a core's cache


@dataclass(frozen=True)
class Tokens:
    """The answer tokens of some examples, with all that an ablation needs."""

    h: Float[Tensor, "token d_model"]
    """The last hidden state where each is foreseen."""
    logits: Float[Tensor, "token vocab"]
    target: Int[Tensor, " token"]
    example: Int[Tensor, " token"]
    """Which example, counted from 0."""
    is_sum: Bool[Tensor, " example"]

    @classmethod
    def of(cls, toy: Learned, part: int, most: int | None = None) -> "Tokens":
        """Those of one part of the examples, or of `most` of each task drawn from it."""
        rows = toy.task.rows(part)
        if most is not None:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(toy.seed))]
            is_sum = torch.from_numpy(toy.task.is_sum)[rows]
            rows = torch.cat([rows[of][:most] for of in (is_sum, ~is_sum)])
        real = toy.task.target[rows] != PAD
        h = learn.hidden(toy.model, toy.task, rows)[real]
        example = torch.arange(len(rows))[:, None].expand_as(real)[real]
        return cls(h, toy.model.output(h), toy.task.target[rows][real], example, torch.from_numpy(toy.task.is_sum)[rows])

    @property
    def of_sum(self) -> Bool[Tensor, " token"]:
        return self.is_sum[self.example]

    @property
    def by_task(self) -> list[tuple[str, Bool[Tensor, " token"], Bool[Tensor, " example"]]]:
        """Each task with its tokens and its examples."""
        return list(zip(TASKS, (self.of_sum, ~self.of_sum), (self.is_sum, ~self.is_sum), strict=True))

    def nats(self, logits: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
        return F.cross_entropy(logits, self.target, reduction="none")

    def right(self, logits: Float[Tensor, "token vocab"]) -> Bool[Tensor, " example"]:
        """Whether the whole answer is."""
        wrong = self.example[logits.argmax(-1) != self.target]
        return torch.ones_like(self.is_sum).index_fill(0, wrong, False)

    @cached_property
    def before(self) -> tuple[Float[Tensor, " token"], Bool[Tensor, " example"]]:
        """Cross-entropy and right answers with nothing taken out."""
        return self.nats(self.logits), self.right(self.logits)


def writes(toy: Learned) -> Float[Tensor, "d_sae vocab"]:
    """What each latent adds to the logits when it is 1."""
    return (toy.model.output.weight @ toy.model.sae.decoder.weight).T


@torch.no_grad()
def importance(toy: Learned, tokens: Tokens, write: Float[Tensor, "d_sae vocab"] | None = None) -> pd.DataFrame:
    """A row per latent: by how much the mean cross-entropy (nats a token) of each task rises without it, and which share of the
    right answers is lost.

    With other directions in place of what latents `write` it is the same for these, as a control.
    """
    z, write = toy.model.sae.encode(tokens.h), writes(toy) if write is None else write
    before, right = tokens.before
    d_sae = z.shape[1]
    rise = torch.zeros(2, d_sae, dtype=torch.float64)
    lost = torch.zeros(len(right), d_sae, dtype=torch.bool)
    for at, latent in zip(*(of.split(CHUNK // write.shape[1]) for of in z.nonzero(as_tuple=True)), strict=True):
        logits = tokens.logits[at] - z[at, latent, None] * write[latent]
        nats = F.cross_entropy(logits, tokens.target[at], reduction="none") - before[at]
        rise.view(-1).index_add_(0, tokens.of_sum[at].logical_not() * d_sae + latent, nats.double())
        wrong = logits.argmax(-1) != tokens.target[at]
        lost[tokens.example[at[wrong]], latent[wrong]] = True
    found = pd.DataFrame({"latent": np.arange(d_sae), "active": (z > 0).float().mean(0).numpy()})
    for i, (task, of_tokens, of) in enumerate(tokens.by_task):
        found[f"ce_{task}"] = (rise[i] / of_tokens.sum()).numpy()
        found[f"lost_{task}"] = (lost[right & of].sum(0) / max(1, int((right & of).sum()))).numpy()
    return found


def chosen(of_latents: pd.DataFrame, task: str, tolerance: float) -> np.ndarray:
    """The latents without which `task` is worse, and the other by no more than the tolerance, in nats a token."""
    return of_latents.latent[(of_latents[f"ce_{task}"] > 0) & (of_latents[f"ce_{OTHER[task]}"] <= tolerance)].to_numpy()


# --- taking out ---


@torch.no_grad()
def without(toy: Learned, tokens: Tokens, latents: Sequence[int], write: Tensor | None = None) -> Float[Tensor, "token vocab"]:
    """The logits when a set of latents is taken out, all at once."""
    of = torch.as_tensor(np.array(latents, dtype=int))
    write = writes(toy) if write is None else write
    return tokens.logits - toy.model.sae.encode(tokens.h)[:, of] @ write[of]


@torch.no_grad()
def without_chained(toy: Learned, tokens: Tokens, latents: Sequence[int]) -> Float[Tensor, "token vocab"]:
    """As published: one after another, each latent computed from what the last one left, so that their order counts."""
    h, sae = tokens.h, toy.model.sae
    for j in latents:
        z = (h @ sae.encoder.weight[j] + sae.encoder.bias[j]).relu()
        h = h - z[:, None] * sae.decoder.weight[:, j]
    return toy.model.output(h)


@torch.no_grad()
def without_direction(
    toy: Learned, tokens: Tokens, direction: Float[Tensor, " d_model"], level: float, dose: float
) -> Float[Tensor, "token vocab"]:
    """The logits when hidden states are moved along a direction towards a level on it; by a dose of 1 all stand there."""
    unit = direction / direction.norm()
    return toy.model.output(tokens.h - dose * (tokens.h @ unit - level)[:, None] * unit)


def lost(tokens: Tokens, logits: Float[Tensor, "token vocab"]) -> dict[str, float]:
    """The share of each task's right answers that are wrong now, and by how much the cross-entropy (nats a token) has risen."""
    (nats, before), after, found = tokens.before, tokens.right(logits), {}
    rise = tokens.nats(logits) - nats
    for task, of_tokens, of in tokens.by_task:
        had = before & of
        found[f"lost_{task}"] = float((had & ~after).sum() / had.sum()) if had.any() else np.nan
        found[f"n_{task}"] = int(had.sum())
        found[f"ce_{task}"] = float(rise[of_tokens].mean())
    return found


SELECTIVE = (0.01, 0.001)
"""Nats a token that a latent of one task alone costs that task at least, and the other at most."""


def selective(of_latents: pd.DataFrame) -> dict[str, float]:
    """How far single latents are of one task: the share of those in use that are `selective`; the correlation of what the two
    tasks lose by each; and of those that both need, `ratio`, the median of how much more one loses than the other.
    """
    used = of_latents[of_latents.active > 0]
    a, b = (used[f"ce_{task}"] for task in TASKS)
    much, little = SELECTIVE
    one = ((a > much) & (b < little)) | ((b > much) & (a < little))
    both = used[(a > little) & (b > little)]
    larger, smaller = (both[[f"ce_{task}" for task in TASKS]].agg(how, axis=1) for how in ("max", "min"))
    return {
        "n_latents": len(used), "selective": float(one.mean()) if len(used) else np.nan,
        "correlation": float(a.corr(b)) if len(used) > 2 else np.nan,
        "n_shared": len(both), "ratio": float((larger / smaller).median()) if len(both) else np.nan,
    }  # fmt: skip


def random_writes(toy: Learned, seed: int = 0) -> Float[Tensor, "d_sae vocab"]:
    """What latents would add to the logits if each wrote in a random direction, as long as its own."""
    rows = toy.model.sae.decoder.weight.T
    noise = F.normalize(torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)), dim=1)
    return (rows.norm(dim=1, keepdim=True) * noise) @ toy.model.output.weight.T
