"""A tool of one's own: the template, hostile text in two grammars, and chapters of the book under another grammar."""

import json
import random
import shutil
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
import torch

from lib import profiles
from lib.book import plots
from lib.book.paths import NOTEBOOKS, ROOT
from lib.measure import evaluation
from lib.score import score
from lib.studies.tool import scores, splits
from lib.studies.tool.answers import outcomes
from lib.tests import real
from lib.tests.at import other
from lib.texts import jsonl, probes, prompts
from lib.texts.prompts import Prompt
from lib.texts.sentences import ADJ, COLOUR, PLURAL, copy_sentence
from lib.texts.tool import CALCULATOR, Tool

TEMPLATE = ROOT / "lib/profiles/examples/my_tool.toml"
SEARCH = profiles.load(str(TEMPLATE)).tool.grammar
call = CALCULATOR.call


# --- the grammar ---


def test_the_calculator_is_the_default():
    assert call("1+2") == "<tool_call>calculator(1+2)</tool_call>"
    assert all(p.tool.grammar == CALCULATOR for name in profiles.names() if (p := profiles.load(name)).tool)
    assert SEARCH.call("red buses") == "<search>red buses</search>"


def test_the_strict_grammar():
    assert CALCULATOR.argument_of("<tool_call>calculator(12+30)</tool_call>") == "12+30"
    assert CALCULATOR.argument_of(" <tool_call>calculator(12+30)</tool_call>\n") == "12+30"
    assert CALCULATOR.argument_of(call("1/(2-2)")) == "1/(2-2)"
    for text in (
        "x" + call("1+2"),
        call("1+2") + call("1+2"),
        "<tool_call>calculator(1+2)",
        "<tool_call>search(1+2)</tool_call>",
        call("1+"),
        call("one"),
        call(""),
    ):
        assert CALCULATOR.argument_of(text) is None, text


def test_the_strict_grammar_of_text():
    assert SEARCH.argument_of(" <search>red\nbuses </search>\n") == "red\nbuses "
    assert SEARCH.argument_of(SEARCH.call("٣ ☔ (1+2) </tool_call>")) == "٣ ☔ (1+2) </tool_call>"
    for text in (
        "<search> \n</search>",
        "<search></search>",
        "<search>",
        "</search>",
        "<search>a",
        "see <search>a</search>",
        "<search>a</search><search>b</search>",
        "<search>a<search>b</search>",
        SEARCH.call("a" * 201),
        call("1+2"),
    ):
        assert SEARCH.argument_of(text) is None, text


def test_head_and_tail_do_not_share_characters():
    one = Tool(open="<<", close=">>", before="|", after="|", argument="text")
    assert one.argument_of("<<|>>") is None and one.argument_of("<<||>>") is None and one.argument_of("<<|||>>") == "|"


def test_calls_are_seen_where_they_are_begun_and_closed():
    assert CALCULATOR.called("so: <tool_call>") and not CALCULATOR.called("<tool>")
    assert CALCULATOR.well_formed("<tool_call>anything</tool_call>")
    assert not CALCULATOR.well_formed("</tool_call><tool_call>")
    assert SEARCH.called("so: <search>") and not SEARCH.called(call("1+2"))
    assert SEARCH.well_formed("<search></search>") and not SEARCH.well_formed("</search><search>")


def test_right_is_about_the_value_or_the_text_and_the_strict_form():
    assert CALCULATOR.right(call("30+12"), call("12+30")) and CALCULATOR.right(call("42"), call("12+30"))
    assert not CALCULATOR.right(call("12-30"), call("12+30")) and not CALCULATOR.right("42", call("12+30"))
    assert not CALCULATOR.right(call("1/0"), call("1/0"))
    assert SEARCH.right("<search> red buses\n</search>", SEARCH.call("red buses"))
    assert not SEARCH.right(SEARCH.call("Red buses"), SEARCH.call("red buses"))
    assert not SEARCH.right(SEARCH.call("30+12"), SEARCH.call("12+30")) and not SEARCH.right(
        "red buses", SEARCH.call("red buses")
    )


