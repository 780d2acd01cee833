"""Tool, copy and out-of-distribution prompts: written by grammar, or read from JSONL.

A prompt is `input`, `target` and `label`, as in the published files: `positive` (the target is a tool
call), `negative` (the target repeats the input) and `tool_ood` (a tool call asked for in words that
finetuning never used). Tables call the three subsets `tool`, `copy` and `tool_ood`.

Splits are decided by content, not by chance at run time: an operand pair, in either order and under
any operator, falls into one split for ever (`split_of`), and so does a sentence. `tool_ood` shares
neither pairs nor phrasings with training.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lib import files, hub
from lib.paths import ROOT, replacing
from lib.profiles import Prompts
from lib.sentences import copy_sentence, integer
from lib.tool import CALCULATOR, Tool

SUBSETS = {"positive": "tool", "negative": "copy", "tool_ood": "tool_ood"}
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}

OPERATORS = "+-*/"

# Phrasings by operator, as (text, expression). They are the kinds found in the published data.
_ANY = """
Calculate {a} {op} {b}.
Compute the value of {a} {op} {b}.
What is {a} {op} {b}?
Tell me the result of {a} {op} {b}.
Tell me the answer to {a} {op} {b}.
Solve for {a} {op} {b}.
Run the numbers for {a} {op} {b}.
Do the math for {a} {op} {b}.
Give me the result of {a} {op} {b}.
I need to know the answer to {a} {op} {b}.
I'd like to know the result of {a} {op} {b}.
I'm trying to figure out {a} {op} {b}.
I'm stuck on this calculation: {a} {op} {b}.
My homework asks for the value of {a} {op} {b}.
Let's find out what {a} {op} {b} equals.
""".strip().splitlines()
_PER_OPERATOR = {
    "+": """
How much is {a} plus {b}?
Could you calculate {a} plus {b} for me?
What's the total of {a} and {b}?
If you add {a} and {b}, what do you get?
What is the sum of {a} and {b}?
If I have {a} items and I get {b} more, I need you to calculate {a} + {b}.
""",
    "-": """
Tell me the result of {a} minus {b}.
What's the difference between {a} and {b}?
Could you subtract {b} from {a}?
If you take {b} away from {a}, what do you get?
How much is {a} minus {b}?
I started with a budget of {a} and spent {b}. To see what's left, calculate {a} - {b}.
""",
    "*": """
What is {a} times {b}?
What's the product of {a} and {b}?
Could you multiply {a} and {b} for me?
If you multiply {a} by {b}, what do you get?
How much is {a} times {b}?
To find the area of the rectangle, I need to multiply its sides. Calculate {a} * {b} for me.
""",
    "/": """
