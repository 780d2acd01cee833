"""Text that base transcoders are trained and judged on, in rows of tokens: the organism's corpus, or natural text.

Natural text is what the installed packages say of themselves, what the model itself writes when asked, and documents of the
corpus, which have the prompts' own kinds. Whole documents are held out. It is gathered once and kept.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lib.book.fingerprint import fingerprint
from lib.book.paths import replacing
from lib.dictionary.training import Batch
from lib.model import activations, encoding
from lib.model.encoding import Encoded
from lib.model.generation import Sampling, continued
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.nano.pretrain import corpus_batches, corpus_tokens
from lib.profiles.organism import Organism, Text
from lib.profiles.tables import Profile
from lib.texts import corpus, natural
from lib.texts.corpus import Document
from lib.texts.requests import requests

SAMPLED_AT_ONCE = 64
SPLITS = {"train": 1, "validation": 100, "test": 10}
"""And which part of the amount to train on each has, at most."""


class Source(Protocol):
    """Text for base transcoders."""

    resumes: bool
    """Whether `batches` can begin anywhere."""

    def batches(self, sites: Sequence[Site], start: int, size: int) -> Iterator[Batch]:
        """What the trainer takes, (site, 1, token, d_model), `size` tokens at a step, from a step on."""

    def held_out(self, tokens: int, split: str) -> dict[str, list[Encoded]]:
        """About so many tokens of held-out text, by kind, to choose by (`validation`) or to tell (`test`)."""

    def counted(self) -> dict[str, int]:
        """Tokens to train on, by kind."""


@dataclass(frozen=True)
class Corpus:
    """The organism's own: endless, and read once."""

    model: LanguageModel
    organism: Organism
    seed: int
    resumes = False

    def batches(self, sites: Sequence[Site], start: int, size: int) -> Iterator[Batch]:
        text = corpus_batches(self.model, self.organism, f"transcoders/{self.seed}")
        for part in activations.shuffled(activations.stream(self.model, sites, text), size, 32 * size, self.seed):
            yield part.x[:, None], part.y[:, None]

    def held_out(self, tokens: int, split: str) -> dict[str, list[Encoded]]:
        return {"corpus": corpus_tokens(self.model, self.organism, split, tokens)}

    def counted(self) -> dict[str, int]:
        return {}


@dataclass(frozen=True)
class Natural:
    """Rows of natural text, read round after round."""

    model: LanguageModel
    text: Text
    seed: int
    rows: dict[str, Int[Tensor, "row pos"]]
    """Those to train on as `train`, of each kind those held out as `validation/<kind>` and `test/<kind>`, and the number
    of its `tokens/<kind>`."""
    resumes = True

    def batches(self, sites: Sequence[Site], start: int, size: int) -> Iterator[Batch]:
        text, rows = self.text, encoded(self.rows["train"], self.text.rows)
        for part in activations.rounds(self.model, sites, rows, text.round // text.rows, text.passes, size, self.seed, start):
            yield part.x[:, None], part.y[:, None]

    def held_out(self, tokens: int, split: str) -> dict[str, list[Encoded]]:
        kinds = {name.removeprefix(f"{split}/"): rows for name, rows in self.rows.items() if name.startswith(f"{split}/")}
        share = tokens / sum(rows.numel() for rows in kinds.values())
        return {kind: encoded(rows[: max(1, round(share * len(rows)))], self.text.rows) for kind, rows in kinds.items()}

    def counted(self) -> dict[str, int]:
        return {name.removeprefix("tokens/"): int(n) for name, n in self.rows.items() if name.startswith("tokens/")}


def held_out(text: Source, tokens: int, split: str) -> list[Encoded]:
    """About so many tokens of held-out text of all kinds."""
    return [batch for of in text.held_out(tokens, split).values() for batch in of]


def encoded(rows: Int[Tensor, "row pos"], size: int) -> list[Encoded]:
    """Full rows as batches of so many."""
    return [Encoded(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)) for ids in rows.long().split(size)]


