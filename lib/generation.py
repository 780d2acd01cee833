"""Batched greedy generation through the model's own `generate`, key-value cache on.

Whatever hooks are active on the model stay active at every position, generated tokens included.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: list[str],
    max_new_tokens: int,
    batch_size: int = 128,
    use_cache: bool = True,
    progress: str | None = None,
    around: Callable[[Sequence[int]], AbstractContextManager] = nullcontext,
) -> list[str]:
    """The greedy continuation of every input, up to the end-of-sequence token, in the order given.

    Inputs of similar length share a batch, padded on the left, so that little of it is padding. Each batch is
    generated inside `around(rows)`, given which inputs its rows are, in ascending order.
    """
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    texts: list[str] = [""] * len(inputs)
    batches = [sorted(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    for batch in tqdm(batches, desc=progress, disable=progress is None, mininterval=2):
        encoded = tokenizer([inputs[i] for i in batch], return_tensors="pt", padding=True, padding_side="left").to(model.device)
        limits = dict(max_new_tokens=max_new_tokens, do_sample=False, use_cache=use_cache)
        with around(batch):
            out = model.generate(**encoded, **limits, pad_token_id=tokenizer.pad_token_id)
        new = out[:, encoded.input_ids.shape[1] :]
        for i, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts
