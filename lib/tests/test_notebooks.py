"""Every chapter, run on `smoke` by make as a user would; then what is on disk."""

import json
import os
import shutil
import subprocess

import nbformat
import pandas as pd
import pytest

from lib import profiles
from lib.book.paths import NOTEBOOKS, ROOT, Paths
from lib.book.plots import has_chrome
from lib.tests import test_make
from lib.texts import prompts

PATHS = Paths("hostile")
PROFILE = PATHS.build.with_suffix(".toml")
CHAPTERS = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
PAYLOAD = "<img src=q onerror=self.owned=1>"


def make(*arguments, **environment):
    """make, for this profile."""
    return test_make.make(*arguments, f"PROFILE={PROFILE.relative_to(ROOT)}", **environment)


NO_PICTURES = {"BROWSER_PATH": "/nowhere"}
"""Those of one chapter are enough (`test_redrawing_computes_nothing`)."""


@pytest.fixture(scope="module")
def book():
    """The book on `smoke` with a tag in its paths, prompts and templates that would run, were it live in a page."""
    for folder in (PATHS.build, PATHS.figures, PATHS.data):
        shutil.rmtree(folder, ignore_errors=True)
    asked = PROFILE.with_suffix(".jsonl")
    asked.parent.mkdir(exist_ok=True)
    with asked.open("w") as file:
        for label in prompts.SUBSETS:
            for i, prompt in enumerate(prompts.written(label, 8, "test", 0)):
                row = {"label": label, "input": prompt.input, "target": prompt.target, "template": prompt.template}
                if i < 2:
                    row |= {"input": f"{PAYLOAD} {prompt.input}", "template": f"{PAYLOAD} {prompt.template}"}
                    row |= {"target": row["input"]} if label == "negative" else {}
                file.write(json.dumps(row) + "\n")
    text = (profiles.FOLDER / "smoke.toml").read_text().replace("data/smoke/", f"data/hostile/{PAYLOAD}/")
    PROFILE.write_text(text.replace("[tool.prompts]", f"[tool.prompts]\ntest_file = {json.dumps(str(asked))}"))
    result = make("-j2", "all", **NO_PICTURES)
    assert result.returncode == 0, result.stdout + result.stderr
    yield result
    for file in (asked, PROFILE):
        file.unlink()


