"""Conditions, measured on a set of prompts: a table with a row per prompt each, and its summary in one row.

A condition is a replacement of some layers' MLPs, or of none (the raw model). Teacher forcing gives
cross-entropy, KL and activations; greedy generation gives the tool metrics. Two things are never
computed twice: the layers below a replacement, which are the raw model's, and an answer that teacher
forcing has already shown to be the greedy one.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import BaseDelta
from lib.measure import metrics
from lib.model.encoding import batches, bos_id, length, question, tokens
from lib.model.generation import continued
from lib.model.hooks import MLP, by_lowest, logits_under, replaced
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile
from lib.texts.jsonl import templates
from lib.texts.prompts import Prompt

Condition = Mapping[int, MLP]
"""What stands in for the MLP of each layer named."""
RAW: Condition = {}


@dataclass
class Watched:
    """A replacement that remembers, by position, what its features did in its last pass."""

    mlp: BaseDelta
    seen: dict[str, Tensor] = field(default_factory=dict)  # (batch, pos): mean |activation| and number active

    def __call__(self, x: Tensor) -> Tensor:
        f_base, f_delta = self.mlp.encode(x)
        for name, f in (("base", f_base), ("delta", f_delta)):
            self.seen[f"{name}_acts"] = f.mean(-1)
            self.seen[f"{name}_l0"] = f.sign() @ f.new_ones(f.shape[-1])  # much faster than a sum of booleans
        return self.mlp.decode(f_base, f_delta, x)


def teacher_forced(
    profile: Profile,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition] = (RAW,),
    progress: str | None = None,
) -> list[pd.DataFrame]:
    """For each condition a table with one row per prompt, in the order of the prompts.

    - `template`: the sampled unit that the prompt is of (`prompts.templates`);
    - `nats`, `tokens`: cross-entropy of the answer and its number of tokens; `nats_all`, `tokens_all`: of everything;
    - `kl_question`, `kl_decision`, `kl_body`: KL(raw || replaced) summed over the question, at the first token of the
      answer (call or copy?), and over the rest of it;
    - at the decision, `call_log_prob`: log-probability of a call's first token, nats; `logit_difference`: its logit minus
      that of a copy's first;
    - `exact`: every token of the answer is the likeliest in its place, so that greedy decoding writes it;
    - where a `BaseDelta` stands in: summed over the `positions` at which it acts, mean |activation| over `base_acts` and
      `delta_acts`, and active features `base_l0` and `delta_l0` (of the highest layer replaced).
    """
    protocol, (call_id, *_) = profile.protocol, model.tokenizer(profile.tool.call("1+1"), add_special_tokens=False).input_ids
    order = np.argsort([length(model.tokenizer, p) for p in prompts])  # prompts of like length pad one another little
    by_length = [prompts[i] for i in order]
    watched = [{i: Watched(mlp) if isinstance(mlp, BaseDelta) else mlp for i, mlp in c.items()} for c in conditions]
    # conditions that begin at one layer share a batch: its prompts are the fewer, and pad one another the less
    alike = max((len(some) for first, some in by_lowest(conditions) if first is not None), default=1)
    rows = profile.evaluation.tokens_batch
    found: list[list[dict[str, Tensor]]] = [[] for _ in conditions]  # of each condition, batch by batch
    work = batches(model.tokenizer, by_length, max(1, rows // alike), protocol.ce_format)
    for batch in tqdm(work, desc=progress, disable=progress is None, mininterval=2):
        batch = batch.to(model.hf.device)
        is_bos = batch.ids == bos_id(model.tokenizer)
        acts_at = batch.attention.bool() & ~is_bos
        row, decides = torch.arange(len(is_bos), device=is_bos.device), batch.answer.int().argmax(1)
        copy_ids = batch.ids[row, is_bos[:, 0].long()]  # a copy begins as the question does
        under = logits_under(model, batch, [RAW, *watched], protocol.scope, rows)
        kl_from_raw = metrics.kl_from(metrics.log_probs(next(under)))
        for logits, mlps, parts in zip(under, watched, found, strict=True):
            log_p = metrics.log_probs(logits)
            nats, kl = metrics.nats(log_p, batch.ids), kl_from_raw(log_p)
            likeliest = log_p.argmax(-1) == batch.ids[:, 1:]
            columns = {
                "nats": (nats * batch.answer).sum(1),
                "tokens": batch.answer.sum(1),
                "nats_all": (nats * batch.attention).sum(1),
                "tokens_all": batch.attention.sum(1) - 1,  # nothing predicts the first
                "kl_question": (kl * batch.attention * ~batch.answer).sum(1),
                "kl_decision": kl[row, decides],
                "kl_body": (kl * batch.answer).sum(1) - kl[row, decides],
                "call_log_prob": log_p[row, decides - 1, call_id],
                "logit_difference": logits[row, decides - 1, call_id].float() - logits[row, decides - 1, copy_ids],
                "exact": (likeliest | ~batch.answer[:, 1:]).all(1),
            }
            if mlps and isinstance(top := mlps[max(mlps)], Watched):
                columns |= {name: (value * acts_at).sum(1) for name, value in top.seen.items()}
                columns["positions"] = acts_at.sum(1)
            parts.append(columns)
    tables = [{name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]} for parts in found]
    for condition, table in zip(conditions, tables, strict=True):
        if table["nats_all"].isnan().any():
            raise ValueError(
                f"the model's logits are not finite (with {sorted(condition) or 'no'} layers replaced); choose another "
                "model.dtype or other weights, or smaller alphas"
            )
    return [pd.DataFrame(table, index=order).sort_index().assign(template=templates(prompts)) for table in tables]


def generations(
    profile: Profile,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    exact: Sequence[Sequence[bool]],
    progress: str | None = None,
) -> list[list[str]]:
    """For each condition the greedy answer to each prompt, `evaluation.margin` tokens longer than the longest target at most.

    Where `exact` says of a condition and prompt that it is the target, it is not generated again. Conditions
    share batches: each has its rows.
    """
    answers = [tokens(model.tokenizer, p)[1] for p in prompts]
    targets = model.tokenizer.batch_decode(answers, skip_special_tokens=True)
    # conditions apart, the better known first: one that never ends its answers would keep the others' waiting
    ranked = sorted(range(len(conditions)), key=lambda c: -sum(exact[c]))
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input))
    asked = [(c, i) for c in ranked for i in by_length if not exact[c][i]]
    limit, size = max(map(len, answers)) + profile.evaluation.margin, profile.evaluation.batch
    wrote = [list(targets) for _ in conditions]
    for start in tqdm(range(0, len(asked), size), desc=progress, disable=progress is None, mininterval=2):
        rows = asked[start : start + size]
        with ExitStack() as stack:
            first = 0
            for c, own in groupby(rows, key=lambda row: row[0]):
                n = len(list(own))
                stack.enter_context(replaced(model, conditions[c], profile.protocol.scope, slice(first, first + n)))
                first += n
            found = continued(model.hf, model.tokenizer, [question(prompts[i].input) for _, i in rows], limit)
        for (c, i), text in zip(rows, found, strict=True):
            wrote[c][i] = text
    return wrote