def test_tags_are_no_patterns():
    odd = Tool(open="[(*", close=".*)]", before="$^", after="+?", argument="text")
    assert odd.argument_of(odd.call("a")) == "a" and odd.argument_of("[(xx$^a+?.yy)]") is None
    assert odd.called("[(*") and not odd.called("[((((")


LONG = ("<tool_call>", "</search>", "<search>", "(", "-", " ", "<search>a</search>", "<tool_call>calculator(")
HOSTILE = [
    "", " ", "\0", "<", "<<<<", "{0}", "%s", "\\1", "(a+)+$", "__import__('os').system('true')", "9**9**9**9",
    "\u202e", "\ud800", *(text * 100_000 for text in LONG),
]  # fmt: skip


@pytest.mark.parametrize("tool", [CALCULATOR, SEARCH], ids=["calculator", "search"])
def test_hostile_text_is_counted_and_nothing_hangs(tool):
    began = time.perf_counter()
    texts = HOSTILE + [tool.call(text) for text in HOSTILE]
    found = outcomes(tool, [tool.call("1+2")] * len(texts), texts)
    assert found.tool_call_rate.tolist() == [tool.open in text for text in texts]
    assert not found.math_correct_rate.astype(bool).any()
    assert time.perf_counter() - began < 2


# --- profiles ---


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('argument = "text"', 'argument = "json"', "tool.grammar.argument: Input should be 'arithmetic' or 'text', not 'json'"),
        ('open = "<search>"', 'open = ""', "tool.grammar.open: String should match pattern"),
        ('open = "<search>"', 'open = "<search> "', "tool.grammar.open: String should match pattern"),
        ('before = ""', 'befor = ""', "unknown key 'tool.grammar.befor'; known there: open, close, before, after, argument"),
        ("train_file", "# train_file", "the project writes arithmetic alone; name your tool.prompts.train_file"),
        ("test_file", "# test_file", "the project writes arithmetic alone; name your tool.prompts.test_file"),
    ],
)
def test_a_bad_grammar_is_one_line(tmp_path, old, new, message):
    text = TEMPLATE.read_text()
    assert old in text
    (tmp_path / "bad.toml").write_text(text.replace(old, new))
    with pytest.raises(profiles.ProfileError) as error:
        profiles.load(str(tmp_path / "bad.toml"))
    assert "bad.toml" in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


# --- prompts ---


def test_arithmetic_under_another_name_is_generated_in_it():
    other = Tool(open="<call>", close="</call>", before="calc:", after="")
    for label in prompts.SUBSETS:
        ours, theirs = prompts.written(label, 200, "test", 0), prompts.written(label, 200, "test", 0, other)
        for p, q in zip(ours, theirs, strict=True):
            assert other.argument_of(q.target) == CALCULATOR.argument_of(p.target) and "tool_call" not in q.input + q.target
            assert prompts.key(p) == prompts.key(q, other)
    assert all("<call>" in p.input for p in probes.ood("tag_named", 20, tool=other))
    for kind in probes.OOD:
        for p, q in zip(probes.ood(kind, 20), probes.ood(kind, 20, tool=other), strict=True):
            assert q.target == other.call(CALCULATOR.argument_of(p.target))
    for first, second in probes.pairs("request", 20, tool=other):
        assert other.argument_of(first.target) and second.target == second.input


def test_no_prompts_are_written_for_a_tool_that_is_asked_for_text():
    for write in (lambda: prompts.written("positive", 1, "test", 0, SEARCH), lambda: probes.ood("phrasing", 1, tool=SEARCH)):
        with pytest.raises(ValueError, match=r"arithmetic alone; name tool\.prompts\.train_file and tool\.prompts\.test_file"):
            write()


def searches(n: int, asks: list[str], label: str, seed: int) -> list[Prompt]:
    rng = random.Random(seed)
    queries = [f"{rng.choice(ADJ)} {rng.choice(COLOUR)} {rng.choice(PLURAL)}" for _ in range(n)]
    return [Prompt(rng.choice(asks).format(query), SEARCH.call(query), label) for query in queries]


