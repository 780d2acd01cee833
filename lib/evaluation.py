"""Conditions, measured on a set of prompts: each is a row of a table.

A condition is a replacement of some layers' MLPs, or of none (the raw model). Teacher forcing gives the
cross-entropy of the answers and the activations; greedy generation gives the tool metrics. Two things
are never computed twice: the layers below a replacement, which are the raw model's, and an answer that
teacher forcing has already shown to be the greedy one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from lib import metrics, stats
from lib.encoding import batches, question, tokens
from lib.generation import generate
from lib.hooks import logits_under, replaced
from lib.models import LanguageModel
from lib.profiles import Evaluation
from lib.prompts import Prompt
from lib.transcoders import BaseDelta

Condition = Mapping[int, BaseDelta]
"""What stands in for the MLP of each layer named."""
RAW: Condition = {}


@dataclass
class Watched:
    """A replacement that remembers the mean |activation| of its features at each position of its last pass."""

    mlp: BaseDelta
    means: dict[str, Tensor] = field(default_factory=dict)  # (batch, pos), of `base` and of `delta`

    def __call__(self, x: Tensor) -> Tensor:
        f_base, f_delta = self.mlp.encode(x)
        self.means = {"base": f_base.mean(-1), "delta": f_delta.mean(-1)}
        return self.mlp.decode(f_base, f_delta)


def teacher_forced(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    conditions: Sequence[Condition] = (RAW,),
    progress: str | None = None,
) -> list[pd.DataFrame]:
    """For each condition a table with one row per prompt, in the order of the prompts.

    `nats` and `tokens` are of the answer, `nats_all` and `tokens_all` of everything; `exact` tells
    whether every token of the answer is the likeliest in its place, so that greedy decoding writes it.
    With replacements also the summed mean |activation| of `base` and `delta` features (of the highest
    layer replaced), over the `positions` at which they act.
    """
    order = np.argsort([len(p.input) + len(p.target) for p in prompts])  # prompts of like length pad one another little
    work = batches(model.tokenizer, [prompts[i] for i in order], settings.tokens_batch)
    watched = [{layer: Watched(mlp) for layer, mlp in condition.items()} for condition in conditions]
    tables: list[list[pd.DataFrame]] = [[] for _ in conditions]
    for batch in tqdm(work, desc=progress, disable=progress is None, mininterval=2):
        batch = batch.to(model.hf.device)
        acts_at = batch.attention.bool() & (batch.ids != model.tokenizer.bos_token_id)
        for logits, mlps, table in zip(logits_under(model, batch, watched), watched, tables, strict=True):
            nats = metrics.nats(logits, batch.ids)
            likeliest = logits[:, :-1].argmax(-1) == batch.ids[:, 1:]
            columns = {
                "nats": (nats * batch.answer).sum(1),
                "tokens": batch.answer.sum(1),
                "nats_all": (nats * batch.attention).sum(1),
                "tokens_all": batch.attention.sum(1) - 1,  # nothing predicts BOS
                "exact": (likeliest | ~batch.answer[:, 1:]).all(1),
            }
            if mlps:
                columns |= {name: (mean * acts_at).sum(1) for name, mean in mlps[max(mlps)].means.items()}
                columns["positions"] = acts_at.sum(1)
            table.append(pd.DataFrame({name: value.cpu() for name, value in columns.items()}))
    return [pd.concat(table).set_axis(order).sort_index() for table in tables]


def generations(
    model: LanguageModel, prompts: Sequence[Prompt], settings: Evaluation, condition: Condition, exact: Sequence[bool]
) -> list[str]:
    """The greedy answer to each prompt, `settings.margin` tokens longer than the longest target at most.

    Where `exact` says that it is the target, it is not generated again.
    """
    answers = [tokens(model.tokenizer, p)[1] for p in prompts]
    wrote = model.tokenizer.batch_decode(answers, skip_special_tokens=True)
    asked = [i for i, known in enumerate(exact) if not known]
    questions, limit = [question(prompts[i].input) for i in asked], max(map(len, answers)) + settings.margin
    with replaced(model, condition):
        for i, text in zip(asked, generate(model.hf, model.tokenizer, questions, limit, settings.batch), strict=True):
            wrote[i] = text
    return wrote


def evaluate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    conditions: Sequence[Condition] = (RAW,),
    progress: str | None = None,
) -> list[tuple[dict, list[str]]]:
    """For each condition its row, in the published tables' columns and with intervals, and what was generated."""
    found = []
    for condition, forced in zip(conditions, teacher_forced(model, prompts, settings, conditions, progress), strict=True):
        wrote = generations(model, prompts, settings, condition, forced.exact)
        estimates = {"mean_ce": stats.ratio(forced.nats, forced.tokens)}
        estimates |= metrics.rates(metrics.outcomes([p.target for p in prompts], wrote))
        for name in ("base", "delta"):
            estimates[f"mean_abs_{name}_acts"] = stats.ratio(forced[name], forced.positions) if condition else stats.NOTHING
        row = {column: value for name, e in estimates.items() for column, value in e.columns(name).items()}
        found.append((row | {"n_examples": len(prompts), "n_tokens": int(np.sum(forced.tokens))}, wrote))
    return found


def records(condition: str, prompts: Sequence[Prompt], wrote: Sequence[str], **more) -> list[dict]:
    """Generations as they are kept in JSONL."""
    return [
        {"condition": condition, **more, "input": p.input, "target": p.target, "generation": text}
        for p, text in zip(prompts, wrote, strict=True)
    ]
