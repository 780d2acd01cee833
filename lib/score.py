"""Score any file of generations: `python -m lib.score FILE.jsonl [--profile mine.toml]` prints one JSON object.

Each line of the file holds `input`, `target` and `generation`. Rates come with their 95% Wilson
interval as `<name>_low` and `<name>_high`; `math_correct_rate` is over the `math_correct_n` targets
that are calls, and null if none is. Calls are the calculator's, or of the profile's grammar (`lib.texts.tool`).
"""

import argparse
import json
import math
import sys
from pathlib import Path

from lib import profiles
from lib.studies.tool.answers import TOOL_RATES, outcomes, rates
from lib.texts.jsonl import read_rows
from lib.texts.tool import CALCULATOR, Tool


def score(path: Path, tool: Tool = CALCULATOR) -> dict[str, float | int | None]:
    """The rates of one file; a one-line `ValueError` for a bad one."""
    rows = [row for _, row in read_rows(path, ("input", "target", "generation"))]
    found = rates(outcomes(tool, [row["target"] for row in rows], [row["generation"] for row in rows]))
    result: dict[str, float | int | None] = {"n": len(rows), "math_correct_n": found["math_correct_rate"].n}
    for name in TOOL_RATES:
        for column, value in found[name].columns(name).items():
            result[column] = None if math.isnan(value) else float(value)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSONL of input, target, generation")
    parser.add_argument("--profile", help="whose grammar of a call; the calculator's where it is left out")
    given = parser.parse_args()
    try:
        tool = profiles.load(given.profile).tool.grammar if given.profile else CALCULATOR
        print(json.dumps(score(given.file, tool)))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