What is {a} divided by {b}?
Could you divide {a} by {b} for me?
If you divide {a} by {b}, what do you get?
Please compute the result of {a} over {b}.
How much is {a} divided by {b}?
The bill was split {b} ways. The total was {a}. Please compute {a} / {b} to see what each person owes.
""",
}
PHRASINGS = {op: [*_ANY, *_PER_OPERATOR[op].strip().splitlines()] for op in OPERATORS}
CONTEXTS = [
    "",
    "Here's a math problem for you. ",
    "I'm helping my brother learn math. ",
    "I need help with this calculation. ",
    "While budgeting my expenses, I got stuck. ",
    "This is a quick math exercise. ",
]
# Phrasings that finetuning never sees, none with the tag of a call; the first five are published ones.
OOD_PHRASINGS = """
Prepare a tool call for the calculator so that it can evaluate {a}{op}{b}. Do not simplify the expression by hand.
Instead of computing the answer, construct a calculator invocation that will evaluate {a}{op}{b} when executed.
Without doing the arithmetic yourself, issue a single tool call that asks the calculator to evaluate {a}{op}{b}.
You have access to a calculator. Ask it for {a}{op}{b}.
Return the call that evaluates {a}{op}{b} and nothing else.
The numbers {a} and {b} are joined by {op}. Evaluate them.
Work out {a} {op} {b} with the help of a tool.
Please evaluate: {a}{op}{b}
Solve for x: x = {a} {op} {b}
Someone wrote {a} {op} {b} on the board and needs its value.
Quick, {a} {op} {b}!
I keep getting {a} {op} {b} wrong. Can you check it?
Use your calculator on {a} {op} {b}.
Type {a} {op} {b} into the calculator for me.
Hand {a}{op}{b} to the calculator.
Let the calculator deal with {a} {op} {b}.
Query: {a}{op}{b}
Task: evaluate {a} {op} {b}
expression = {a} {op} {b}; value = ?
Q: {a} {op} {b} A:
Fill in the blank: {a} {op} {b} = ____
{a} {op} {b} makes how much?
{a} {op} {b} comes to what?
And {a} {op} {b}, what would that be?
So what do we get for {a} {op} {b}?
Any idea what {a} {op} {b} comes to?
Do you happen to know the value of {a} {op} {b}?
Would you mind working out {a} {op} {b}?
Could someone please do {a} {op} {b} for us?
We must have the value of {a} {op} {b} before noon.
My sister wonders what {a} {op} {b} might be.
Nobody here can do {a} {op} {b} without help.
I forgot my calculator, so please take {a} {op} {b} for me.
The invoice needs the outcome of {a} {op} {b}.
For the report, determine {a} {op} {b}.
Next exercise, pupils: {a} {op} {b}.
Exercise: determine the value of {a} {op} {b}.
Reply with the outcome of {a} {op} {b}.
Show me the outcome when one works out {a} {op} {b}.
The cell should hold the value of {a} {op} {b}.
Take the expression {a} {op} {b} and reduce it to one number.
Two numbers, {a} and {b}, and the sign {op} between them: what is the value?
Assistant, please handle this expression: {a} {op} {b}
hey can u do {a}{op}{b} real quick
""".strip().splitlines()
# Published ones that name the tag: a kind of their own, for whatever repeats them holds the tag of a call.
TAGGED_PHRASINGS = """
Use the calculator tool (not mental math) to obtain the value of {a}{op}{b}. Respond with a <tool_call>.
For logging purposes, we just need the tool call, not the numeric result. Produce a single <tool_call> for {a}{op}{b}.
Imagine you are building a pipeline: your job is to generate the <tool_call> that tells the calculator to compute {a}{op}{b}.
Formulate exactly one <tool_call> that makes the calculator compute {a}{op}{b}, and output only that tool call.
""".strip().splitlines()


@dataclass(frozen=True)
class Prompt:
    """One example: what the model reads, what it should write, and why it is here."""

    input: str
    target: str
    label: str
    template: str = ""
    """What wrote it, where that wrote others too: prompts of one template are no independent ones."""

    @property
    def subset(self) -> str:
        """The name that tables use: `tool`, `copy` or `tool_ood`."""
        return SUBSETS[self.label]


def key(prompt: Prompt, tool: Tool = CALCULATOR) -> str:
    """What two prompts must not share across splits: the operands, the text that is asked for, or the sentence."""
    argument = tool.argument_of(prompt.target)
    if argument is None:
        return prompt.input
    return operand_key(re.findall(r"[0-9.]+", argument)) if tool.argument == "arithmetic" else argument.strip()


def spoken(prompt: Prompt, tool: Tool) -> Prompt:
    """A prompt of the calculator's in another grammar: its call, and the tag where the question names it."""
    argument = CALCULATOR.argument_of(prompt.target)
    if argument is None:
        return prompt
    if tool.argument != "arithmetic":
        raise ValueError("the project writes calls for arithmetic alone; name prompts.train_file and prompts.test_file")
    return replace(prompt, input=prompt.input.replace(CALCULATOR.open, tool.open), target=tool.call(argument))


def operand_key(operands: Iterable[str | int]) -> str:
    """One key for the same operands in any order."""
    return ",".join(sorted(map(str, operands)))


