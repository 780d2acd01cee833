"""The organism: its corpus, and both of its trainings for a few steps."""

import itertools
import json
import random
import re

import pandas as pd
import pytest
import torch

from lib.base import make
from lib.nano import pretrain as pretraining
from lib.nano.pretrain import Rows, next_token_loss, pretrain, train_tokenizer
from lib.texts import corpus, kinds, lists, prompts, sentences, vehicles
from lib.texts.calculator import value_of
from lib.texts.sentences import COPY_TEMPLATES, SLOTS


@pytest.fixture(scope="module")
def documents():
    return list(itertools.islice(corpus.documents(0), 4000))


def test_all_kinds_of_text_are_there(documents):
    assert {d.kind for d in documents} == set(corpus.MIX) and sum(corpus.MIX.values()) == pytest.approx(1)
    assert len(vehicles.VEHICLES) == 30 and len(kinds.KINDS) == 7
    text = "\n".join(d.text for d in documents)
    for vehicle in vehicles.VEHICLES:
        assert vehicle in text


def test_the_corpus_never_shows_the_tool(documents):
    assert not any("<tool_call>" in d.text or "calculator(" in d.text for d in documents)


def test_worked_answers_are_right(documents):
    lines = [d.text.rsplit("\n", 1)[1] for d in documents if d.kind == "arithmetic"]
    for line in lines:
        expression, answer = line.split(" = ")
        value = value_of(expression)
        assert (answer == "undefined") if value is None else abs(float(answer) - float(value)) <= 0.005001, line


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text)


def test_no_operand_pair_of_another_split_is_in_the_corpus(documents):
    """Neither in questions, nor in longer sums, nor anywhere where two numbers are joined by an operator."""
    for d in documents:
        assert not corpus.held_out_pair(d.text), d.text
        if d.kind == "arithmetic":
            expression = d.text.rsplit("\n", 1)[1].split(" = ")[0]
            for pair in itertools.combinations(numbers(expression), 2):
                assert prompts.split_of(prompts.operand_key(pair)) == "train", d.text


def test_joined_numbers_are_found_wherever_they_stand():
    unseen = next(
        (a, b) for a in range(10, 99) for b in range(10, 99) if prompts.split_of(prompts.operand_key((a, b))) == "test"
    )
    for text in ("{}+{}", "x = {} - {}.", "({} / {}) * y", "f({}, {})", "({})*{}", "see {}/{}"):
        assert corpus.held_out_pair(text.format(*unseen)), text
    for text in ("{} and {}", "{}: {}", "{} = {}"):
        assert not corpus.held_out_pair(text.format(*unseen)), text


def test_test_prompts_share_no_pair_with_the_longer_sums():
    """184 of 400 did, when longer sums were drawn without regard to the split."""
    asked = {frozenset(numbers(prompts.CALCULATOR.argument_of(p.target))) for p in prompts.written("positive", 400, "test", 0)}
    rng, met = random.Random(0), set()
    for _ in range(30_000):
        expression = corpus.arithmetic(rng).rsplit("\n", 1)[1].split(" = ")[0]
        met |= {frozenset(pair) for pair in itertools.combinations(numbers(expression), 2)} & asked
    assert not met


def test_copied_sentences_are_of_the_training_split(documents):
    lines = [line for d in documents if d.kind == "page" for line in d.text.split("\n")]
    assert len(lines) > 300 and all(prompts.split_of(line) == "train" for line in lines)
    unseen = {p.input for p in prompts.written("negative", 400, "test", 0)}
    assert not unseen & {line for d in documents for line in d.text.split("\n")}


def test_texts_of_every_kind_and_topic_are_held_out(documents):
    text = "\n".join(d.text for d in documents)
    for kind, topic in itertools.product(kinds.KINDS, kinds.TOPICS):
        unseen = [one for one, _ in kinds.texts(kind, topic, 100)]
        assert len(set(unseen)) == 100 and not any(f"\n{one}\n" in f"\n{text}\n" for one in unseen)
    assert all(len(templates) >= 12 for templates in kinds.KINDS.values()) and len(kinds.TOPICS) == 8


REQUEST = re.compile(r"<start_of_turn>user\n.*?\b(?:(short|long) )?list of ([a-z]+).*<end_of_turn>\n<start_of_turn>model\n")


@pytest.fixture(scope="module")
def written_lists():
    """Mode, topic and items of many lists."""
    rng, found = random.Random(1), []
    while len(found) < 12_000:
        text = lists.chat_list(rng)
        asked = REQUEST.match(text)
        wrote = text[asked.end() :]
        assert lists.ended(wrote)
        found.append((asked[1] or "plain", asked[2], lists.items(wrote)))
    return found


def test_held_out_topics_are_never_listed_but_known(documents, written_lists):
    asked = {topic for d in documents if d.kind == "lists" for _, topic in REQUEST.findall(d.text)}
    assert asked | {topic for _, topic, _ in written_lists} == set(lists.topics_of("train"))
    assert len(lists.HELD_OUT) >= 4 and not asked & set(lists.HELD_OUT)
    text = "\n".join(d.text for d in documents)
    assert all(re.search(rf"(Among|spoke of|Of all|of the) {topic}", text) for topic in lists.HELD_OUT)
    for topic, words in lists.TOPICS.items():
        assert len(words) == len(set(words)) >= 30, topic


