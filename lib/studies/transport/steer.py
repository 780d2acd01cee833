"""Editing the features of a vehicle while the model answers: what is changed, where, and what it does to the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import Dictionary
from lib.measure import metrics
from lib.model import encoding
from lib.model.conditions import replaced_logits
from lib.model.encoding import Encoded
from lib.model.generation import generate
from lib.model.hooks import Condition, replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.transport.material import reply
from lib.texts.prompts import Prompt
from lib.texts.vehicles import VEHICLES

WHERE = ("all", "prompt", "last")
"""Where an edit acts: everywhere; in the question alone; or from the question's last token on."""


def activated(f: Tensor, v: Tensor) -> Tensor:
    """Features with a table added."""
    return f + v


def suppressed(f: Tensor, v: Tensor) -> Tensor:
    """Features with a table taken off, never below 0."""
    return (f - v).clamp(min=0)


def shifted(f: Tensor, v: Tensor) -> Tensor:
    """Features with a table added that may take some off, never below 0."""
    return (f + v).clamp(min=0)


def unchanged(f: Tensor, v: Tensor) -> Tensor:
    return f


@dataclass
class Acting:
    """What the edits of a forward pass refer to."""

    v: Float[Tensor, "row feature"] | None = None
    """Of each row the table of its vehicle."""
    mask: Bool[Tensor, "row pos"] | None = None
    """Where to act; None while a text is written, where the edit knows from the length of what it is given."""


@dataclass(frozen=True)
class Edited:
    """What stands at a site whose features are edited; a replacement for it.

    With the error kept, `x + (f' - f) W_dec`, nothing changes where no feature does, bit for bit. Without it the model is run
    through the SAE.
    """

    sae: Dictionary
    acting: Acting
    change: Callable[[Tensor, Tensor], Tensor]
    dose: float = 1.0
    keep_error: bool = True
    where: str = "all"

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        f = self.sae.encode(x)
        new = self.change(f, self.dose * self.acting.v[:, None])
        y = x + (new - f) @ self.sae.W_dec if self.keep_error else self.sae.decode(new)
        if (mask := self.acting.mask) is None:
            if self.where == "all" or (self.where == "last" and x.shape[1] == 1):
                return y
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            if x.shape[1] > 1:
                mask[:, -1 if self.where == "last" else slice(None)] = True
        return torch.where(mask[..., None], y, x)


