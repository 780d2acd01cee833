"""Batched generation through the model's own `generate`, greedy or sampled, key-value cache on.

Whatever hooks are active on the model stay active at every position, generated tokens included. What a model's
`generation_config.json` asks for (penalties, forbidden tokens, another end) is left aside: see `plainly`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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


@torch.no_grad()
def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: list[str],
    max_new_tokens: int,
    use_cache: bool = True,
    temperature: float = 0.0,
    special: bool = False,
) -> list[str]:
    """The continuation of every input up to the token that targets end with, all in one batch, padded on the left.

    Greedy at temperature 0; above, sampled from all tokens with torch's generator, whose seed is the caller's to set.
    Special tokens are left out of the texts, unless they are asked for.
    """
    encoded = tokenizer(inputs, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    how = dict(do_sample=True, temperature=temperature, top_k=0) if temperature else {}
    with plainly(model, tokenizer, **how, max_new_tokens=max_new_tokens, use_cache=use_cache) as settings:
        out = model.generate(**encoded, generation_config=settings)
    return tokenizer.batch_decode(out[:, encoded.input_ids.shape[1] :], skip_special_tokens=not special)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: list[str],
    max_new_tokens: int,
    batch_size: int = 128,
    use_cache: bool = True,
    progress: str | None = None,
    temperature: float = 0.0,
    special: bool = False,
) -> list[str]:
    """`continued` for any number of inputs, in the order given.

    Inputs of similar length share a batch, so that little of it is padding.
    """
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    texts: list[str] = [""] * len(inputs)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for batch in tqdm(batches, desc=progress, disable=progress is None, mininterval=2):
        found = continued(model, tokenizer, [inputs[i] for i in batch], max_new_tokens, use_cache, temperature, special)
        for i, text in zip(batch, found, strict=True):
            texts[i] = text
    return texts
