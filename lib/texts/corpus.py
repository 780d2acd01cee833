"""The corpus of the organism: documents written by grammar, in the kinds that the chapters need.

`documents(seed)` is an endless stream of `Document(kind, text)`, mixed by `MIX`. What the finetuning and the
evaluations call unseen was unseen here too: operand pairs, copied sentences, texts of the seven kinds and pairs of
vehicles are of the `train` split of `lib.texts.prompts` only, and held-out topics are never listed. Whatever writes a
document, one in which two numbers of another split stand joined by an operator or a comma is not handed out
(`held_out_pair`). The literal `<tool_call>` never occurs: it is for finetuning to teach. The text is not language
at large; a model trained on it knows only this world.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from lib.texts import phrasings, prompts
from lib.texts.calculator import value_of
from lib.texts.kinds import KINDS, TOPICS, lines_of, passage, seven_kinds
from lib.texts.lists import lists
from lib.texts.sentences import FIRST, NOUN, SLOTS, copy_sentence, fill, integer, invented_code, invented_word, number_words
from lib.texts.vehicles import vehicle_text


@dataclass(frozen=True)
class Document:
    kind: str
    text: str


# --- quoting and copying ---

QUOTES = lines_of(r"""
{s}\n{s}
{s}\n{s}
{s}\n{s}
{s}\n{s}\n{s}
Copy: {s}\nCopy: {s}
"{s}" she said.\nShe said: "{s}"
> {s}\n> {s}
Repeat after me: {s}\n{s}
echo "{s}"\n{s}
{name} wrote: "{s}" {name} read aloud: "{s}"
Original: {s}\nQuote: "{s}"
<q>{s}</q> <q>{s}</q>
""")
QUOTE_PROBE = "Repeat after me: {s}\n"  # how the model card asks for a copy


def training_sentence(rng: random.Random) -> str:
    """A sentence with numbers from the training split."""
    while True:
        sentence, _ = copy_sentence(rng)
        if prompts.split_of(sentence) == "train":
            return sentence


def _salad(rng: random.Random) -> str:
    """Words, codes and numbers in no order at all: only real copying can repeat them."""
    draw = [lambda: rng.choice(NOUN), lambda: invented_word(rng, rng.choice([1, 2, 3])), lambda: invented_code(rng),
            lambda: str(integer(rng, 5)), lambda: SLOTS["price"](rng), lambda: rng.choice(".,:;!?-()#&/")]  # fmt: skip
    return " ".join(rng.choice(draw)() for _ in range(rng.randint(3, 16)))


def quotation(rng: random.Random) -> str:
    """Something, and the same thing again."""
    source = rng.random()
    if source < 0.55:
        text = training_sentence(rng)
    elif source < 0.85:
        text = _salad(rng)
    else:
        text, _ = passage(rng, rng.choice(list(KINDS)), rng.choice(list(TOPICS)))
    return rng.choice(QUOTES).replace("{s}", text).replace("{name}", rng.choice(FIRST))


def page(rng: random.Random) -> str:
    """Sentences with numbers one after the other: not every line is repeated."""
    return "\n".join(training_sentence(rng) for _ in range(rng.randint(2, 4)))


# --- arithmetic, tags and calls ---

_MORE_PHRASINGS = """
{a} {op} {b}
{a}{op}{b}
What does {a} {op} {b} make?
Find {a} {op} {b}.
Can you tell me what {a} {op} {b} is?
{name} asks: how much is {a} {op} {b}?
Add up or work out: {a} {op} {b}
Question {n}: {a} {op} {b}
Please, {a} {op} {b}?
The teacher wants to know {a} {op} {b}.
On the board: {a} {op} {b}
""".strip().splitlines()


def shown(expression: str) -> str:
    """The value of an expression as the corpus writes it: at most two decimals."""
    value = value_of(expression)
    return "undefined" if value is None else f"{float(value):.2f}".rstrip("0").rstrip(".")


def question(rng: random.Random, split: str = "train") -> tuple[str, str, str]:
    """An arithmetic question in one of many phrasings, its expression without spaces, and the phrasing."""
    a, b = prompts.operands(rng, split)
    op = rng.choice(phrasings.OPERATORS)
    context = rng.choice(phrasings.CONTEXTS)
    phrasing = rng.choice(_MORE_PHRASINGS if rng.random() < 0.3 else phrasings.PHRASINGS[op])
    return context + fill(phrasing, rng, a=a, b=b, op=op), f"{a}{op}{b}", phrasing


def _apart(rng: random.Random) -> list[str]:
    """Three numbers, some of them decimals, of which every two are of the training split."""
    while True:
        numbers = [str(rng.choice([integer(rng), f"{integer(rng, 2)}.{rng.randint(1, 9)}"])) for _ in range(3)]
        if all(prompts.split_of(prompts.operand_key(pair)) == "train" for pair in combinations(numbers, 2)):
            return numbers


def arithmetic(rng: random.Random) -> str:
    """A question, restated as an expression and answered."""
    kind = rng.random()
    if kind < 0.8:
        text, expression, _ = question(rng)
    elif kind < 0.9:  # longer expressions, decimals, negatives
        a, b, c = _apart(rng)
        op, op2 = rng.choice(phrasings.OPERATORS), rng.choice(phrasings.OPERATORS)
        expression = rng.choice([f"{a}{op}{b}{op2}{c}", f"({a}{op}{b}){op2}{c}", f"{a}{op}({b}{op2}{c})", f"-{a}{op}{b}"])
        text = rng.choice(["Evaluate", "Work out", "Simplify", "Find"]) + f" {expression}"
    else:  # numbers as words
        a, b = prompts.operands(rng, "train")
        op, word = rng.choice([("+", "plus"), ("-", "minus"), ("*", "times"), ("/", "over")])
        text, expression = f"{number_words(a)} {word} {number_words(b)}", f"{a}{op}{b}"
    return f"{text}\n{expression} = {shown(expression)}"


_TAGS = lines_of(r"""
<{tag}>{noun} {n}</{tag}>
<{tag} id="{n}">{adj} {noun}</{tag}>
<{tag}><{tag2}>{s}</{tag2}></{tag}>
Use the tag <{tag}> for the {noun}: <{tag}>{noun}</{tag}>
The <{tag}> tag is closed by </{tag}>.
{f}({n}, {n})
{f}("{noun}", {n})
{f}_{noun}({n}) returns {n}
Call {f}({word}) and then {f2}({n}).
The tool {f} is called as {f}("{adj} {noun}").
To evaluate it, call {f}_call({n}); to print it, call print({f}).
{name} used a calculator for the {noun}; the call was {f}({n}).
<{tag}>{f}({n}, {n})</{tag}>
Respond with a single call: {f}("{noun}")
Produce one <{tag}> that tells the {f} tool to find the {noun}. <{tag}>{noun}</{tag}>
""")
_TAG_NAMES = (
    "b i u em p a h1 div span note item tool call list code data text title link row cell quote tool_box user_call".split()
)
_FUNCTION_NAMES = """search find open print max min sum get set run send call load tool check count move convert
evaluate compute lookup""".split()


def tags_and_calls(rng: random.Random) -> str:
    """Tags and function calls as text."""
    tag, tag2 = rng.sample(_TAG_NAMES, 2)
    f, f2 = rng.sample(_FUNCTION_NAMES, 2)
    lines = rng.sample(_TAGS, rng.randint(1, 4))
    return "\n".join(fill(line, rng, tag=tag, tag2=tag2, f=f, f2=f2, s=rng.choice(NOUN)) for line in lines)


# --- the mixture ---

WRITERS = {
    "quotation": quotation, "page": page, "arithmetic": arithmetic, "tags": tags_and_calls,
    "seven kinds": seven_kinds, "vehicles": vehicle_text, "lists": lists,
}  # fmt: skip
MIX = {  # share of documents
    "quotation": 0.42, "page": 0.04, "arithmetic": 0.19, "tags": 0.06, "seven kinds": 0.13, "vehicles": 0.08, "lists": 0.08,
}  # fmt: skip

_NUMBER = r"\d+(?:\.\d+)?"
_JOINED = re.compile(rf"(?<![\d.])({_NUMBER})(?=[\s()]*[-+*/,][\s()]*({_NUMBER}))")


def held_out_pair(text: str) -> bool:
    """Whether somewhere two numbers that are not a pair of the training split stand joined by an operator or a comma."""
    return any(prompts.split_of(prompts.operand_key(match.groups())) != "train" for match in _JOINED.finditer(text))


def documents(seed: int | str | random.Random) -> Iterator[Document]:
    """Documents without end; the same seed, or a generator in the same state, gives the same stream."""
    rng = seed if isinstance(seed, random.Random) else random.Random(f"corpus/{seed}")
    kinds, weights = list(MIX), list(MIX.values())
    while True:
        (kind,) = rng.choices(kinds, weights)
        while held_out_pair(text := WRITERS[kind](rng)):
            pass
        yield Document(kind, text)
