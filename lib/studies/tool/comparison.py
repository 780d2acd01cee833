"""Chapter 8's experiments: controls, what is left at alpha 0, other objectives, and how many layers at once."""

from collections.abc import Mapping, Sequence

import pandas as pd

from lib.book import stats
from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import BaseDelta
from lib.measure import metrics
from lib.model import activations, encoding, models
from lib.model.activations import Activations
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.studies.tool import controls, experiments, ingredients, leftover, objectives, scores, splits
from lib.texts.jsonl import templates
from lib.texts.prompts import Prompt

Subsets = Mapping[str, Sequence[Prompt]]


def seen_on(
    profile: Profile, model: LanguageModel, sites: Sequence[Site], asked: Sequence[Prompt], progress: str
) -> tuple[Activations, list[str]]:
    """Inputs and outputs at the sites on some prompts, and the templates of these in the order streamed."""
    ordered = encoding.in_order(model.tokenizer, asked)
    batches = encoding.batches(model.tokenizer, ordered, profile.tool.evaluation.forward_batch)
    return activations.collect(model, sites, batches, f"{progress} activations"), templates(ordered)


def against_controls(profile: Profile, model: LanguageModel, sites: Sequence[Site], test: Subsets) -> pd.DataFrame:
    """One row for each control and subset, all sites replaced at once: FVU and L0 are of the subset's prompts."""
    built = controls.build(ingredients.material(profile, model, sites))
    return pd.DataFrame(row for subset in test for row in _of_subset(profile, model, sites, built, subset, test[subset]))


def _of_subset(profile, model, sites, built: dict[str, ingredients.Control], subset: str, asked) -> list[dict]:
    rows, (seen, units) = [], seen_on(profile, model, sites, asked, subset)
    conditions = {"raw": {}} | {name: control.mlps for name, control in built.items()}
    tables = scores.measure(profile.tool, model, asked, list(conditions.values()), progress=subset)
    found = dict(zip(conditions, tables, strict=True))
    for name, one in found.items():
        row = {"control": name, "subset": subset, **stats.columns(scores.gaps(one, found["base"], found["raw"]))}
        row |= scores.summary(one)
        for ablation in ("zero", "mean"):
            recovered = stats.gap_closed(found[ablation].nats, one.nats, found["raw"].nats, one.template)
            row |= recovered.columns(f"ce_recovered_{ablation}")
        if name in built:
            row |= {"parameters": built[name].parameters, "seconds": built[name].seconds}
            fvu = metrics.fvu(list(built[name].mlps.values()), seen.x, seen.y, seen.prompt, units)
            row |= fvu.columns("fvu")
        rows.append(row)
    return rows


def at_alpha_0(profile: Profile, model: LanguageModel, sites: Sequence[Site], asked: Sequence[Prompt]) -> pd.DataFrame:
    """One row for each of `leftover.conditions` in the finetuned model, and for the bases in the original one."""
    _, rank = deltas.widest(profile)
    loaded = bases.at_rank(profile, model, sites, rank)
    made = leftover.conditions(ingredients.dense_mlps(profile, sites), loaded, profile.seed)
    rows = []
    for where, of, conditions in (
        ("finetuned", model, made),
        ("original", models.load(profile), {"bases: all of their error": loaded}),
    ):
        tables = scores.measure(profile.tool, of, asked, [{}, *conditions.values()], progress=where)
        for name, one in zip(["its own MLPs", *conditions], tables, strict=True):
            gap = stats.rate_difference(one.tool_call_rate, tables[1].tool_call_rate, one.template)
            row = {"model": where, "MLPs": name, **scores.summary(one)}
            rows.append(row | (gap.columns("calls_over_original_mlps") if where == "finetuned" else {}))
    return pd.DataFrame(rows)


def trained_through(
    profile: Profile, model: LanguageModel, sites: Sequence[Site], steps: int
) -> dict[str, dict[Site, BaseDelta]]:
    """The deltas of chapter 3 trained further, once for each objective, at the L0 that they have; and the base alone."""
    pairs = deltas.pairs(profile, model, sites)
    seen = ingredients.seen_in(profile, model, sites, "validation")
    l0 = {s: (m.delta.encode(x) > 0).float().sum(-1).mean().item() for (s, m), x in zip(pairs.items(), seen.x, strict=True)}
    asked, made = splits.read(profile, "train"), {"base": {site: pair.at(0.0) for site, pair in pairs.items()}, "before": pairs}
    for name, weights in objectives.OBJECTIVES.items():
        how = (weights, l0, steps, profile.tool.finetune.micro_batch)
        made[name] = objectives.train_through(model, pairs, asked, *how, progress=name)
    return made


def by_objective(profile: Profile, model: LanguageModel, sites: Sequence[Site], test: Subsets, steps: int) -> pd.DataFrame:
    """One row for each objective of `trained_through` and subset."""
    made, rows = trained_through(profile, model, sites, steps), []
    for subset, asked in test.items():
        seen, units = seen_on(profile, model, sites, asked, subset)
        tables = scores.measure(profile.tool, model, asked, [{}, *made.values()], progress=subset)
        found = dict(zip(["raw", *made], tables, strict=True))
        for name, one in found.items():
            row = {"objective": name, "subset": subset, **scores.summary(one)}
            row |= stats.columns(scores.gaps(one, found["base"], found["raw"]))
            if name in made:
                row |= metrics.fvu(list(made[name].values()), seen.x, seen.y, seen.prompt, units).columns("fvu")
            rows.append(row)
    return pd.DataFrame(rows)


def by_extent(profile: Profile, model: LanguageModel, sites: Sequence[Site], test: Subsets) -> pd.DataFrame:
    """Experiment 2A with the first one, two, ... of the sites replaced together."""
    pairs = deltas.pairs(profile, model, sites)
    extents = {n: {site: pairs[site] for site in sites[:n]} for n in range(1, len(sites) + 1)}
    return experiments.exp2(profile, model, test, extents, experiments.AT_ENDS)
