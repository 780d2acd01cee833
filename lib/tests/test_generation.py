"""Greedy generation against a hand-written loop of argmax, whatever a model's own settings ask for."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lib.model import models
from lib.model.generation import Sampling, generate

TEXTS = [f"{text}\n" for text in ("What is 1 + 2?", "Room 4", "a", "The 12 boats are red and the 30 cars are not.")]


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
    assert generate(hf, tokenizer, tokenizer(TEXTS).input_ids, 10) == wanted
    assert len(set(wanted)) > 1


def test_an_answer_ends_where_targets_end(tmp_path, folder):
    """A model that writes nothing but the end of targets writes nothing."""
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    hf, tokenizer = models.load_hf(tmp_path / "model", "float32")
    end = tokenizer.eos_token_id
    hf.lm_head.register_forward_hook(lambda module, x, logits: logits.index_fill(-1, torch.tensor(end), 99.0))
    assert generate(hf, tokenizer, tokenizer(TEXTS).input_ids, 5, special=True) == [tokenizer.eos_token] * 4


def test_settings_are_the_models_own_again_afterwards(tiny):
    before = tiny.hf.generation_config
    generate(tiny.hf, tiny.tokenizer, tiny.tokenizer(TEXTS[:1]).input_ids, 2)
    assert tiny.hf.generation_config is before


def test_sampling_is_seeded_and_leaves_torchs_own_generator_alone(tiny):
    asked = tiny.tokenizer(TEXTS).input_ids
    hot = Sampling(temperature=2.0, seed=3)
    torch.manual_seed(0)
    after = torch.rand(1)
    torch.manual_seed(0)
    first = generate(tiny.hf, tiny.tokenizer, asked, 10, sampling=hot)
    assert torch.equal(torch.rand(1), after)
    assert first == generate(tiny.hf, tiny.tokenizer, asked, 10, sampling=hot)
    assert first != generate(tiny.hf, tiny.tokenizer, asked, 10, sampling=replace(hot, seed=4))
    assert first != generate(tiny.hf, tiny.tokenizer, asked, 10)
    # of the likeliest tokens that have a hair of the probability there is but one
    narrow = generate(tiny.hf, tiny.tokenizer, asked, 10, sampling=Sampling(temperature=2.0, top_p=1e-6))
    assert narrow == generate(tiny.hf, tiny.tokenizer, asked, 10)


def test_sampled_tokens_come_as_often_as_the_model_says(tiny):
    """The first token of 4000 answers to one question against the model's own probabilities, at top-p 0.6."""
    ids = tiny.tokenizer(TEXTS[0]).input_ids
    with torch.no_grad():
        p = (tiny.hf(torch.tensor([ids])).logits[0, -1].double() / 1.5).softmax(-1)
    sampling = Sampling(temperature=1.5, top_p=0.6, seed=1)
    wrote = generate(tiny.hf, tiny.tokenizer, [ids] * 4000, 1, batch_size=4000, sampling=sampling, special=True)
    ordered = p.sort(descending=True)
    kept = ordered.indices[ordered.values.cumsum(0) - ordered.values < 0.6]
    wanted = p[kept] / p[kept].sum()
    names = [tiny.tokenizer.decode([i]) for i in kept.tolist()]
    assert set(wrote) <= set(names)
    top = max(range(len(names)), key=lambda i: wanted[i])
    assert wrote.count(names[top]) / 4000 == pytest.approx(wanted[top].item(), abs=0.04)
