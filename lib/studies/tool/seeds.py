"""The headline figures again, from another finetuning and other deltas: what a seed alone changes."""

from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import BaseDelta
from lib.measure import metrics
from lib.model import activations, encoding, finetuned, models
from lib.model.finetune import finetune
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.studies.tool import scores
from lib.studies.tool.splits import read
from lib.texts.jsonl import by_subset
from lib.texts.prompts import SPLITS, SUBSETS, Prompt

HEADLINES = {
    "raw_calls": "raw model, rate of calls", "base_calls": "base only at all layers, rate of calls",
    "full_calls": "base + delta at all layers, rate of calls", "full_right": "base + delta at all layers, rate of right calls",
    "base_fvu": "base only, FVU over all layers", "full_fvu": "base + delta, FVU over all layers",
    **{f"kl_{part}_gap_closed": f"KL gap closed at all layers, {where}" for part, where in scores.KL_WHERE.items()},
    "ce_gap_closed": "CE gap closed at all layers",
}  # fmt: skip


def headline(profile: Profile, seed: int, n_prompts: int) -> list[dict]:
    """One row per subset for one seed, after finetuning and training deltas anew with it.

    Prompts, bases and settings are the profile's; deltas are the widest, at the middle L0 rank. Of the
    profile's own seed chapters 2 and 3 have made both; of others the model goes to `seeds/<seed>` under its data.
    """
    prompts = {split: read(profile, split) for split in SPLITS}
    model, pairs = made(profile) if seed == profile.seed else anew(profile, seed, prompts)
    sites, base_only = list(pairs), {site: pair.at(0.0) for site, pair in pairs.items()}
    rows = []
    for subset in SUBSETS.values():
        asked = by_subset(prompts["test"], n_prompts)[subset]
        raw, base, full = scores.measure(profile.tool, model, asked, [{}, base_only, pairs])
        seen = activations.collect(model, sites, _batches(profile, model, asked), f"{subset} activations")
        closed = scores.gaps(full, base, raw)
        found = {
            "raw_calls": raw.tool_call_rate.mean(), "base_calls": base.tool_call_rate.mean(),
            "full_calls": full.tool_call_rate.mean(), "full_right": full.math_correct_rate.astype(float).mean(),
            "base_fvu": metrics.fvu(list(base_only.values()), seen.x, seen.y, seen.prompt).value,
            "full_fvu": metrics.fvu(list(pairs.values()), seen.x, seen.y, seen.prompt).value,
            **{name: closed[name].value for name in HEADLINES if name in closed},
        }  # fmt: skip
        rows.append({"seed": seed, "subset": subset, **found, "n_examples": len(asked)})
    return rows


def made(profile: Profile) -> tuple[LanguageModel, dict[Site, BaseDelta]]:
    """The finetuned model of chapter 2 and the deltas of chapter 3."""
    model = finetuned.finetuned(profile)
    return model, deltas.pairs(profile, model, models.studied(profile, model))


def anew(profile: Profile, seed: int, prompts: dict[str, list[Prompt]]) -> tuple[LanguageModel, dict[Site, BaseDelta]]:
    """The same from another seed."""
    hf, tokenizer = models.load_plain(profile)
    folder = profile.paths.data / "seeds" / str(seed) / "finetuned"
    finetune(hf, tokenizer, prompts["train"], prompts["validation"], profile.tool.finetune, folder, seed)
    model = models.load(profile, folder)
    sites, (d_new, rank) = models.studied(profile, model), deltas.widest(profile)
    splits = [_batches(profile, model, prompts[split]) for split in ("train", "validation")]
    data, check = deltas.targets(profile, model, sites, [rank], splits)
    [(stack, _)] = deltas.fit(profile.tool.deltas.training, data, check, [d_new], seed, progress=f"seed {seed}")
    loaded = bases.at_rank(profile, model, sites, rank)
    return model, {site: BaseDelta(loaded[site], stack[i, 0]) for i, site in enumerate(sites)}


def _batches(profile, model, prompts) -> list[encoding.Encoded]:
    return encoding.streamed(model.tokenizer, prompts, profile.tool.evaluation.forward_batch)