@dataclass(frozen=True)
class Pushed:
    """What stands at a site to which a direction is added: steering without an SAE."""

    acting: Acting
    dose: float = 1.0

    def __call__(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        y = x + self.dose * self.acting.v[:, None]
        return y if self.acting.mask is None else torch.where(self.acting.mask[..., None], y, x)


def first_published(f: Tensor, v: Tensor) -> Tensor:
    """The edit of the study's first code: the other vehicle's latents to 0, all halved, 1 added to the vehicle's own.

    `v` says of each latent whether it is among the vehicle's (1), the other's (2) or both (3): see `as_published`.
    """
    return torch.where(v >= 2, 0.0, f) / 2 + (v % 2 == 1)


def as_published(own: Int[Tensor, " latent"], other: Int[Tensor, " latent"], d_sae: int) -> Float[Tensor, " feature"]:
    """What `first_published` edits, of two lists of indices (`words.taken_as_indices`)."""
    v = torch.zeros(d_sae, device=own.device)
    v[own] += 1
    v[other] += 2
    return v


@dataclass(frozen=True)
class Trial:
    """One way to answer the questions."""

    method: str
    replacement: Edited | Pushed | None = None
    """None: the model as it is."""
    tables: Mapping[str, Tensor] | None = None
    """By vehicle; by both, as `one|two`, where it takes both."""
    who: str = "one"
    """Whose table: that of the vehicle named first or second, of `another`, or of `both`."""
    says: Callable[[str, str], str] = lambda question, one: question
    """What is asked instead of a question about that vehicle."""

    @property
    def about(self) -> dict[str, object]:
        """For a row of a table."""
        edit = self.replacement
        return {
            "method": self.method,
            "who": self.who,
            "where": getattr(edit, "where", "all"),
            "dose": getattr(edit, "dose", 0.0),
        }

    def table_of(self, row) -> Tensor:
        """The table that a question's edit refers to."""
        names = {"one": row.one, "two": row.two, "both": f"{row.one}|{row.two}"}
        return self.tables[names[self.who] if self.who in names else another(row.one, row.two)]


def another(one: str, two: str) -> str:
    """A vehicle that a question does not name: the next one in the list."""
    names = list(VEHICLES)
    place = names.index(one)
    return next(name for name in (*names[place + 1 :], *names[:place]) if name != two)


def mask_of(batch: Encoded, where: str) -> Bool[Tensor, "row pos"]:
    """Where an edit acts in questions with their answers."""
    there, answer = batch.attention.bool(), batch.answer
    if where == "all":
        return there
    if where == "prompt":
        return there & ~answer
    last = torch.zeros_like(answer)
    last[torch.arange(len(answer)), answer.int().argmax(1) - 1] = True
    return answer | last


@torch.no_grad()
def named(
    model: LanguageModel, site: Site, asked: pd.DataFrame, trials: Sequence[Trial], size: int = 48, form: str = "chat"
) -> pd.DataFrame:
    """For every question and trial how sure the model is of either vehicle, told by teacher forcing.

    `p_one`: the probability of the answer that names the first vehicle, of the two; `nats` are of both together. What lies
    below the site is run once for all trials that ask in the same words.
    """
    rows, order = [], asked.assign(length=asked.question.str.len()).sort_values("length", kind="stable").index
    alike = [list(some) for _, some in groupby(trials, key=lambda trial: trial.says)]
    for start in tqdm(range(0, len(order), size), desc="questions", mininterval=2):
        some = asked.loc[order[start : start + size]]
        each = list(some.itertuples())
        for group in alike:
            prompts = [
                Prompt(group[0].says(row.question, row.one), reply(name), "negative")
                for row in each for name in (row.one, row.two)
            ]  # fmt: skip
            batch = encoding.encode(model.tokenizer, prompts, form).to(model.hf.device)
            conditions: list[Condition] = [{site: trial.replacement} if trial.replacement else {} for trial in group]
            under = replaced_logits(model, batch, conditions, at=batch.foreseen)
            for trial in group:
                if edit := trial.replacement:
                    edit.acting.v = torch.stack([trial.table_of(row) for row in each]).repeat_interleave(2, 0)
                    edit.acting.mask = mask_of(batch, getattr(edit, "where", "all"))
                nats = metrics.of_answers(next(under), batch).view(-1, 2).cpu()
                if not nats.isfinite().all():
                    raise ValueError(f"{trial.method}: the model's logits are not finite; choose smaller transport.doses")
                p = (-nats).softmax(1)[:, 0].tolist()
                rows += [
                    {**trial.about, "question": row.Index, "p_one": p_one, "nats": both}
                    for row, p_one, both in zip(each, p, nats.sum(1).tolist(), strict=True)
                ]
    return pd.DataFrame(rows)


@torch.no_grad()
def written(
    model: LanguageModel, site: Site, asked: Sequence[str], tables: Sequence[Tensor], edit: Edited | Pushed | None, limit: int,
    size: int = 128, form: str = "chat", **sampling,
) -> list[str]:  # fmt: skip
    """What the model writes when asked, each text with the edit of its own table."""
    found: list[str] = []
    for start in range(0, len(asked), size):
        some = asked[start : start + size]
        ids = [encoding.asked(model.tokenizer, text, form) for text in some]
        how = dict(batch_size=len(some), end=encoding.end_id(model.tokenizer, form), **sampling)
        if edit is None:
            found += generate(model.hf, model.tokenizer, ids, limit, **how)
            continue
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # as `generate` puts them
        edit.acting.v, edit.acting.mask = torch.stack([tables[start + i] for i in order]), None
        with replaced(model, {site: edit}):
            found += generate(model.hf, model.tokenizer, ids, limit, **how)
    return found


@torch.no_grad()
def surprise(
    model: LanguageModel, asked: Sequence[str], texts: Sequence[str], size: int = 64, form: str = "chat"
) -> np.ndarray:
    """Nats a token of what was written, under the model as it is; what was written again is run once."""
    every = list(zip(asked, texts, strict=True))
    once, found = list(dict.fromkeys(every)), {}
    for start in range(0, len(once), size):
        some = once[start : start + size]
        batch = encoding.encode(model.tokenizer, [Prompt(*pair, "negative") for pair in some], form).to(model.hf.device)
        how = dict(attention_mask=batch.attention, use_cache=False, logits_to_keep=batch.foreseen)
        nats = metrics.of_answers(model.hf(input_ids=batch.ids, **how).logits, batch) / batch.answer.sum(1)
        found |= dict(zip(some, nats.tolist(), strict=True))
    return np.array([found[pair] for pair in every])


def both(
    model: LanguageModel, site: Site, sae: Dictionary, v: Tensor, dose: float, where: str, question: str, limit: int = 30
) -> tuple[str, str]:
    """The greedy answer to a question as the model is, and with a table added (`dose` above 0) or taken off."""
    edit = Edited(sae, Acting(), activated if dose >= 0 else suppressed, abs(dose), where=where)
    plain, edited = (written(model, site, [question], [v], one, limit)[0] for one in (None, edit))
    return plain, edited
