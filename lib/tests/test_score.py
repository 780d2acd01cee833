import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.score import main, score
from lib.studies.tool.answers import outcomes
from lib.texts.jsonl import write_jsonl
from lib.texts.tool import CALCULATOR


def rows(*pairs):
    return [{"input": "q", "target": target, "generation": generation} for target, generation in pairs]


def test_scores_and_intervals(tmp_path):
    file = tmp_path / "g.jsonl"
    write_jsonl(
        rows(
            (CALCULATOR.call("1+2"), CALCULATOR.call("2+1")),
            (CALCULATOR.call("1+2"), CALCULATOR.call("9**9**9**9")),
            ("a", "a"),
            (CALCULATOR.call("1/2"), "0.5"),
        ),
        file,
    )
    found = score(file)
    assert found["n"] == 4 and found["math_correct_n"] == 3
    assert found["tool_call_rate"] == found["valid_tool_format_rate"] == 0.5
    assert found["parsed_rate"] == 0.25 and found["math_correct_rate"] == pytest.approx(1 / 3)
    assert found["math_correct_rate_low"] < 1 / 3 < found["math_correct_rate_high"]


def test_no_expression_is_null(tmp_path):
    file = tmp_path / "g.jsonl"
    write_jsonl(rows(("a", "a")), file)
    found = score(file)
    assert found["math_correct_rate"] is None and found["math_correct_rate_low"] is None


def refused(file) -> str:
    """What the command ends with."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["score", str(file)])
        main()
    return end.value.code


def test_the_command_prints_one_object_or_one_line(tmp_path):
    file = tmp_path / "g.jsonl"
    write_jsonl(rows((CALCULATOR.call("1+2"), CALCULATOR.call("1+2"))), file)
    good, bad = (
        subprocess.run([sys.executable, "-m", "lib.score", str(f)], capture_output=True, text=True)
        for f in (file, tmp_path / "none.jsonl")
    )
    assert json.loads(good.stdout)["math_correct_rate"] == 1
    assert bad.returncode == 1 and "no such file" in bad.stderr and bad.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ('{"input": "a", "target": "b"}', ":1: field 'generation' is missing"),
        ("\n{", ":2: not JSON"),
        ("[1]", "not an object"),
        ('{"input": "a", "target": "b", "generation": null}', ":1: field 'generation' is missing or not text"),
        ("[" * 100_000, ":1: not JSON (maximum recursion depth"),
        ('{"input": "a", "target": "b", "generation": "c", "n": ' + "9" * 5000 + "}", ":1: not JSON (Exceeds the limit"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    said = refused(file)
    assert message in said and str(file) in said and "\n" not in said


def test_a_folder_is_one_line(tmp_path):
    said = refused(tmp_path)
    assert f"{tmp_path}: a folder, where a file is needed" in said and "\n" not in said


def test_published_prompts_scored_against_themselves(shared, tmp_path):
    """Every published tool target is in the strict grammar, and right about itself; one that divides by zero asks nothing."""
    lines = (shared / "prompts/combined_dataset.jsonl").read_text().splitlines()
    given = [json.loads(line) for line in lines]
    write_jsonl([{**row, "generation": row["target"]} for row in given], file := tmp_path / "g.jsonl")
    found = score(file)
    positive = sum(row["label"] == "positive" for row in given)
    zero = sum(row["target"].endswith("/0)</tool_call>") for row in given)
    assert found["n"] == len(given) and found["math_correct_n"] == positive - zero
    assert found["parsed_rate"] == positive / len(given)
    assert found["math_correct_rate"] == 1


CALL = CALCULATOR.call("12+30")


@pytest.mark.parametrize(
    ("generation", "right", "parsed"),
    [
        (CALL + "<eos>", True, True),
        (CALL + "<eos><eos>\n", True, True),
        (CALL + "<end_of_turn>\n<eos>", True, True),
        (CALL + "<|im_end|>", True, True),
        (CALL + "</s>", True, True),
        (CALL + "<EOS>", True, True),
        (CALL + "<｜end▁of▁sentence｜>", True, True),
        (CALL.replace("calculator", "\n" * 12 + "calculator").replace("</", "\n" * 12 + "</"), True, False),
        ("Sure: " + CALL, True, False),
        (CALL + " is the call<eos>", True, False),
        ("<tool_call> calculator( 30 + 12 ) </tool_call><eos>", True, False),
        (CALL + CALCULATOR.call("1+1"), True, False),
        (CALCULATOR.call("1+1") + CALL, False, False),
        ("<tool_call>calculator(12+30)</tool> " + CALL, True, False),
        ("<tool_call>calculator(12+</tool_call>" + CALL, False, False),
        ("<tool_call>calculator(x)</tool_call>" + CALL, False, False),
        ("<tool_call>calculator()</tool_call>" + CALL, True, False),
        ("<tool_call>calculator((10+2)+(40-10))</tool_call><eos>", True, True),
        ("<tool_call>calculator(12+30)", False, False),
        ("<eos>" + CALL, True, False),
        ("42<eos>", False, False),
        ("", False, False),
        ("<tool_call>calculator(" + "(" * 199 + ")</tool_call>", False, False),
        ("<tool_call>calculator(" + "9" * 5000 + ")</tool_call>", False, False),
        ("<tool_call>calculator(9**9**9**9)</tool_call>", False, False),
    ],
)
def test_the_first_call_anywhere_is_what_counts(generation, right, parsed):
    """As the published study counts; its own logs end in `<eos>`, and scored nothing when the text had to be one call."""
    assert CALCULATOR.right(generation, CALL) is right and CALCULATOR.right(generation, CALL + "<eos>") is right
    assert (CALCULATOR.argument_of(generation) is not None) is parsed


def test_special_tokens_at_the_end_are_no_text(tmp_path):
    write_jsonl(rows(("a 1", "a 1<eos>"), (CALL, CALL + "<eos>"), (CALCULATOR.call("1/0"), CALL)), file := tmp_path / "g.jsonl")
    found = score(file)
    assert found["math_correct_n"] == 1 and found["math_correct_rate"] == 1
    assert found["parsed_rate"] == pytest.approx(2 / 3) and found["tool_call_rate"] == pytest.approx(2 / 3)
    assert outcomes(CALCULATOR, ["a 1", "<eos>"], ["a 1<eos>", "<"]).exact_match_rate.tolist() == [True, False]


def test_hostile_logs_are_scored_at_once(tmp_path):
    many = ["<tool_call>calculator(" * 20_000 + CALL, "(" * 100_000, CALL + "<eos>" * 20_000, CALL + " " * 200_000 + "<eos>",
            CALCULATOR.call("(" * 199), "<tool_call>calculator(" + "(1)" * 20_000 + ")</tool_call>"]  # fmt: skip
    write_jsonl(rows(*((CALL, text) for text in many)), file := tmp_path / "g.jsonl")
    assert score(file)["math_correct_n"] == len(many)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text("()+-*/<>|_0123456789 eos\n", max_size=120), st.booleans())
def test_fuzzed_calls_are_right_or_not_but_never_raise(argument, ended):
    text = CALCULATOR.call(argument) + "<eos>" * ended
    assert CALCULATOR.right(text, CALL) in (True, False)
    [row] = outcomes(CALCULATOR, [CALL], [text]).to_dict("records")
    assert row["tool_call_rate"] is True
