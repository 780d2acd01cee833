import json
import subprocess
import sys

import pytest

from lib.prompts import write_jsonl
from lib.score import score
from lib.tool import CALCULATOR


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


def command(file):
    return subprocess.run([sys.executable, "-m", "lib.score", str(file)], capture_output=True, text=True)


def test_the_command_prints_one_object(tmp_path):
    file = tmp_path / "g.jsonl"
    write_jsonl(rows((CALCULATOR.call("1+2"), CALCULATOR.call("1+2"))), file)
    assert json.loads(command(file).stdout)["math_correct_rate"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ('{"input": "a", "target": "b"}', ":1: field 'generation' is missing"),
        ("\n{", ":2: not JSON"),
        ("[1]", "not an object"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    result = command(file)
    assert result.returncode != 0 and message in result.stderr and str(file) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_file_is_one_line(tmp_path):
    result = command(tmp_path / "none.jsonl")
    assert "no such file" in result.stderr and result.stderr.count("\n") == 1


def test_published_prompts_scored_against_themselves(shared, tmp_path):
    """Every published tool target is in the strict grammar, and right about itself unless it divides by zero."""
    lines = (shared / "prompts/combined_dataset.jsonl").read_text().splitlines()
    given = [json.loads(line) for line in lines]
    write_jsonl([{**row, "generation": row["target"]} for row in given], file := tmp_path / "g.jsonl")
    found = score(file)
    positive = sum(row["label"] == "positive" for row in given)
    assert found["n"] == len(given) and found["math_correct_n"] == positive
    assert found["parsed_rate"] == positive / len(given)
    zero = sum(row["target"].endswith("/0)</tool_call>") for row in given)
    assert found["math_correct_rate"] == pytest.approx(1 - zero / positive)
