"""Batched generation through the model's own `generate`, greedy or sampled, key-value cache on.

Whatever hooks are active on the model stay active at every position, generated tokens included. What a model's
`generation_config.json` asks for (penalties, forbidden tokens, another end) is left aside: see `plainly`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def plainly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings) -> Iterator[GenerationConfig]:
    """For `model.generate` inside the block: the likeliest token up to the one that targets end with, and no advice.

    `settings` are of `GenerationConfig`. `generate` fills what it leaves open from the model's own, so these are put
    aside for as long.
    """
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    theirs = model.generation_config
    model.generation_config = GenerationConfig(**{"do_sample": False, **ends, **settings})
    try:
        yield model.generation_config
    finally:
        model.generation_config = theirs


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; above, from the likeliest tokens that have `top_p` of the probability, with a seed."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def settings(self) -> dict:
        """For `GenerationConfig`."""
        return dict(do_sample=True, temperature=self.temperature, top_p=self.top_p, top_k=0) if self.temperature else {}


GREEDY = Sampling()


@torch.no_grad()
def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Sequence[int]],
    max_new_tokens: int,
    use_cache: bool = True,
    sampling: Sampling = GREEDY,
    special: bool = False,
    end: int | None = None,
) -> list[str]:
    """The continuation of every question, given as token ids, up to the token `end`, all in one batch, padded on the left.

    `end` is <eos> where it is left out. What is sampled depends on the seed and the batch alone. Special tokens are left
    out of the texts, unless they are asked for.
    """
    encoded = tokenizer.pad({"input_ids": [list(ids) for ids in asked]}, padding_side="left", return_tensors="pt")
    encoded, ends = encoded.to(model.device), {} if end is None else {"eos_token_id": end}
    with plainly(model, tokenizer, **sampling.settings, **ends, max_new_tokens=max_new_tokens, use_cache=use_cache) as settings:
        with torch.random.fork_rng(enabled=bool(sampling.temperature)):
            if sampling.temperature:
                torch.manual_seed(sampling.seed)
            out = model.generate(**encoded, generation_config=settings)
    return tokenizer.batch_decode(out[:, encoded.input_ids.shape[1] :], skip_special_tokens=not special)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 128,
    use_cache: bool = True,
    progress: str | None = None,
    sampling: Sampling = GREEDY,
    special: bool = False,
    end: int | None = None,
) -> list[str]:
    """`continued` for any number of questions, in the order given.

    Those of similar length share a batch, so that little of it is padding. Each batch is sampled with a seed of its own.
    """
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    texts: list[str] = [""] * len(asked)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for n, batch in enumerate(tqdm(batches, desc=progress, disable=progress is None, mininterval=2)):
        own = replace(sampling, seed=sampling.seed + n)
        found = continued(model, tokenizer, [asked[i] for i in batch], max_new_tokens, use_cache, own, special, end)
        for i, text in zip(batch, found, strict=True):
            texts[i] = text
    return texts
