"""Run one chapter headlessly: strict parameters, progress, a rendered page and a build record.

    python -m lib.run notebooks/04_exp1_reconstruction.ipynb --profile nano [-p name value] [--redraw]

writes `build/<profile>/<chapter>.ipynb` and `.html`, and beside them `.json` (what it was built with)
and `.d` (what it depends on, for make). What a chapter's cell tagged `answer` says is put at its top too (`answered`).
A chapter that fails leaves `<chapter>.failed.ipynb`.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import time
import warnings
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from lib import profiles
from lib.paths import ROOT, replacing
from lib.profiles import Profile

KERNEL = "delta-transcoders"
PACKAGES = ("torch", "transformers", "transformer-lens", "peft", "plotly")


def check_parameters(notebook: Path, given: dict) -> None:
    """Raise a one-line `ValueError` for a parameter that the notebook's parameters cell does not have."""
    known = papermill.inspect_notebook(str(notebook))
    for name in given:
        if name not in known:
            raise ValueError(f"{notebook}: unknown parameter {name!r}; it has {', '.join(known)}")


def inputs(profile: Profile, source: str) -> list[Path]:
    """The files outside `lib` that a chapter's results depend on."""
    files = [Path(source) if source.endswith(".toml") else profiles.FOLDER / f"{source}.toml"]
    asked = profile.prompts
    files += [ROOT / f for f in (asked.train_file, asked.test_file, asked.copies) if f and "://" not in f]
    sources = (profile.model.source, profile.transcoders.source, profile.finetune.source, profile.deltas.source)
    for folder in filter(None, sources):
        files += sorted(f for f in (ROOT / folder).rglob("*") if f.is_file())
    return files


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
    given = {"profile": source, **given}
    check_parameters(notebook, given)
    out = profile.paths.build / notebook.name
    failed = out.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    began = time.time()
    with replacing(out) as temporary:
        try:
            papermill.execute_notebook(
                str(notebook), str(temporary), given, kernel_name=KERNEL, cwd=str(ROOT), progress_bar=sys.stderr.isatty()
            )
        except PapermillExecutionError:
            temporary.replace(failed)
            raise
        seconds = time.time() - began
        executed = nbformat.read(temporary, as_version=4)
        answered(executed)
        nbformat.write(executed, temporary)
        page, _ = HTMLExporter(embed_images=True).from_filename(str(temporary))
        with replacing(out.with_suffix(".html")) as temporary_page:
            temporary_page.write_text(page, encoding="utf-8")
        record = {
            "chapter": notebook.stem, "parameters": given, "seconds": round(seconds, 1),
            "machine": platform.machine(), "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        }  # fmt: skip
        with replacing(out.with_suffix(".json")) as temporary_record:
            temporary_record.write_text(json.dumps(record, indent=1) + "\n")
        with replacing(out.with_suffix(".d")) as temporary_rule:
            files = [str(f.relative_to(ROOT) if f.is_relative_to(ROOT) else f) for f in inputs(profile, source)]
            temporary_rule.write_text(f"{out.relative_to(ROOT)}: {' '.join(files)}\n" + "".join(f"{f}:\n" for f in files))
    return out


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    parser.add_argument("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--redraw", action="store_true", help="draw from the tables on disk, compute nothing")
    arguments = parser.parse_args()
    given = {name: _literal(value) for name, value in arguments.given}
    if arguments.redraw:
        given["redraw"] = True
    began = time.time()
    print(f"  {arguments.notebook.stem} ...", flush=True)
    try:
        run(arguments.notebook, arguments.profile, given)
    except PapermillExecutionError as error:
        left = profiles.load(arguments.profile).paths.build / f"{arguments.notebook.stem}.failed.ipynb"
        sys.exit(f"  {arguments.notebook.stem} failed: {error.ename}: {error.evalue}\n  see {left}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(f"  {arguments.notebook.stem} done in {time.time() - began:.0f} s", flush=True)


def _literal(text: str):
    """A parameter's value from the command line: a JSON literal, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
