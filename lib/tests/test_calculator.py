import time
from fractions import Fraction

import pytest

from lib.calculator import is_expression, value_of


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
    assert value_of(text) is None and not is_expression(text)


def test_division_by_zero_parses_but_has_no_value():
    assert is_expression("1/(2-2)")
    assert value_of("1/(2-2)") is None


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
    is_expression(text)
    assert time.perf_counter() - began < 1
