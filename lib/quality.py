"""How good a model's transcoders are: FVU, L0, dead features and CE recovered, per layer and level."""

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from lib import activations, metrics, stats
from lib.encoding import Encoded
from lib.hooks import replaced
from lib.models import LanguageModel
from lib.profiles import Transcoders, local_or_hub
from lib.transcoders import levels, load_level


@torch.no_grad()
def losses(model: LanguageModel, batches: list[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """Next-token cross-entropy (summed nats) and number of predicted tokens of each row."""
    parts = []
    for batch in batches:
        batch = batch.to(model.hf.device)
        logits = model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        parts.append(torch.stack(metrics.nats(logits, batch.ids, batch.attention.bool())).cpu())
    return tuple(torch.cat(parts, 1).numpy())


@torch.no_grad()
def transcoder_quality(
    model: LanguageModel, layers: list[int], settings: Transcoders, batches: list[Encoded], ce_batches: list[Encoded]
) -> pd.DataFrame:
    """One row per layer and L0 level on offer, each figure with its interval over rows of text.

    `fvu` and `l0` on the tokens of `batches`, `dead` the share of features never active there;
    `ce_recovered` = (CE_mean - CE_transcoder) / (CE_mean - CE_model) on `ce_batches`, where CE_mean is
    with the MLP's output at its mean (mean ablation).
    """
    source, rows = local_or_hub(settings.source), []
    held = activations.collect(model, layers, batches)
    tokens = metrics.by_prompt(torch.ones(len(held.prompt)), held.prompt)
    clean, _ = losses(model, ce_batches)
    for i, layer in enumerate(tqdm(layers, desc="layers", mininterval=2)):
        x, y = held.x[i], held.y[i]
        centre = y.mean(0)
        variance = metrics.by_prompt((y - centre).square().sum(-1), held.prompt)
        with replaced(model, {layer: lambda x, centre=centre: centre.expand_as(x)}):
            ablated, _ = losses(model, ce_batches)
        for average_l0, file in levels(source, layer, settings.width, settings.revision).items():
            transcoder = load_level(source, file, model.d_model, settings.revision).to(x.device)
            error, active, fired = [], [], torch.zeros(transcoder.d_sae, dtype=torch.bool, device=x.device)
            for x_part, y_part in zip(x.split(8192), y.split(8192), strict=True):
                f = transcoder.encode(x_part)
                error.append((transcoder.decode(f) - y_part).square().sum(-1))
                active.append((f > 0).sum(-1))
                fired |= (f > 0).any(0)
            with replaced(model, {layer: transcoder}):
                substituted, _ = losses(model, ce_batches)
            rows.append({
                "layer": layer, "average_l0": average_l0,
                **stats.ratio(metrics.by_prompt(torch.cat(active), held.prompt), tokens).columns("l0"),
                **stats.ratio(metrics.by_prompt(torch.cat(error), held.prompt), variance).columns("fvu"),
                **stats.ratio(ablated - substituted, ablated - clean).columns("ce_recovered"),
                **stats.rate((~fired).cpu()).columns("dead"),
                "d_sae": transcoder.d_sae, "n": len(tokens), "n_tokens": len(held.prompt),
            })  # fmt: skip
    return pd.DataFrame(rows)
