import time
from fractions import Fraction

import pytest

from lib.calculator import call, called, expression_of, same_value, value_of, well_formed


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("2-3-4", -5),
        ("8/4/2", 1),
        ("-(2-5)/4", Fraction(3, 4)),
        ("--3", 3),
        ("2*-3", -6),
        (" 12 + 30 ", 42),
        ("0.1+0.2", Fraction(3, 10)),
        (".5*2", 1),
        ("1/3", Fraction(1, 3)),
    ],
)
def test_values_are_exact(expression, value):
    assert value_of(expression) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "()", "1 2", "+1", "1+", ".", "1.", "1..2", "1,000", "2**3", "2//3", "2%3", "1e5", "0x10", "a",
     "__import__('os')",
     "(1", "1)", "1)(2", "٣+٤", "²", "1\n+2", "9" * 201],
)  # fmt: skip
def test_anything_else_has_no_value(text):
    assert value_of(text) is None


def test_division_by_zero_parses_but_has_no_value():
    assert expression_of(call("1/(2-2)")) == "1/(2-2)"
    assert value_of("1/(2-2)") is None
    assert not same_value(call("1/0"), call("1/0"))


def test_agrees_with_python_on_random_expressions():
    import random

    rng = random.Random(0)
    for _ in range(500):
        text = str(rng.randint(1, 99))
        for _ in range(rng.randint(0, 6)):
            text = rng.choice(["({})", "-{}", "{}"]).format(text) + rng.choice("+-*") + str(rng.randint(1, 99))
        assert value_of(text) == eval(text), text  # text of our own making


@pytest.mark.parametrize(
    "text", ["9**9**9**9", "(" * 100_000, "-" * 100_000, "(" * 99 + "1" + ")" * 99, "1/" * 99 + "7", "9*" * 99 + "9"]
)
def test_nothing_hangs(text):
    began = time.perf_counter()
    value_of(text)
    expression_of(call(text))
    assert time.perf_counter() - began < 1


def test_the_strict_grammar():
    assert expression_of("<tool_call>calculator(12+30)</tool_call>") == "12+30"
    assert expression_of(" <tool_call>calculator(12+30)</tool_call>\n") == "12+30"
    for text in (
        "x" + call("1+2"),
        call("1+2") + call("1+2"),
        "<tool_call>calculator(1+2)",
        "<tool_call>search(1+2)</tool_call>",
        call("1+"),
        call("one"),
    ):
        assert expression_of(text) is None, text


def test_calls_are_seen_where_they_are_begun_and_closed():
    assert called("so: <tool_call>") and not called("<tool>")
    assert well_formed("<tool_call>anything</tool_call>")
    assert not well_formed("</tool_call><tool_call>")


def test_same_value_is_about_the_value_and_the_strict_form():
    assert same_value(call("30+12"), call("12+30"))
    assert same_value(call("42"), call("12+30"))
    assert not same_value(call("12-30"), call("12+30"))
    assert not same_value("42", call("12+30"))
