"""How good a model's dictionaries are: FVU, L0, dead features and CE recovered, per site and level."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from lib.book import stats
from lib.dictionary.bases import on_offer
from lib.dictionary.dictionaries import Constant
from lib.measure import metrics
from lib.model import activations
from lib.model.conditions import replaced_logits
from lib.model.encoding import Encoded, bos_id, left_out
from lib.model.hooks import Condition
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Transcoders


def losses(
    model: LanguageModel, batches: list[Encoded], conditions: Sequence[Condition] = ({},)
) -> tuple[Float[np.ndarray, "condition row"], Int[np.ndarray, " row"]]:
    """Next-token cross-entropy of each row of text under each condition, summed nats; and its predicted tokens."""
    nats, tokens = [], []
    for batch in tqdm(batches, desc="cross-entropy", leave=False, mininterval=2):
        under = replaced_logits(model, batch, conditions)
        nats.append(np.stack([metrics.of_rows(x.cpu(), batch) for x in under]))
        tokens.append(batch.attention.sum(1) - 1)
    return np.concatenate(nats, 1), np.concatenate(tokens)


@torch.no_grad()
def quality(
    model: LanguageModel, sites: Sequence[Site], settings: Transcoders, batches: list[Encoded], ce_batches: list[Encoded]
) -> pd.DataFrame:
    """One row per site and L0 level on offer, each figure with its interval over rows of text.

    `fvu` and `l0` on the tokens of `batches`, `dead` the share of features never active there;
    `ce_recovered` = (CE_mean - CE_transcoder) / (CE_mean - CE_model) on `ce_batches`, where CE_mean is
    with what is written there at its mean (mean ablation). Where the tokenizer puts no BOS, `fvu_with_first` counts the
    first token of each row too, at which dictionaries do not act (`encoding.acted_on`).
    """
    rows, held = [], activations.collect(model, sites, batches)
    first = activations.collect(model, sites, batches, where=left_out) if bos_id(model.tokenizer) < 0 else None
    tokens = metrics.by_prompt(torch.ones(len(held.prompt)), held.prompt)
    for i, site in enumerate(tqdm(sites, desc="layers", mininterval=2)):
        x, y = held.x[i], held.y[i]
        centre = y.mean(0)
        variance = metrics.by_prompt((y - centre).square().sum(-1), held.prompt)
        if first is not None:
            x_first, y_first = first.x[i], first.y[i]
            of_all = torch.cat([y, y_first]).mean(0)
            parts = ((y, held.prompt), (y_first, first.prompt))
            around = sum(metrics.by_prompt((part - of_all).square().sum(-1), prompt) for part, prompt in parts)
        offer = {l0: load().to(x.device) for l0, load in on_offer(settings, site.layer, model, site).items()}
        ablation = {site: Constant(centre)}
        (clean, ablated, *substituted), _ = losses(model, ce_batches, [{}, ablation, *({site: one} for one in offer.values())])
        for (average_l0, one), ce in zip(offer.items(), substituted, strict=True):
            error, active, fired = [], [], torch.zeros(one.d_sae, dtype=torch.bool, device=x.device)
            for x_part, y_part in zip(x.split(8192), y.split(8192), strict=True):
                f = one.encode(x_part)
                error.append((one.decode(f, x_part) - y_part).square().sum(-1))
                active.append((f > 0).sum(-1))
                fired |= (f > 0).any(0)
            of_rows, with_first = metrics.by_prompt(torch.cat(error), held.prompt), {}
            if first is not None:
                there = metrics.by_prompt((one(x_first) - y_first).square().sum(-1), first.prompt)
                with_first = stats.ratio(of_rows + there, around).columns("fvu_with_first")
            rows.append({
                "layer": site.layer, "average_l0": average_l0,
                **stats.ratio(metrics.by_prompt(torch.cat(active), held.prompt), tokens).columns("l0"),
                **stats.ratio(of_rows, variance).columns("fvu"),
                **with_first, **stats.ratio(ablated - ce, ablated - clean).columns("ce_recovered"),
                **stats.rate((~fired).cpu()).columns("dead"),
                "d_sae": one.d_sae, "n": len(tokens), "n_tokens": len(held.prompt),
            })  # fmt: skip
    return pd.DataFrame(rows)
