"""The logit lens: what the residual stream after each layer would say, were it the last (nostalgebraist 2020)."""

from collections.abc import Sequence

import pandas as pd
import torch

from lib.measure.evaluation import Contrast
from lib.model.encoding import batches
from lib.model.hooks import recorded
from lib.model.models import LanguageModel
from lib.texts.prompts import Prompt


@torch.no_grad()
def decision_by_layer(
    model: LanguageModel, prompts: Sequence[Prompt], contrast: Contrast, rows: int = 64, form: str = "training"
) -> pd.DataFrame:
    """One row per prompt, one column per layer: the contrast's logit difference, read off after that layer.

    It is that of the first token of the answer, where the contrast's sets have one token each; of larger sets the mean
    logit counts. The stream goes through the final norm and the unembedding; Gemma-2's soft-capping of logits, which keeps
    their order, is left out. `rows`: prompts in a forward pass.
    """
    norm, unembed = model.bridge.ln_final, model.hf.get_output_embeddings().weight
    names = [f"blocks.{layer}.hook_out" for layer in range(model.n_layers)]

    def direction(place: int) -> torch.Tensor:
        these, those = (unembed[list(ids[place])].mean(0) for ids in (contrast.these, contrast.those))
        return these - those

    found, start = [], 0
    with recorded(model, names) as seen:
        for batch in batches(model.tokenizer, list(prompts), rows, form):
            batch = batch.to(model.hf.device)
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
            row, reads = torch.arange(len(batch.ids), device=batch.ids.device), batch.answer.int().argmax(1) - 1
            directions = torch.stack([direction(start + i) for i in range(len(row))])  # (batch, d_model)
            start += len(row)
            stream = [seen[name][row, reads] for name in names]  # before the lens itself fires hooks
            found.append(torch.stack([(norm(h) * directions).sum(-1) for h in stream], 1).float().cpu())
    return pd.DataFrame(torch.cat(found).numpy(), columns=range(model.n_layers))
