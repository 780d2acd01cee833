"""What is on disk knows what it was made from: tables, needs of chapters, profiles' marks, locks, files half written."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pandas as pd
import pytest
import torch

from lib import needs, profiles
from lib.book import fingerprint, paths, results
from lib.book.paths import ROOT, Paths, alone, discard, replacing


@pytest.fixture
def profile(tmp_path, monkeypatch, smoke):
    """`smoke` with all its folders in a place of its own."""
    for name in ("data", "build", "figures"):
        monkeypatch.setattr(Paths, name, tmp_path / name)
    (tmp_path / "data/prompts").mkdir(parents=True)
    (tmp_path / "data/prompts/test.jsonl").write_text("one\n")
    return smoke


# --- tables ---


def made(profile, factor=2, redraw=False, besides=None):
    """The table, and how often it was computed for it."""
    count = []

    def compute():
        count.append(1)
        if besides:
            with replacing(besides) as temporary:
                temporary.write_text("texts")
        return pd.DataFrame({"x": [factor, 2 * factor]})

    compute.__module__ = "__main__"  # as a chapter's function is
    return results.table(profile, "some.csv", compute, redraw, reads=[profile.paths.prompts]), len(count)


def test_a_table_is_computed_once_and_again_when_what_it_is_made_from_changes(profile, tmp_path):
    (first, n), (again, none) = made(profile), made(profile)
    assert n == 1 and none == 0 and first.equals(again)
    assert made(profile, factor=3)[1] == 1, "a value that the function finds around it"
    assert made(profile, factor=3)[1] == 0
    (tmp_path / "data/prompts/test.jsonl").write_text("two\n")
    assert made(profile, factor=3)[1] == 1, "a file that it reads"
    os.utime(tmp_path / "data/prompts/test.jsonl")
    assert made(profile, factor=3)[1] == 0, "only that file's time"


def test_a_table_whose_texts_are_gone_is_computed_again(profile, tmp_path):
    texts = tmp_path / "data/results/generations/a.jsonl"
    assert made(profile, besides=texts)[1] == 1 and made(profile, besides=texts)[1] == 0
    texts.unlink()
    assert made(profile, besides=texts)[1] == 1 and texts.exists()


def test_to_redraw_reads_and_never_computes(profile):
    with pytest.raises(FileNotFoundError, match=r"some.csv: nothing to redraw from; run `make all` first"):
        made(profile, redraw=True)
    made(profile)
    found, n = made(profile, factor=5, redraw=True)
    assert n == 0 and list(found.x) == [2, 4]


# --- fingerprints ---


def function(source: str):
    names = {"__name__": "__main__"}
    exec(source, names)
    return names["f"]


def test_code_counts_by_what_it_does():
    def of(source):
        return fingerprint.fingerprint(function(source))

    plain = of("def f(x):\n    return x + 1")
    assert of("# said\n\n\ndef f(x):  # more\n    return x + 1") == plain
    assert of("def f(x):\n    return x + 2") != plain and of("def f(x):\n    return x - 1") != plain
    assert of("n = 1\ndef f(x):\n    return x + n") != of("n = 2\ndef f(x):\n    return x + n")
    assert of("def g(x):\n    return x\ndef f(x):\n    return g(x)") != of(
        "def g(x):\n    return -x\ndef f(x):\n    return g(x)"
    )
    assert of("def f(x, n=1):\n    return x") != of("def f(x, n=2):\n    return x")


def test_comments_and_docstrings_of_lib_count_for_nothing(tmp_path):
    def of(source):
        file = tmp_path / f"{abs(hash(source))}.py"
        file.write_text(source)
        return fingerprint.code(file)

    plain = of('"""One."""\nx = 1\n')
    assert of('"""Two."""\n\nx = 1  # said\n') == plain and of('"""One."""\nx = 2\n') != plain
    assert of('"""One."""\nfrom lib.book import stats\nx = 1\n') != plain


def test_values_tensors_and_settings_are_told_apart(smoke):
    of, x = fingerprint.fingerprint, torch.arange(6.0)
    assert of(x) == of(x.clone()) != of(x + 1e-6) and of(x) != of(x.bfloat16()) and of(x.reshape(2, 3)) != of(x)
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1}) != of({"a": 2, "b": 1})
    assert of(1) != of("1") != of([1]) and of(["ab"]) != of(["a", "b"])
    assert of(smoke.tool.finetune) != of(smoke.tool.finetune.model_copy(update={"lr": 1e-6}))


# --- what make goes by ---


def test_a_need_changes_with_what_a_chapter_is_made_from_and_when_its_files_are_gone(profile, tmp_path):
    def all_of():
        needs.needs("smoke")
        return {f.name: f.read_text() for f in (tmp_path / "build/needs").iterdir()}

    first = all_of()
    assert len(first) == len(list(paths.NOTEBOOKS.glob("*.ipynb"))) and all_of() == first
    wrote, record = tmp_path / "table.csv", tmp_path / "build/01_prompts.json"
    wrote.touch()
    record.write_text(f'{{"wrote": ["{os.path.relpath(wrote, ROOT)}"]}}')
    assert all_of() == first
    wrote.unlink()
    second = all_of()
    assert {name for name in first if first[name] != second[name]} == {"01_prompts"}
    record.write_text("{cut")
    third = all_of()
    assert {name for name in first if third[name] != second[name]} == {"01_prompts"}


def test_two_profiles_of_one_name_never_share_data(profile, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(profiles.FOLDER / "smoke.toml", tmp_path / folder / "my.toml")
    first, second = (str(tmp_path / folder / "my.toml") for folder in ("a", "b"))
    profiles.claim(profile, first)
    profiles.claim(profile, first)
    with pytest.raises(ValueError, match=r"are those of .*a/my.toml; give this file another name"):
        profiles.claim(profile, second)
    (tmp_path / "a/my.toml").rename(tmp_path / "a/other.toml")
    profiles.claim(profile, second)


# --- one writer, whole files ---

HOLD = """
import pathlib, sys, time
from lib.book.paths import alone
with alone(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_and_a_death_lets_the_next_one_in(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "model"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=rf"model: process {other.pid} is at it; wait for it, or stop it"):
        with alone(tmp_path / "model"):
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with alone(tmp_path / "model"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_dead_run_has_left_half_written_goes_and_a_living_ones_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, others, elsewhere = (
        tmp_path / f".table.csv.{host}-{process}-0123abcd"
        for host, process in ((paths.HOST, dead.pid), (paths.HOST, os.getpid()), ("elsewhere", dead.pid))
    )
    for file in (left, others, elsewhere):
        file.mkdir()
    with replacing(tmp_path / "table.csv") as temporary:
        temporary.write_text("x")
    assert not left.exists() and others.exists() and elsewhere.exists()
    left.mkdir()
    discard(tmp_path / "table.csv")
    assert not left.exists() and not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), 0),
        (Exception("I/O error: No space left on device (os error 28)"), 10**9),
    ],
)
def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path, monkeypatch, error, free):
    (tmp_path / "a.pt").write_text("old")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, free))
    with pytest.raises(OSError, match=rf"{tmp_path}: the disk is full, at 0.0 MB of a.pt; free some space") as caught:
        with replacing(tmp_path / "a.pt") as temporary:
            temporary.write_text("new")
            raise error
    assert "\n" not in str(caught.value) and (tmp_path / "a.pt").read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.pt"]


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="something else"):
        with replacing(tmp_path / "a.pt"):
            raise RuntimeError("something else")


