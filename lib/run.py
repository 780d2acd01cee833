"""Run one chapter headlessly: strict parameters, progress, a rendered page and a build record.

    python -m lib.run notebooks/04_exp1_reconstruction.ipynb --profile nano [-p name value] [--redraw]

writes `build/<profile>/<chapter>.ipynb` and `.html`, and beside them `.json` (what it was built with, and what it wrote).
What a chapter's cell tagged `answer` says is put at its top too (`answered`). A run with other parameters than the chapter's
own, or one that only redraws, goes to `build/<profile>/trials/`, for make takes what stands in `build/<profile>/` as
built. A chapter that fails leaves `<chapter>.failed.ipynb`. Two runs never write one chapter at once.
"""

import argparse
import ast
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from lib import profiles
from lib.book import pages
from lib.book.paths import ROOT, alone, replacing
from lib.profiles.tables import Profile

KERNEL = "delta-transcoders"
EVERY = 20  # seconds between lines of progress, at least
PACKAGES = ("torch", "transformers", "transformer-lens", "peft", "plotly")


def check_parameters(notebook: Path, given: dict) -> None:
    """Raise a one-line `ValueError` for a parameter that the notebook's parameters cell does not have, or of another type."""
    known = papermill.inspect_notebook(str(notebook))
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{notebook}: unknown parameter {name!r}; it has {', '.join(known)}")
        default = ast.literal_eval(known[name]["default"])
        fits = isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))
        if isinstance(value, bool) != isinstance(default, bool) or not fits:
            raise ValueError(f"{notebook}: parameter {name!r} is {default!r} there, so not {value!r}; give one of its kind")


def answered(notebook: nbformat.NotebookNode) -> None:
    """Put what the cells tagged `answer` have computed into the first cell, in place of its paragraph **Answer.**"""
    said = [
        output.data["text/markdown"]
        for cell in notebook.cells if "answer" in cell.metadata.get("tags", ())
        for output in cell.outputs if "text/markdown" in output.get("data", {})
    ]  # fmt: skip
    if said:
        paragraphs = notebook.cells[0].source.split("\n\n")
        begun = [text.startswith("**Answer.**") for text in paragraphs]
        paragraphs[begun.index(True)] = f"**Answer.** {' '.join(said)}"
        notebook.cells[0].source = "\n\n".join(paragraphs)


def run(notebook: Path, source: str, given: dict) -> Path:
    """Execute a chapter for a profile; returns the executed copy. Nothing is left half-written."""
    profile = profiles.load(source)
    if table := profiles.lacks(profile, nbformat.read(notebook, as_version=4).metadata.get("study")):
        raise ValueError(f"{source}: has no table [{table}], which {notebook.stem} is about; add it to the profile")
    profiles.claim(profile, source)
    check_parameters(notebook, given)
    out = (profile.paths.build / "trials" if given else profile.paths.build) / notebook.name
    with alone(out):
        return _run(notebook, profile, {"profile": source, **given}, out)


def _run(notebook: Path, profile: Profile, given: dict, out: Path) -> Path:
    failed = out.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    began = time.time()
    with replacing(out) as temporary:
        wrote = temporary.with_suffix(".wrote")
        wrote.touch()
        os.environ["CHAPTER_WROTE"] = str(wrote)
        try:
            _execute(notebook, temporary, given)
        except PapermillExecutionError:
            temporary.replace(failed)
            raise
        finally:
            del os.environ["CHAPTER_WROTE"]
            files = sorted({line for line in wrote.read_text(encoding="utf-8").splitlines() if (ROOT / line).exists()})
            wrote.unlink()
        seconds = time.time() - began
        executed = nbformat.read(temporary, as_version=4)
        answered(executed)
        nbformat.write(executed, temporary)
        with replacing(out.with_suffix(".html")) as temporary_page:
            temporary_page.write_text(pages.page(executed, notebook.resolve()), encoding="utf-8")
        record = {
            "chapter": notebook.stem, "parameters": given, "seconds": round(seconds, 1),
            "machine": platform.machine(), "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES}, "wrote": files,
        }  # fmt: skip
        with replacing(out.with_suffix(".json")) as temporary_record:
            temporary_record.write_text(json.dumps(record, indent=1) + "\n")
    if out.parent == profile.paths.build:
        pages.index(out.parent, profile.name)
    return out


def gently(others: float) -> None:
    """Let idle threads sleep at once where other work, of so many cores, goes on here: spinning, they would take its turns."""
    if others > 0.5:
        os.environ["GOMP_SPINCOUNT"] = "0"


class Lines:
    """Where a progress bar writes lines, for chapters that run side by side share a screen."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip("\r\n"), flush=True)

    def flush(self) -> None:
        sys.stdout.flush()


def _execute(notebook: Path, out: Path, given: dict, attempts: int = 3) -> None:
    """Papermill; a kernel that dies as it starts is started again, for another may have taken its ports meanwhile."""
    lines = {"desc": notebook.stem, "bar_format": "  {desc}: cell {n} of {total}, {elapsed}", "file": Lines()}
    bar = lines | {"delay": EVERY, "mininterval": EVERY, "leave": False}
    how = {"kernel_name": KERNEL, "cwd": str(ROOT), "progress_bar": bar}
    try:
        _interruptible(papermill.execute_notebook, str(notebook), str(out), given, **how)
    except RuntimeError as error:
        if attempts == 1 or "before replying to kernel_info" not in str(error):
            raise
        _execute(notebook, out, given, attempts - 1)


def _interruptible(work: Callable, *given, **named) -> None:
    """Do it in a thread; at an interrupt, which comes to the main one, end the kernel, and so the work.

    An interrupt in the midst of what waits for a kernel may be lost there, or leave it waiting for good.
    """
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, *given, **named)
        try:
            done.result()
        except KeyboardInterrupt:
            logging.disable()  # that the kernel died is no news
            while not done.done():
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                wait([done], 1)
            raise


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    parser.add_argument("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--redraw", action="store_true", help="draw from the tables on disk, compute nothing")
    arguments = parser.parse_args()
    given = {name: _literal(value) for name, value in arguments.given}
    if "profile" in given:
        sys.exit("-p profile: a chapter's profile decides where it writes; use --profile")
    if arguments.redraw:
        given["redraw"] = True
    began = time.time()
    print(f"  {arguments.notebook.stem} ...", flush=True)
    gently(psutil.cpu_percent(0.5) / 100 * psutil.cpu_count())
    try:
        run(arguments.notebook, arguments.profile, given)
    except PapermillExecutionError as error:
        trials = "trials" if given else ""
        left = profiles.load(arguments.profile).paths.build / trials / f"{arguments.notebook.stem}.failed.ipynb"
        said = f"{error.evalue}".strip().splitlines() or [""]
        sys.exit(f"  {arguments.notebook.stem} failed: {error.ename}: {said[0]:.1000}\n  see {left}")
    except DeadKernelError:
        sys.exit(
            f"  {arguments.notebook.stem} failed: its kernel died; was there memory enough? `make plan` says what it takes"
        )
    except KeyboardInterrupt:
        sys.exit(f"  {arguments.notebook.stem} interrupted; the same command goes on")
    except (ValueError, OSError) as error:
        sys.exit(f"{error}".replace("\n", " "))
    print(f"  {arguments.notebook.stem} done in {time.time() - began:.0f} s", flush=True)


def _literal(text: str):
    """A parameter's value from the command line: a JSON literal, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
