"""The prompts of a profile, by split."""

import re
from collections.abc import Iterator, Mapping

from lib.book import hub
from lib.book.paths import ROOT
from lib.profiles.tables import Profile
from lib.profiles.tool import Prompts
from lib.texts.jsonl import at_most, read_jsonl
from lib.texts.prompts import SUBSETS, Prompt, key, split_of, written
from lib.texts.tool import CALCULATOR, Tool


def sentences(source: str) -> Iterator[str]:
    """Sentences with a number in them, 30 to 150 characters long, from the texts of `hub.rows`, in their order.

    Such were the published sentences to copy.
    """
    for row in hub.rows(source):
        for line in row["text"].splitlines():
            for text in re.split(r"(?<=[.!?])\s+", line.strip()):
                if 30 <= len(text) <= 150 and text[0].isupper() and text[-1] in ".!?" and re.search(r"[0-9]", text):
                    yield text


def copies(source: str, wanted: Mapping[str, int]) -> dict[str, list[Prompt]]:
    """The first sentences of a source that belong to each split, as many as are wanted of it, or as there are."""
    found: dict[str, dict[str, Prompt]] = {split: {} for split in wanted}
    for text in sentences(source):
        split = split_of(text)
        if len(found[split]) < wanted[split]:
            found[split][text] = Prompt(text, text, "negative")
        elif all(len(found[split]) == n for split, n in wanted.items()):
            break
    return {split: list(prompts.values()) for split, prompts in found.items()}


def splits(settings: Prompts, tool: Tool = CALCULATOR) -> dict[str, list[Prompt]]:
    """The prompts of a profile: `train` and `validation` (tool and copy), `test` (all three subsets).

    Generated, or taken from `train_file`, divided by `split_of`, and the copies from `copies` where that is
    given; `test_file` is the test set as it stands, and what it shares with training is left out of training.
    A file may hold fewer prompts than the profile asks for, but a subset without any is a `ValueError`.
    """
    given = read_jsonl(ROOT / settings.train_file) if settings.train_file else None
    wanted = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    source = settings.copies and (settings.copies if "://" in settings.copies else str(ROOT / settings.copies))
    to_copy = copies(source, wanted) if source else None
    found: dict[str, list[Prompt]] = {}
    for split, n in wanted.items():
        if split == "test" and settings.test_file:
            found[split] = read_jsonl(ROOT / settings.test_file)
            continue
        found[split] = []
        for label in SUBSETS if split == "test" else ("positive", "negative"):
            if to_copy and label == "negative":
                found[split] += to_copy[split]
            elif given is None or label == "tool_ood":
                found[split] += written(label, n, split, settings.seed, tool)
            else:
                found[split] += [p for p in given if p.label == label and split_of(key(p, tool)) == split][:n]
    if settings.test_file:
        known = {key(p, tool) for p in found["test"]}
        for split in ("train", "validation"):
            found[split] = [p for p in found[split] if key(p, tool) not in known]
    for split, prompts in found.items():
        for subset in SUBSETS.values() if split == "test" else ("tool", "copy"):
            if not any(p.subset == subset for p in prompts):
                file = settings.test_file if split == "test" and settings.test_file else source or settings.train_file
                raise ValueError(f"{file}: no {subset} prompts for the {split} split; add some, or leave the file out")
    return found


def read(profile: Profile, split: str, n: int | None = None) -> list[Prompt]:
    """The prompts of a split as chapter 1 has written them, the first `n` of each subset where `n` is given."""
    return at_most(read_jsonl(profile.paths.prompts / f"{split}.jsonl"), n)
