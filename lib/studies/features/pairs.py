"""Minimal pairs: what a specialist detects, told by texts that differ in one thing, and by form apart from meaning."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import t

from lib.book import stats
from lib.dictionary.dictionaries import Dictionary
from lib.model import encoding
from lib.model.encoding import token_mask
from lib.model.hooks import recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.features.material import Texts

NUMBERS = [("three", "3"), ("five", "5"), ("seven", "7"), ("nine", "9"), ("twelve", "12"), ("twenty", "20"), ("forty", "40")]
NOUNS = ["bread", "train", "song", "team", "price", "tree", "book", "cloud"]

PAIRS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "maths": (
        "operators in code, against words about maths",
        [(f"total = {a} * {n} + {b}\nrest = {b} - {n}", f"The product of {wa} and the {noun}, and the sum of it and {wb}.")
         for noun in NOUNS for (wa, a), (wb, b) in pairwise(NUMBERS) for n in (2,)],
    ),
    "python": (
        "a definition, against a sentence about one",
        [(f"def {noun}_{wa}(x, n={a}):\n    return x", f"A function that takes the {noun} and gives {wa} of it back.")
         for noun in NOUNS for wa, a in NUMBERS[:6]],
    ),
    "conversation": (
        "the first person, against the third",
        [(f"I think I left my {noun} here, and I need {wa} more.", f"He said he left his {noun} there, and he needs {wa} more.")
         for noun in NOUNS for wa, _ in NUMBERS[:6]],
    ),
}  # fmt: skip
"""For some kinds, what stands on the two sides, and pairs of texts about the same thing: the first with the form, the second
with the meaning alone."""
WORDS_ONLY = [
    f"The sum of {wa} and {wb} is more than the {noun}, as every theorem about them says."
    for noun in NOUNS for (wa, _), (wb, _) in pairwise(NUMBERS)
]  # fmt: skip
"""Texts about maths without a sign or a digit."""


@torch.no_grad()
def largest(
    model: LanguageModel, site: Site, sae: Dictionary, features: Sequence[int], texts: Sequence[str], size: int = 64
) -> Float[np.ndarray, "text feature"]:
    """The largest activation of some features in each text."""
    found = []
    for batch in encoding.batches(model.tokenizer, list(texts), size):
        batch = batch.to(model.hf.device)
        with recorded(model, [], {site: sae}, stop=True) as record:
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        f = record.features[site][..., list(features)] * token_mask(model.tokenizer, batch)[..., None]
        found.append(f.amax(1).float().cpu().numpy())
    return np.concatenate(found)


def minimal_pairs(model: LanguageModel, site: Site, sae: Dictionary, specialists: Mapping[str, int]) -> pd.DataFrame:
    """One row per kind of `PAIRS`: the specialist's mean activation on either side and their difference, over its largest
    activation in these texts, with its interval over pairs (in clusters of the noun that they are about)."""
    rows = []
    for kind, (what, pairs) in PAIRS.items():
        if kind not in specialists:
            continue
        form, meaning = (largest(model, site, sae, [specialists[kind]], side)[:, 0] for side in zip(*pairs, strict=True))
        scale = max(form.max(), meaning.max(), 1e-9)
        units = [next((noun for noun in NOUNS if noun in " ".join(pair)), pair[1]) for pair in pairs]
        e = stats.difference(form / scale, meaning / scale, units)
        rows.append({
            "kind": kind, "feature": specialists[kind], "pairs": what, "with_form": form.mean(), "meaning_alone":
            meaning.mean(), **e.columns("difference"), "n": e.n, "n_nouns": e.clusters,
        })  # fmt: skip
    return pd.DataFrame(rows)


# --- form and meaning on the balanced texts ---


def variance_shares(values: Float[np.ndarray, "text feature"], texts: Texts) -> pd.DataFrame:
    """Of each feature how much of its variance over texts kind and topic explain: a row per feature, columns `form`, `meaning`
    and `both` (their interaction), in the two-way analysis of a balanced design."""
    centred = values - values.mean(0)
    total = np.square(centred).sum(0)

    def between(labels: np.ndarray) -> np.ndarray:
        groups = [centred[labels == one] for one in np.unique(labels)]
        return sum(len(group) * np.square(group.mean(0)) for group in groups)

    form, meaning = between(texts.kind), between(texts.topic)
    cells = between(np.char.add(np.char.add(texts.kind, "/"), texts.topic))
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame({"form": form / total, "meaning": meaning / total, "both": (cells - form - meaning) / total})


def code_cosines(values: Float[np.ndarray, "text feature"], texts: Texts) -> tuple[float, float]:
    """The mean cosine of the codes of two texts of the same topic and different kinds; and of the same kind and different
    topics, nan where there is one topic alone."""
    with np.errstate(invalid="ignore"):
        unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    cells = {
        (k, t): unit[(texts.kind == k) & (texts.topic == t)].mean(0)
        for k in np.unique(texts.kind)
        for t in np.unique(texts.topic)
    }
    names = [cell for cell in cells if np.isfinite(cells[cell]).all()]
    table = np.stack([cells[cell] for cell in names])
    cosine = table @ table.T
    kind, topic = (np.array(column) for column in zip(*names, strict=True))
    same_kind, same_topic = kind[:, None] == kind, topic[:, None] == topic
    other_kind, other_topic = cosine[same_topic & ~same_kind], cosine[same_kind & ~same_topic]
    return float(other_kind.mean()), float(other_topic.mean()) if len(other_topic) else float("nan")


def cosines_over_templates(values: Float[np.ndarray, "text feature"], texts: Texts) -> tuple[stats.Estimate, float, float]:
    """The first less the second of `code_cosines`, with its 95% interval over templates; and both.

    The interval is from leaving out one template at a time (jackknife), kind by kind. Drawing templates again would not do: one
    that is drawn twice makes texts of a kind more alike than they are.
    """
    topic, form = code_cosines(values, texts)
    variance, freedom = 0.0, 0
    for kind in np.unique(texts.kind):
        own, without = np.unique(texts.template[texts.kind == kind]), []
        for one in own:
            keep = texts.template != one
            a, b = code_cosines(values[keep], texts.where(keep))
            without.append(a - b)
        variance += (len(own) - 1) / len(own) * np.square(without - np.mean(without)).sum()
        freedom += len(own) - 1
    half = t.ppf(0.975, freedom) * np.sqrt(variance)
    n = len(np.unique(texts.template))
    return stats.Estimate(topic - form, topic - form - half, topic - form + half, len(values), n), topic, form
