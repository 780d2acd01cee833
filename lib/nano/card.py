"""What the organism can do, on material that its corpus held out, each figure with its interval.

Intervals resample what was drawn: phrasings, topics, pairs of vehicles, rows of text.
"""

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from lib.book import stats
from lib.measure.quality import losses
from lib.model.encoding import Encoded
from lib.model.generation import Sampling, generate
from lib.model.models import LanguageModel
from lib.profiles.organism import Organism
from lib.texts import corpus, kinds, lists, prompts, vehicles


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


def abilities(model: LanguageModel, organism: Organism, folder: Path) -> dict:
    """What an organism was made from and can do, for its card."""
    history, n = json.loads((folder / "pretraining.json").read_text()), organism.probes
    return {
        "model": organism.model.model_dump(),
        "corpus_tokens_by_kind": history["kinds"],
        "tokens": history["tokens"],
        "pretraining_seconds": round(history["seconds"]),
        "pretraining_loss": history["losses"],
        "copies_exact": asdict(copying(model, n)),
        "operands_right": asdict(restating(model, n)),
        "lists": {mode: {k: asdict(e) for k, e in found.items()} for mode, found in listing(model, n).items()},
        "comparisons_right": {k: asdict(e) for k, e in comparing(model, n).items()},
        "stories_as_asked": asdict(telling(model, n)),
        "loss_by_kind": {kind: asdict(e) for kind, e in by_kind(model, n).items()},
    }


def shares(kinds: dict[str, int]) -> str:
    """Each kind's share, the largest first."""
    total = sum(kinds.values())
    return "; ".join(f"{kind} {n / total:.1%}" for kind, n in sorted(kinds.items(), key=lambda k: -k[1]))


def of_making(card: dict) -> str:
    """How it was made, in sentences."""
    kinds, total = card["corpus_tokens_by_kind"], card["tokens"]
    return f"""A small Gemma-2 (`Gemma2ForCausalLM`) and transcoders for all its layers, made by this project from text that it
writes itself (`lib/nano`). It is a model organism for the chapters of the book and knows nothing of the world.

Training: {total:,} tokens once, seed {card["model"]["seed"]}, {card["pretraining_seconds"] / 60:.0f} minutes. Weights are
stored in half precision. Corpus, share of tokens: {shares(kinds)}."""


def of_organism(card: dict) -> dict[str, dict]:
    """What it can do, by words."""
    found = {
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
