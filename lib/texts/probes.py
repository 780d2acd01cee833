"""Prompts that tell the use of a tool from the matching of templates, in named kinds.

Three ways to ask. Does the call come where finetuning never went, in words or in numbers (`ood`)? Does it
stay away where digits and signs stand in a sentence that requests nothing (`hard_negative`)? And what
changes when two prompts differ in one thing only (`pairs`)?

Finetuning saw the phrasings of `lib.texts.prompts`, one operator and whole numbers of one to three digits. No pair
of numbers joined by an operator here was among its pairs, nor in the corpus of `nano`: they belong to the test split.
No sentence was among its sentences. Unseen are the kinds to finetuning alone: that corpus has decimals, two operators and
numbers as words, in sums to be restated. The first n prompts are the same however many are asked for.
"""

import random
import re
from collections.abc import Callable
from itertools import pairwise

from lib.texts.calculator import value_of
from lib.texts.phrasings import CONTEXTS, OPERATORS, PHRASINGS, TAGGED_PHRASINGS
from lib.texts.prompts import Prompt, ood_prompt, operand_key, operands, split_of, spoken
from lib.texts.sentences import fill, integer, number_words
from lib.texts.tool import CALCULATOR, Tool

SHOWN = "{a} {op} {b}"
# The trained phrasings that show the expression as it is; they are the same for every operator.
LITERAL = [text for text in PHRASINGS["+"] if SHOWN in text]
OPERATOR_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}

# One operation each, never named; {a} is the larger number.
STORIES = {
    "+": """
{name} had {a} stamps and was given {b} more. How many stamps are in the collection now?
A baker sold {a} rolls in the morning and {b} in the afternoon. How many rolls were sold that day?
There are {a} children on the red bus and {b} on the blue bus. How many children are travelling?
A tank held {a} litres of water before the rain brought {b} litres more. How much water is in the tank?
""",
    "-": """
{name} picked {a} plums and gave away {b} of them. How many plums are left?
A library owns {a} books, and {b} of them are lent out. How many books are on the shelves?
The road to {city} is {a} km long and {name} has driven {b} km of it. How far is it still?
A coat costs {a} euros. {name} has saved {b} euros. How much money is missing?
""",
    "*": """
The shop has {a} boxes with {b} pencils in each. How many pencils does the shop have?
A ticket costs {a} euros. How much do {b} tickets cost?
A hall has {a} rows with {b} seats in every row. How many people can sit down?
{name} runs {a} metres every day. How many metres is that in {b} days?
""",
    "/": """
A rope of {a} metres is cut into {b} equal parts. How long is each part?
{name} pours {a} litres of juice evenly into {b} jugs. How much juice is in each jug?
{b} friends share a prize of {a} euros equally. How much does each friend get?
A train covers {a} km in {b} hours at an even speed. How far does it go in an hour?
""",
}


def _unseen(expression: str) -> bool:
    """Whether every two numbers next to each other belong to the test split."""
    numbers = re.findall(r"[0-9.]+", expression)
    return all(split_of(operand_key(pair)) == "test" for pair in pairwise(numbers))


def _asked(rng: random.Random, shown: str, expression: str | None = None) -> Prompt:
    """A trained phrasing about what is `shown`, which is the expression with spaces unless that is given."""
    context, template = rng.choice(CONTEXTS), rng.choice(LITERAL)
    text = context + template.replace(SHOWN, shown)
    return Prompt(text, CALCULATOR.call(expression or shown.replace(" ", "")), "tool_ood", template)


def _long_numbers(rng: random.Random) -> Prompt:
    """Five to seven digits."""
    while True:
        op, digits = rng.choice(OPERATORS), [rng.randint(5, 7), rng.randint(5, 7)]
        a, b = (rng.randrange(10 ** (d - 1), 10**d) for d in digits)
        if _unseen(f"{a}{op}{b}"):
            context, template = rng.choice(CONTEXTS), rng.choice(PHRASINGS[op])
            return Prompt(context + template.format(a=a, b=b, op=op), CALCULATOR.call(f"{a}{op}{b}"), "tool_ood", template)


def _decimals_negatives(rng: random.Random) -> Prompt:
    """One or both of the numbers have a sign, a decimal point or both."""
    while True:
        a, b = (rng.choice(["", "-"]) + str(integer(rng)) + rng.choice(["", f".{integer(rng, 2)}"]) for _ in "ab")
        if not (a + b).isdigit() and _unseen(f"{a}+{b}"):
            return _asked(rng, f"{a} {rng.choice(OPERATORS)} {b}")


def _two_operators(rng: random.Random) -> Prompt:
    """Three numbers; half of the prompts have parentheses, and those change the value."""
    shape = rng.choice(["{} {} {} {} {}", "{} {} {} {} {}", "({} {} {}) {} {}", "{} {} ({} {} {})"])
    while True:
        a, b = operands(rng, "test")
        shown = shape.format(a, rng.choice(OPERATORS), b, rng.choice(OPERATORS), integer(rng))
        bare = re.sub("[()]", "", shown)
        if _unseen(shown) and value_of(shown) is not None and (bare == shown or value_of(bare) != value_of(shown)):
            return _asked(rng, shown)


