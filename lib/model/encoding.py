"""Prompts and texts as tokens; a prompt is `<bos>input\\ntarget<eos>` in training, scoring and generation.

There are two more forms (`FORMS`): `chat`, for models with a chat template; and `published`, of scoring alone, which
leaves out BOS and the newline, as the published study did.

What puts <bos> in front, or nothing, is the tokenizer. The question and the answer are tokenised apart and
joined, so that the tokens the model generates after the question are the tokens it was trained on, wherever
tokens would end in the joined text: a newline may be one token with the question mark before it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

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

    @property
    def foreseen(self) -> Int[Tensor, " some"]:
        """The positions at which a token of some answer is foreseen."""
        return self.answer[:, 1:].any(0).nonzero()[:, 0]


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the tokenizer puts before every text; -1, the id of no token, if it puts none.

    A tokenizer may name a BOS token and not put it there (GPT-2), so it is not `tokenizer.bos_token_id`.
    """
    return next(iter(tokenizer("").input_ids), -1)


def acted_on(
    tokenizer: PreTrainedTokenizerBase, ids: Int[Tensor, "batch pos"], attention: Int[Tensor, "batch past+pos"]
) -> Bool[Tensor, "batch pos"]:
    """Where dictionaries act: at all tokens but padding and BOS; where the tokenizer puts no BOS, but the first of a text.

    That one, whatever it is, has the massive activations that BOS has elsewhere (Sun et al., arXiv 2402.17762): they would be
    nearly all of the variance, and are the same in every text. `attention` also covers what a key-value cache holds.
    """
    bos, here = bos_id(tokenizer), attention[:, -ids.shape[1] :].bool()
    first = ids == bos if bos >= 0 else (attention.cumsum(1) == 1)[:, -ids.shape[1] :]
    return here & ~first


def token_mask(tokenizer: PreTrainedTokenizerBase, batch: Encoded) -> Bool[Tensor, "batch pos"]:
    """Where dictionaries act in a batch."""
    return acted_on(tokenizer, batch.ids, batch.attention)


def left_out(tokenizer: PreTrainedTokenizerBase, batch: Encoded) -> Bool[Tensor, "batch pos"]:
    """Where they do not, though there is a token."""
    return batch.attention.bool() & ~token_mask(tokenizer, batch)


def asked(tokenizer: PreTrainedTokenizerBase, text: str, form: str = "training") -> list[int]:
    """Token ids of what the model reads before it answers, in a form of `FORMS`."""
    return FORMS[form](tokenizer, text)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """With a newline after it; the tokenizer puts <bos> in front, if it has one."""
    return tokenizer(f"{text}\n").input_ids


def _published(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A user's turn in the model's chat template, up to where the model's own begins; as `_plain` where it has none.

    What is said is text, whatever it holds: only the template's own special tokens are special.
    """
    if not tokenizer.chat_template:
        return _plain(tokenizer, text)
    before, after = _around(tokenizer, ({"role": "user", "content": _SAID},))
    return [*_special(tokenizer, before), *tokenizer(text, add_special_tokens=False).input_ids, *_special(tokenizer, after)]


FORMS: dict[str, Callable[[PreTrainedTokenizerBase, str], list[int]]] = {
    "training": _plain, "published": _published, "chat": _chat,
}  # fmt: skip
"""How a question is put: plainly, as the published study scored it, or in the model's chat template."""

_SAID = "\N{OBJECT REPLACEMENT CHARACTER}"


def _around(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> tuple[str, str]:
    """What a chat template puts before and after `_SAID`; the model's turn is begun where the user had the last."""
    begins = turns[-1]["role"] == "user"
    before, _, after = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begins).rpartition(_SAID)
    return before, after


def _special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a part of a template, its special tokens among them."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids


def end_id(tokenizer: PreTrainedTokenizerBase, form: str = "training") -> int:
    """The token with which an answer ends: <eos>, or what ends the model's turn in its chat template."""
    if form != "chat" or not tokenizer.chat_template:
        return tokenizer.eos_token_id
    _, after = _around(tokenizer, ({"role": "user", "content": "a"}, {"role": "assistant", "content": _SAID}))
    return next(iter(_special(tokenizer, after)), tokenizer.eos_token_id)


def tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | str, form: str = "training") -> tuple[list[int], list[int]]:
    """Token ids of the question and of the answer with its end; of a text without a target itself, and none."""
    if isinstance(prompt, str):
        return tokenizer(prompt).input_ids, []
    answer = [*tokenizer(prompt.target, add_special_tokens=False).input_ids, end_id(tokenizer, form)]
    return asked(tokenizer, prompt.input, form), answer


def readable(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token, to be read; bytes that are no whole character stand as `<0xE2>`, as sentencepiece names them.

    A byte-level vocabulary names bytes by characters of GPT-2's (Radford et al. 2019, section 2.2).
    """
    text = tokenizer.decode([token])
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    name = tokenizer.convert_ids_to_tokens(token)
    if not set(name) <= _BYTES.keys():
        return text
    said = bytes(_BYTES[character] for character in name).decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", said)


_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def length(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | str) -> int:
    """Tokens of a question and its answer."""
    return sum(map(len, tokens(tokenizer, prompt)))


def padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]]) -> Encoded:
    """Token ids as one batch, padded on the right, none of them an answer."""
    ids = torch.full((len(texts), max(map(len, texts))), tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], attention[row, : len(text)] = torch.tensor(text), 1
    return Encoded(ids, attention, torch.zeros_like(ids, dtype=torch.bool))


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt | str], form: str = "training") -> Encoded:
    """One batch of prompts, or of texts."""
    pairs = [tokens(tokenizer, prompt, form) for prompt in prompts]
    batch = padded(tokenizer, [q + a for q, a in pairs])
    for row, (q, a) in enumerate(pairs):
        batch.answer[row, len(q) : len(q) + len(a)] = True
    return batch


def batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt | str], size: int, form: str = "training"
) -> list[Encoded]:
    """Batches in the order of the prompts."""
    return [encode(tokenizer, prompts[i : i + size], form) for i in range(0, len(prompts), size)]


def in_order(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt | str]) -> list[Prompt | str]:
    """Prompts from the shortest to the longest, in tokens: prompts of like length pad one another little."""
    return sorted(prompts, key=lambda p: length(tokenizer, p))


def streamed(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt | str], size: int, form: str = "training"
) -> list[Encoded]:
    """Batches of prompts `in_order`, where their own order is of no account."""
    return batches(tokenizer, in_order(tokenizer, prompts), size, form)
