"""The tool-call grammar, and exact arithmetic on what stands between the parentheses.

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

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CHARACTERS = 200

_CALL = re.compile(r"<tool_call>calculator\((.*)\)</tool_call>", re.DOTALL)
_TOKEN = re.compile(r" *(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([-+*/()])) *")


def call(expression: str) -> str:
    """The tool call for an expression: `<tool_call>calculator(1+2)</tool_call>`."""
    return f"{OPEN}calculator({expression}){CLOSE}"


def expression_of(text: str) -> str | None:
    """What the calculator is asked for when `text` is one tool call in the strict grammar, else `None`.

    Strict: nothing but white space around the call, one call, and an expression that parses (its value
    may be undefined, as in `1/0`).
    """
    match = _CALL.fullmatch(text.strip())
    if match and _parse(match[1]) is not None:
        return match[1]
    return None


def value_of(expression: str) -> Fraction | None:
    """The exact value, or `None` for what is not an expression, is too long or divides by zero."""
    tree = _parse(expression)
    return None if tree is None else _value(tree)


def called(text: str) -> bool:
    """Whether the text begins a tool call anywhere."""
    return OPEN in text


def well_formed(text: str) -> bool:
    """Whether a tool call is begun and closed after it, whatever stands between."""
    return CLOSE in text.partition(OPEN)[2]


def same_value(text: str, target: str) -> bool:
    """Whether `text` is a strict call whose value equals that of the call `target`, exactly."""
    expressions = expression_of(text), expression_of(target)
    if None in expressions:
        return False
    value, wanted = map(value_of, expressions)
    return value is not None and value == wanted


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