def _number_words(rng: random.Random) -> Prompt:
    """Numbers and operator as words, the call in digits."""
    a, b = operands(rng, "test")
    op = rng.choice(OPERATORS)
    return _asked(rng, f"{number_words(a)} {OPERATOR_WORDS[op]} {number_words(b)}", f"{a}{op}{b}")


def _word_problem(rng: random.Random) -> Prompt:
    """A story whose question needs one operation."""
    op = rng.choice(OPERATORS)
    while True:
        b, a = sorted(operands(rng, "test"))
        if 1 < b < a:
            story = rng.choice(STORIES[op].strip().splitlines())
            return Prompt(fill(story, rng, a=a, b=b), CALCULATOR.call(f"{a}{op}{b}"), "tool_ood", story)


OOD: dict[str, Callable[[random.Random], Prompt]] = {
    "phrasing": lambda rng: ood_prompt(rng, "test"),
    "tag_named": lambda rng: ood_prompt(rng, "test", TAGGED_PHRASINGS),
    "long_numbers": _long_numbers,
    "decimals_negatives": _decimals_negatives,
    "two_operators": _two_operators,
    "number_words": _number_words,
    "word_problems": _word_problem,
}


# A trained request, and a sentence as near to it as can be that only mentions the calculation.
MENTIONS = [
    tuple(line.split(" | "))
    for line in """
Calculate {a} {op} {b}. | The page says {a} {op} {b}.
Calculate {a} {op} {b}. | He calculated {a} {op} {b}.
Compute the value of {a} {op} {b}. | She computed the value of {a} {op} {b}.
Tell me the result of {a} {op} {b}. | They told me the result of {a} {op} {b}.
Tell me the answer to {a} {op} {b}. | He told me the answer to {a} {op} {b}.
Solve for {a} {op} {b}. | She solved for {a} {op} {b}.
Run the numbers for {a} {op} {b}. | They ran the numbers for {a} {op} {b}.
Do the math for {a} {op} {b}. | He did the math for {a} {op} {b}.
Give me the result of {a} {op} {b}. | She gave me the result of {a} {op} {b}.
I need to know the answer to {a} {op} {b}. | I already know the answer to {a} {op} {b}.
I'd like to know the result of {a} {op} {b}. | I was glad to know the result of {a} {op} {b}.
I'm stuck on this calculation: {a} {op} {b}. | I'm done with this calculation: {a} {op} {b}.
My homework asks for the value of {a} {op} {b}. | My homework shows the value of {a} {op} {b}.
Let's find out what {a} {op} {b} equals. | They found out what {a} {op} {b} equals.
""".strip().splitlines()
]


def _request_pair(rng: random.Random) -> tuple[Prompt, Prompt]:
    """A request, and a mention of the same calculation."""
    (a, b), op = operands(rng, "test"), rng.choice(OPERATORS)
    templates = rng.choice(MENTIONS)
    request, mention = (text.format(a=a, b=b, op=op) for text in templates)
    asked = Prompt(request, CALCULATOR.call(f"{a}{op}{b}"), "positive", templates[0])
    return asked, Prompt(mention, mention, "negative", templates[1])


def _numbers_pair(rng: random.Random) -> tuple[Prompt, Prompt]:
    """One request with two pairs of numbers: both differ, and have as many digits."""
    op = rng.choice(OPERATORS)
    context, template = rng.choice(CONTEXTS), rng.choice(PHRASINGS[op])
    while True:
        two = operands(rng, "test"), operands(rng, "test")
        if all(x != y and len(str(x)) == len(str(y)) for x, y in zip(*two, strict=True)):
            texts = [(context + template.format(a=a, b=b, op=op), CALCULATOR.call(f"{a}{op}{b}")) for a, b in two]
            first, second = (Prompt(text, call, "positive", template) for text, call in texts)
            return first, second


CHANGES: dict[str, Callable[[random.Random], tuple[Prompt, Prompt]]] = {"request": _request_pair, "numbers": _numbers_pair}


def _different(n: int, write: Callable, text: Callable) -> list:
    """The first `n` things written, without those whose `text` came before."""
    found = {}
    while len(found) < n:
        thing = write()
        found.setdefault(text(thing), thing)
    return list(found.values())


def ood(kind: str, n: int, seed: int = 0, tool: Tool = CALCULATOR) -> list[Prompt]:
    """`n` different calculation requests of a kind of `OOD`, which finetuning never saw."""
    rng = random.Random(f"{kind}/{seed}")
    return _different(n, lambda: spoken(OOD[kind](rng), tool), lambda prompt: prompt.input)


def pairs(change: str, n: int, seed: int = 0, tool: Tool = CALCULATOR) -> list[tuple[Prompt, Prompt]]:
    """`n` minimal pairs, no first prompt twice, that differ in a thing of `CHANGES`.

    `request`: the same calculation, asked for and then only mentioned. `numbers`: the same request twice.
    """
    rng = random.Random(f"{change}/{seed}")
    return _different(n, lambda: tuple(spoken(p, tool) for p in CHANGES[change](rng)), lambda pair: pair[0].input)
