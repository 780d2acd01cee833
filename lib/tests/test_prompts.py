import gzip
import json
import re

import pytest

from lib.profiles.tool import Prompts
from lib.studies.tool import splits
from lib.texts import jsonl, phrasings, prompts
from lib.texts.calculator import value_of
from lib.texts.tool import CALCULATOR


def expression_of(prompt):
    return CALCULATOR.argument_of(prompt.target)


@pytest.mark.parametrize("label", prompts.SUBSETS)
@pytest.mark.parametrize("split", prompts.SPLITS)
def test_generated_prompts_are_new_and_repeatable(label, split):
    made = prompts.written(label, 100, split, 0)
    assert made == prompts.written(label, 100, split, 0)
    assert len({p.input for p in made}) == 100
    assert all(p.label == label and prompts.split_of(prompts.key(p)) == split for p in made)


def test_another_seed_gives_other_prompts():
    assert prompts.written("positive", 50, "test", 0) != prompts.written("positive", 50, "test", 1)


@pytest.mark.parametrize("label", ["positive", "tool_ood"])
def test_the_target_asks_for_what_the_question_asks(label):
    for p in prompts.written(label, 500, "train", 0):
        numbers = re.findall(r"\d+", p.input)
        assert sorted(re.findall(r"\d+", expression_of(p))) == sorted(set(numbers)) or sorted(set(numbers)) == sorted(
            set(re.findall(r"\d+", expression_of(p)))
        )
        assert value_of(expression_of(p)) is not None


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("Could you subtract 7 from 30?", "30-7"),
        ("If you take 7 away from 30, what do you get?", "30-7"),
        ("The bill was split 7 ways. The total was 30.", "30/7"),
    ],
)
def test_phrasings_that_turn_the_operands_round(text, expression):
    a, b = (int(n) for n in re.split(r"[-/]", expression))
    templates = [t for op in phrasings.OPERATORS for t in phrasings.PHRASINGS[op]]
    assert any(t.format(a=a, b=b, op="?").startswith(text) for t in templates)


def test_copies_repeat_the_input_and_ask_for_no_call():
    for p in prompts.written("negative", 300, "train", 0):
        assert p.input == p.target and "<tool_call>" not in p.target and re.search(r"\d|\w", p.input)


