"""Every chapter on one profile, in one process and without pictures: `python -m lib.tests.book PROFILE.toml`.

Chapters take parameters as papermill gives them; they are kept small.
"""

import sys
import time
import warnings
from pathlib import Path

import nbformat

from lib import profiles
from lib.book import plots
from lib.book.paths import NOTEBOOKS
from lib.profiles.tables import Profile

SMALL = {"n_prompts": 4, "steps_through": 4, "n_ordinary": 12, "n_units": 4, "n_listed": 8}


def chapters(profile: Profile) -> list[Path]:
    """Those of the studies that a profile has."""
    every = {path: nbformat.read(path, as_version=4).metadata.get("study") for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    return [path for path, study in every.items() if not profiles.lacks(profile, study)]


def run(profile: str) -> None:
    plots.has_chrome = lambda: False
    for path in chapters(profiles.load(profile)):
        began, names = time.time(), {"__name__": "__main__"}
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{path.stem}, cell {number}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update({"profile": profile} | {name: value for name, value in SMALL.items() if name in names})
        print(f"{path.stem} done in {time.time() - began:.1f} s", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    run(sys.argv[1])
