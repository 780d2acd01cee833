"""What the study of vehicles works on: stories that the model writes, sentences, and questions which of two is the bigger."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import profiles
from lib.base.text import answered, held_out, source
from lib.book import files
from lib.book.paths import ROOT
from lib.model import activations, encoding, models
from lib.model.encoding import Encoded
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.profiles.transport import Transport
from lib.texts import lists, vehicles
from lib.texts.prompts import Prompt, split_of
from lib.texts.vehicles import SENTENCES, VEHICLES, sentence

APART = 6
"""Vehicles whose stories no SAE learns from."""
GREEDY = 10
"""Greedy stories of each vehicle, as published."""
AT_ONCE = 256
"""Stories in a batch."""
OTHER_TOKENS = 4000
"""Of running text, on which the cost of an edit is told."""
NOUNS = tuple(lists.TOPICS["furniture"][:15] + lists.TOPICS["tools"][:15])
"""Things of other kinds that the same sentences can be about."""


def settings(profile: Profile) -> Transport:
    """The profile's table of this study; `ValueError` where there is none."""
    return profiles.study(profile, "transport")


def apart(seed: int) -> list[str]:
    """The vehicles that are held out."""
    return sorted(random.Random(f"vehicles apart/{seed}").sample(list(VEHICLES), APART))


def stories(profile: Profile, model: LanguageModel) -> pd.DataFrame:
    """Stories that the model has written when asked in its chat, one a row, until there are tokens enough to train on.

    `vehicle`, `opening` (the kind of sentence that it was to begin with), `decoding` (`greedy`, or `sampled` at temperature
    1), `asked`, `story`, `tokens`, and `split`: those of some vehicles are all `vehicle`, of the others one in ten is `story`,
    and the rest is `train`.
    """
    table, rng = settings(profile), random.Random(f"stories/{profile.seed}")
    held, folder = apart(profile.seed), profile.paths.data / "transport" / "stories"
    of_corpus = vehicles.OPENINGS - len(SENTENCES)
    first = [(v, i, vehicles.opening(rng, v, i)) for v in VEHICLES for i in range(GREEDY)]
    rows, names = _written(table, model, folder / "greedy", first, 0.0, held), list(VEHICLES)
    while True:
        some = []
        for _ in range(AT_ONCE):
            v, i = rng.choice(names), rng.randrange(of_corpus if rng.random() < 0.75 else vehicles.OPENINGS)
            some.append((v, i, vehicles.opening(rng, v, i)))
        rows += _written(table, model, folder / str(len(rows)), some, 1.0, held)
        if sum(row["tokens"] for row in rows if row["split"] == "train") >= table.tokens:
            return pd.DataFrame(rows)


def _written(
    table: Transport, model: LanguageModel, folder: Path, some: Sequence[tuple[str, int, str]], temperature: float,
    held: Sequence[str],
) -> list[dict]:  # fmt: skip
    asked = [table.ask.format(sentence=opening) for _, _, opening in some]
    told = answered(model, asked, folder, table.story_tokens, temperature, AT_ONCE)
    rows = []
    for (vehicle, i, _), question, story in zip(some, asked, told, strict=True):
        split = "vehicle" if vehicle in held else "story" if split_of(story) == "test" else "train"
        n = encoding.length(model.tokenizer, Prompt(question, story, "negative"))
        rows.append({"vehicle": vehicle, "opening": i, "decoding": "sampled" if temperature else "greedy", "asked": question,
                     "story": story, "tokens": n, "split": split})  # fmt: skip
    return rows


def batches(model: LanguageModel, table: pd.DataFrame, size: int = 64) -> list[Encoded]:
    """Stories with what was asked, in the model's chat, like lengths together."""
    prompts = [Prompt(row.asked, row.story, "negative") for row in table.itertuples()]
    return encoding.streamed(model.tokenizer, prompts, size, "chat")