def test_every_chapter_ran_and_said_how_long_it_took(book):
    for chapter in CHAPTERS:
        assert f"{chapter} done in" in book.stdout
        assert (PATHS.build / f"{chapter}.html").exists()
        notebook = nbformat.read(PATHS.build / f"{chapter}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
        record = json.loads((PATHS.build / f"{chapter}.json").read_text())
        assert record["parameters"]["profile"] == str(PROFILE.relative_to(ROOT)) and record["seconds"] > 0


def test_nothing_is_done_twice_and_a_lost_chapter_alone_is_made_again(book):
    assert "done in" not in make("all", **NO_PICTURES).stdout
    (PATHS.build / f"{CHAPTERS[-1]}.ipynb").unlink()
    planned = make("--dry-run", "all").stdout
    assert planned.count("-m lib.run") == 1 and f"notebooks/{CHAPTERS[-1]}.ipynb" in planned
    assert make("all", **NO_PICTURES).stdout.count("done in") == 1
    text = (PATHS.build / f"{CHAPTERS[-1]}.ipynb").read_text()
    tables = len(list(PATHS.results.glob("seeds*.csv")))
    assert tables and "what it is made from has not changed since" in text, "its tables are read, and no seed is trained again"


def test_a_table_that_is_deleted_by_hand_is_missed(book):
    table = PATHS.results / "lens.csv"
    text = table.read_text()
    table.unlink()
    planned = make("--dry-run", "all").stdout
    assert planned.count("-m lib.run") == 1 and "notebooks/09_tool_or_template.ipynb" in planned
    assert make("all", **NO_PICTURES).returncode == 0 and table.read_text() == text


def test_a_changed_input_makes_its_chapters_again(book):
    before = PROFILE.read_text()
    os.utime(PROFILE)
    assert "-m lib.run" not in make("--dry-run", "all").stdout, "only its time is another"
    PROFILE.write_text(before.replace("train = 24", "train = 25"))
    planned = make("--dry-run", "all").stdout
    PROFILE.write_text(before)
    # what toys and lists are made from holds no prompts, nor do chapters before them
    alone = ("16_lists", "17_list_patching", "19_untangling", "20_ablating_a_task")
    assert planned.count("-m lib.run") == len(CHAPTERS) - len(alone)
    assert not any(chapter in planned for chapter in alone)


def test_tables_have_the_published_columns(book, shared):
    for ours, theirs in (("exp1", "exp1"), ("exp2a", "exp2A"), ("exp2b", "exp2B")):
        columns = pd.read_csv(PATHS.results / f"{ours}.csv").columns
        published = pd.read_csv(shared / f"published/{theirs}_metrics_d128_p0.5.csv").columns
        assert set(published) <= set(columns)


def test_every_generation_has_its_fields_and_scores_as_the_table_says(book):
    from lib.score import score

    table = pd.read_csv(PATHS.results / "exp2b.csv").set_index(["subset", "layer", "condition"])
    files = list((PATHS.generations / "exp2b").glob("*.jsonl"))
    assert len(files) == len(table)
    for file in files:
        subset, rest = file.stem.split("_layer_")
        layer, condition = rest.split("_", 1)
        found, row = score(file), table.loc[(subset, int(layer), condition)]
        assert found["n"] == row.n_examples and found["tool_call_rate"] == pytest.approx(row.tool_call_rate)
        first = json.loads(file.read_text().split("\n")[0])
        assert {"condition", "input", "target", "generation"} <= set(first) and first["condition"] == condition


def test_figures_are_pages_and_numbers(book):
    pages = sorted(PATHS.figures.glob("*.html"))
    assert len(pages) >= 15
    for page in pages:
        text = page.read_text()
        assert 'aria-label="' in text and "https://cdn" not in text
        assert len(pd.read_csv(page.with_suffix(".csv")))


def test_nothing_in_a_page_runs_and_no_page_asks_for_anything(book, chromium):
    """What comes from files, models and paths is text in every page and figure."""
    tab, asked = chromium.new_page(viewport={"width": 390, "height": 800}), []
    tab.on("request", lambda request: asked.append(request.url))
    pages = [*PATHS.build.glob("*.html"), *PATHS.figures.glob("*.html")]
    assert len(pages) > len(CHAPTERS) + 15
    for page in pages:
        tab.goto(page.as_uri())
        assert tab.evaluate("typeof self.owned") == "undefined", page
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{page} is wider than a phone"
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    for chapter in ("00_the_model", "01_prompts", "06_exp2b_dose"):
        tab.goto((PATHS.build / f"{chapter}.html").as_uri())
        assert PAYLOAD in tab.inner_text("body"), chapter


def test_redrawing_computes_nothing(book):
    chapter = "06_exp2b_dose"
    before = {f: f.stat().st_mtime_ns for f in PATHS.data.rglob("*") if f.is_file()}
    figure, built = PATHS.figures / "exp2b_mean_ce.csv", (PATHS.build / f"{chapter}.ipynb").stat().st_mtime_ns
    numbers = figure.read_text()
    figure.unlink()
    result = subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "lib.run", f"notebooks/{chapter}.ipynb", "--profile", PROFILE, "--redraw"], cwd=ROOT
    )
    assert result.returncode == 0 and figure.read_text() == numbers
    assert all(page.with_suffix(".png").exists() == has_chrome() for page in PATHS.figures.glob("exp2b_mean*.html"))
    assert built == (PATHS.build / f"{chapter}.ipynb").stat().st_mtime_ns, "make's own target is left as it is"
    assert (PATHS.build / f"trials/{chapter}.ipynb").exists()
    assert before == {f: f.stat().st_mtime_ns for f in PATHS.data.rglob("*") if f.is_file()}
