"""What chapter 11 needs besides its forty lines: activations, the same SAE from sae-lens, and one measure for both."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.base.saes import HELD_OUT
from lib.base.text import held_out, source
from lib.dictionary.dictionaries import Constant, Dictionary
from lib.dictionary.lengths import Lengths
from lib.dictionary.sae_lens import fit, from_sae_lens
from lib.dictionary.variants import unscaled
from lib.measure.quality import losses
from lib.model import activations
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.studies.features.material import plain_text

ROWS = 24
"""Of text, on which cross-entropy is told."""


def sampled(
    profile: Profile, model: LanguageModel, site: Site, tokens: int
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"], float]:
    """Activations to train on and others held out, of running text; and what they were multiplied by.

    They are scaled so that the mean length of a vector is the square root of `d_model`: a penalty then means about the same in
    every model and layer. Outliers (`lib.dictionary.lengths`) are left out of both.
    """
    text, found, n = source(profile, model, profile.paths.data), [], 0
    for x, _ in text.batches([site], 0, 512):
        found.append(x[0, 0].float())
        n += len(found[-1])
        if n >= tokens:
            break
    held = held_out(text, HELD_OUT, "validation")
    check = activations.collect(model, [site], held, "held-out activations").x
    lengths = Lengths.of(check)
    train, check = (x[0, ~lengths.outliers(x)[0]] for x in (torch.cat(found)[None, :tokens], check))
    scale = float(train.shape[-1] ** 0.5 / train.norm(dim=-1).mean())
    return train * scale, check * scale, scale


def folded(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, scale: float) -> Dictionary:
    """An SAE that was trained on scaled activations, `b_dec` taken off before they are encoded, as one for them as they are."""
    W_enc, b_enc, W_dec, b_dec = (tensor.detach().clone() for tensor in (W_enc, b_enc, W_dec, b_dec))
    threshold = torch.zeros_like(b_enc)
    return Dictionary(W_enc * scale, b_enc - b_dec @ W_enc, threshold, W_dec / scale, b_dec / scale).requires_grad_(False)


@torch.no_grad()
def measured(
    profile: Profile, model: LanguageModel, site: Site, saes: Sequence[Dictionary], x: Float[Tensor, "token d_model"]
) -> list[dict[str, float]]:
    """Of each SAE on held-out activations as they are: `fvu`, `l0`, the share of `dead` features; and `ce_recovered`.

    That is 1 where the model is as good with the reconstruction as without, 0 where it is as bad as with the mean activation in
    its place.
    """
    centre = x.mean(0)
    total = (x - centre).square().sum()
    batches = plain_text(profile, model, 4000)[:ROWS]
    conditions = [{}, {site: Constant(centre)}, *({site: sae} for sae in saes)]
    nats, _ = losses(model, batches, conditions)
    plain, ablated, *with_each = nats.sum(1)
    rows = []
    for sae, ce in zip(saes, with_each, strict=True):
        f = sae.encode(x)
        rows.append({
            "fvu": float((sae.decode(f) - x).square().sum() / total), "l0": float((f > 0).sum(-1).float().mean()),
            "dead": float((~(f > 0).any(0)).float().mean()), "ce_recovered": float((ablated - ce) / (ablated - plain)),
            "n_tokens": len(x), "n_rows": nats.shape[1],
        })  # fmt: skip
    return rows


def by_sae_lens(
    x: Float[Tensor, "token d_model"], d_sae: int, l1s: Sequence[float], steps: int, batch: int, lr: float, scale: float
) -> tuple[list[Dictionary], float]:
    """sae-lens's own standard SAEs, one for each penalty, trained together on the same batches; and the seconds of each."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    torch.manual_seed(0)
    saes = {
        str(i): StandardTrainingSAE(StandardTrainingSAEConfig(
            d_in=x.shape[-1], d_sae=d_sae, l1_coefficient=l1, apply_b_dec_to_input=True, l1_warm_up_steps=steps // 10,
        ))
        for i, l1 in enumerate(l1s)
    }  # fmt: skip
    seconds = fit(saes, dict.fromkeys(saes, "x"), ({"x": some} for some in batches(x, batch)), steps, batch, lr)
    found = []
    for sae in saes.values():
        ours = from_sae_lens(sae, "sae-lens")  # which has taken b_dec out of the input already
        found.append(unscaled(ours, scale))
    return found, seconds


def batches(x: Float[Tensor, "token d_model"], size: int, seed: int = 0):
    """Tokens drawn at random, batch after batch; the same for every trainer."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        yield x[torch.randint(len(x), (size,), generator=draw)]


def penalty_for(l0: float, l1s: Sequence[float], l0s: Sequence[float]) -> float:
    """The penalty that would give an L0, between those tried, in logarithms; the nearest end where it lies outside."""
    order = np.argsort(l0s)
    return float(np.exp(np.interp(np.log(l0), np.log(np.array(l0s)[order]), np.log(np.array(l1s)[order]))))
