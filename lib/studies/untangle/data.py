"""Two tasks on two numbers, as text: their sum, `B47+23E` to `B70E`, and the two joined, `B47C23E` to `B4723E`.

Texts are cut into tokens by longest match, whatever the vocabulary: numbers, characters, or pairs of digits. Nothing here knows
of models.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

SUM, JOIN = "+", "C"
PAD, BEGIN, END = 0, 1, 2
SIGNS = (" ", "B", "E", JOIN, SUM)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Tokenizer:
    """Tokens by their ids; text is cut into the longest that match, from the left."""

    tokens: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """`ValueError` where no token matches."""
        ids, at, longest = [], 0, max(map(len, self.tokens))
        known = {token: i for i, token in enumerate(self.tokens)}
        while at < len(text):
            found = next((known[piece] for n in range(longest, 0, -1) if (piece := text[at : at + n]) in known), None)
            if found is None:
                raise ValueError(f"{text!r}: no token for {text[at]!r} at position {at}")
            ids.append(found)
            at += len(self.tokens[found])
        return ids

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


def split(table: pd.DataFrame, train: float, validation: float, seed: int, by: str = "pair") -> np.ndarray:
    """For each example the index of its part in `SPLITS`.

    By unordered `pair` all four examples of two numbers are in one part: both orders, both tasks. By `example`, as published,
    each is drawn alone, there is no test part, and the model has seen most of what it is asked.
    """
    draw = np.random.default_rng(seed)
    low, high = table[["a", "b"]].min(axis=1), table[["a", "b"]].max(axis=1)
    unit = pd.factorize(low * (high.max() + 1) + high)[0] if by == "pair" else np.arange(len(table))
    rank = draw.permutation(unit.max() + 1) / (unit.max() + 1)
    edges = (train, train + validation) if by == "pair" else (train, 1.0)
    return np.digitize(rank, edges)[unit]


def leaks(table: pd.DataFrame, parts: np.ndarray) -> pd.DataFrame:
    """How many examples outside training have a relative in it: the same two numbers turned around, or in the other task."""
    key = table.a * 1000 + table.b
    turned, other = table.b * 1000 + table.a, table.task.map({SUM: JOIN, JOIN: SUM})
    seen = set(zip(key[parts == 0], table.task[parts == 0], strict=True))
    held = np.flatnonzero(parts > 0)
    found = {
        "turned around": [(turned[i], table.task[i]) in seen for i in held],
        "in the other task": [(key[i], other[i]) in seen for i in held],
    }
    found["either"] = [any(pair) for pair in zip(*found.values(), strict=True)]
    return pd.DataFrame({"relative": list(found), "seen": [sum(v) for v in found.values()], "n": len(held)})


def cut(table: pd.DataFrame, how: Tokenizer) -> pd.Series:
    """How the tokens of each answer stand to the two numbers: `a b`, `one token`, `cut elsewhere`; of sums, their number."""

    def of(row) -> str:
        ids = how.encode(row.answer[1:-1])
        if row.task == SUM:
            return "one token" if len(ids) == 1 else "several"
        own = [how.tokens[i] for i in ids]
        return "one token" if len(ids) == 1 else "a b" if own == [str(row.a), str(row.b)] else "cut elsewhere"

    return pd.Series([of(row) for row in table.itertuples()], table.index)
