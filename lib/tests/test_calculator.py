import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.texts.calculator import MAX_DEPTH, is_expression, value_of


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


def test_depth_is_bounded_and_length_too():
    """199 open parentheses once overflowed the stack."""
    for n in range(1, 400):
        assert value_of("(" * n) is None and value_of("(-" * n) is None and value_of("-(" * n + "1") is None
    assert value_of("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1
    assert value_of("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1)) is None
    assert value_of("-" * 199 + "1") == -1 and value_of("-" * 198 + "1") == 1


NUMBERS = st.integers(0, 999).map(lambda n: (str(n), Fraction(n)))
OF = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}  # fmt: skip


def joined(parts):
    """Two texts with their values, in parentheses and joined by an operator."""
    (left, a), operator, (right, b), space = parts
    value = None if a is None or b is None else OF[operator](a, b)
    return f"({left}){space}{operator}{space}({right})", value


EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner, st.sampled_from(["", " "])).map(joined),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(EXPRESSIONS)
def test_fuzzed_expressions_have_the_value_that_they_were_made_with(made):
    text, value = made
    if len(text) <= 200:
        assert is_expression(text) and value_of(text) == value


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.one_of(st.text("()+-*/.0123456789 ", max_size=250), st.text(max_size=250)))
def test_fuzzed_text_never_raises(text):
    value = value_of(text)
    assert value is None or isinstance(value, Fraction)
    assert is_expression(text) or value is None
