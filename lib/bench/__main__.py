"""Ours against the published procedure, against other trainers and against the machine: `make bench`.

    python -m lib.bench --profile nano [--only TASK ...] [--again]

writes `results/bench.csv`, a row for each task, size and other, and the figure `bench_ratios`. Ours and the other run
by turns in one process, on the same data. `ratio` is the median of other over ours, pair by pair, and its interval is
of order statistics (`scipy.stats.quantile_test`): with six pairs the smallest and the largest ratio, which hold the
median in 97% of cases. Rows of the same code and machine are kept; an interrupted run goes on.

`training` is of the whole grid, with all that is done once. The row with both sides by one recipe, the profile's, says
what the order of work is worth. Beside it stands a row in which the published procedure has its own recipe, of which the
rate alone was tuned (`as_published.RECIPE`), where several settings of ours were: it says what a recipe is worth too.
`forward` is a forward pass of a batch beside its matrix products alone: the ratio is the share of the limit that they set.
`step` is a step of training of one delta and `many` of one of several that learn together, timed as
`lib.bench.trainers` says.
"""

import argparse
import sys

from lib import profiles
from lib.bench.report import bench, markdown
from lib.bench.workplace import Amount


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="these tasks; all others stay as they are")
    parser.add_argument("--again", action="store_true", help="also rows that are there from the same code")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        table = bench(profile, Amount.of(profile), arguments.only, arguments.again)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    if len(table):
        print(markdown(table))


if __name__ == "__main__":
    main()