SAES = (
    "11_an_sae_from_scratch", "12_features", "13_specialists", "14_sae_variants", "15_interventions", "16_lists",
    "18_list_features",
)  # fmt: skip
"""Chapters that train dictionaries on running text, or look at them on it."""


@pytest.mark.parametrize(
    ("file", "chapters"),
    [
        ("lib/plan/needs.py", set()),
        ("lib/bench/report.py", set()),
        ("lib/nano/pretrain.py", {"00_the_model", *SAES}),
        ("lib/studies/tool/leftover.py", {"08_controls"}),
        ("lib/studies/transport/steer.py", {"15_interventions"}),
        ("lib/studies/features/material.py", {"11_an_sae_from_scratch", "12_features", "13_specialists"}),
        ("lib/studies/lists/runs.py", {"16_lists", "18_list_features"}),
        ("lib/studies/tool/seeds.py", {"09b_seeds"}),
        ("lib/widgets.py", {"06_exp2b_dose", "08b_reading", "12_features", "15_interventions"}),
        ("lib/book/stats.py", None),
    ],
)
def test_a_change_in_lib_makes_only_the_chapters_that_stand_on_it_again(monkeypatch, file, chapters):
    """`None`: nearly all. Comments and docstrings make none."""
    all_of = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
    before, source = {f.stem: fingerprint.code(f) for f in all_of}, fingerprint._source
    for change, expected in (("# said", set()), ("changed = 1", chapters)):
        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, "_source", lambda f, c=change: source(f) + f"\n{c}\n" * (f == ROOT / file))
            after = {f.stem: fingerprint.code(f) for f in all_of}
        changed = {name for name in before if before[name] != after[name]}
        assert len(changed) > 6 if expected is None else changed == expected
