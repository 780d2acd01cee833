"""Where things stand in a list and in what asked for it, and lists whose request is changed by a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import pandas as pd
from transformers import PreTrainedTokenizerBase

from lib.measure.patching import Pair
from lib.profiles.tables import Profile
from lib.studies.lists.material import LEAST, Opened, ids_of, main, parsed, question, request


@dataclass(frozen=True)
class Spelled:
    """A list as tokens after a request."""

    ids: list[int]
    items: list[int]
    """The position of each item's last token, before a blank if it has one."""
    breaks: list[int]
    """Of each line break,"""
    hyphens: list[int]
    """and of each hyphen, the first of which the request ends with."""


def spelled(tokenizer: PreTrainedTokenizerBase, asked: Sequence[int], items: Sequence[str]) -> Spelled:
    """A list after its request, up to the last token of its last item, whose blank is left out; item by item, so that tokens
    are the same wherever an item stands."""
    ids, last, breaks, hyphens = list(asked), [], [], [len(asked) - 1]
    for number, item in enumerate(items):
        if number:
            ids += ids_of(tokenizer, "\n")
            breaks.append(len(ids) - 1)
            ids += ids_of(tokenizer, "-")
            hyphens.append(len(ids) - 1)
        bare = item.rstrip(" ")
        ids += ids_of(tokenizer, f" {bare}" if bare else " ")
        last.append(len(ids) - 1)
        if bare != item and number + 1 < len(items):
            ids += ids_of(tokenizer, item[len(bare) :])
    return Spelled(ids, last, breaks, hyphens)


def find(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], phrase: str) -> int:
    """The position of the token that completes the first occurrence of a phrase; `ValueError` where there is none."""
    if phrase in tokenizer.decode(ids):
        for n in range(1, len(ids) + 1):
            if phrase in tokenizer.decode(ids[:n]):
                return n - 1
    raise ValueError(f"{phrase!r} is not in {tokenizer.decode(ids)!r:.200}; change lists.ask or lists.topics in the profile")


def in_request(profile: Profile, tokenizer: PreTrainedTokenizerBase, mode: str, topic: str) -> dict[str, int]:
    """Where the parts of a request stand."""
    ids, word = request(profile, tokenizer, mode, topic), "a" if mode == "plain" else mode
    parts = {
        "mode word": f" {word}", "list word": " list", "topic": f"list of {topic}",
        "end of request": question(profile, mode, topic),
    }  # fmt: skip
    return {name: find(tokenizer, ids, phrase) for name, phrase in parts.items()} | {"turn": len(ids) - 2}


def roles(profile: Profile, tokenizer: PreTrainedTokenizerBase, mode: str, topic: str, of: Spelled) -> dict[str, int]:
    """Where things stand in a list of three items or more and its request, by what they are."""
    middle = (len(of.items) - 1) // 2
    return in_request(profile, tokenizer, mode, topic) | {
        "first item": of.items[0], "first break": of.breaks[0], "middle item": of.items[middle],
        "middle break": of.breaks[middle], "last break": of.breaks[-1], "last hyphen": of.hyphens[-1],
        "last item": of.items[-1],
    }  # fmt: skip


def pairs(o: Opened, lists: pd.DataFrame, most: int | None = None) -> list[Pair]:
    """Short lists that ended, as they were asked for, and after a request for a long one; topics by turns.

    What is asked is what comes after the last item.
    """
    some = main(o.profile, lists)
    some = some[(some["mode"] == "short") & some.ended & (some["items"] >= LEAST)]
    by_topic, found, most = [list(of.itertuples()) for _, of in some.groupby("topic", sort=False)], [], most or o.settings.pairs
    for of in cycle(by_topic):
        if len(found) == most or not any(by_topic):
            return found
        if of:
            found.append(_pair(o, of.pop(0)))
    return found


def _pair(o: Opened, row) -> Pair:
    both = {
        mode: spelled(o.model.tokenizer, request(o.profile, o.model.tokenizer, mode, row.topic), parsed(row.text))
        for mode in ("short", "long")
    }
    at = {mode: roles(o.profile, o.model.tokenizer, mode, row.topic, of) for mode, of in both.items()}
    places = {name: (at["short"][name], at["long"][name]) for name in at["short"]}
    return Pair(both["short"].ids, both["long"].ids, places, places["last item"], row.topic)
