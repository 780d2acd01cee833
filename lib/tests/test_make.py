"""The Makefile: odd names, odd places, odd interpreters, and what it leaves alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lib import profiles
from lib.book.paths import NOTEBOOKS, ROOT, Paths
from lib.run import KERNEL

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def make(*arguments, cwd=ROOT, **environment):
    """make, without what an outer make hands down."""
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True, env=CLEAN | environment)


@contextmanager
def built(folder: Path, name: str, model: Path):
    """A profile of that model, whose organism is made as far as make can tell; gives the profile's path."""
    profile, build = folder / f"{name}.toml", Paths(name).build
    text = (profiles.FOLDER / "smoke.toml").read_text()
    profile.write_text(text.replace('"data/smoke/model"', json.dumps(str(model))))
    build.mkdir(parents=True, exist_ok=True)
    (build / "base").touch()
    try:
        yield profile
    finally:
        shutil.rmtree(build)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with an interpreter and no libraries, installed as far as make can tell."""
    place = tmp_path / "Bücher, neu"
    (place / "lib/profiles").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "lib/profiles/nano.toml", "lib/__init__.py"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(NOTEBOOKS, place / "notebooks", ignore=shutil.ignore_patterns("working"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / ".venv"], check=True)
    said = subprocess.run([place / ".venv/bin/python", "-V"], capture_output=True, text=True, check=True).stdout
    (place / ".venv/installed").write_text(said)
    return place


# --- names are data ---


@pytest.mark.parametrize("name", ["my smoke.toml", "$(shell touch MARKER)", "a;touch MARKER", "`touch MARKER`", "a'b", "50%"])
def test_a_profile_whose_name_means_something_to_make_or_the_shell_is_refused_in_one_line(name):
    done = make("-n", "all", f"PROFILE={name}")
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1 and "do not do here" in done.stderr
    assert not (ROOT / "MARKER").exists()


def test_names_of_files_that_a_profile_names_reach_no_rule(tmp_path):
    model = tmp_path / "runs/2026-11-25T10:00:00/a #1 50% model"
    model.mkdir(parents=True)
    for name in ("$(shell touch MARKER)", "a b", "c:d", "100%", "e#f", "`touch MARKER`"):
        (model / name).touch()
    with built(tmp_path, "odd-names", model) as profile:
        first, again = (make("-n", "all", f"PROFILE={profile}") for _ in range(2))
        (model / "$(shell touch OTHER)").touch()
        changed = make("-n", "all", f"PROFILE={profile}")
    for done in (first, again, changed):
        assert done.returncode == 0 and done.stdout.count("-m lib.run") == len(list(NOTEBOOKS.glob("*.ipynb"))), done.stderr
    assert not any((place / name).exists() for place in (ROOT, model, Path.cwd()) for name in ("MARKER", "OTHER"))


# --- it starts anywhere ---


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "xx_YY.UTF-8"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}])
def test_lib_is_found_under_any_path_and_locale(checkout, locale):
    (line,) = [line for line in make("-n", "-B", ".venv/installed", cwd=checkout).stdout.splitlines() if "book.pth" in line]
    subprocess.run(["sh", "-c", line], cwd=checkout, env=CLEAN | locale, check=True)
    found = subprocess.run(
        [checkout / ".venv/bin/python", "-c", "import lib; print(ascii(lib.__file__))"],
        cwd="/", env=CLEAN | locale, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0 and "neu/lib/__init__.py" in found.stdout, found.stderr


def test_another_package_of_that_name_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import lib\nprint(lib.__file__)")])
    NotebookClient(notebook, kernel_name=KERNEL, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert notebook.cells[0].outputs[0].text.strip() == str(ROOT / "lib/__init__.py")
    done = subprocess.run([sys.executable, "-m", "lib.run", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Run one chapter" in done.stdout


def test_an_interpreter_that_is_too_old_is_one_line_before_anything_is_installed(checkout, tmp_path):
    old = tmp_path / "bin/python3"
    old.parent.mkdir()
    old.write_text(
        f'#!/bin/sh\ntest "$1" = -c || exit 9\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); $2"\n'
    )
    old.chmod(0o755)
    shutil.rmtree(checkout / ".venv")
    done = make("all", cwd=checkout, PATH=f"{old.parent}:{os.environ['PATH']}")
    assert done.returncode != 0 and not (checkout / ".venv").exists()
    assert done.stderr.splitlines()[0] == "Python 3.11 or later is needed; python3 is 3.9 here"


def test_the_libraries_are_installed_anew_when_the_interpreter_is_another(checkout):
    assert "up to date" in make("-n", ".venv/installed", cwd=checkout).stdout
    (checkout / ".venv/installed").write_text("Python 3.10.1\n")
    assert "-m venv --clear .venv" in make("-n", ".venv/installed", cwd=checkout).stdout
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nonexistent/python3")
    assert "-m venv --clear .venv" in make("-n", ".venv/installed", cwd=checkout).stdout


# --- what is the reader's ---


def test_jupyterlab_opens_copies_that_are_the_readers_and_the_sources_stay(checkout):
    opened = checkout / ".venv/bin/jupyter"
    opened.write_text('#!/bin/sh\necho "opened $*"\n')
    opened.chmod(0o755)
    before = {f.name: f.read_bytes() for f in (checkout / "notebooks").glob("*.ipynb")}
    first = make("lab", cwd=checkout)
    copies = {f.name: f for f in (checkout / "notebooks/working").glob("*.ipynb")}
    assert first.returncode == 0 and {name: f.read_bytes() for name, f in copies.items()} == before
    assert re.search(r"opened lab (--allow-root )?notebooks/working$", first.stdout, re.M)
    assert ("This runs as root" in first.stdout) == ("--allow-root" in first.stdout) == (os.geteuid() == 0)
    changed, gone = sorted(copies)[:2]
    copies[changed].write_text("mine")
    copies[gone].unlink()
    make("lab", cwd=checkout)
    assert copies[changed].read_text() == "mine" and copies[gone].read_bytes() == before[gone]
    assert {f.name: f.read_bytes() for f in (checkout / "notebooks").glob("*.ipynb")} == before
    ignored = subprocess.run(["git", "check-ignore", "-q", "notebooks/working/x.ipynb"], cwd=ROOT)
    assert ignored.returncode == 0


def test_an_interrupt_is_one_line(tmp_path):
    parameters = nbformat.v4.new_code_cell("profile = 'smoke'", metadata={"tags": ["parameters"]})
    started = tmp_path / "started"
    work = nbformat.v4.new_code_cell(f"open({str(started)!r}, 'w').close()\nimport time\ntime.sleep(400)")
    kernel = {"name": KERNEL, "display_name": "", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[parameters, work], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "sleeper.ipynb")
    (tmp_path / "sleepy.toml").write_text((profiles.FOLDER / "smoke.toml").read_text())
    command = [sys.executable, "-m", "lib.run", tmp_path / "sleeper.ipynb", "--profile", tmp_path / "sleepy.toml"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in a shell's background inherit that it is ignored
    said_to = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = subprocess.Popen(command, cwd=ROOT, **said_to, start_new_session=True, preexec_fn=heard)
    for _ in range(1800):
        if started.exists():
            break
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=180)
    paths = Paths("sleepy")
    left = [f.name for f in paths.build.iterdir()]
    for folder in (paths.build, paths.data):
        shutil.rmtree(folder, ignore_errors=True)
    assert run.returncode != 0 and said.splitlines() == ["  sleeper ...", "  sleeper interrupted; the same command goes on"]
    assert left == []
