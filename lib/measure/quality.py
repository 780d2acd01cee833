"""How good a model's transcoders are: FVU, L0, dead features and CE recovered, per layer and level."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from lib.book import stats
from lib.dictionary.bases import on_offer
from lib.measure import metrics
from lib.model import activations
from lib.model.encoding import Encoded
from lib.model.hooks import MLP, logits_under
from lib.model.models import LanguageModel
from lib.profiles.tables import Transcoders


def losses(
    model: LanguageModel, batches: list[Encoded], conditions: Sequence[Mapping[int, MLP]] = ({},)
) -> tuple[Float[np.ndarray, "condition row"], Int[np.ndarray, "row"]]:
    """Next-token cross-entropy of each row of text under each condition, summed nats; and its predicted tokens."""
    nats, tokens = [], []
    for batch in tqdm(batches, desc="cross-entropy", leave=False, mininterval=2):
        under = logits_under(model, batch, conditions)
        nats.append(np.stack([(metrics.nats(metrics.log_probs(x.cpu()), batch.ids) * batch.attention).sum(1) for x in under]))
        tokens.append(batch.attention.sum(1) - 1)
    return np.concatenate(nats, 1), np.concatenate(tokens)


@torch.no_grad()
def transcoder_quality(
    model: LanguageModel, layers: list[int], settings: Transcoders, batches: list[Encoded], ce_batches: list[Encoded]
) -> pd.DataFrame:
    """One row per layer and L0 level on offer, each figure with its interval over rows of text.

    `fvu` and `l0` on the tokens of `batches`, `dead` the share of features never active there;
    `ce_recovered` = (CE_mean - CE_transcoder) / (CE_mean - CE_model) on `ce_batches`, where CE_mean is
    with the MLP's output at its mean (mean ablation).
    """
    rows, held = [], activations.collect(model, layers, batches)
    tokens = metrics.by_prompt(torch.ones(len(held.prompt)), held.prompt)
    for i, layer in enumerate(tqdm(layers, desc="layers", mininterval=2)):
        x, y = held.x[i], held.y[i]
        centre = y.mean(0)
        variance = metrics.by_prompt((y - centre).square().sum(-1), held.prompt)
        offer = {l0: load().to(x.device) for l0, load in on_offer(settings, layer, model).items()}
        ablation = {layer: lambda x, centre=centre: centre.expand_as(x)}
        (clean, ablated, *substituted), _ = losses(model, ce_batches, [{}, ablation, *({layer: t} for t in offer.values())])
        for (average_l0, transcoder), ce in zip(offer.items(), substituted, strict=True):
            error, active, fired = [], [], torch.zeros(transcoder.d_sae, dtype=torch.bool, device=x.device)
            for x_part, y_part in zip(x.split(8192), y.split(8192), strict=True):
                f = transcoder.encode(x_part)
                error.append((transcoder.decode(f, x_part) - y_part).square().sum(-1))
                active.append((f > 0).sum(-1))
                fired |= (f > 0).any(0)
            rows.append({
                "layer": layer, "average_l0": average_l0,
                **stats.ratio(metrics.by_prompt(torch.cat(active), held.prompt), tokens).columns("l0"),
                **stats.ratio(metrics.by_prompt(torch.cat(error), held.prompt), variance).columns("fvu"),
                **stats.ratio(ablated - ce, ablated - clean).columns("ce_recovered"),
                **stats.rate((~fired).cpu()).columns("dead"),
                "d_sae": transcoder.d_sae, "n": len(tokens), "n_tokens": len(held.prompt),
            })  # fmt: skip
    return pd.DataFrame(rows)
