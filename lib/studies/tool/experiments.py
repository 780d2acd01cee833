"""The published study's two experiments, under a protocol: the profile's, or another.

Experiment 1 asks how near a replacement is to the MLP and what it costs in cross-entropy; experiment 2
what it does to behaviour. Tables have the published columns, n and intervals.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.book import stats
from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import BaseDelta, Once, Sum
from lib.measure import metrics
from lib.measure.evaluation import RAW
from lib.model import activations, encoding
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.profiles.tool import Protocol
from lib.studies.tool import scores
from lib.texts.jsonl import templates, write_jsonl
from lib.texts.prompts import Prompt

PARTS = {"": "all tokens", "_question": "tool questions", "_answer": "tool answers", "_copy": "copies"}
"""What cross-entropy is told apart by in experiment 1: the end of a column's name, and what it means."""

Grid = tuple[Sequence[int], Sequence[float]]
"""Widths of deltas, and L0 ranks of bases."""


@torch.no_grad()
def exp1(
    profile: Profile,
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sites: Sequence[Site],
    protocol: Protocol | None = None,
    grid: Grid | None = None,
) -> pd.DataFrame:
    """One row for each site, d_new and L0 rank: base only and base + delta in the place of one MLP.

    `<name>_mean_cos`, `<name>_mean_l2`, `<name>_mean_length` and `<name>_fvu` as in `metrics.reconstruction`, for `base` and
    `full`, on all tokens but BOS; `ce*` the cross-entropy with it in place and `dce*` its rise over the
    untouched model, by `PARTS`. The protocol and the grid are the profile's where they are left out.
    """
    protocol, grid = protocol or profile.tool.protocol, grid or (profile.tool.deltas.d_new, profile.transcoders.l0_ranks)
    groups = deltas.groups(profile, sites)
    return pd.DataFrame(row for together in groups for row in _exp1(profile, model, prompts, together, protocol, grid))


def _exp1(
    profile: Profile, model: LanguageModel, prompts: Sequence[Prompt], sites: Sequence[Site], protocol: Protocol, grid: Grid
) -> list[dict]:
    """The rows of sites whose replacements are in memory together."""
    widths, ranks = grid
    cells = list(product(sites, ranks))
    loaded = {(s, q): Once(base) for s in sites for q, base in zip(ranks, bases.load(profile, model, s, ranks), strict=True)}
    added = {(s, q, d): deltas.load_delta(profile, model, s, d, q) for s, q in cells for d in widths}
    conditions = {"raw": RAW}
    for (s, q), base in loaded.items():
        conditions |= {(s, q, None): {s: base}} | {(s, q, d): {s: Sum(base, added[s, q, d])} for d in widths}
    measured = scores.forced(profile.tool, model, prompts, list(conditions.values()), protocol, progress="conditions")
    cost = {key: _scored(table, prompts) for key, table in zip(conditions, measured, strict=True)}
    streamed = encoding.in_order(model.tokenizer, prompts)
    batches = encoding.batches(model.tokenizer, streamed, profile.tool.evaluation.forward_batch, protocol.ce_format)
    seen, rows, units = activations.collect(model, sites, batches, device="cpu"), [], templates(streamed)
    for s, q in cells:
        x, y = (of_each[sites.index(s)].to(model.hf.device) for of_each in (seen.x, seen.y))
        base = loaded[s, q](x)
        columns = _cost("raw", cost["raw"], None)
        columns |= _nearness("base", base, y, seen.prompt, units) | _cost("base", cost[s, q, None], cost["raw"])
        for d in widths:
            full = _nearness("full", base + added[s, q, d](x), y, seen.prompt, units)
            full |= _cost("full", cost[s, q, d], cost["raw"])
            rows.append({"layer": s.layer, "d_new": d, "percentile": q, **columns, **full, "n": len(prompts),
                         "n_clusters": len(set(units))})  # fmt: skip
    return rows


def _nearness(name: str, y_hat: torch.Tensor, y: torch.Tensor, prompt: torch.Tensor, units: list[str]) -> dict[str, float]:
    """The columns of one reconstruction: the published ones, FVU, and intervals."""
    found = metrics.reconstruction(y_hat, y, prompt, units)
    estimates = {f"{name}_mean_{key}": found[key] for key in ("cos", "l2", "length")} | {f"{name}_fvu": found["fvu"]}
    moments = {"orig_mean": y.mean(), "orig_std": y.std(), "rec_mean": y_hat.mean(), "rec_std": y_hat.std()}
    return (
        stats.columns(estimates)
        | {f"{name}_{key}": value.item() for key, value in moments.items()}
        | {f"n_tokens_{name}": len(y)}
    )