def test_splits_share_no_key_and_ood_no_phrasing():
    found = splits.splits(Prompts(train=300, validation=100, test=200))
    keys = {split: {prompts.key(p) for p in ps} for split, ps in found.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"] and not keys["validation"] & keys["test"]
    trained = {t for op in phrasings.OPERATORS for t in phrasings.PHRASINGS[op]}
    assert not trained & set(phrasings.OOD_PHRASINGS)
    assert [len([p for p in found["test"] if p.subset == s]) for s in ("tool", "copy", "tool_ood")] == [200] * 3


def test_the_order_of_operands_does_not_matter_to_the_split():
    assert prompts.key(prompts.Prompt("x", "<tool_call>calculator(7-30)</tool_call>", "positive")) == prompts.operand_key(
        (30, 7)
    )


def test_shares_of_the_splits():
    found = [prompts.split_of(str(i)) for i in range(5000)]
    for split, share in prompts.SPLITS.items():
        assert found.count(split) / 5000 == pytest.approx(share, abs=0.02)


def test_jsonl_round_trip(tmp_path):
    made = [prompts.Prompt('a\u2028b ☔ "q"', "a\nb", "negative"), *prompts.written("positive", 5, "test", 0)]
    jsonl.write_jsonl(made, tmp_path / "p.jsonl")
    assert jsonl.read_jsonl(tmp_path / "p.jsonl") == made


GOOD = {"input": "a", "target": "a", "label": "negative"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; write at least one line"),
        ("\n\n", "the file is empty"),
        (json.dumps(GOOD) + "\n{oops", ":2: not JSON"),
        (json.dumps({"input": "a", "label": "negative"}), ":1: field 'target' is missing or not text; add it"),
        (json.dumps(GOOD | {"input": 3}), ":1: field 'input' is missing or not text"),
        (json.dumps(GOOD | {"label": "neutral"}), ":1: label 'neutral' is unknown; use one of positive, negative, tool_ood"),
    ],
)
def test_bad_jsonl_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        jsonl.read_jsonl(file)
    assert str(file) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_not_utf8(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"input": "caf\xe9"}')
    with pytest.raises(ValueError, match="not UTF-8; save the file as UTF-8"):
        jsonl.read_jsonl(tmp_path / "latin.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "p.jsonl"
    jsonl.write_jsonl([GOOD], file)
    before = file.read_text()
    with pytest.raises(TypeError):
        jsonl.write_jsonl([GOOD, {"input": object()}], file)
    assert file.read_text() == before and list(tmp_path.iterdir()) == [file]


def test_published_files_are_read_and_split(shared):
    settings = Prompts(
        train=4000, validation=400, test=400,
        train_file=str(shared / "prompts/combined_dataset.jsonl"),
        test_file=str(shared / "prompts/exp2_combined_dataset_ood.jsonl"),
    )  # fmt: skip
    found = splits.splits(settings)
    assert len(found["test"]) == 60
    assert not {prompts.key(p) for p in found["train"]} & {prompts.key(p) for p in found["test"]}
    assert not {prompts.key(p) for p in found["train"]} & {prompts.key(p) for p in found["validation"]}
    assert sum(p.subset == "tool" for p in found["train"]) > 3000


def test_a_file_without_a_subset_is_refused(tmp_path):
    file = tmp_path / "copies.jsonl"
    jsonl.write_jsonl([p for s in prompts.SPLITS for p in prompts.written("negative", 5, s, 0)], file)
    with pytest.raises(ValueError, match="no tool prompts for the train split"):
        splits.splits(Prompts(train=2, validation=2, test=2, train_file=str(file)))


@pytest.fixture
def texts(tmp_path):
    """JSONL of web texts, compressed, as C4 has them."""
    path = tmp_path / "texts.json.gz"
    line = "Room {0} is open from 9 to 5 on weekdays. It costs {0}.50 a night to sleep in! Too short 1.\nNo number in here."
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for i in range(300):
            file.write(json.dumps({"text": line.format(i), "url": "https://example.org"}) + "\n")
    return path


def test_sentences_to_copy_are_the_published_kind(texts):
    found = list(splits.sentences(str(texts)))
    assert len(found) == 600
    assert found[14:16] == ["Room 7 is open from 9 to 5 on weekdays.", "It costs 7.50 a night to sleep in!"]
    assert all(30 <= len(text) <= 150 and re.search(r"\d", text) for text in found)


def test_copies_of_a_source_fall_into_the_splits_by_content(texts):
    settings = Prompts(train=40, validation=5, test=6, copies=str(texts))
    found = splits.splits(settings)
    assert found == splits.splits(settings)
    for split, n in (("train", 40), ("validation", 5), ("test", 6)):
        copies = [p for p in found[split] if p.subset == "copy"]
        assert len({p.input for p in copies}) == n and all(prompts.split_of(prompts.key(p)) == split for p in copies)
        assert all(p.input == p.target for p in copies)
        assert sum(p.subset == "tool" for p in found[split]) == n


def test_a_source_of_copies_that_is_not_there_or_has_none_is_one_line(texts, tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file, and not hf://datasets/owner/name@revision/path; give one"):
        splits.splits(Prompts(train=1, validation=1, test=1, copies="none.json"))
    empty = tmp_path / "short.json"
    empty.write_text('{"text": "Too short 1."}\n')
    with pytest.raises(ValueError, match=r"short\.json: no copy prompts for the train split; add some"):
        splits.splits(Prompts(train=1, validation=1, test=1, copies=str(empty)))


def test_at_most_keeps_the_order():
    asked = [prompts.written(label, 5, "train", 0) for label in ("positive", "negative")]
    mixed = [q for pair in zip(*asked, strict=True) for q in pair]
    assert jsonl.at_most(mixed) == mixed and jsonl.at_most(mixed, 3) == mixed[:6]
    assert jsonl.at_most(mixed[1:], 1) == mixed[1:3]


def skeleton(text: str) -> str:
    """A phrasing without its numbers, operators and context words' case."""
    return re.sub(r"\W+", " ", re.sub(r"\{\w+\}", " ", text)).strip().lower()


def test_ood_has_forty_phrasings_none_with_the_tag_and_none_seen_before():
    found = phrasings.OOD_PHRASINGS
    assert len({skeleton(text) for text in found}) == len(found) >= 40
    assert not any("tool_call" in text or CALCULATOR.open in text for text in found)
    assert all(CALCULATOR.open in text for text in phrasings.TAGGED_PHRASINGS) and len(phrasings.TAGGED_PHRASINGS) == 4
    from lib.texts import corpus

    seen = {skeleton(text) for op in phrasings.OPERATORS for text in phrasings.PHRASINGS[op]}
    seen |= {skeleton(text) for text in corpus._MORE_PHRASINGS}
    assert not seen & {skeleton(text) for text in [*found, *phrasings.TAGGED_PHRASINGS]}
    for p in prompts.written("tool_ood", 400, "test", 0):
        assert CALCULATOR.open not in p.input and p.template in found


@pytest.mark.parametrize("label", prompts.SUBSETS)
def test_prompts_say_which_template_wrote_them(label, tmp_path):
    made = prompts.written(label, 200, "test", 0)
    groups = {t: [p for p in made if p.template == t] for t in {p.template for p in made}}
    assert 30 <= len(groups) <= 48 and len(jsonl.templates(made)) == 200
    for template, alike in groups.items():
        pattern = re.sub(r"\\\{\w+\\\}", r".+", re.escape(template))
        assert all(re.search(f"{pattern}$", p.input) for p in alike), template
    jsonl.write_jsonl(made, tmp_path / "p.jsonl")
    assert jsonl.read_jsonl(tmp_path / "p.jsonl") == made


def test_a_file_of_ones_own_may_name_templates(tmp_path):
    rows = [GOOD | {"template": "greeting"}, GOOD]
    jsonl.write_jsonl(rows, tmp_path / "own.jsonl")
    one, two = jsonl.read_jsonl(tmp_path / "own.jsonl")
    assert (one.template, two.template) == ("greeting", "") and jsonl.templates([one, two])[0] == "greeting"
    jsonl.write_jsonl([GOOD | {"template": 3}], tmp_path / "own.jsonl")
    with pytest.raises(ValueError, match=r":1: field 'template' is not text"):
        jsonl.read_jsonl(tmp_path / "own.jsonl")
