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

from lib import metrics, stats
from lib.encoding import batches, bos_id, length, question, tokens
from lib.generation import continued
from lib.hooks import MLP, by_lowest, logits_under, replaced
from lib.models import LanguageModel
from lib.profiles import Profile
from lib.prompts import Prompt, templates
from lib.transcoders import BaseDelta

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


def measure(
    profile: Profile,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition] = (RAW,),
    progress: str | None = None,
) -> list[pd.DataFrame]:
    """`teacher_forced`, and with it each prompt's `generation` and its outcomes (`metrics.outcomes`)."""
    # what teacher forcing says of greedy decoding holds where both run on the same text and replacement
    alike = profile.protocol.scope == "all" and profile.protocol.ce_format == "training"
    tables = teacher_forced(profile, model, prompts, conditions, progress)
    writing = progress and f"{progress}, writing"
    wrote = generations(profile, model, prompts, conditions, [table.exact & alike for table in tables], writing)
    for texts, table in zip(wrote, tables, strict=True):
        table["generation"] = texts
        outcomes = metrics.outcomes(profile.tool, [p.target for p in prompts], texts)
        table[list(outcomes)] = outcomes
    return tables


def rescored(
    profile: Profile,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    tables: list[pd.DataFrame],
) -> list[pd.DataFrame]:
    """Tables of `measure` with teacher forcing in the profile's format, and the generations that they have."""
    kept = ["generation", *metrics.OUTCOMES]
    forced = teacher_forced(profile, model, prompts, conditions)
    return [new.join(old[kept]) for new, old in zip(forced, tables, strict=True)]


def against(table: pd.DataFrame, raw: pd.DataFrame) -> dict[str, float]:
    """A condition minus the raw model, paired by prompt: `ce_rise` in nats a token of the answer, `calls_rise` in calls,
    `call_log_prob_rise` in nats.

    `p_ce` and `p_calls` are two-sided, of sign flips of whole templates, not yet adjusted for a family.
    """
    units = table.template
    rises = {
        "ce_rise": stats.ratio(table.nats - raw.nats, raw.tokens, units),
        "calls_rise": stats.rate_difference(table.tool_call_rate, raw.tool_call_rate, units),
        "call_log_prob_rise": stats.difference(table.call_log_prob, raw.call_log_prob, units),
    }
    p_values = {
        "p_ce": stats.paired_p(table.nats, raw.nats, units),
        "p_calls": stats.paired_p(table.tool_call_rate, raw.tool_call_rate, units),
    }
    return stats.columns(rises) | p_values


KL_WHERE = {"question": "over the question", "decision": "at the first token of the answer", "body": "over the rest of it"}
"""Where KL(raw || replaced) is summed; finetuning scored all but the question."""
KL_PARTS = tuple(KL_WHERE)


def total_kl(table: pd.DataFrame) -> pd.Series:
    """KL(raw || replaced) of each prompt, over all its tokens, nats."""
    return sum(table[f"kl_{part}"] for part in KL_PARTS)


def gaps(table: pd.DataFrame, base: pd.DataFrame, raw: pd.DataFrame) -> dict[str, stats.Estimate]:
    """How much of what the base alone loses a condition wins back (`stats.gap_closed`): in CE of the answer, in KL by
    `KL_PARTS` and in all, in calls.

    `kl` is the condition's own loss.
    """
    units = table.template
    closed = {"kl": [total_kl(t) for t in (base, table, raw)]}
    closed |= {f"kl_{part}": [t[f"kl_{part}"] for t in (base, table, raw)] for part in KL_PARTS}
    closed |= {"ce": [base.nats, table.nats, raw.nats], "calls": [-t.tool_call_rate.astype(float) for t in (base, table, raw)]}
    found = {f"{name}_gap_closed": stats.gap_closed(*losses, units) for name, losses in closed.items()}
    return {"kl": stats.mean(total_kl(table), units)} | found


def summary(table: pd.DataFrame) -> dict[str, float]:
    """The row of a condition, in the published tables' columns where they have one, each with its interval."""
    units = table.template
    means = {"mean_ce": ("nats", "tokens")}
    means |= {f"mean_abs_{name}_acts": (f"{name}_acts", "positions") for name in ("base", "delta")}
    means |= {f"{name}_l0": (f"{name}_l0", "positions") for name in ("base", "delta")}
    found = {
        name: stats.ratio(table[total], table[count], units) if total in table else stats.NOTHING
        for name, (total, count) in means.items()
    }
    plain = (*(f"kl_{part}" for part in KL_PARTS), "call_log_prob", "logit_difference")
    found |= {name: stats.mean(table[name], units) for name in plain}
    found |= metrics.rates(table[list(metrics.OUTCOMES)], units)
    counts = {"n_examples": len(table), "n_clusters": units.nunique(), "n_tokens": int(table.tokens.sum())}
    return stats.columns(found) | counts


def records(condition: str, prompts: Sequence[Prompt], wrote: Sequence[str], **more) -> list[dict]:
    """Generations as they are kept in JSONL."""
    return [
        {"condition": condition, **more, "input": p.input, "target": p.target, "generation": text}
        for p, text in zip(prompts, wrote, strict=True)
    ]