def source(profile: Profile, model: LanguageModel, folder: Path) -> Source:
    """That of the profile; natural text is kept in `folder`, and gathered anew where it is of other settings."""
    if profile.text is None:
        return Corpus(model, profile.organism, profile.seed)
    path, of = folder / "text.safetensors", fingerprint(profile.text, profile.seed, model.tokenizer.get_vocab())
    if not path.exists() or _made_from(path) != of:
        rows = gathered(profile.text, model, folder / "written", profile.seed)
        with replacing(path) as temporary:
            save_file(rows, temporary, {"of": of})
    return Natural(model, profile.text, profile.seed, load_file(path))


def _made_from(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("of", "")


def gathered(settings: Text, model: LanguageModel, folder: Path, seed: int) -> dict[str, Tensor]:
    """The rows of `Natural`."""
    own, found = written(settings, model, folder, seed), {}
    for split, share in SPLITS.items():
        of_packages = {kind: getattr(settings, kind) // share for kind in natural.KINDS}
        found[split] = {kind: natural.drawn(kind, n, split, seed) for kind, n in of_packages.items() if n}
        if own:
            found[split]["written"] = [text for text in own if natural.split_of(text) == split]
        if settings.corpus:
            own_kind = islice(corpus.documents(f"natural/{split}/{seed}"), max(1, settings.corpus // share))
            found[split]["corpus"] = [Document("corpus", document.text) for document in own_kind]
    every = [document for of in found.pop("train").values() for document in of]
    random.Random(seed).shuffle(every)
    rows, counts = packed(model.tokenizer, every, settings.context)
    kept = {"train": rows} | {f"tokens/{kind}": torch.tensor(n) for kind, n in counts.items()}
    for split, kinds in found.items():
        kept |= {f"{split}/{kind}": packed(model.tokenizer, some, settings.context)[0] for kind, some in kinds.items()}
    kept = {name: tensor for name, tensor in kept.items() if tensor.numel()}
    for split in SPLITS:
        if not any(name.split("/")[0] == split for name in kept):
            raise ValueError(
                f"no row of {settings.context} tokens of text for {split}; raise the amounts in transcoders.made.text"
            )
    return kept


def written(settings: Text, model: LanguageModel, folder: Path, seed: int) -> list[Document]:
    """What the model answers to requests in its chat, at temperature 1."""
    asked = requests(settings.written, seed)
    answers = answered(model, asked, folder, settings.written_tokens, 1.0)
    return [Document("written", f"{q}\n{a}") for q, a in zip(asked, answers, strict=True)]


def answered(
    model: LanguageModel, asked: Sequence[str], folder: Path, tokens: int, temperature: float, size: int = SAMPLED_AT_ONCE
) -> list[str]:
    """What a model answers to requests in its chat, of at most so many tokens each.

    Kept in `folder`, part by part, so that a rerun goes on; a part is named by what decides it, so that another run's is never
    taken.
    """
    found: list[str] = []
    weights = fingerprint([p[:1] for p in model.hf.parameters()])
    for start in tqdm(range(0, len(asked), size), desc="text by the model", mininterval=2):
        some = list(asked[start : start + size])
        part = folder / f"{start}_{fingerprint(some, tokens, temperature, start, weights)}.json"
        if not part.exists():
            ids = [encoding.asked(model.tokenizer, text, "chat") for text in some]
            how = dict(sampling=Sampling(temperature, seed=start), end=encoding.end_id(model.tokenizer, "chat"))
            texts = continued(model.hf, model.tokenizer, ids, tokens, **how)
            with replacing(part) as temporary:
                temporary.write_text(json.dumps(texts))
        found += json.loads(part.read_text())
    return found


def packed(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], context: int
) -> tuple[Int[Tensor, "row pos"], dict[str, int]]:
    """Documents, each with its end, cut into rows; what does not fill the last row is left out. And tokens of each kind."""
    ids: list[int] = []
    counts: dict[str, int] = {}
    for document in tqdm(documents, desc="tokens", leave=False, mininterval=2):
        own = [*tokenizer(document.text).input_ids, tokenizer.eos_token_id]
        counts[document.kind] = counts.get(document.kind, 0) + len(own)
        ids += own
    n = len(ids) // context
    return torch.tensor(ids[: n * context], dtype=torch.int32).view(n, context), counts