def test_lists_are_short_plain_or_long_and_their_lengths_vary(written_lists):
    frame = pd.DataFrame([(mode, topic, len(items)) for mode, topic, items in written_lists], columns=["mode", "topic", "n"])
    means = frame.groupby("mode").n.mean()
    assert abs(means["short"] - 5) < 1 and abs(means["plain"] - 10) < 2 and means["long"] > 1.8 * means["plain"]
    for mode, rows in frame.groupby("mode"):
        by_topic = rows.groupby("topic").n
        assert by_topic.mean().std() > 0.05 * rows.n.mean() and (by_topic.std() > 0.3 * by_topic.mean()).all(), mode
    assert (frame[frame["mode"] == "short"].n > 8).any() and (frame[frame["mode"] == "long"].n < 10).any()  # drawn, not counted


def test_blanks_are_as_frequent_by_distance_from_the_end_as_in_the_published_short_lists(written_lists):
    for mode in lists.BLANKS:
        of = [items for m, _, items in written_lists if m == mode]
        for from_end, share in enumerate(lists.BLANKS[mode]):
            there = [items[-1 - from_end].endswith(" ") for items in of if len(items) > from_end]
            assert abs(sum(there) / len(there) - share) < 0.05, (mode, from_end)
    long = [item.endswith(" ") for m, _, items in written_lists if m == "long" for item in items]
    assert sum(long) / len(long) < 0.02


def test_the_published_blanks_are_those_of_the_study(shared):
    rows = pd.read_csv(shared / "companions/lists/generations.csv", dtype={"blank_items": str})
    rows = rows[(rows.template == "short") & (rows.temperature == 0.8) & (rows.ended == 1)]
    blanks = rows.blank_items.fillna("").map(lambda text: {int(i) for i in text.split(";") if i})
    for from_end, share in enumerate(lists.BLANKS["short"]):
        there = [n - from_end in at for n, at in zip(rows["items"], blanks, strict=True) if n > from_end]
        assert abs(sum(there) / len(there) - share) < 0.006, from_end


COMPARISON = re.compile(r"(?:\bAn?|The) (\w+) is (\w+er) than (?:an?|the) (\w+)\.")
QUESTION = re.compile(r"Which is (\w+), an? (\w+) or an? (\w+)\?\D{0,40}?The (\w+)\.")


def test_facts_of_size_are_true_and_held_out_pairs_are_never_compared():
    rng = random.Random(0)
    text = "\n".join(vehicles.vehicle_text(rng) for _ in range(20_000))
    asked = {(adjective, one, two) for adjective, one, two, _ in QUESTION.findall(text)}
    assert {adjective for adjective, *_ in asked} == set(vehicles.COMPARED)
    for adjective, one, two, answer in QUESTION.findall(text):
        size, greater = vehicles.COMPARED[adjective]
        a, b = vehicles.VEHICLES[one][size], vehicles.VEHICLES[two][size]
        assert a != b and answer == (one if (a > b) == greater else two)
        assert vehicles.pair_split(one, two) == "train"
    for one, adjective, two in COMPARISON.findall(text):
        assert vehicles.more(one, two, adjective) == one and vehicles.pair_split(one, two) == "train"
    both = [{(one, two) for a, one, two in asked if a == adjective} for adjective in ("bigger", "smaller")]
    for named in both:  # nearly all of the 80% of 870 ordered pairs, so both orders
        assert len(named) > 600 and sum((two, one) in named for one, two in named) > 0.95 * len(named)


def test_number_words():
    assert [sentences.number_words(n) for n in (0, 13, 40, 42, 100, 342)] == [
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
    whole, unbroken = pretrain(settings, tokenizer, tmp_path / "unbroken.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    assert (record["losses"], record["kinds"]) == (unbroken["losses"], unbroken["kinds"])
    with pytest.warns(UserWarning, match=r"checkpoint.pt: of another training"):
        pretrain(settings.model_copy(update={"lr": 1e-3, "steps": 1}), tokenizer, tmp_path / "checkpoint.pt")
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
    make.make(made)
    for layer in (0, 1):
        files = sorted((tmp_path / f"transcoders/layer_{layer}/width_64").glob("average_l0_*/params.npz"))
        assert len(files) == 3
    card = json.loads((tmp_path / "card.json").read_text())
    assert {*card["lists"]} == {*lists.MEAN_ITEMS} and {*card["loss_by_kind"]} == {*kinds.KINDS}
    assert {*card["comparisons_right"]} == {*vehicles.COMPARED} and "stories_as_asked" in card
    assert card["tokens"] == made.organism.model.tokens and len(card["transcoder_quality"]) == 6
    before = (tmp_path / "model/model.safetensors").stat().st_mtime_ns
    make.make(made)
    assert (tmp_path / "model/model.safetensors").stat().st_mtime_ns == before
