"""The house: rooms in their order, files of a readable length, no circles, and nothing else at the top."""

import ast
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from lib.book.paths import ROOT

LIB = ROOT / "lib"
ROOMS = ["book", "texts", "profiles", "model", "dictionary", "measure", "nano", "base", "studies", "plan", "bench"]
"""Each imports only those before it; the files at the root of `lib`, its doors, import any, and no room imports a door."""
FILES = [file for file in sorted(LIB.rglob("*.py")) if "tests" not in file.parts]


def name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name(file) for file in FILES}


def imports(file: Path) -> set[str]:
    """The modules of `lib` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lib":
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & MODULES) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lib"}
    return found & MODULES


def room(module: str) -> str | None:
    """The room of a module; none for a door."""
    return module.split(".")[1] if module.count(".") > 1 or module.split(".")[-1] in ROOMS else None


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_room_imports_only_those_before_it(file):
    here = room(name(file))
    for other in imports(file):
        there = room(other)
        if here is not None:
            assert there is not None, f"{name(file)} imports the door {other}"
            assert ROOMS.index(there) <= ROOMS.index(here), f"{name(file)} imports {other} upwards"


def test_no_file_is_long_and_none_goes_in_a_circle():
    long = {name(file): n for file in FILES if (n := len(file.read_text().splitlines())) > 250}
    assert not long
    list(TopologicalSorter({name(file): imports(file) - {name(file)} for file in FILES}).static_order())


def test_texts_need_no_torch():
    for file in (LIB / "texts").glob("*.py"):
        tree = ast.parse(file.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {n for n in names if n.split(".")[0] in ("torch", "transformers")}, file


def test_the_top_of_the_project_is_what_it_says():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not listed:
        pytest.skip("this is no checkout of git")
    top = {path.split("/")[0] for path in listed if not path.startswith(".")}
    assert top == {"notebooks", "lib", "data", "figures", "requirements.txt", "Makefile", "README.md", "LICENSE"}
