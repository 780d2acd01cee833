"""Score any file of generations: `python -m lib.score FILE.jsonl` prints one JSON object.

Each line of the file holds `input`, `target` and `generation`. Rates come with their 95% Wilson
interval as `<name>_low` and `<name>_high`; `math_correct_rate` is over the `math_correct_n` targets
that hold an expression, and null if none does.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from lib.metrics import TOOL_RATES, outcomes, rates
from lib.prompts import read_rows


def score(path: Path) -> dict[str, float | int | None]:
    """The rates of one file; a one-line `ValueError` for a bad one."""
    rows = [row for _, row in read_rows(path, ("input", "target", "generation"))]
    found = rates(outcomes([row["target"] for row in rows], [row["generation"] for row in rows]))
    result: dict[str, float | int | None] = {"n": len(rows), "math_correct_n": found["math_correct_rate"].n}
    for name in TOOL_RATES:
        for column, value in found[name].columns(name).items():
            result[column] = None if math.isnan(value) else float(value)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSONL of input, target, generation")
    try:
        print(json.dumps(score(parser.parse_args().file)))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