def _scored(table: pd.DataFrame, prompts: Sequence[Prompt]) -> dict[str, pd.DataFrame]:
    """`nats` and `tokens` of each prompt that has any, with its template, by `PARTS`."""
    is_tool = np.array([p.subset == "tool" for p in prompts])
    everything, answer = (table.nats_all, table.tokens_all), (table.nats, table.tokens)
    question = table.nats_all - table.nats, table.tokens_all - table.tokens
    parts = {
        "": (everything, is_tool | True),
        "_question": (question, is_tool),
        "_answer": (answer, is_tool),
        "_copy": (everything, ~is_tool),
    }
    return {
        part: pd.DataFrame({"nats": nats, "tokens": tokens, "template": table.template})[where]
        for part, ((nats, tokens), where) in parts.items()
    }


def _cost(name: str, scored: dict[str, pd.DataFrame], raw: dict[str, pd.DataFrame] | None) -> dict[str, float]:
    """Cross-entropy by part and, where there is a raw model to compare with, its rise."""
    columns = {}
    for part, t in scored.items():
        columns |= stats.ratio(t.nats, t.tokens, t.template).columns(f"ce{part}_{name}")
        if raw:
            columns |= stats.ratio(t.nats - raw[part].nats, t.tokens, t.template).columns(f"dce{part}_{name}")
    return columns


def exp2(
    profile: Profile,
    model: LanguageModel,
    prompts: Mapping[str, Sequence[Prompt]],
    extents: Mapping[int | str, Mapping[Site, BaseDelta]],
    doses: Mapping[str, float | None],
    keep: Path | None = None,
    protocols: Sequence[Protocol] = (),
) -> pd.DataFrame:
    """One row for each protocol, extent, subset and dose, in the published columns (`scores.summary`).

    `prompts` are by subset; an extent is what is replaced together, under its name in the column `layer`;
    a dose is a condition's name and its alpha, None for the raw model. Replaced models are also compared with
    the raw one, prompt by prompt (`scores.against`). Generations go to the folder `keep`. The protocol is the profile's, or
    several that differ in the format of scoring alone: what is written does not depend on that.
    """
    d_new, rank = deltas.widest(profile)
    cells = [(where, name, alpha) for where in extents for name, alpha in doses.items() if alpha is not None]
    turned = [{site: pair.at(alpha) for site, pair in extents[where].items()} for where, _, alpha in cells]
    raws = [(where, name, None) for where in extents for name, alpha in doses.items() if alpha is None]
    rows, conditions, study = [], [RAW, *turned], profile.tool
    first, *more = protocols or (study.protocol,)
    for subset, asked in prompts.items():
        tables = scores.measure(study, model, asked, conditions, first, subset)
        scored = [
            (first, tables),
            *((other, scores.rescored(study, model, asked, conditions, tables, other)) for other in more),
        ]
        for protocol, tables in scored:
            for (where, name, alpha), table in zip([*raws, *cells], [*tables[:1] * len(raws), *tables[1:]], strict=True):
                row = {"layer": where, "subset": subset, "condition": name, "d_new": d_new, "percentile": rank}
                against_raw = {} if alpha is None else scores.against(table, tables[0])
                rows.append(row | {"alpha": alpha, "ce_format": protocol.ce_format, **scores.summary(table), **against_raw})
                if keep and protocol is first:
                    file = keep / f"{subset}_layer_{where}_{name}.jsonl"
                    write_jsonl(scores.records(name, asked, table.generation), file)
    return pd.DataFrame(rows)


def exp2_by_layer(
    profile: Profile, model: LanguageModel, prompts: Mapping[str, Sequence[Prompt]], sites: Sequence[Site], **how
) -> pd.DataFrame:
    """`exp2` with one layer replaced at a time, by the widest delta at the middle L0 rank."""
    extents = {site.layer: {site: pair} for site, pair in deltas.pairs(profile, model, sites).items()}
    return exp2(profile, model, prompts, extents, **how)


AT_ENDS = {"raw": None, "no_delta": 0.0, "full": 1.0}
"""The doses of experiment 2A."""


def alphas(given: Sequence[float]) -> dict[str, float | None]:
    """The doses of experiment 2B."""
    return {"raw": None} | {f"alpha_{alpha:.2f}": alpha for alpha in given}
