"""The logit lens: what the residual stream after each layer would say, were it the last (nostalgebraist 2020)."""

from collections.abc import Sequence

import pandas as pd
import torch

from lib.model.encoding import batches, bos_id
from lib.model.hooks import capture
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile
from lib.texts.prompts import Prompt


@torch.no_grad()
def decision_by_layer(profile: Profile, model: LanguageModel, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """One row per prompt, one column per layer: the decision's logit difference, read off after that layer.

    The decision is the first token of the answer; the difference is the logit of a call's first token
    minus that of a copy's (the question's first). The stream goes through the final norm and the
    unembedding; Gemma-2's soft-capping of logits, which keeps their order, is left out.
    """
    (call_id, *_) = model.tokenizer(profile.tool.call("1+1"), add_special_tokens=False).input_ids
    norm = model.bridge.ln_final
    names = [f"blocks.{layer}.hook_out" for layer in range(model.n_layers)]
    first, rows = int(bos_id(model.tokenizer) >= 0), []  # a copy begins as the question does
    with capture(model, names) as cache:
        for batch in batches(model.tokenizer, list(prompts), profile.evaluation.tokens_batch):
            batch = batch.to(model.hf.device)
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
            row, reads = torch.arange(len(batch.ids), device=batch.ids.device), batch.answer.int().argmax(1) - 1
            directions = model.hf.lm_head.weight[call_id] - model.hf.lm_head.weight[batch.ids[:, first]]  # (batch, d_model)
            stream = [cache[name][row, reads] for name in names]  # before the lens itself fires hooks
            rows.append(torch.stack([(norm(h) * directions).sum(-1) for h in stream], 1).float().cpu())
    return pd.DataFrame(torch.cat(rows).numpy(), columns=range(model.n_layers))
