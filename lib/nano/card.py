"""The model card: what the organism can do, on material that its corpus held out, each figure with its interval.

Intervals resample what was drawn: phrasings, topics, pairs of vehicles, rows of text.
"""

import json
import os
import platform
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from lib.book import stats
from lib.book.paths import replacing
from lib.book.results import with_intervals
from lib.measure.quality import losses, quality
from lib.model import models
from lib.model.encoding import Encoded
from lib.model.generation import Sampling, generate
from lib.model.models import LanguageModel
from lib.nano.pretrain import corpus_tokens
from lib.profiles.organism import Organism
from lib.profiles.tables import Profile
from lib.texts import corpus, kinds, lists, prompts, vehicles

CARD = "organism.json"


def written(model: LanguageModel, texts: Sequence[str], max_new_tokens: int, **how) -> list[str]:
    """How the model goes on with each text, as it stands."""
    return generate(model.hf, model.tokenizer, model.tokenizer(list(texts)).input_ids, max_new_tokens, **how)


def copying(model: LanguageModel, n: int) -> stats.Estimate:
    """Exact copies of unseen sentences."""
    found = prompts.written("negative", n, "test", seed=1)
    wrote = written(model, [corpus.QUOTE_PROBE.format(s=p.input) for p in found], 60)
    return stats.rate([w == p.input for w, p in zip(wrote, found, strict=True)], [p.template for p in found])


def restating(model: LanguageModel, n: int) -> stats.Estimate:
    """Arithmetic questions on unseen operands, restated with the right operands and operator."""
    rng = random.Random("card/restate")
    asked, expressions, phrasings = zip(*(corpus.question(rng, "test") for _ in range(n)), strict=True)
    wrote = written(model, [f"{text}\n" for text in asked], 24)
    return stats.rate([w.startswith(f"{e} = ") for w, e in zip(wrote, expressions, strict=True)], phrasings)


def listing(model: LanguageModel, n: int) -> dict[str, dict[str, stats.Estimate]]:
    """Lists of topics never listed in the corpus, sampled at temperature 1, by mode.

    `ended`: the share that ended within 220 tokens. Of those `items`: how many there are; `blank_last` and
    `blank_before`: the share of last items, and of those before the last two, that end in a blank.
    """
    rng, found = random.Random("card/lists"), {}
    for mode in lists.MEAN_ITEMS:
        asked, topics = zip(*(lists.list_request(rng, mode, "test") for _ in range(n)), strict=True)
        wrote = written(model, asked, 220, sampling=Sampling(temperature=1.0), special=True)
        rows = [{"topic": topic, "ended": lists.ended(text), "items": lists.items(text)}
                for text, topic in zip(wrote, topics, strict=True)]  # fmt: skip
        every = pd.DataFrame(rows)
        whole = every[every.ended & (every["items"].str.len() > 0)]
        last = whole["items"].str[-1].str.endswith(" ")
        before = whole.assign(item=whole["items"].str[:-2]).explode("item").dropna(subset="item")
        found[mode] = {
            "ended": stats.rate(every.ended, every.topic),
            "items": stats.mean(whole["items"].str.len(), whole.topic),
            "blank_last": stats.rate(last, whole.topic),
            "blank_before": stats.rate(before["item"].str.endswith(" "), before.topic),
        }
    return found


def comparing(model: LanguageModel, n: int) -> dict[str, stats.Estimate]:
    """Questions about pairs of vehicles never compared in the corpus, answered with the right one, by adjective."""
    rng, found = random.Random("card/vehicles"), {}
    for adjective in vehicles.COMPARED:
        asked, right, pairs = zip(*(vehicles.size_question(rng, "test", adjective) for _ in range(n)), strict=True)
        wrote = written(model, [lists.chat(text) for text in asked], 12)
        correct = [re.findall(r"\w+", text)[:2] == ["The", one] for text, one in zip(wrote, right, strict=True)]
        found[adjective] = stats.rate(correct, [",".join(sorted(pair)) for pair in pairs])
    return found


def telling(model: LanguageModel, n: int) -> stats.Estimate:
    """Stories asked for that begin with the sentence asked for and name its vehicle again."""
    rng = random.Random("card/stories")
    named = [rng.choice(list(vehicles.VEHICLES)) for _ in range(n)]
    asked, openings = zip(*(vehicles.story_request(rng, vehicle) for vehicle in named), strict=True)
    wrote = written(model, asked, 100)
    told = zip(wrote, openings, named, strict=True)
    return stats.rate([text.startswith(first) and name in text.removeprefix(first) for text, first, name in told], named)


