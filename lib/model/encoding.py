"""Prompts as tokens: `<bos>input\\ntarget<eos>`, the one format of training, scoring and generation.

(`published`, a format of scoring alone, leaves out BOS and the newline, as the published study did.)

What puts <bos> in front, or nothing, is the tokenizer. The question and the answer are tokenised apart and
joined, so that the tokens the model generates after the question are the tokens it was trained on, wherever
tokens would end in the joined text: a newline may be one token with the question mark before it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lib.texts.prompts import Prompt


@dataclass(frozen=True)
class Encoded:
    """A batch, padded on the right."""

    ids: Int[Tensor, "batch pos"]
    attention: Int[Tensor, "batch pos"]
    answer: Bool[Tensor, "batch pos"]
    """True at the target's tokens and its <eos>."""

    def to(self, device) -> "Encoded":
        return Encoded(self.ids.to(device), self.attention.to(device), self.answer.to(device))


def question(text: str) -> str:
    """What the model reads before it answers; the tokenizer puts <bos> in front, if it has one."""
    return f"{text}\n"


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the tokenizer puts before every text; -1, the id of no token, if it puts none.

    A tokenizer may name a BOS token and not put it there (GPT-2), so it is not `tokenizer.bos_token_id`.
    """
    return next(iter(tokenizer("").input_ids), -1)


def kept(tokenizer: PreTrainedTokenizerBase, batch: Encoded) -> Bool[Tensor, "batch pos"]:
    """Where transcoders act: all tokens but BOS and padding."""
    return batch.attention.bool() & (batch.ids != bos_id(tokenizer))


def tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, form: str = "training") -> tuple[list[int], list[int]]:
    """Token ids of the question, with <bos>, and of the answer, with <eos>."""
    answer = [*tokenizer(prompt.target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    if form == "published":
        return tokenizer(prompt.input, add_special_tokens=False).input_ids, answer
    return tokenizer(question(prompt.input)).input_ids, answer


def length(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    """Tokens of a question and its answer."""
    return sum(map(len, tokens(tokenizer, prompt)))


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt], form: str = "training") -> Encoded:
    """One batch of prompts."""
    pairs = [tokens(tokenizer, prompt, form) for prompt in prompts]
    length = max(len(q) + len(a) for q, a in pairs)
    shape = (len(pairs), length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    attention, answer = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for i, (q, a) in enumerate(pairs):
        ids[i, : len(q) + len(a)] = torch.tensor(q + a)
        attention[i, : len(q) + len(a)] = 1
        answer[i, len(q) : len(q) + len(a)] = True
    return Encoded(ids, attention, answer)


def batches(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], size: int, form: str = "training") -> list[Encoded]:
    """Batches in the order of the prompts."""
    return [encode(tokenizer, prompts[i : i + size], form) for i in range(0, len(prompts), size)]


def in_order(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> list[Prompt]:
    """Prompts from the shortest to the longest, in tokens: prompts of like length pad one another little."""
    return sorted(prompts, key=lambda p: length(tokenizer, p))


def streamed(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], size: int, form: str = "training") -> list[Encoded]:
    """Batches of prompts `in_order`, where their own order is of no account."""
    return batches(tokenizer, in_order(tokenizer, prompts), size, form)
