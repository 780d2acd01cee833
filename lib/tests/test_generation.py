"""Greedy generation against a hand-written loop of argmax, whatever a model's own settings ask for."""

import json
import shutil

import pytest
import torch

from lib.model import models
from lib.model.encoding import question
from lib.model.generation import generate

TEXTS = [question(text) for text in ("What is 1 + 2?", "Room 4", "a", "The 12 boats are red and the 30 cars are not.")]


@torch.no_grad()
def by_argmax(hf, tokenizer, text: str, n: int) -> str:
    ids = tokenizer(text).input_ids
    for _ in range(n):
        ids.append(hf(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(tokenizer(text).input_ids) :], skip_special_tokens=True)


ADVICE = [
    {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 12}, {"eos_token_id": 0},
    {"eos_token_id": [5, 6, 7]}, {"do_sample": True, "temperature": 5.0, "top_k": 0}, {"num_beams": 4},
    {"forced_eos_token_id": 7}, {"suppress_tokens": [1, 5, 6]}, {"begin_suppress_tokens": [5]},
    {"bad_words_ids": [[9], [10]]}, {"max_length": 3}, {"use_cache": False}, {"penalty_alpha": 0.6, "top_k": 4},
    {"renormalize_logits": True, "sequence_bias": [[[5], 50.0]]},
]  # fmt: skip


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: next(iter(advice)))
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_greedy_is_argmax_whatever_the_files_of_the_model_say(tmp_path, folder, plain, tiny, advice, file):
    shutil.copytree(folder, tmp_path / "model")
    place = tmp_path / "model" / file
    said = json.loads(place.read_text()) if place.exists() else {}
    if file == "config.json" and set(advice) & {"eos_token_id", "use_cache"}:
        pytest.skip("in config.json these are the model's own")
    place.write_text(json.dumps(said | advice))
    hf, tokenizer = models.load_hf(tmp_path / "model", "float32")
    wanted = [by_argmax(plain, tokenizer, text, 10) for text in TEXTS]
    assert generate(hf, tokenizer, TEXTS, 10) == wanted
    assert len(set(wanted)) > 1


def test_an_answer_ends_where_targets_end(tmp_path, folder):
    """A model that writes nothing but the end of targets writes nothing."""
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    hf, tokenizer = models.load_hf(tmp_path / "model", "float32")
    end = tokenizer.eos_token_id
    hf.lm_head.register_forward_hook(lambda module, x, logits: logits.index_fill(-1, torch.tensor(end), 99.0))
    assert generate(hf, tokenizer, TEXTS, 5, special=True) == [tokenizer.eos_token] * 4


def test_settings_are_the_models_own_again_afterwards(tiny):
    before = tiny.hf.generation_config
    generate(tiny.hf, tiny.tokenizer, TEXTS[:1], 2)
    assert tiny.hf.generation_config is before
