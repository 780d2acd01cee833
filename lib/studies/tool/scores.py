"""What answers are worth under the tool's grammar, as rows of tables."""

from collections.abc import Sequence

import pandas as pd

from lib.book import stats
from lib.measure.evaluation import RAW, Contrast, generations, greedy, teacher_forced
from lib.model.encoding import asked, bos_id
from lib.model.hooks import Condition
from lib.model.models import LanguageModel
from lib.profiles.tool import Protocol, ToolStudy
from lib.studies.tool.answers import OUTCOMES, outcomes, rates
from lib.texts.prompts import Prompt


def call_or_copy(study: ToolStudy, model: LanguageModel, prompts: Sequence[Prompt], form: str = "training") -> Contrast:
    """The first token of a call against that of a copy, which begins as the question does."""
    (call, *_) = model.tokenizer(study.grammar.call("1+1"), add_special_tokens=False).input_ids
    bos, questions = bos_id(model.tokenizer), [asked(model.tokenizer, p.input, form) for p in prompts]
    return Contrast("call", [[call]] * len(prompts), [[ids[int(ids[0] == bos)]] for ids in questions])


def forced(
    study: ToolStudy,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition] = (RAW,),
    protocol: Protocol | None = None,
    progress: str | None = None,
) -> list[pd.DataFrame]:
    """`teacher_forced` with the contrast of call and copy, under the study's protocol or another."""
    protocol = protocol or study.protocol
    contrast = call_or_copy(study, model, prompts, protocol.ce_format)
    return teacher_forced(model, prompts, conditions, contrast, protocol, study.evaluation.forward_batch, progress)


def measure(
    study: ToolStudy,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition] = (RAW,),
    protocol: Protocol | None = None,
    progress: str | None = None,
) -> list[pd.DataFrame]:
    """`forced`, and with it each prompt's `generation` and its outcomes (`outcomes`)."""
    protocol = protocol or study.protocol
    tables, scope = forced(study, model, prompts, conditions, protocol, progress), protocol.scope
    if (scope, protocol.ce_format) == ("all", "training"):
        exact = [table.exact for table in tables]
    else:  # teacher forcing was of another text or another replacement than greedy decoding is
        rows, seeing = study.evaluation.forward_batch, progress and f"{progress}, seen"
        exact = greedy(model, prompts, conditions, scope, rows=rows, progress=seeing)
    writing = progress and f"{progress}, writing"
    wrote = generations(model, prompts, conditions, exact, study.evaluation, scope, progress=writing)
    for texts, table in zip(wrote, tables, strict=True):
        table["generation"] = texts
        found = outcomes(study.grammar, [p.target for p in prompts], texts)
        table[list(found)] = found
    return tables


def rescored(
    study: ToolStudy,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    tables: list[pd.DataFrame],
    protocol: Protocol,
) -> list[pd.DataFrame]:
    """Tables of `measure` with teacher forcing in another format, and the generations that they have."""
    written = ["generation", *OUTCOMES]
    new = forced(study, model, prompts, conditions, protocol)
    return [table.join(old[written]) for table, old in zip(new, tables, strict=True)]


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
    found |= rates(table[list(OUTCOMES)], units)
    counts = {"n_examples": len(table), "n_clusters": units.nunique(), "n_tokens": int(table.tokens.sum())}
    return stats.columns(found) | counts


def records(condition: str, prompts: Sequence[Prompt], wrote: Sequence[str], **more) -> list[dict]:
    """Generations as they are kept in JSONL."""
    return [
        {"condition": condition, **more, "input": p.input, "target": p.target, "generation": text}
        for p, text in zip(prompts, wrote, strict=True)
    ]
