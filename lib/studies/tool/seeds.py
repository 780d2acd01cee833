"""The headline figures again, from another finetuning and other deltas: what a seed alone changes."""

from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import BaseDelta
from lib.measure import metrics
from lib.model import activations, encoding, finetuned, models
from lib.model.finetune import finetune
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile
from lib.studies.tool import scores
from lib.texts.jsonl import by_subset, read_jsonl
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

    Prompts, loaded and settings are the profile's; deltas are the widest, at the middle percentile. Of the
    profile's own seed chapters 2 and 3 have made both; of others the model goes to `seeds/<seed>` under its data.
    """
    prompts = {split: read_jsonl(profile.paths.prompts / f"{split}.jsonl") for split in SPLITS}
    model, pairs = made(profile) if seed == profile.seed else anew(profile, seed, prompts)
    layers, alone = list(pairs), {layer: BaseDelta(pair.base, pair.delta, 0.0) for layer, pair in pairs.items()}
    rows = []
    for subset in SUBSETS.values():
        asked = by_subset(prompts["test"], n_prompts)[subset]
        raw, base, full = scores.measure(profile, model, asked, [{}, alone, pairs])
        seen = activations.collect(model, layers, _batches(profile, model, asked), f"{subset} activations")
        closed = scores.gaps(full, base, raw)
        found = {
            "raw_calls": raw.tool_call_rate.mean(), "base_calls": base.tool_call_rate.mean(),
            "full_calls": full.tool_call_rate.mean(), "full_right": full.math_correct_rate.astype(float).mean(),
            "base_fvu": metrics.fvu(list(alone.values()), seen.x, seen.y, seen.prompt).value,
            "full_fvu": metrics.fvu(list(pairs.values()), seen.x, seen.y, seen.prompt).value,
            **{name: closed[name].value for name in HEADLINES if name in closed},
        }  # fmt: skip
        rows.append({"seed": seed, "subset": subset, **found, "n_examples": len(asked)})
    return rows


def made(profile: Profile) -> tuple[LanguageModel, dict[int, BaseDelta]]:
    """The finetuned model of chapter 2 and the deltas of chapter 3."""
    model = finetuned.finetuned(profile)
    return model, deltas.pairs(profile, model, models.layers_of(profile, model.n_layers))


def anew(profile: Profile, seed: int, prompts: dict[str, list[Prompt]]) -> tuple[LanguageModel, dict[int, BaseDelta]]:
    """The same from another seed."""
    own = profile.model_copy(update={"name": f"{profile.name}/seeds/{seed}", "seed": seed})
    hf, tokenizer = models.load_plain(profile)
    finetune(hf, tokenizer, prompts["train"], prompts["validation"], own.finetune, own.paths.finetuned, seed)
    model = models.load(profile, own.paths.finetuned)
    layers, (d_new, percentile) = models.layers_of(profile, model.n_layers), deltas.widest(profile)
    splits = [_batches(profile, model, prompts[split]) for split in ("train", "validation")]
    data, check = deltas.targets(profile, model, layers, [percentile], splits)
    [(stack, _)] = deltas.fit(profile.deltas.training, data, check, [d_new], seed, progress=f"seed {seed}")
    loaded = [bases.load_base(profile, model, layer, percentile)[0] for layer in layers]
    return model, {layer: BaseDelta(loaded[i], stack[i, 0]) for i, layer in enumerate(layers)}


def _batches(profile, model, prompts) -> list[encoding.Encoded]:
    return encoding.streamed(model.tokenizer, prompts, profile.evaluation.tokens_batch)
