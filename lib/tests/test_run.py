import json
import os
import subprocess
import sys

import nbformat
import pytest

from lib import run
from lib.book.paths import NOTEBOOKS, replacing
from lib.run import answered

CHAPTERS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_an_unknown_parameter_is_one_line():
    with pytest.raises(ValueError, match="unknown parameter 'profil'; it has profile, redraw") as error:
        run.check_parameters(CHAPTERS[1], {"profil": "nano"})
    assert CHAPTERS[1].name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "profil", "1"], "unknown parameter 'profil'"),
        (["--profile", "nanno"], "nanno: no such profile; use one of"),
        (["-p", "redraw", "no"], "parameter 'redraw' is False there, so not 'no'; give one of its kind"),
        (["-p", "redraw", "1"], "parameter 'redraw' is False there, so not 1"),
        (["-p", "n_prompts", "many"], "parameter 'n_prompts' is 100 there, so not 'many'"),
        (["-p", "profile", "other"], "-p profile: a chapter's profile decides where it writes; use --profile"),
    ],
)
def test_the_command_refuses_before_work_starts(arguments, message):
    result = subprocess.run([sys.executable, "-m", "lib.run", str(CHAPTERS[0]), *arguments], capture_output=True, text=True)
    assert result.returncode != 0 and message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_sources_have_no_outputs_and_one_cell_of_literal_parameters(path):
    import ast

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    opening = notebook.cells[0].source
    assert opening.startswith(f"# {path.stem.split('_')[0].lstrip('0') or 0}. ")
    for word in ("**Question.**", "**Answer.**", "**What this does not show.**"):
        assert word in opening
    assert max(len(cell.source.splitlines()) for cell in code) <= 30


def test_a_failed_chapter_is_kept_and_the_good_one_too(tmp_path, monkeypatch):
    from lib.book.paths import Paths

    monkeypatch.setattr(Paths, "build", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    cells = [
        nbformat.v4.new_code_cell("profile = 'x'\nfail = False", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("assert not fail, 'planted'"),
    ]
    kernel = {"name": run.KERNEL, "display_name": "", "language": "python"}
    good = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(good, tmp_path / "source.ipynb")
    out = run.run(tmp_path / "source.ipynb", "smoke", {})
    first = out.read_bytes()
    assert json.loads(out.with_suffix(".json").read_text())["parameters"] == {"profile": "smoke"}
    with pytest.raises(run.PapermillExecutionError, match="planted"):
        run.run(tmp_path / "source.ipynb", "smoke", {"fail": True})
    assert out.read_bytes() == first and (tmp_path / "trials/source.failed.ipynb").exists()


def test_replacing_keeps_the_old_when_the_new_fails(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "old"]
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "new"]


def test_an_answer_that_a_chapter_computes_stands_at_its_top():
    page = "# 1. T\n\n**Question.** Q?\n\n**Answer.** {}\n\n**What this does not show.** W."
    top = nbformat.v4.new_markdown_cell(page.format("Computed below."))
    output = nbformat.v4.new_output("display_data", {"text/markdown": "It is 42."})
    cell = nbformat.v4.new_code_cell("...", metadata={"tags": ["answer"]}, outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[top, cell])
    answered(notebook)
    assert notebook.cells[0].source == page.format("It is 42.")


def test_threads_spin_only_where_the_cores_are_free(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    run.gently(0.1)
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    run.gently(1.0)
    assert os.environ["GOMP_SPINCOUNT"] == "0"
