"""What the study of lists works on: requests, what may follow an item, and the lists that a chat model writes.

A list ends at an item's last token, where the model may write three things: a line break, and the list goes on; a *blank*,
a space that says nothing and is followed by the end more often than not; or the end of its turn. What is asked everywhere is
the same: how far the second and the third outweigh the first.
"""

import random
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lib import profiles
from lib.model import encoding, models
from lib.model.generation import Sampling, continued
from lib.model.models import LanguageModel
from lib.profiles.lists import Lists
from lib.profiles.tables import Profile
from lib.texts import lists

MODES = ("short", "long", "plain")
"""A word in the request, or none."""
LEAST = 3
"""Items of a list that is read: with fewer nothing can rise."""
OTHER = {"short": "long", "long": "short"}


def settings(profile: Profile) -> Lists:
    """The profile's table of this study; `ValueError` where there is none, or none of the SAEs that chapter 18 reads."""
    profiles.study(profile, "features")
    return profiles.study(profile, "lists")


def topics(profile: Profile) -> list[str]:
    return list(settings(profile).topics or lists.TOPICS)


def question(profile: Profile, mode: str, topic: str) -> str:
    """A request for a list."""
    return settings(profile).ask.format(mode="" if mode == "plain" else f"{mode} ", topic=topic)


def request(profile: Profile, tokenizer: PreTrainedTokenizerBase, mode: str, topic: str) -> list[int]:
    """The token ids of a request in the model's chat, with the first hyphen of the answer written already, as published."""
    return [*encoding.asked(tokenizer, question(profile, mode, topic), "chat"), *ids_of(tokenizer, "-")]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


# --- what may follow an item ---


@dataclass(frozen=True)
class Endings:
    """Token ids of what may stand after an item."""

    end: list[int]
    """Of the turn, and of the text."""
    blank: list[int]
    """Spaces and nothing else."""
    line: list[int]
    """Begin with a line break; the list goes on."""

    @property
    def these(self) -> list[int]:
        """What stops a list."""
        return self.end + self.blank

    @property
    def those(self) -> list[int]:
        return self.line

    @property
    def contrasts(self) -> dict[str, tuple[list[int], list[int]]]:
        """The log-odds that are asked for: of stopping, of a blank and of the end, each against a line break."""
        return {"stop": (self.these, self.line), "blank": (self.blank, self.line), "end": (self.end, self.line)}


def contrast(model: LanguageModel) -> Endings:
    """Of a model's own tokens. `ValueError` where none of them is a line break."""
    t = model.tokenizer
    end, texts = list(dict.fromkeys([encoding.end_id(t, "chat"), t.eos_token_id])), {i: t.decode([i]) for i in range(len(t))}
    blank = [i for i, text in texts.items() if text and not text.strip(" ") and i not in end]
    line = [i for i, text in texts.items() if text.lstrip(" ").startswith("\n") and i not in end]
    if not line:
        raise ValueError(f"{t.name_or_path}: no token is a line break, so it has no lists as they are meant here")
    return Endings(end, blank, line)


# --- lists ---


@dataclass
class Opened:
    """The model, and what it is asked."""

    profile: Profile
    model: LanguageModel

    @classmethod
    def of(cls, profile: Profile) -> "Opened":
        return cls(profile, models.load(profile))

    @property
    def settings(self) -> Lists:
        return settings(self.profile)

    @cached_property
    def endings(self) -> Endings:
        return contrast(self.model)


def parsed(text: str) -> list[str]:
    """The items of a list whose first hyphen is left out: lines that open with one. A blank at the end of an item stays."""
    return [line.removeprefix(" ") for line in re.findall(r"^-(.*)$", f"-{text}", re.MULTILINE)]