def copies(n: int, seed: int) -> list[Prompt]:
    rng = random.Random(seed)
    return [Prompt(text, text, "negative") for text, _ in (copy_sentence(rng) for _ in range(n))]


TRAINED = ["Look up {}.", "Search for {}.", "Find pages about {}."]
UNSEEN = ["Is there anything on {}?", "What does the web say about {}?"]


@pytest.fixture(scope="module")
def search(tmp_path_factory, folder):
    """The template with a tiny model, prompts made here and the sizes of `smoke`, in a file; trained until it opens calls."""
    place = tmp_path_factory.mktemp("search")
    train, test = place / "train.jsonl", place / "test.jsonl"
    jsonl.write_jsonl(searches(60, TRAINED, "positive", 0) + copies(60, 1), train)
    held_out = searches(4, TRAINED, "positive", 2) + copies(4, 3) + searches(4, UNSEEN, "tool_ood", 4)
    jsonl.write_jsonl([*held_out, jsonl.read_jsonl(train)[0]], test)
    real.gemma_scope(place / "bases")
    file, sizes = place / "test-search.toml", (profiles.FOLDER / "smoke.toml").read_text()
    for old, new in (("dropout = 0.1", "dropout = 0.0"), ("lr = 5e-3", "lr = 2e-2"), ("epochs = 1", "epochs = 12")):
        assert old in sizes
        sizes = sizes.replace(old, new)
    file.write_text(f"""
        {TEMPLATE.read_text().split("[model]")[0]}
        [model]
        source = "{folder}"
        [transcoders]
        source = "{place}/bases"
        width = "16k"
        l0_ranks = [0.5]
        [tool.prompts]
        train_file = "{train}"
        test_file = "{test}"
        train = 24
        validation = 4
        test = 5
        {sizes[sizes.index("[tool.finetune]") : sizes.index("[features]")]}
    """)
    yield file
    paths = profiles.load(str(file)).paths
    for made in (paths.data, paths.figures, paths.build):
        shutil.rmtree(made, ignore_errors=True)


def test_splits_are_by_what_is_searched_for(search):
    p = profiles.load(str(search))
    found = splits.splits(p.tool.prompts, p.tool.grammar)
    asked = {split: {q.target for q in qs if q.subset != "copy"} for split, qs in found.items()}
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["validation"] and all(asked.values())
    assert found["test"] == jsonl.read_jsonl(p.tool.prompts.test_file)
    assert prompts.key(Prompt("x", SEARCH.call(" red buses"), "positive"), SEARCH) == "red buses"


def by_hand(row: dict) -> dict[str, bool | None]:
    """The outcomes of one line of generations, for targets and answers of the search tool without odd white space."""
    text, target = row["generation"], row["target"]
    inside = text[8:-9] if text[:8] == "<search>" and text[-9:] == "</search>" else ""
    parsed = 0 < len(inside) <= 200 and "search>" not in inside
    return {
        "tool_call_rate": text.count("<search>") > 0,
        "valid_tool_format_rate": 0 <= text.find("<search>") < text.rfind("</search>"),
        "parsed_rate": parsed,
        "math_correct_rate": text.startswith(target) if target.startswith("<search>") else None,  # the first call counts
        "exact_match_rate": text == target,
    }


def share(values: list) -> float:
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else float("nan")


ANSWERS = [
    lambda p: p.target, lambda p: "<search>other</search>", lambda p: f"{p.target} and", lambda p: "<search>cut",
    lambda p: p.target * 2, lambda p: call("1+2"), lambda p: p.input, lambda p: "",
]  # fmt: skip


