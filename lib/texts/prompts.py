"""Tool, copy and out-of-distribution prompts: written by grammar, or read from JSONL.

A prompt is `input`, `target` and `label`, as in the published files: `positive` (the target is a tool
call), `negative` (the target repeats the input) and `tool_ood` (a tool call asked for in words that
finetuning never used). Tables call the three subsets `tool`, `copy` and `tool_ood`.

Splits are decided by content, not by chance at run time: an operand pair, in either order and under
any operator, falls into one split for ever (`split_of`), and so does a sentence. `tool_ood` shares
neither pairs nor phrasings with training.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lib.texts.phrasings import CONTEXTS, OOD_PHRASINGS, OPERATORS, PHRASINGS
from lib.texts.sentences import copy_sentence, integer
from lib.texts.tool import CALCULATOR, Tool

SUBSETS = {"positive": "tool", "negative": "copy", "tool_ood": "tool_ood"}
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


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
        raise ValueError(
            "the project writes calls for arithmetic alone; name tool.prompts.train_file and tool.prompts.test_file"
        )
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


WRITERS = {"positive": tool_prompt, "negative": copy_prompt, "tool_ood": ood_prompt}


def written(label: str, n: int, split: str, seed: int, tool: Tool = CALCULATOR) -> list[Prompt]:
    """`n` different prompts of one label and split; the same arguments give the same prompts.

    Calls are for arithmetic; those of a tool with another kind of argument are a `ValueError`.
    """
    rng = random.Random(f"{label}/{split}/{seed}")
    found: dict[str, Prompt] = {}
    while len(found) < n:
        prompt = spoken(WRITERS[label](rng, split), tool)
        found.setdefault(prompt.input, prompt)
    return list(found.values())