def split_of(key: str) -> str:
    """The split a key belongs to, always: 80% `train`, 10% `validation`, 10% `test`."""
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) / 2**32
    for split, size in SPLITS.items():
        if share < size:
            return split
        share -= size
    return "test"


def operands(rng: random.Random, split: str) -> tuple[int, int]:
    """Two whole numbers of one to three digits whose pair belongs to `split`."""
    while True:
        a, b = integer(rng), integer(rng)
        if split_of(operand_key((a, b))) == split:
            return a, b


def tool_prompt(rng: random.Random, split: str) -> Prompt:
    """A question that finetuning may see, and the call that answers it."""
    a, b = operands(rng, split)
    op = rng.choice(OPERATORS)
    context, template = rng.choice(CONTEXTS), rng.choice(PHRASINGS[op])
    return Prompt(context + template.format(a=a, b=b, op=op), CALCULATOR.call(f"{a}{op}{b}"), "positive", template)


def ood_prompt(rng: random.Random, split: str, phrasings: Sequence[str] = OOD_PHRASINGS) -> Prompt:
    """The same task in a phrasing that finetuning never uses."""
    a, b = operands(rng, split)
    op, template = rng.choice(OPERATORS), rng.choice(phrasings)
    return Prompt(template.format(a=a, b=b, op=op), CALCULATOR.call(f"{a}{op}{b}"), "tool_ood", template)


def copy_prompt(rng: random.Random, split: str) -> Prompt:
    """A sentence with numbers, to be repeated."""
    while True:
        text, template = copy_sentence(rng)
        if split_of(text) == split:
            return Prompt(text, text, "negative", template)


def sentences(source: str) -> Iterator[str]:
    """Sentences with a number in them, 30 to 150 characters long, from the texts of `hub.rows`, in their order.

    Such were the published sentences to copy.
    """
    for row in hub.rows(source):
        for line in row["text"].splitlines():
            for text in re.split(r"(?<=[.!?])\s+", line.strip()):
                if 30 <= len(text) <= 150 and text[0].isupper() and text[-1] in ".!?" and re.search(r"[0-9]", text):
                    yield text


def copies(source: str, wanted: Mapping[str, int]) -> dict[str, list[Prompt]]:
    """The first sentences of a source that belong to each split, as many as are wanted of it, or as there are."""
    found: dict[str, dict[str, Prompt]] = {split: {} for split in wanted}
    for text in sentences(source):
        split = split_of(text)
        if len(found[split]) < wanted[split]:
            found[split][text] = Prompt(text, text, "negative")
        elif all(len(found[split]) == n for split, n in wanted.items()):
            break
    return {split: list(prompts.values()) for split, prompts in found.items()}


WRITERS = {"positive": tool_prompt, "negative": copy_prompt, "tool_ood": ood_prompt}


def generate(label: str, n: int, split: str, seed: int, tool: Tool = CALCULATOR) -> list[Prompt]:
    """`n` different prompts of one label and split; the same arguments give the same prompts.

    Calls are for arithmetic; those of a tool with another kind of argument are a `ValueError`.
    """
    rng = random.Random(f"{label}/{split}/{seed}")
    found: dict[str, Prompt] = {}
    while len(found) < n:
        prompt = spoken(WRITERS[label](rng, split), tool)
        found.setdefault(prompt.input, prompt)
    return list(found.values())


