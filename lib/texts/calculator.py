"""Exact arithmetic on what a calculator is asked; the call around it is `lib.texts.tool`.

Model output is hostile text, so nothing here evaluates code: expressions are parsed by a small
recursive-descent parser over exact fractions. There is no power operator, an expression has at most
200 characters and parentheses at most 40 deep, so every value is found at once and nothing can hang or overflow.

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*
    factor     := "-" factor | number | "(" expression ")"
    number     := digits ["." digits] | "." digits
"""

import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DEPTH = 40  # of parentheses

_TOKEN = re.compile(r" *(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([-+*/()])) *")


class _NotAnExpressionError(ValueError):
    pass


def is_expression(text: str) -> bool:
    """Whether the text is an expression; its value may be undefined, as in `1/0`."""
    try:
        _evaluated(text)
    except _NotAnExpressionError:
        return False
    return True


def value_of(expression: str) -> Fraction | None:
    """The exact value, or `None` for what is not an expression, is too long or too deep, or divides by zero."""
    try:
        return _evaluated(expression)
    except _NotAnExpressionError:
        return None


def _evaluated(text: str) -> Fraction | None:
    """The value of an expression, `None` where it divides by zero; `_NotAnExpressionError` for anything else."""
    tokens = _tokens(text)

    def chain(operators: str, part: Callable[[int], Fraction | None], depth: int) -> Fraction | None:
        value = part(depth)
        while tokens[-1] and tokens[-1] in operators:
            value = _combined(tokens.pop(), value, part(depth))
        return value

    def expression(depth: int) -> Fraction | None:
        return chain("+-", lambda depth: chain("*/", factor, depth), depth)

    def factor(depth: int) -> Fraction | None:
        sign = 1
        while tokens[-1] == "-":
            sign *= -1
            tokens.pop()
        token = tokens.pop() if tokens[-1] else ""
        if token == "(" and depth < MAX_DEPTH:
            value = expression(depth + 1)
            if not tokens[-1] or tokens.pop() != ")":
                raise _NotAnExpressionError(text)
        elif token and token not in "+*/()":
            value = Fraction(token)
        else:
            raise _NotAnExpressionError(text)
        return None if value is None else sign * value

    value = expression(0)
    if tokens != [""]:
        raise _NotAnExpressionError(text)
    return value


def _tokens(text: str) -> list[str]:
    """Numbers, signs and parentheses, the first one last; before them "", the end."""
    if len(text) > MAX_CHARACTERS:
        raise _NotAnExpressionError(text)
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise _NotAnExpressionError(text)
        tokens.append(match[1] or match[2])
        position = match.end()
    return ["", *reversed(tokens)]


def _combined(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """One operation; `None` where a side is undefined or the right side of a division is zero."""
    if left is None or right is None:
        return None
    if operator == "/":
        return left / right if right else None
    return {"+": left + right, "-": left - right, "*": left * right}[operator]
