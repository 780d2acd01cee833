"""Sentences with numbers that ask for nothing."""

import random
import re
from collections.abc import Callable

from lib.texts.phrasings import OPERATORS
from lib.texts.probes import _different
from lib.texts.prompts import Prompt, operands, split_of
from lib.texts.sentences import SLOTS, fill


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), SLOTS["year"](rng)
    return rng.choice([f"{day:02d}/{month:02d}/{year}", f"{day}-{month}-{year}", f"{day}/{month}"])


def _phone(rng: random.Random) -> str:
    form = rng.choice(["###-####", "###-###-####", "(###) ###-####", "0##/#####", "+## ### ####"])
    return re.sub("#", lambda _: str(rng.randint(1, 9)), form)


def _score(rng: random.Random) -> str:
    few, many = sorted(rng.sample(range(rng.choice([6, 99])), 2))
    return f"{many}-{few}"


def _sum(rng: random.Random) -> str:
    a, b = operands(rng, "test")
    return f"{a} {rng.choice(OPERATORS)} {b}"


# What looks like a calculation, {it}, and the sentences that mention it; they end as copy sentences do.
HARD_NEGATIVES: dict[str, tuple[Callable[[random.Random], str], str]] = {
    "dates": (
        _date,
        """
The meeting is on {it}.
{name} was born on {it} in {city}.
The {noun} was {verb} on {it}.
The offer on {plural} ends on {it}.
Invoice {code} is dated {it}.
The {adj} {noun} opens on {it}.
{name} {surname} signed the letter on {it}.
The photo of {city} was taken on {it}.
""",
    ),
    "phones": (
        _phone,
        """
The phone number of the {noun} is {it}.
{name} can be reached at {it} on {weekday}.
The office in {city} has the number {it}.
{name} {surname} left the number {it}.
The line {it} is open until {hour}:{min}.
The hotel in {city} answers at {it}.
Yesterday {name} got a call from {it}.
The fax of the {adj} {noun} is still {it}.
""",
    ),
    "scores": (
        _score,
        """
They won {it} at home.
{city} beat {city} {it} on {weekday}.
The match in {city} ended {it}.
At half-time the score was {it}.
{name} took the final {it} before {n} guests.
After a {adj} start the team won {it}.
{city} leads the series {it}.
The vote on the {noun} passed {it}.
""",
    ),
    "code": (
        _sum,
        """
In the script, x = {it}.
Line {n} of the program reads {noun} = {it}.
The {colour} {noun} is stored as {noun}_{n} = {it}.
The function {noun}() returns {it}.
{name} changed the code to total = {it}.
The test fails at assert {noun} == {it}.
The old version has {noun} += {it} in a loop.
The file of {name} begins with let {noun} = {it}.
""",
    ),
    "quoted_sums": (
        _sum,
        """
She wrote "{it}" on the board.
The shirt of {name} says "{it}" in {colour}.
{name} whispered "{it}" and left for {city}.
The song "{it}" is by {name} {surname}.
"{it}" stood on the {adj} {noun}.
On page {n} of the book {name} found "{it}" in pencil.
A poster in {city} showed "{it}" in {colour} letters.
The {noun} with "{it}" on it was {verb} in {year}.
""",
    ),
}


def _hard_negative(rng: random.Random, kind: str) -> Prompt:
    mentioned, sentences = HARD_NEGATIVES[kind]
    while True:
        template = rng.choice(sentences.strip().splitlines())
        text = fill(template, rng, it=mentioned(rng))
        if split_of(text) == "test":
            return Prompt(text, text, "negative", template)


def hard_negative(kind: str, n: int, seed: int = 0) -> list[Prompt]:
    """`n` different sentences of a kind of `HARD_NEGATIVES`, to be copied."""
    rng = random.Random(f"{kind}/{seed}")
    return _different(n, lambda: _hard_negative(rng, kind), lambda prompt: prompt.input)