def test_rates_are_a_hand_count(search, tiny, monkeypatch):
    p = profiles.load(str(search))
    asked = searches(12, TRAINED, "positive", 5) + copies(6, 6)
    wrote = [ANSWERS[i % len(ANSWERS)](q) for i, q in enumerate(asked)]
    answers = {tuple(tiny.tokenizer(f"{q.input}\n").input_ids): text for q, text in zip(asked, wrote, strict=True)}
    written = lambda hf, tokenizer, questions, limit, end: [answers[tuple(ids)] for ids in questions]
    monkeypatch.setattr(evaluation, "continued", written)
    [table] = scores.measure(p.tool, tiny, asked)
    counted = [by_hand({"generation": text, "target": q.target}) for text, q in zip(wrote, asked, strict=True)]
    found = scores.summary(table)
    for name in counted[0]:
        assert found[name] == pytest.approx(share([row[name] for row in counted])), name
    assert found["tool_call_rate"] == 10 / 18 and found["parsed_rate"] == 5 / 18 and found["math_correct_rate"] == 5 / 12


def test_the_decision_is_about_this_tools_tag(search, tiny, smoke):
    """Logit differences of the two grammars differ by that of their first tokens."""
    asked = copies(2, 7)
    profile = other(profiles.load(str(search)), grammar=Tool(open="[[", close="]]", argument="text"))
    ours, theirs = (scores.forced(q.tool, tiny, asked)[0].logit_difference for q in (smoke, profile))
    first = [tiny.tokenizer(tag, add_special_tokens=False).input_ids[0] for tag in ("<tool_call>", "[[calculator(1")]
    assert first[0] != first[1]
    for i, p in enumerate(asked):
        ids = tiny.tokenizer(f"{p.input}\n", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = tiny.hf(ids).logits[0, -1]
        assert (ours[i] - theirs[i]) == pytest.approx((logits[first[0]] - logits[first[1]]).item(), abs=1e-3)


# --- the book ---

RUN = ["01_prompts", "02_finetune_lora", "03_delta_transcoders", "04_exp1_reconstruction", "05_exp2a_layers", "06_exp2b_dose"]


def chapter(name: str, profile: str) -> None:
    """A chapter in this process, with small parameters."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {"profile": profile} | {key: 3 for key in names if key == "n_prompts"}


@pytest.fixture(scope="module")
def book(search):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "has_chrome", lambda: False)
        for name in RUN:
            chapter(name, str(search))
    return profiles.load(str(search)).paths


def test_chapters_run_and_their_tables_are_hand_counts(book):
    table = pd.read_csv(book.results / "exp2b.csv")
    assert set(table.subset) == {"tool", "copy", "tool_ood"} and table.tool_call_rate.max() > 0.3
    for _, row in table.iterrows():
        file = book.generations / "exp2b" / f"{row.subset}_layer_{row.layer}_{row.condition}.jsonl"
        counted = [by_hand(json.loads(line)) for line in file.read_text().splitlines()]
        for name in counted[0]:
            assert row[name] == pytest.approx(share([one[name] for one in counted]), nan_ok=True), (file, name)


def test_chapter_9_says_that_it_is_for_a_calculator(book, search, capsys):
    with pytest.raises(SystemExit) as end:
        chapter("09_tool_or_template", str(search))
    assert end.value.code == 0 and "written for a calculator" in capsys.readouterr().out


def test_scoring_by_the_profile(search, tmp_path):
    rows = [
        {"input": "q", "target": SEARCH.call("a"), "generation": text} for text in (SEARCH.call(" a"), SEARCH.call("b"), "a")
    ]
    jsonl.write_jsonl(rows, file := tmp_path / "g.jsonl")

    command = [sys.executable, "-m", "lib.score", str(file), "--profile", str(search)]
    mine, theirs = json.loads(subprocess.run(command, capture_output=True, cwd=ROOT).stdout), score(file)
    assert (mine["tool_call_rate"], mine["math_correct_rate"], mine["math_correct_n"]) == (2 / 3, 1 / 3, 3)
    assert (theirs["tool_call_rate"], theirs["math_correct_rate"], theirs["math_correct_n"]) == (0, None, 0)
    assert list(mine) == list(theirs)