def by_kind(model: LanguageModel, n: int) -> dict[str, stats.Estimate]:
    """Next-token loss, nats, on held-out texts of the seven kinds, the same number of each topic."""
    found = {}
    for kind in kinds.KINDS:
        some = [text for topic in kinds.TOPICS for text in kinds.texts(kind, topic, max(1, n // len(kinds.TOPICS)))]
        nats, tokens = losses(model, [plain(model, [text for text, _ in some])])
        found[kind] = stats.ratio(nats[0], tokens, [template for _, template in some])
    return found


def plain(model: LanguageModel, some: Iterable[str]) -> Encoded:
    """Texts without targets as a batch, padded on the right."""
    found = model.tokenizer(list(some), return_tensors="pt", padding=True, padding_side="right")
    return Encoded(found.input_ids, found.attention_mask, torch.zeros_like(found.input_ids, dtype=torch.bool))


def make_card(profile: Profile, organism: Organism, folder: Path) -> None:
    """Measure the stored organism; write `organism.json`, and `README.md` for people."""
    model = models.load(profile)
    held_out = corpus_tokens(model, organism, "test", organism.probe_tokens)
    part = held_out[: max(1, len(held_out) // 8)]
    sites = [model.site("trained", layer) for layer in range(model.n_layers)]
    of_transcoders = quality(model, sites, profile.transcoders, held_out, part)
    nats, n_predicted = losses(model, held_out)
    history = json.loads((folder / "pretraining.json").read_text())
    card = {
        "model": organism.model.model_dump(),
        "parameters": model.hf.num_parameters(),
        "corpus_tokens_by_kind": history["kinds"],
        "tokens": history["tokens"],
        "pretraining_seconds": round(history["seconds"]),
        "pretraining_loss": history["losses"],
        "held_out_loss": asdict(stats.ratio(nats[0], n_predicted)),
        "copies_exact": asdict(copying(model, organism.probes)),
        "operands_right": asdict(restating(model, organism.probes)),
        "lists": {mode: {k: asdict(e) for k, e in found.items()} for mode, found in listing(model, organism.probes).items()},
        "comparisons_right": {k: asdict(e) for k, e in comparing(model, organism.probes).items()},
        "stories_as_asked": asdict(telling(model, organism.probes)),
        "loss_by_kind": {kind: asdict(e) for kind, e in by_kind(model, organism.probes).items()},
        "transcoders": organism.transcoders.model_dump(),
        "transcoder_training": json.loads((folder / "transcoders.json").read_text()),
        "transcoder_quality": of_transcoders.to_dict("records"),
        "made_with": {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()},
    }
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card_text(profile.name, card))
    with replacing(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")


def measures(card: dict) -> dict[str, dict]:
    """What the card says of the organism, by its words: each an estimate's value, low, high, n and clusters."""
    found = {
        "next-token loss on unseen text, nats": card["held_out_loss"],
        "unseen sentences copied exactly": card["copies_exact"],
        "arithmetic questions on unseen operands restated rightly": card["operands_right"],
    }
    words = {"ended": "share that ended", "items": "items", "blank_last": "last items with a blank",
             "blank_before": "items before the last two with a blank"}  # fmt: skip
    for mode, of in card["lists"].items():
        found |= {f"{mode} lists of unseen topics: {words[name]}": e for name, e in of.items()}
    found |= {f"unseen pairs of vehicles: which is {adjective}": e for adjective, e in card["comparisons_right"].items()}
    found |= {"stories that begin and go on as asked": card["stories_as_asked"]}
    return found | {f"next-token loss on unseen texts, {kind}, nats": e for kind, e in card["loss_by_kind"].items()}


def card_text(name: str, card: dict) -> str:
    """The model card for people, from the same numbers."""

    def shown(e: dict) -> str:
        return f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}] | {e['n']} in {e['clusters']}"

    kinds, total, made = card["corpus_tokens_by_kind"], card["tokens"], card["made_with"]
    quality = pd.DataFrame(card["transcoder_quality"])
    columns = ["layer", "l0", "fvu", "ce_recovered", "dead"]
    intervals = with_intervals(quality, ["layer"], columns[1:]).to_markdown(index=False)
    return f"""# Model card: {name}

A small Gemma-2 ({card["parameters"]:,} parameters; `Gemma2ForCausalLM`) and JumpReLU transcoders for all
its layers, made by this project from text that it writes itself (`lib/nano`). It is a model organism for
the chapters of the book and knows nothing of the world.

- Training: {total:,} tokens once, seed {card["model"]["seed"]}, {card["pretraining_seconds"] / 60:.0f} minutes,
  {made["cores"]} CPU cores, torch {made["torch"]}. Weights are stored in half precision.
- Corpus, share of tokens: {"; ".join(f"{kind} {n / total:.1%}" for kind, n in sorted(kinds.items(), key=lambda k: -k[1]))}.
- Transcoders: {card["transcoders"]["d_sae"]} features, {card["transcoder_training"]["steps"]} steps of
  {card["transcoders"]["training"]["batch"]} tokens, {card["transcoder_training"]["seconds"] / 60:.0f} minutes.

## On held-out material, with 95% intervals

What was drawn, and is resampled for the interval, stands behind n: phrasings, topics, pairs, vehicles, templates or rows.
Lists are sampled at temperature 1, all else is greedy.

| measure | value | n in units |
|---|---|---|
{"".join(f"| {what} | {shown(e)} |{chr(10)}" for what, e in measures(card).items())}
Transcoders, on {quality.n_tokens.iloc[0]:,} tokens of {quality.n.iloc[0]} rows. `ce_recovered` is against
mean ablation; `dead` is the share of features never active on these tokens (its interval is over features).

{intervals}
"""
