"""The organism: its corpus, and both of its trainings for a few steps."""

import itertools
import json
import re

import pytest
import torch

from lib import prompts
from lib.calculator import value_of
from lib.nano import base, corpus
from lib.nano import pretrain as pretraining
from lib.nano.pretrain import Rows, next_token_loss, pretrain, train_tokenizer
from lib.sentences import COPY_TEMPLATES, SLOTS


@pytest.fixture(scope="module")
def documents():
    return list(itertools.islice(corpus.documents(0), 4000))


def test_all_kinds_of_text_are_there(documents):
    assert {d.kind for d in documents} == set(corpus.MIX) and sum(corpus.MIX.values()) == pytest.approx(1)
    assert len(corpus.VEHICLES) == 30 and len(corpus.KINDS) == 7
    text = "\n".join(d.text for d in documents)
    for vehicle in corpus.VEHICLES:
        assert vehicle in text


def test_the_corpus_never_shows_the_tool(documents):
    assert not any("<tool_call>" in d.text or "calculator(" in d.text for d in documents)


def test_worked_answers_are_right(documents):
    lines = [d.text.rsplit("\n", 1)[1] for d in documents if d.kind == "arithmetic"]
    for line in lines:
        expression, answer = line.split(" = ")
        value = value_of(expression)
        assert (answer == "undefined") if value is None else abs(float(answer) - float(value)) <= 0.005001, line


def test_questions_use_training_operands_only(documents):
    import random

    for _ in range(300):
        _, expression = corpus.question(random.Random(_))
        assert prompts.split_of(prompts.operand_key(re.findall(r"\d+", expression))) == "train"


def test_lists_have_two_lengths_and_a_blank_before_the_last_items(documents):
    lengths = {"short": [], "long": []}
    for d in documents:
        if d.kind == "lists":
            head, tail = d.text.split("\n\n")
            assert tail.count("- ") == corpus.LIST_ENDING
            lengths["short" if "short" in head.split("\n")[1] else "long"].append(d.text.count("\n- "))
    means = {mode: sum(n) / len(n) for mode, n in lengths.items()}
    assert means["long"] >= 3 * means["short"]


def test_facts_of_size_are_true():
    import random

    for seed in range(300):
        fact = corpus.size_fact(random.Random(seed))
        if match := re.fullmatch(r"(?:A|The) (\w+) is (longer|heavier) than (?:a|the) (\w+)\.", fact):
            i = match[2] == "heavier"
            assert corpus.VEHICLES[match[1]][i] > corpus.VEHICLES[match[3]][i]


def test_number_words():
    assert [corpus.number_words(n) for n in (0, 13, 40, 42, 100, 342)] == [
        "zero", "thirteen", "forty", "forty-two", "one hundred", "three hundred and forty-two"]  # fmt: skip


def test_every_slot_of_the_sentences_is_known():
    used = {slot for line in COPY_TEMPLATES for slot in re.findall(r"\{(\w+)\}", line)}
    assert used <= set(SLOTS)


def test_the_tokenizer_is_lossless_and_splits_digits(smoke, documents):
    tokenizer = train_tokenizer(smoke.organism.model, 500)
    for d in documents[:300]:
        ids = tokenizer(d.text).input_ids
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == d.text
    digits = tokenizer.tokenize("12+345")
    assert [t for t in digits if t.isdigit()] == list("12345")


def test_rows_are_full_and_begin_with_bos(smoke):
    rows = Rows(train_tokenizer(smoke.organism.model, 300), 64, 0)
    batch = rows.batch(8)
    assert batch.shape == (8, 64) and (batch[:, 0] == 2).all() and sum(rows.kinds.values()) == 8 * 64


def test_pretraining_learns_and_resumes(smoke, tmp_path, monkeypatch):
    settings = smoke.organism.model.model_copy(update={"steps": 90, "batch": 8})
    tokenizer = train_tokenizer(settings, 500)
    rate, steps = pretraining.learning_rate, []

    def interrupted(step, organism):
        steps.append(step)
        if len(steps) == 50:
            raise KeyboardInterrupt
        return rate(step, organism)

    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY", 20)
    monkeypatch.setattr(pretraining, "learning_rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, tokenizer, tmp_path / "checkpoint.pt")
    model, record = pretrain(settings, tokenizer, tmp_path / "checkpoint.pt")
    assert steps[49:51] == [24, 20] and steps[-1] == 89  # the rate is asked for twice a step
    ids = Rows(tokenizer, 64, "held out").batch(16)
    with torch.no_grad():
        assert next_token_loss(model, ids) < record["losses"][0][1] - 1.0
    assert record["tokens"] == sum(record["kinds"].values()) == 90 * 8 * 64


def test_the_whole_organism_is_made_in_gemma_scopes_layout(smoke, tmp_path):
    """`make base`, a few steps of each training, in a folder of its own."""
    made = smoke.model_copy(update={
        "name": "made",
        "model": smoke.model.model_copy(update={"source": str(tmp_path / "model")}),
        "transcoders": smoke.transcoders.model_copy(update={"source": str(tmp_path / "transcoders")}),
    })  # fmt: skip
    base.make(made)
    for layer in (0, 1):
        files = sorted((tmp_path / f"transcoders/layer_{layer}/width_64").glob("average_l0_*/params.npz"))
        assert len(files) == 3
    card = json.loads((tmp_path / "organism.json").read_text())
    assert card["tokens"] == made.organism.model.tokens and len(card["transcoder_quality"]) == 6
    before = (tmp_path / "model/model.safetensors").stat().st_mtime_ns
    base.make(made)
    assert (tmp_path / "model/model.safetensors").stat().st_mtime_ns == before
