"""`make plan`: what a profile will need, before anything of it is started, and whether this machine has it.

    python -m lib.plan --profile gemma-2-2b

prints downloads, disk, peak memory, operations and time of each part of the book, and ends with exit status 1
and one line where something does not fit. Planned are chapters 2 to 6, and of chapter 8 its memory; chapters 0 and
7, 9 and 10 repeat their work.

Sizes are arithmetic on shapes. Parameters, operations and what backpropagation keeps are counted on the model
itself, built without memory on torch's meta device. Times come from about ten seconds of measurement here: of the
model where it is on disk, of matrix products where it is not.
"""

import argparse
import sys
import warnings

import torch
import transformers

from lib import profiles
from lib.plan.machine import machine, pace, reckoned
from lib.plan.needs import downloads, needs, refusals
from lib.plan.page import page
from lib.plan.work import Work


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    try:
        profile = profiles.load(parser.parse_args().profile)
        if profile.tool is None:
            raise ValueError(f"profile {profile.name}: has no table [tool], and only that study is planned for")
        here = machine(getattr(torch, profile.model.dtype))
        work = Work.of(profile)
        found, to_download = needs(work, here, reckoned(work, here)), downloads(work)
        refused = refusals(profile, found, here, to_download)
        if not refused:
            found = needs(work, here, pace(work, here))
    except ValueError as error:
        sys.exit(str(error))
    print(page(work, here, found, to_download))
    if refused:
        sys.exit("\n".join(refused))


if __name__ == "__main__":
    main()
