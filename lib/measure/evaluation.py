"""Conditions, measured on a set of prompts: a table with a row per prompt each.

Teacher forcing gives cross-entropy, KL, a contrast of next tokens and activations; greedy generation gives answers. Two
things are never computed twice: the layers below a replacement, which are the raw model's, and an answer that teacher
forcing has already shown to be the greedy one.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import BaseDelta
from lib.measure import metrics
from lib.model.conditions import by_start, replaced_logits
from lib.model.encoding import Encoded, asked, batches, end_id, length, token_mask, tokens
from lib.model.generation import continued
from lib.model.hooks import Condition, Features, replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tool import Evaluation, Protocol
from lib.texts.jsonl import templates
from lib.texts.prompts import Prompt

RAW: Condition = {}


@dataclass(frozen=True)
class Contrast:
    """Two sets of next tokens for each prompt, at the first token of its answer: call against copy, bus against car."""

    name: str
    """Of the first, in names of columns."""
    these: Sequence[Sequence[int]]
    those: Sequence[Sequence[int]]

    def values(
        self, rows: Sequence[int], logits: Float[Tensor, "row vocab"], log_p: Float[Tensor, "row vocab"]
    ) -> dict[str, Float[Tensor, " row"]]:
        """Of some prompts, their logits and log-probabilities: the log-probability of the first set, nats, and its log-odds
        against the second.

        The latter is the logit difference where both sets have one token.
        """
        these, those = ([ids[row] for row in rows] for ids in (self.these, self.those))
        difference = _of_sets(logits.float(), these) - _of_sets(logits.float(), those)
        return {f"{self.name}_log_prob": _of_sets(log_p, these), "logit_difference": difference}


def _of_sets(values: Float[Tensor, "row vocab"], sets: Sequence[Sequence[int]]) -> Float[Tensor, " row"]:
    """The logarithm of the sum of what each row has, as logarithms, at its tokens."""
    n = torch.tensor([len(ids) for ids in sets])
    padded = torch.tensor([[*ids, *[0] * (int(n.max()) - len(ids))] for ids in sets], device=values.device)
    beyond = torch.arange(padded.shape[1]) >= n[:, None]
    return values.gather(1, padded).masked_fill(beyond.to(values.device), -torch.inf).logsumexp(1)


@dataclass
class Watch:
    """How much the features of a `BaseDelta` do, by position, in the last pass of a condition; of its highest layer."""

    top: Site | None
    seen: dict[str, Tensor]

    @classmethod
    def of(cls, condition: Condition) -> "Watch":
        top = max(condition, key=lambda site: site.layer, default=None)
        return cls(top if isinstance(condition.get(top), BaseDelta) else None, {})

    def __call__(self, site: Site, features: Features) -> None:
        if site == self.top:
            for name, f in zip(("base", "delta"), features, strict=True):
                self.seen[f"{name}_acts"] = f.mean(-1)
                self.seen[f"{name}_l0"] = f.sign() @ f.new_ones(f.shape[-1])  # much faster than a sum of booleans


def _by_length(
    model: LanguageModel, prompts: Sequence[Prompt | str], conditions: Sequence[Condition], rows: int, form: str = "training"
) -> tuple[Int[np.ndarray, " prompt"], list[Encoded]]:
    """The order of prompts by length, for those of like length pad one another little, and batches of them so."""
    order = np.argsort([length(model.tokenizer, p) for p in prompts])
    # conditions that begin at one layer share a batch: its prompts are the fewer, and pad one another the less
    alike = max((len(some) for begin, some in by_start(conditions) if begin), default=1)
    return order, batches(model.tokenizer, [prompts[i] for i in order], max(1, rows // alike), form)


def teacher_forced(
    model: LanguageModel,
    prompts: Sequence[Prompt | str],
    conditions: Sequence[Condition] = (RAW,),
    contrast: Contrast | None = None,
    protocol: Protocol | None = None,
    rows: int = 64,
    progress: str | None = None,
) -> list[pd.DataFrame]:
    """For each condition a table with one row per prompt, in the order of the prompts.

    - `template`: the sampled unit that the prompt is of (`jsonl.templates`);
    - `nats`, `tokens`: cross-entropy of the answer and its number of tokens; `nats_all`, `tokens_all`: of everything;
    - `kl_question`, `kl_decision`, `kl_body`: KL(raw || replaced) summed over the question, at the first token of the
      answer, and over the rest of it;
    - with a `contrast`, its columns (`Contrast.values`) at that token;
    - `exact`: every token of the answer is the likeliest in its place, so that greedy decoding writes it;
    - where a `BaseDelta` stands in: summed over the `positions` at which it acts, mean |activation| over `base_acts` and
      `delta_acts`, and active features `base_l0` and `delta_l0` (of the highest layer replaced).

    `rows`: at most so many in a forward pass, prompts and conditions.
    """
    protocol = protocol or Protocol()
    order, work = _by_length(model, prompts, conditions, rows, protocol.ce_format)
    found: list[list[dict[str, Tensor]]] = [[] for _ in conditions]  # of each condition, batch by batch
    start = 0
    watches = [Watch.of(condition) for condition in conditions]
    for batch in tqdm(work, desc=progress, disable=progress is None, mininterval=2):
        batch = batch.to(model.hf.device)
        acts_at = token_mask(model.tokenizer, batch)
        row, decides = torch.arange(len(batch.ids), device=batch.ids.device), batch.answer.int().argmax(1)
        of_these, start = order[start : start + len(batch.ids)], start + len(batch.ids)
        under = replaced_logits(
            model, batch, [RAW, *conditions], protocol.scope, rows, lambda place: watches[place - 1] if place else None
        )
        kl_from_raw = metrics.kl_from(metrics.log_probs(next(under)))
        for logits, watch, parts in zip(under, watches, found, strict=True):
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
                "exact": (likeliest | ~batch.answer[:, 1:]).all(1),
            }
            if contrast:
                columns |= contrast.values(of_these.tolist(), logits[row, decides - 1], log_p[row, decides - 1])
            if watch.top:
                columns |= {name: (value * acts_at).sum(1) for name, value in watch.seen.items()}
                columns["positions"] = acts_at.sum(1)
            parts.append(columns)
    tables = [{name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]} for parts in found]
    for condition, table in zip(conditions, tables, strict=True):
        if table["nats_all"].isnan().any():
            raise ValueError(
                f"the model's logits are not finite (with {sorted(site.layer for site in condition) or 'no'} layers "
                "replaced); choose another model.dtype or other weights, or smaller alphas"
            )
    return [pd.DataFrame(table, index=order).sort_index().assign(template=templates(prompts)) for table in tables]


@torch.no_grad()
def greedy(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    scope: str = "all",
    rows: int = 64,
    progress: str | None = None,
) -> list[list[bool]]:
    """Of each condition and prompt, whether greedy decoding writes the target.

    Seen in one forward pass over question and answer, without decoding: each token of the answer must be the likeliest in
    its place. Under `scope="prompt"` the pass leaves the answer's tokens to the model, as decoding with a cache does.
    """
    order, work = _by_length(model, prompts, conditions, rows)
    found: list[list[Tensor]] = [[] for _ in conditions]
    for batch in tqdm(work, desc=progress, disable=progress is None, mininterval=2):
        batch = batch.to(model.hf.device)
        at, only = batch.foreseen, ~batch.answer if scope == "prompt" else None
        elsewhere = ~batch.answer[:, at + 1]
        for logits, parts in zip(replaced_logits(model, batch, conditions, rows=rows, at=at, only=only), found, strict=True):
            parts.append(((logits.argmax(-1) == batch.ids[:, at + 1]) | elsewhere).all(1).cpu())
    places = torch.from_numpy(order).argsort()
    return [torch.cat(parts)[places].tolist() for parts in found]


def generations(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    exact: Sequence[Sequence[bool]],
    sizes: Evaluation,
    scope: str = "all",
    form: str = "training",
    progress: str | None = None,
) -> list[list[str]]:
    """For each condition the greedy answer to each prompt, `sizes.margin` tokens longer than the longest target at most.

    Where `exact` says of a condition and prompt that it is the target, it is not generated again. Conditions
    share batches: each has its rows.
    """
    answers = [tokens(model.tokenizer, p, form)[1] for p in prompts]
    targets = model.tokenizer.batch_decode(answers, skip_special_tokens=True)
    # conditions apart, the better known first: one that never ends its answers would keep the others' waiting
    ranked = sorted(range(len(conditions)), key=lambda c: -sum(exact[c]))
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input))
    to_write = [(c, i) for c in ranked for i in by_length if not exact[c][i]]
    questions = {i: asked(model.tokenizer, prompts[i].input, form) for i in {i for _, i in to_write}}
    limit, size, end = max(map(len, answers)) + sizes.margin, sizes.generate_batch, end_id(model.tokenizer, form)
    wrote = [list(targets) for _ in conditions]
    for start in tqdm(range(0, len(to_write), size), desc=progress, disable=progress is None, mininterval=2):
        rows = to_write[start : start + size]
        with ExitStack() as stack:
            first = 0
            for c, own in groupby(rows, key=lambda row: row[0]):
                n = len(list(own))
                stack.enter_context(replaced(model, conditions[c], scope, slice(first, first + n)))
                first += n
            found = continued(model.hf, model.tokenizer, [questions[i] for _, i in rows], limit, end=end)
        for (c, i), text in zip(rows, found, strict=True):
            wrote[c][i] = text
    return wrote
