"""Chapter 9's experiments: does the finetuned model use a tool, or match templates?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lib.book import stats
from lib.dictionary import deltas
from lib.measure import lens
from lib.model import models
from lib.model.finetuned import finetuned
from lib.profiles.tables import Profile
from lib.studies.tool import scores, splits
from lib.texts import jsonl, mentions, probes
from lib.texts.prompts import Prompt

Kinds = Mapping[str, Sequence[Prompt]]


def kinds(profile: Profile, n: int) -> dict[str, list[Prompt]]:
    """Up to `n` prompts of each kind: requests, trained and untrained, and texts that ask for nothing."""
    n, tool = min(n, profile.tool.prompts.test), profile.tool.grammar
    found = {f"request: {kind}": probes.ood(kind, n, tool=tool) for kind in probes.OOD}
    found |= {f"no request: {kind}": mentions.hard_negative(kind, n) for kind in mentions.HARD_NEGATIVES}
    test = jsonl.by_subset(splits.read(profile, "test", n))
    return {"trained requests": test["tool"]} | found | {"trained copies": test["copy"]}


def _file(profile: Profile, kind: str, condition: str) -> Path:
    return profile.paths.generations / "kinds" / f"{kind.replace(': ', '_').replace(' ', '_')}_{condition}.jsonl"


def by_kind(profile: Profile, asked: Kinds) -> pd.DataFrame:
    """Experiment 2A with all layers replaced, on each kind of prompt."""
    model, rows = finetuned(profile), []
    pairs = deltas.pairs(profile, model, models.studied(profile, model))
    conditions = {"raw": {}, "no_delta": {site: pair.at(0.0) for site, pair in pairs.items()}, "full": pairs}
    for kind, some in asked.items():
        tables = scores.measure(profile.tool, model, some, list(conditions.values()), progress=kind)
        for condition, table in zip(conditions, tables, strict=True):
            rows.append({"kind": kind, "condition": condition, **scores.summary(table)})
            jsonl.write_jsonl(scores.records(condition, some, table.generation), _file(profile, kind, condition))
    return pd.DataFrame(rows)


def by_template(profile: Profile, asked: Kinds) -> pd.DataFrame:
    """The raw model's rate of calls for each template of some kinds, from what `by_kind` has written."""
    rows = []
    for kind, some in asked.items():
        wrote = [row["generation"] for _, row in jsonl.read_rows(_file(profile, kind, "raw"), ("input", "generation"))]
        calls = pd.Series([profile.tool.grammar.called(text) for text in wrote]).groupby([q.template for q in some])
        for template, called in calls:
            rows.append({"kind": kind, "template": template, **stats.rate(called).columns("tool_call_rate"), "n": len(called)})
    return pd.DataFrame(rows).sort_values(["kind", "tool_call_rate", "template"], ignore_index=True)


def on_pairs(profile: Profile, n: int) -> pd.DataFrame:
    """Pairs of prompts that differ in one thing (`probes.CHANGES`): is the model right on both sides?"""
    model, rows, n = finetuned(profile), [], min(n, profile.tool.prompts.test)
    for change in probes.CHANGES:
        first, second = zip(*probes.pairs(change, n, tool=profile.tool.grammar), strict=True)
        one, two = (scores.measure(profile.tool, model, asked, progress=change)[0] for asked in (first, second))
        right = one.math_correct_rate.astype(bool)
        right &= two.math_correct_rate.astype(bool) if change == "numbers" else ~two.tool_call_rate.astype(bool)
        units = one.template
        found = {"first_calls": one.tool_call_rate, "second_calls": two.tool_call_rate, "both_right": right}
        estimates = {name: stats.rate(values, units) for name, values in found.items()}
        rows.append({"change": change, "n": len(right), "n_clusters": units.nunique(), **stats.columns(estimates)})
    return pd.DataFrame(rows)


def through_the_lens(profile: Profile, asked: Kinds) -> pd.DataFrame:
    """The mean logit difference of call and copy after each layer, on each kind."""
    model, rows = finetuned(profile), []
    for kind, some in asked.items():
        contrast = scores.call_or_copy(profile.tool, model, some)
        found = lens.decision_by_layer(model, some, contrast, profile.tool.evaluation.forward_batch)
        for layer in found:
            e = stats.mean(found[layer], jsonl.templates(some))
            rows.append({"kind": kind, "layer": layer, **e.columns("logit_difference"), "n": e.n, "n_clusters": e.clusters})
    return pd.DataFrame(rows)


def carried(profile: Profile, asked: Kinds) -> pd.DataFrame:
    """How far each layer's delta alone moves that difference from where its base alone puts it, on each kind."""
    model, rows = finetuned(profile), []
    pairs = deltas.pairs(profile, model, models.studied(profile, model))
    for kind, some in asked.items():
        conditions = [{site: pair.at(alpha)} for site, pair in pairs.items() for alpha in (0.0, 1.0)]
        tables = scores.forced(profile.tool, model, some, conditions, progress=kind)
        units = tables[0].template
        both = [(base.logit_difference, full.logit_difference) for base, full in zip(tables[::2], tables[1::2], strict=True)]
        adjusted = stats.holm([stats.paired_p(full, base, units) for base, full in both])
        for site, (base, full), q in zip(pairs, both, adjusted, strict=True):
            row = {"kind": kind, "layer": site.layer, **(e := stats.difference(full, base, units)).columns("moved")}
            rows.append(row | {"p_holm": q, "n": e.n, "n_clusters": e.clusters})
    return pd.DataFrame(rows)
