"""Two tasks on two numbers, as text: their sum, `B47+23E` to `B70E`, and the two joined, `B47C23E` to `B4723E`.

Texts are cut into tokens by longest match, whatever the vocabulary: numbers, characters, or pairs of digits. Nothing here knows
of models.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

SUM, JOIN = "+", "C"
PAD = 0
SIGNS = (" ", "B", "E", JOIN, SUM)


@dataclass(frozen=True)
class Tokenizer:
    """Tokens by their ids; text is cut into the longest that match, from the left."""

    tokens: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.tokens))

    def encode(self, text: str) -> list[int]:
        """`ValueError` where no token matches."""
        found, at = [], 0
        while at < len(text):
            token = next((piece for n in range(self.longest, 0, -1) if (piece := text[at : at + n]) in self.ids), None)
            if token is None:
                raise ValueError(f"{text!r}: no token for {text[at]!r} at position {at}")
            found.append(self.ids[token])
            at += len(token)
        return found

    def decode(self, ids: list[int]) -> str:
        """Padding is left out."""
        return "".join(self.tokens[i] for i in ids if i != PAD)


def tokenizer(name: str, operands: int) -> Tokenizer:
    """`numbers`: a token for every number up to the largest sum, as published. `characters`, and `pairs` of digits."""
    found = {
        "numbers": [str(n) for n in range(2 * operands - 1)],
        "characters": [str(n) for n in range(10)],
        "pairs": [*(str(n) for n in range(10)), *(f"{n:02}" for n in range(100))],
    }
    return Tokenizer((*SIGNS, *found[name]))


def examples(operands: int) -> pd.DataFrame:
    """One row for each ordered pair of numbers below `operands` and each task: `a`, `b`, `task`, `question`, `answer`."""
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(operands), np.arange(operands), indexing="ij"))
    of_task = []
    for task in (SUM, JOIN):
        answers = [str(x + y) if task == SUM else f"{x}{y}" for x, y in zip(a, b, strict=True)]
        of_task.append(
            pd.DataFrame({
                "a": a, "b": b, "task": task, "question": [f"B{x}{task}{y}E" for x, y in zip(a, b, strict=True)],
                "answer": [f"B{answer}E" for answer in answers],
            })
        )  # fmt: skip
    return pd.concat(of_task, ignore_index=True)


def encoded(texts: pd.Series, how: Tokenizer) -> np.ndarray:
    """(text, pos) ids, padded to the longest."""
    rows = [how.encode(text) for text in texts]
    found = np.full((len(rows), max(map(len, rows))), PAD)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return found


def pairs(table: pd.DataFrame) -> pd.MultiIndex:
    """The unordered pair of numbers of each example."""
    numbers = table[["a", "b"]]
    return pd.MultiIndex.from_arrays([numbers.min(axis=1), numbers.max(axis=1)])


def split(table: pd.DataFrame, train: float, validation: float, seed: int, by: str = "pair") -> np.ndarray:
    """For each example 0 to train, 1 to validate, 2 to test; the two shares say how many are in the first and the second.

    By unordered `pair` all four examples of two numbers are in one part: both orders, both tasks. By `example`, as published
    with shares of .3 and .7, each is drawn alone, and half of what the model is asked it has seen in another form.
    """
    draw = np.random.default_rng(seed)
    unit = pd.factorize({"pair": pairs(table), "example": table.index}[by])[0]
    n = unit.max() + 1
    return np.digitize(draw.permutation(n) / n, (train, train + validation))[unit]


def leaks(table: pd.DataFrame, parts: np.ndarray) -> pd.DataFrame:
    """How many examples outside training have a relative in it: the same two numbers turned around, or in the other task."""
    rows = table[["a", "b", "task"]]
    seen, held = set(rows[parts == 0].itertuples(index=False, name=None)), rows[parts > 0]
    other = {SUM: JOIN, JOIN: SUM}
    found = pd.DataFrame({
        "turned around": [(b, a, task) in seen for a, b, task in held.itertuples(index=False)],
        "in the other task": [(a, b, other[task]) in seen for a, b, task in held.itertuples(index=False)],
    })  # fmt: skip
    found["either"] = found.any(axis=1)
    return pd.DataFrame({"relative": found.columns, "seen": found.sum().to_numpy(), "n": len(held)})


def cut(table: pd.DataFrame, how: Tokenizer) -> pd.Series:
    """How the tokens of each answer stand to the two numbers: `a b`, `one token`, `cut elsewhere`; of sums, their number."""

    def of(row) -> str:
        tokens = [how.tokens[i] for i in how.encode(row.answer[1:-1])]
        if len(tokens) == 1:
            return "one token"
        if row.task == SUM:
            return "several"
        return "a b" if tokens == [str(row.a), str(row.b)] else "cut elsewhere"

    return pd.Series([of(row) for row in table.itertuples()], table.index)
