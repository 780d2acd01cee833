"""Exact arithmetic on what a calculator is asked; the call around it is `lib.tool`.

Model output is hostile text, so nothing here evaluates code: expressions are parsed by a small
recursive-descent parser over exact fractions. There is no power operator and an expression has at
most 200 characters, so every value is found at once and nothing can hang.

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "/") factor)*
    factor     := "-" factor | number | "(" expression ")"
    number     := digits ["." digits] | "." digits
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 200

_TOKEN = re.compile(r" *(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([-+*/()])) *")


def is_expression(text: str) -> bool:
    """Whether the text is an expression; its value may be undefined, as in `1/0`."""
    return _parse(text) is not None


def value_of(expression: str) -> Fraction | None:
    """The exact value, or `None` for what is not an expression, is too long or divides by zero."""
    tree = _parse(expression)
    return None if tree is None else _value(tree)


# A tree is a Fraction, ("-", tree) for a negation, or (operator, tree, tree).


def _parse(text: str):
    """The tree of an expression, or `None`."""
    if len(text) > MAX_CHARACTERS:
        return None
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            return None
        tokens.append(match[1] or match[2])
        position = match.end()
    tokens.append("")  # the end

    def chain(operators: str, part):
        tree = part()
        while tree is not None and tokens[0] and tokens[0] in operators:
            operator, right = tokens.pop(0), part()
            tree = None if right is None else (operator, tree, right)
        return tree

    def expression():
        return chain("+-", lambda: chain("*/", factor))

    def factor():
        token = tokens.pop(0) if tokens[0] else ""
        if token == "-":
            inner = factor()
            return None if inner is None else ("-", inner)
        if token == "(":
            inner = expression()
            return inner if tokens[0] and tokens.pop(0) == ")" else None
        return Fraction(token) if token and token not in "+*/)" else None

    tree = expression()
    return tree if tokens == [""] else None


def _value(tree) -> Fraction | None:
    if isinstance(tree, Fraction):
        return tree
    operator, *parts = tree
    values = [_value(part) for part in parts]
    if None in values:
        return None
    if len(values) == 1:
        return -values[0]
    left, right = values
    if operator == "/":
        return left / right if right else None
    return {"+": left + right, "-": left - right, "*": left * right}[operator]
