"""What each chapter is made from, for make: one small file a chapter, written anew only where that has changed.

    python -m lib.needs --profile nano

writes `build/<profile>/needs/<chapter>`: fingerprints of the chapter's code with all of `lib` that it stands on, of the
profile but for the tables of other studies, and of the files that the profile names. Where a file that the chapter wrote is
gone, its need is renewed too. Names of files are in no rule of make, so that they may be what they like.
"""

import argparse
import json
import sys
import uuid
from pathlib import Path

from lib import profiles
from lib.book.fingerprint import code, fingerprint, state, versions
from lib.book.paths import NOTEBOOKS, ROOT, replacing
from lib.profiles.tables import STUDIES


def needs(source: str) -> None:
    """Renew the files of a profile."""
    profile = profiles.load(source)
    folder = profile.paths.build / "needs"
    common = [state(profile.inputs), versions()]
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        need, record = folder / notebook.stem, profile.paths.build / f"{notebook.stem}.json"
        text = notebook.read_text(encoding="utf-8")
        study = json.loads(text)["metadata"].get("study")
        study = {"transcoders": "tool"}.get(study, study)  # chapter 0 looks at prompts too
        own = profiles.load(source, *([study] if study in STUDIES else []))
        of = fingerprint(own, *common, text, code(notebook))
        if _lost(record) or not need.exists() or not need.read_text().startswith(of):
            with replacing(need) as temporary:
                temporary.write_text(f"{of} {uuid.uuid4().hex}\n")


def _lost(record: Path) -> bool:
    """Whether a file is gone that a chapter wrote, or that it has written anything can no longer be read."""
    if not record.exists():
        return False
    try:
        return not all((ROOT / file).exists() for file in json.loads(record.read_text(encoding="utf-8"))["wrote"])
    except (ValueError, KeyError, TypeError):
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano")
    try:
        needs(parser.parse_args().profile)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