def continuations(
    o: Opened, asked: Sequence[Sequence[int]], temperature: float, seed: int, progress: str | None = "lists",
    within: Callable[[Sequence[int]], AbstractContextManager] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """What the model writes after each request: `text`, `ended` (rather than cut at the limit), `items`, `blanks` (the numbers
    of the items that end in a blank, counted from 1), `single` (items of one token) and `tokens`.

    A batch is written inside the block that `within` gives for the numbers of its requests, such as an edit.
    """
    t, table, found = o.model.tokenizer, o.settings, {}
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))  # like lengths together, so that there is little padding
    batches = [order[i : i + table.batch] for i in range(0, len(order), table.batch)]
    for n, batch in enumerate(tqdm(batches, desc=progress, disable=progress is None, mininterval=2)):
        with within(batch) if within else nullcontext():
            texts = continued(
                o.model.hf, t, [asked[i] for i in batch], table.tokens, sampling=Sampling(temperature, table.top_p, seed + n),
                special=True, end=o.endings.end[0],
            )  # fmt: skip
        found |= dict(zip(batch, texts, strict=True))
    end = re.compile("|".join(re.escape(t.decode([i])) for i in o.endings.end))
    both = [(*end.split(found[i], maxsplit=1), "")[:2] if end.search(found[i]) else (found[i], None) for i in range(len(asked))]
    return pd.DataFrame([_told(t, text, rest is not None) for text, rest in both])


def _told(t: PreTrainedTokenizerBase, text: str, ended: bool) -> dict:
    items = parsed(text)
    return {
        "text": text, "ended": ended, "items": len(items),
        "blanks": ";".join(str(i) for i, item in enumerate(items, 1) if item.endswith(" ")),
        "single": sum(len(ids_of(t, f" {item.rstrip(' ')}")) == 1 for item in items),
        "tokens": len(ids_of(t, text)) + ended,
    }  # fmt: skip


def write(o: Opened) -> pd.DataFrame:
    """Lists of every topic and mode at one temperature, and short ones at some: `topic`, `mode`, `temperature`, `sample` and
    what `continuations` says.

    Those of the corpus, where the profile wants these, are of one temperature. `ValueError` where no short list of three items
    came to its end.
    """
    table, found = o.settings, []
    others = [one for one in table.temperatures if one != table.temperature] if table.by == "model" else []
    for number, temperature in enumerate([table.temperature, *others]):
        modes = MODES[:1] if number else MODES
        keys = [(topic, mode, i) for topic in topics(o.profile) for mode in modes for i in range(table.samples)]
        if table.by == "model":
            asked = [request(o.profile, o.model.tokenizer, mode, topic) for topic, mode, _ in keys]
            wrote = continuations(o, asked, temperature, o.profile.seed + 1000 * number, f"at temperature {temperature:g}")
        else:
            rng = random.Random(f"lists/{o.profile.seed}")
            items = [lists.written(rng, mode, topic) for topic, mode, _ in keys]
            wrote = pd.DataFrame([_told(o.model.tokenizer, " " + "\n- ".join(some), True) for some in items])
        head = pd.DataFrame(keys, columns=["topic", "mode", "sample"]).assign(temperature=temperature)
        found.append(pd.concat([head, wrote], axis=1))
    table = pd.concat(found, ignore_index=True)
    if not ((table["mode"] == "short") & table.ended & (table["items"] >= LEAST)).any():
        raise ValueError(
            f"profile {o.profile.name}: the model wrote no short list of {LEAST} items that ended; ask otherwise (lists.ask), "
            'raise lists.tokens, or read lists of the corpus (lists.by = "corpus")'
        )
    return table


def written(profile: Profile) -> pd.DataFrame:
    """The lists that chapter 16 had the model write."""
    path = profile.paths.results / "lists_written.csv"
    if not path.exists():
        raise ValueError(f"{path}: no lists yet; run chapter 16 first")
    found = pd.read_csv(path, keep_default_na=False)
    return found.assign(items=found["items"].astype(int), temperature=found.temperature.astype(float))


def main(profile: Profile, table: pd.DataFrame) -> pd.DataFrame:
    """Those at the temperature at which all modes were sampled."""
    return table[table.temperature == settings(profile).temperature]
