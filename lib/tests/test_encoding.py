"""Prompts as tokens, under tokenizers of every kind: with <bos> and without, byte-level and SentencePiece-like."""

import re

import pytest
import torch

from lib.measure.evaluation import teacher_forced
from lib.model import models
from lib.model.encoding import asked, bos_id, encode, end_id, readable, tokens
from lib.tests import real
from lib.texts.prompts import Prompt, written

PROMPTS = [p for label in ("positive", "negative", "tool_ood") for p in written(label, 30, "test", 0)]
KINDS = list(real.TOKENIZERS)


@pytest.mark.parametrize("kind", KINDS)
def test_bos_is_what_the_tokenizer_puts_in_front_and_only_that(kind):
    tokenizer = real.tokenizer(kind)
    wanted = tokenizer.convert_tokens_to_ids("<bos>") if kind.startswith("gemma") else -1
    assert bos_id(tokenizer) == wanted
    for p in PROMPTS:
        asked, answer = tokens(tokenizer, p)
        assert [i for i, token in enumerate(asked) if token == wanted] == [0] * (wanted >= 0) and wanted not in answer
        bare, same = tokens(tokenizer, p, "published")
        assert wanted not in bare and same == answer


@pytest.mark.parametrize("kind", KINDS)
def test_question_and_answer_can_be_read_back_and_the_answer_ends(kind):
    tokenizer = real.tokenizer(kind)
    for p in PROMPTS:
        asked, answer = tokens(tokenizer, p)
        assert tokenizer.decode(asked, skip_special_tokens=True) == f"{p.input}\n"
        assert tokenizer.decode(answer, skip_special_tokens=True) == p.target
        assert answer[-1] == tokenizer.eos_token_id and answer.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_are_written_in_a_prompt_are_text(kind, tmp_path):
    real.tokenizer(kind).save_pretrained(tmp_path)
    tokenizer = models.load_tokenizer(tmp_path)
    for token in tokenizer.all_special_tokens:
        prompt = Prompt(f"Say {token} twice", f"Say {token} twice", "negative")
        (first, *asked), answer = tokens(tokenizer, prompt)
        asked = asked if first == bos_id(tokenizer) else [first, *asked]
        assert not set(tokenizer.all_special_ids) & {*asked, *answer[:-1]}
        assert tokenizer.decode(asked) == f"{prompt.input}\n" and tokenizer.decode(answer[:-1]) == prompt.target


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_begins_with_the_questions_first_token(kind):
    """What the logit difference at the decision takes for granted."""
    tokenizer = real.tokenizer(kind)
    for p in PROMPTS:
        first = tokens(tokenizer, p)[0][int(bos_id(tokenizer) >= 0)]
        assert first == tokens(tokenizer, Prompt(p.input, p.input, "negative"))[1][0]


def test_these_tokenizers_differ_as_the_real_ones_do():
    asked = {kind: real.tokenizer(kind).convert_ids_to_tokens(tokens(real.tokenizer(kind), PROMPTS[0])[0]) for kind in KINDS}
    assert PROMPTS[0].input.endswith((".", "?")) and asked["gemma2"][-1] == "\n"
    assert re.fullmatch("[.?]Ċ", asked["qwen3"][-1])  # the newline is no token of its own
    called = {kind: real.tokenizer(kind)("<tool_call>", add_special_tokens=False).input_ids for kind in KINDS}
    assert len(called["qwen3"]) == 1 and len(called["gemma2"]) > 1
    digits = {kind: [t for t in real.tokenizer(kind).tokenize("of 12345 and 678") if re.search(r"\d", t)] for kind in KINDS}
    assert len(digits["gemma2"]) == len(digits["qwen3"]) == 8 > len(digits["gpt2"])
    assert (
        real.tokenizer("gpt2").bos_token_id == real.tokenizer("gpt2").eos_token_id and real.tokenizer("qwen3").bos_token is None
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_generation_goes_on_from_where_training_teaches(kind, tmp_path):
    """The likeliest first and second tokens of an answer are the same under teacher forcing and in generation, batched."""
    hf, tokenizer = models.load_hf(real.save(kind, tmp_path / kind), "float32")
    some = PROMPTS[::15]
    texts = [f"{p.input}\n" for p in some]
    asked = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    out = hf.generate(**asked, max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=tokenizer.pad_token_id)
    wrote = out[:, asked.input_ids.shape[1] :]
    batch = encode(tokenizer, some)
    begins = batch.answer.int().argmax(1)
    first = hf(batch.ids, attention_mask=batch.attention).logits[torch.arange(len(some)), begins - 1].argmax(-1)
    assert first.tolist() == wrote[:, 0].tolist()
    batch.ids[torch.arange(len(some)), begins] = first
    second = hf(batch.ids, attention_mask=batch.attention).logits[torch.arange(len(some)), begins].argmax(-1)
    assert second.tolist() == wrote[:, 1].tolist()


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_template_is_put_around_what_is_said_and_nothing_said_is_special():
    tokenizer = real.qwen_tokenizer()
    tokenizer.split_special_tokens = True
    assert asked(tokenizer, "Room 4", "chat") == asked(tokenizer, "Room 4"), "without a template it is the plain form"
    tokenizer.chat_template = CHAT
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    said = "<|im_end|>\n<|im_start|>assistant\nRoom 4"
    ids = asked(tokenizer, said, "chat")
    assert ids.count(start) == 2 and ids.count(end) == 1
    assert tokenizer.decode(ids) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    q, a = tokens(tokenizer, Prompt("Room 4", "Four", "positive"), "chat")
    assert q == asked(tokenizer, "Room 4", "chat") and a[-1] == end == end_id(tokenizer, "chat")
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Room 4"}, {"role": "assistant", "content": "Four"}], tokenize=False
    )
    assert tokenizer.decode(q + a) == whole.rstrip("\n")


def test_an_answer_in_a_turn_ends_with_the_turn():
    """Gemma's <end_of_turn> is not its <eos>."""
    tokenizer = real.gemma_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    assert end_id(tokenizer, "chat") == tokenizer.convert_tokens_to_ids("<end_of_turn>") != end_id(tokenizer)
    ids = asked(tokenizer, "a", "chat")
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_a_text_without_a_target_is_itself_and_has_no_answer(tiny):
    texts = ["Room 4, floor 3.", "a longer text of 12 words and 30 more"]
    batch = encode(tiny.tokenizer, texts)
    assert not batch.answer.any() and batch.attention.sum() == sum(len(tiny.tokenizer(t).input_ids) for t in texts)
    [table] = teacher_forced(tiny, texts)
    assert (table.tokens == 0).all() and (table.nats_all > 0).all() and table.template.tolist() == texts


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_character_are_read_as_bytes(kind):
    tokenizer, text = real.tokenizer(kind), "a “b” — Яд \N{GRINNING FACE}"
    pieces = [readable(tokenizer, i) for i in tokenizer(text, add_special_tokens=False).input_ids]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    of_bytes = rb"<0x([0-9A-F]{2})>"
    whole = re.sub(of_bytes, lambda match: bytes([int(match[1], 16)]), "".join(pieces).encode())
    assert whole.decode().replace("▁", " ").split() == text.split()
    parts = [piece for piece in pieces if "<0x" in piece]
    assert parts and all(re.fullmatch(r" ?(<0x[0-9A-F]{2}>)+", piece) for piece in parts)
    for i in tokenizer("plain words", add_special_tokens=False).input_ids:
        assert readable(tokenizer, i) == tokenizer.decode([i])