@dataclass
class Opened:
    """The model, its stories, and what flows at the site in them."""

    profile: Profile
    model: LanguageModel
    stories: pd.DataFrame

    @classmethod
    def of(cls, profile: Profile, stories: pd.DataFrame) -> "Opened":
        return cls(profile, models.load(profile), stories)

    @property
    def settings(self) -> Transport:
        return settings(self.profile)

    @property
    def site(self) -> Site:
        return self.model.site("resid_post", self.settings.layer)

    def activations(self, split: str, most: int | None = None) -> Float[Tensor, "token d_model"]:
        """At the tokens of the stories of a split, in a random order, `most` of them; as they are."""
        rows = self.stories[self.stories.split == split]
        if most:  # stories enough for so many
            rows = rows[rows.tokens.cumsum() <= max(2 * most, int(rows.tokens.iloc[0]))]
        x = activations.collect(self.model, [self.site], batches(self.model, rows), f"{split}: activations").x[0]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.profile.seed))
        return x[order[:most]]

    @cached_property
    def train(self) -> Float[Tensor, "token d_model"]:
        return self.activations("train", self.settings.tokens)

    @property
    def scale(self) -> float:
        """What activations are multiplied by for training: their mean length then is the square root of `d_model`."""
        return float(self.train.shape[-1] ** 0.5 / self.train.norm(dim=-1).mean())

    @cached_property
    def other(self) -> list[Encoded]:
        """Running text that is not about vehicles alone."""
        return held_out(source(self.profile, self.model, self.profile.paths.data), OTHER_TOKENS, "test")


# --- where a word stands ---


def at_word(model: LanguageModel, texts: Sequence[str], words: Sequence[str]) -> tuple[Encoded, Bool[Tensor, "text pos"]]:
    """Texts as one batch, and the tokens of each that hold a letter of its word, wherever that stands."""
    batch = encoding.encode(model.tokenizer, texts)
    found = torch.zeros_like(batch.attention, dtype=torch.bool)
    for row, (text, word) in enumerate(zip(texts, words, strict=True)):
        start = text.lower().find(word.lower())
        spans = model.tokenizer(text, return_offsets_mapping=True).offset_mapping
        for at, (a, b) in enumerate(spans):
            found[row, at] = start >= 0 and a < start + len(word) and b > start and b > a
    return batch, found


def sentences(names: Sequence[str], file: str | None = None) -> pd.DataFrame:
    """Every one of `SENTENCES` about every vehicle or thing: `name`, `template` (its number), `text`.

    Those of a `file` come before them: JSON, a list of objects with `vehicle` and `sentence`, as the study published its own.
    """
    rows = [(name, i, sentence(template, name)) for name in names for i, template in enumerate(SENTENCES)]
    given = [one for one in _read(ROOT / file) if one["vehicle"].lower() in names] if file else []
    theirs = pd.DataFrame([(one["vehicle"].lower(), one["sentence"]) for one in given], columns=["name", "text"])
    theirs["template"] = len(SENTENCES) + theirs.groupby("name").cumcount()
    return pd.concat([theirs, pd.DataFrame(rows, columns=["name", "template", "text"])], ignore_index=True)


def _read(path: Path) -> list[dict[str, str]]:
    """The objects of a file of sentences; `ValueError`, one line, for what is none."""
    found = files.parsed(path, files.text(path))
    if not isinstance(found, list):
        raise ValueError(f'{path}: no list; write [{{"vehicle": ..., "sentence": ...}}, ...]')
    for i, one in enumerate(found):
        if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in ("vehicle", "sentence")):
            raise ValueError(f"{path}: number {i} is no object with the texts vehicle and sentence; mend it")
        if one["vehicle"].lower() not in one["sentence"].lower():
            raise ValueError(f"{path}: number {i} does not hold its vehicle, {one['vehicle']!r:.40}; mend it")
    return found


# --- questions ---


ADJECTIVES = ("bigger", "smaller")


def questions(profile: Profile) -> pd.DataFrame:
    """Which of two is the bigger, or the smaller: both of each pair, in both orders of their names.

    `pair` is what was sampled; `one` and `two` as they are named; `answer` is the right one; `split` says whether the corpus of
    the project's own model may hold the comparison.
    """
    rng = random.Random(f"questions/{profile.seed}")
    pairs = rng.sample(list(combinations(VEHICLES, 2)), min(settings(profile).pairs, len(VEHICLES) * (len(VEHICLES) - 1) // 2))
    with_car = [pair for pair in combinations(VEHICLES, 2) if set(pair) & {"car", "bus"}]
    rows = []
    for a, b in dict.fromkeys([*pairs, *with_car[: len(pairs)]]):
        for one, two in ((a, b), (b, a)):
            for adjective in ADJECTIVES:
                rows.append({
                    "pair": f"{a}, {b}", "one": one, "two": two, "adjective": adjective,
                    "question": f"Which is {adjective}, {vehicles.a(one)} or {vehicles.a(two)}?",
                    "answer": vehicles.more(one, two, adjective), "split": vehicles.pair_split(a, b),
                })  # fmt: skip
    return pd.DataFrame(rows)


def reply(vehicle: str) -> str:
    """How a question is answered."""
    return f"The {vehicle}."


def units(table: pd.DataFrame) -> np.ndarray:
    """What was sampled of questions: pairs."""
    return table.pair.to_numpy()