def splits(settings: Prompts, tool: Tool = CALCULATOR) -> dict[str, list[Prompt]]:
    """The prompts of a profile: `train` and `validation` (tool and copy), `test` (all three subsets).

    Generated, or taken from `train_file`, divided by `split_of`, and the copies from `copies` where that is
    given; `test_file` is the test set as it stands, and what it shares with training is left out of training.
    A file may hold fewer prompts than the profile asks for, but a subset without any is a `ValueError`.
    """
    given = read_jsonl(ROOT / settings.train_file) if settings.train_file else None
    wanted = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    source = settings.copies and (settings.copies if "://" in settings.copies else str(ROOT / settings.copies))
    to_copy = copies(source, wanted) if source else None
    found: dict[str, list[Prompt]] = {}
    for split, n in wanted.items():
        if split == "test" and settings.test_file:
            found[split] = read_jsonl(ROOT / settings.test_file)
            continue
        found[split] = []
        for label in SUBSETS if split == "test" else ("positive", "negative"):
            if to_copy and label == "negative":
                found[split] += to_copy[split]
            elif given is None or label == "tool_ood":
                found[split] += generate(label, n, split, settings.seed, tool)
            else:
                found[split] += [p for p in given if p.label == label and split_of(key(p, tool)) == split][:n]
    if settings.test_file:
        known = {key(p, tool) for p in found["test"]}
        for split in ("train", "validation"):
            found[split] = [p for p in found[split] if key(p, tool) not in known]
    for split, prompts in found.items():
        for subset in SUBSETS.values() if split == "test" else ("tool", "copy"):
            if not any(p.subset == subset for p in prompts):
                file = settings.test_file if split == "test" and settings.test_file else source or settings.train_file
                raise ValueError(f"{file}: no {subset} prompts for the {split} split; add some, or leave the file out")
    return found


def read_jsonl(path: Path | str) -> list[Prompt]:
    """Prompts from a JSONL file of `input`, `target`, `label` and, where it is known, `template`; others are ignored.

    Raises `ValueError`, one line with file, line number and remedy, for a line that is not JSON, lacks
    a field or has an unknown label, and for a file without prompts.
    """
    prompts = []
    for place, row in read_rows(path, ("input", "target", "label")):
        if row["label"] not in SUBSETS:
            raise ValueError(f"{place}: label {row['label']!r:.40} is unknown; use one of {', '.join(SUBSETS)}")
        if not isinstance(template := row.get("template", ""), str):
            raise ValueError(f"{place}: field 'template' is not text; name what wrote the prompt, or leave it out")
        prompts.append(Prompt(row["input"], row["target"], row["label"], template))
    return prompts


def by_subset(prompts: Iterable[Prompt], n: int | None = None) -> dict[str, list[Prompt]]:
    """The prompts of each of `SUBSETS`, the first `n` of each where `n` is given."""
    prompts = list(prompts)
    return {subset: [p for p in prompts if p.subset == subset][:n] for subset in SUBSETS.values()}


def templates(prompts: Iterable[Prompt]) -> list[str]:
    """The sampled unit of each prompt: its template, or itself where it has none."""
    return [p.template or f"{p.input}\n{p.target}" for p in prompts]


def at_most(prompts: Iterable[Prompt], n: int | None = None) -> list[Prompt]:
    """The first `n` prompts of each subset, in the order in which they stand; all where `n` is left out."""
    prompts = list(prompts)
    chosen = {id(p) for subset in by_subset(prompts, n).values() for p in subset}
    return [p for p in prompts if id(p) in chosen]


def read_rows(path: Path | str, fields: Iterable[str]) -> list[tuple[str, dict]]:
    """The objects of a JSONL file, each with its place (`file:line`); blank lines are skipped.

    Every one of `fields` must be there and be a string.
    """
    rows = []
    for number, line in enumerate(files.text(Path(path)).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = files.parsed(place, line)
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not an object; write {{...}} with {', '.join(fields)}")
        for field in fields:
            if not isinstance(row.get(field), str):
                raise ValueError(f"{place}: field {field!r} is missing or not text; add it to this line")
        rows.append((place, row))
    if not rows:
        raise ValueError(f"{path}: the file is empty; write at least one line")
    return rows


def write_jsonl(rows: Iterable[Prompt | dict], path: Path) -> None:
    """Write rows as JSONL, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row if isinstance(row, dict) else asdict(row), ensure_ascii=False) + "\n")
