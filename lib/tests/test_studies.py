"""A study is a table of a profile: without it its chapters are left out, and asked for by name they say so."""

import re
import shutil

import pytest

from lib import profiles
from lib.book.paths import NOTEBOOKS
from lib.run import run
from lib.tests.test_make import make


@pytest.fixture
def without(tmp_path):
    """`smoke` without any study."""
    text = (profiles.FOLDER / "smoke.toml").read_text()
    file = tmp_path / "no-study.toml"
    file.write_text(text[: text.index("[tool]")] + text[text.index("[organism]") :])
    profile = profiles.load(str(file))
    yield file, profile
    for made in (profile.paths.data, profile.paths.build, profile.paths.figures):
        shutil.rmtree(made, ignore_errors=True)


def test_a_study_without_a_table_is_left_out_with_one_line(without):
    file, profile = without
    profile.paths.build.mkdir(parents=True)
    (profile.paths.build / "base").touch()
    said = make("-n", "all", f"PROFILE={file}").stdout
    assert re.findall(r"-m lib.run \S+", said) == ["-m lib.run notebooks/00_the_model.ipynb"]
    assert "for study in features lists tool transport untangle;" in said
    assert "for study in ;" in make("-n", "all", "PROFILE=smoke").stdout


def test_a_chapter_of_several_studies_is_there_for_any_of_them(tmp_path):
    text = (profiles.FOLDER / "smoke.toml").read_text()
    for left_out in ("[tool]", "[features]"):
        end = "[features]" if left_out == "[tool]" else "[organism]"
        file = tmp_path / f"no-{left_out[1:-1]}.toml"
        file.write_text(text[: text.index(left_out)] + text[text.index(end) :])
        paths = profiles.load(str(file)).paths
        paths.build.mkdir(parents=True)
        (paths.build / "base").touch()
        said = make("-n", "all", f"PROFILE={file}").stdout
        shutil.rmtree(paths.build)
        assert "notebooks/21_ledger.ipynb" in said and "notebooks/00_the_model.ipynb" in said
        assert ("notebooks/01_prompts.ipynb" in said) == (left_out != "[tool]")
        assert ("notebooks/12_features.ipynb" in said) == (left_out != "[features]")


def test_its_chapters_say_so_when_they_are_asked_for(without):
    file, _ = without
    with pytest.raises(ValueError, match=r"has no table \[tool\], which 01_prompts is about; add it") as error:
        run(NOTEBOOKS / "01_prompts.ipynb", str(file), {})
    assert "\n" not in str(error.value)
