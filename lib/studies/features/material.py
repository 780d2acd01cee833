"""What the study of features works on besides its SAEs (`lib.base.saes`): seven kinds of text about eight topics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.base.saes import features
from lib.base.text import held_out, source
from lib.book.paths import ROOT
from lib.dictionary.dictionaries import Dictionary
from lib.model import encoding
from lib.model.activations import Activations
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile
from lib.texts import kinds, labelled
from lib.texts.labelled import Labelled, Matched

POOLINGS = {
    "encode, then mean": "the mean over a text's tokens of a feature's activations",
    "encode, then max": "its largest activation in the text",
    "mean, then encode": "its activation for the mean of the text's activations, as the published study did",
    "last token": "its activation at the last token, as it did too",
}
"""How a text gets one number of each feature."""


def plain_text(profile: Profile, model: LanguageModel, tokens: int) -> list[encoding.Encoded]:
    """Held-out running text, for cross-entropy: of the text that SAEs are trained on."""
    return held_out(source(profile, model, profile.paths.data), tokens, "test")


# --- texts ---


@dataclass(frozen=True)
class Texts:
    """Texts of seven kinds, each about one of eight topics, in the order of their batches."""

    text: list[str]
    kind: np.ndarray
    topic: np.ndarray
    template: np.ndarray
    """What wrote it: the unit that was sampled."""
    chosen_on: Bool[np.ndarray, " text"]
    """True where features are chosen on it, False where they are judged on it; a template is on one side."""

    def __len__(self) -> int:
        return len(self.text)

    def where(self, which: Bool[np.ndarray, " text"]) -> "Texts":
        """Those that are meant, in their order."""
        text = [one for one, yes in zip(self.text, which, strict=True) if yes]
        return Texts(text, self.kind[which], self.topic[which], self.template[which], self.chosen_on[which])

    def batches(self, model: LanguageModel, size: int) -> list[encoding.Encoded]:
        return encoding.batches(model.tokenizer, self.text, size)


def texts(profile: Profile, model: LanguageModel, split: str = "test") -> Texts:
    """The same number of each kind and topic, none of which any training has seen, or those of the profile's own file; like
    lengths together. `ValueError` for a text of which nothing is left without its first token."""
    settings = features(profile)
    rows = labelled.labelled(ROOT / settings.texts_file) if settings.texts_file else [
        Labelled(text, kind, topic, template)
        for kind in kinds.KINDS for topic in kinds.TOPICS for text, template in kinds.texts(kind, topic, settings.texts, split)
    ]  # fmt: skip
    rows = by_length(model, rows, settings.texts_file)
    text, kind, topic, template = zip(*((*row[:3], f"{row.kind}: {row.template}") for row in rows), strict=True)
    kind, topic, template = (np.array(column) for column in (kind, topic, template))
    chosen_on = np.zeros(len(text), dtype=bool)
    draw = np.random.default_rng(profile.seed)
    for one in kinds.KINDS:
        own = np.unique(template[kind == one])
        chosen_on |= np.isin(template, draw.permutation(own)[: len(own) // 2])
    return Texts(list(text), kind, topic, template, chosen_on)


def by_length(model: LanguageModel, rows: Sequence[Labelled | Matched], file: str | None) -> list:
    """Rows, of a file if one is named, in the order of their texts' lengths; `ValueError` for a text of one token."""
    lengths = [encoding.length(model.tokenizer, row.text) for row in rows]
    for row, n in zip(rows, lengths, strict=True):
        if n < 2:
            raise ValueError(f"{file}: the text {row.text!r:.40} is {n} token, and the first is left out; write a longer one")
    return [row for _, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: pair[0])]


# --- one number of each feature for a text ---


@torch.no_grad()
def pooled(sae: Dictionary, held: Activations, i: int, n_texts: int) -> dict[str, Float[np.ndarray, "text feature"]]:
    """The values of all features for every text, by each of `POOLINGS`; `i` is the number of the site in `held`."""
    x, text = held.x[i], held.prompt.to(held.x.device)
    n = torch.bincount(text, minlength=n_texts).clamp(min=1)[:, None]
    total = x.new_zeros(n_texts, sae.d_sae)
    largest = x.new_zeros(n_texts, sae.d_sae)
    for some, of in zip(x.split(4096), text.split(4096), strict=True):
        f = sae.encode(some)
        total.index_add_(0, of, f)
        largest.scatter_reduce_(0, of[:, None].expand_as(f), f, "amax")
    mean_x = x.new_zeros(n_texts, x.shape[-1]).index_add_(0, text, x) / n
    ends = torch.zeros(n_texts, dtype=torch.long, device=x.device).scatter_reduce_(
        0, text, torch.arange(len(text), device=x.device), "amax"
    )
    found = (total / n, largest, sae.encode(mean_x), sae.encode(x[ends]))
    return {name: values.float().cpu().numpy() for name, values in zip(POOLINGS, found, strict=True)}


def everywhere(tokenizer, batch: encoding.Encoded) -> Tensor:
    """At every token and at padding, as the published study pooled before it mended that."""
    return torch.ones_like(batch.attention, dtype=torch.bool)


def with_padding(tokenizer, batch: encoding.Encoded) -> Tensor:
    """At all but the first position, padding among them."""
    keep = everywhere(tokenizer, batch)
    keep[:, 0] = False
    return keep


def with_first(tokenizer, batch: encoding.Encoded) -> Tensor:
    """At every token, the first among them."""
    return batch.attention.bool()


MASKS = {
    ("out", "out"): encoding.token_mask, ("out", "in"): with_first, ("in", "out"): with_padding, ("in", "in"): everywhere,
}  # fmt: skip
"""Padding in or out of the mean, and the first token in or out."""
