"""What answers are worth under the tool's grammar; no model is needed."""

from collections.abc import Iterable

import pandas as pd

from lib.book.stats import Estimate, rate
from lib.texts.tool import Tool, without_special

TOOL_RATES = ("tool_call_rate", "valid_tool_format_rate", "parsed_rate", "math_correct_rate")

OUTCOMES = (*TOOL_RATES, "exact_match_rate")


def outcomes(tool: Tool, targets: Iterable[str], generations: Iterable[str]) -> pd.DataFrame:
    """One row per generation of true or false: the four of `TOOL_RATES`, and `exact_match_rate`.

    `math_correct_rate`, whether the first call asks what the target asks, is missing where the target is no call of a
    defined value; `parsed_rate` is of the whole text as one strict call. Special tokens at the end of a text are no text.
    """
    rows = []
    for target, generation in zip(targets, generations, strict=True):
        rows.append({
            "tool_call_rate": tool.called(generation),
            "valid_tool_format_rate": tool.well_formed(generation),
            "parsed_rate": tool.argument_of(generation) is not None,
            "math_correct_rate": tool.right(generation, target),
            "exact_match_rate": without_special(generation) == without_special(target),
        })  # fmt: skip
    return pd.DataFrame(rows)


def rates(outcomes: pd.DataFrame, clusters: pd.Series | None = None) -> dict[str, Estimate]:
    """Every column of `outcomes` as a rate, over the rows that have it; `clusters` has the template of each row."""
    found = {}
    for name in outcomes:
        given = outcomes[name].notna()
        found[name] = rate(outcomes[name][given].astype(bool), None if clusters is None else clusters[given])
    return found
