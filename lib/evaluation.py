"""A condition, measured on a set of prompts, is a row of a table.

A condition is a replacement of some layer's MLP, or none (`raw`). Teacher forcing gives the
cross-entropy of the answers and the activations; greedy generation gives the tool metrics.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib import metrics, stats
from lib.encoding import batches, question, tokens
from lib.generation import generate
from lib.hooks import replaced
from lib.models import LanguageModel
from lib.profiles import Evaluation
from lib.prompts import Prompt
from lib.transcoders import BaseDelta


@dataclass
class Watched:
    """A replacement that also remembers the mean |activation| of its features at each position."""

    mlp: BaseDelta
    base: Tensor = field(init=False)  # (batch, pos), of the last forward pass
    delta: Tensor = field(init=False)

    def __call__(self, x: Tensor) -> Tensor:
        f = self.mlp.base.encode(x)
        self.base, y = f.mean(-1), self.mlp.base.decode(f)
        f = self.mlp.delta.encode(x)
        self.delta = f.mean(-1)
        return y + self.mlp.alpha * self.mlp.delta.decode(f)


@torch.no_grad()
def teacher_forced(
    model: LanguageModel, prompts: list[Prompt], settings: Evaluation, mlps: dict[int, BaseDelta] | None = None
) -> pd.DataFrame:
    """One row per prompt: sums of nats and numbers of tokens, for the answer and for everything.

    With replacements also the summed mean |activation| of `base` and `delta` features (of the last
    layer given), over the `positions` at which they act.
    """
    watched = {layer: Watched(mlp) for layer, mlp in (mlps or {}).items()}
    parts = []
    with replaced(model, watched):
        for batch in batches(model.tokenizer, prompts, settings.tokens_batch):
            batch = batch.to(model.hf.device)
            logits = model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
            answer, n_answer = metrics.nats(logits, batch.ids, batch.answer)
            all_, n_all = metrics.nats(logits, batch.ids, batch.attention.bool())
            part = {"nats": answer, "tokens": n_answer, "nats_all": all_, "tokens_all": n_all}
            acts_at = batch.attention.bool() & (batch.ids != model.tokenizer.bos_token_id)
            for mlp in watched.values():
                part |= {
                    "base": (mlp.base * acts_at).sum(1),
                    "delta": (mlp.delta * acts_at).sum(1),
                    "positions": acts_at.sum(1),
                }
            parts.append(pd.DataFrame({name: value.cpu() for name, value in part.items()}))
    return pd.concat(parts, ignore_index=True)


def generations(
    model: LanguageModel, prompts: list[Prompt], settings: Evaluation, mlps: dict[int, BaseDelta] | None = None
) -> list[str]:
    """The greedy answer to each prompt, `settings.margin` tokens longer than the longest target at most."""
    limit = max(len(tokens(model.tokenizer, p)[1]) for p in prompts) + settings.margin
    with replaced(model, mlps or {}):
        return generate(model.hf, model.tokenizer, [question(p.input) for p in prompts], limit, settings.batch)


def evaluate(
    model: LanguageModel, prompts: list[Prompt], settings: Evaluation, mlps: dict[int, BaseDelta] | None = None
) -> tuple[dict, list[str]]:
    """The row of a condition, in the published tables' columns and with intervals; and what was generated."""
    forced = teacher_forced(model, prompts, settings, mlps)
    wrote = generations(model, prompts, settings, mlps)
    estimates = {"mean_ce": stats.ratio(forced.nats, forced.tokens)}
    estimates |= metrics.rates(metrics.outcomes([p.target for p in prompts], wrote))
    for name in ("base", "delta"):
        estimates[f"mean_abs_{name}_acts"] = stats.ratio(forced[name], forced.positions) if mlps else stats.NOTHING
    row = {column: value for name, e in estimates.items() for column, value in e.columns(name).items()}
    return row | {"n_examples": len(prompts), "n_tokens": int(np.sum(forced.tokens))}, wrote


def records(condition: str, prompts: list[Prompt], wrote: list[str], **more) -> list[dict]:
    """Generations as they are kept in JSONL."""
    return [
        {"condition": condition, **more, "input": p.input, "target": p.target, "generation": text}
        for p, text in zip(prompts, wrote, strict=True)
    ]
