"""What a result was made from, in one short text: settings, data, weights, files, and the code behind it."""

import ast
import dataclasses
import dis
import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pandas as pd
from pydantic import BaseModel

from lib.book.paths import ROOT

PACKAGES = (
    "torch",
    "transformers",
    "transformer-lens",
    "peft",
    "sae-lens",
    "numpy",
    "pandas",
    "scipy",
    "statsmodels",
    "plotly",
)


def fingerprint(*parts: object) -> str:
    """Sixteen characters that change with any of the parts: values, settings, tensors, tables, functions, and many of these.

    A function counts with its code, the values that it finds around it and, of `lib`, the modules that it stands on.
    """
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        _add(found, part, set())
    return found.hexdigest()


def _add(found, part: object, seen: set[int]) -> None:
    found.update(type(part).__name__.encode() + b"\0")
    if isinstance(part, FunctionType | functools.partial | type | ModuleType) or hasattr(part, "__wrapped__"):
        if id(part) not in seen:
            seen.add(id(part))
            _add_code(found, part, seen)
        return
    match part:
        case str() | int() | float() | bool() | None:
            found.update(json.dumps(part).encode() + b"\0")
        case bytes():
            found.update(part)
        case Path():
            found.update(str(part).encode())
        case BaseModel():
            found.update(part.model_dump_json().encode())
        case pd.DataFrame() | pd.Series():
            found.update(part.to_csv().encode())
        case Mapping():
            for key, value in sorted(part.items(), key=lambda item: str(item[0])):  # a vocabulary comes in any order
                found.update(f"{key}\0".encode())
                _add(found, value, seen)
        case list() | tuple() | Iterator():
            for value in part:
                _add(found, value, seen)
        case CodeType():
            _add_instructions(found, part, {}, seen)
        case _ if hasattr(part, "untyped_storage"):
            found.update(repr((part.dtype, tuple(part.shape))).encode())
            for chunk in part.detach().reshape(-1).split(2**24):
                found.update(_bytes(chunk))
        case _ if dataclasses.is_dataclass(part) and _is_ours(type(part)) and hasattr(part, "__hash__"):
            _add(found, {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}, seen)
        case _:
            pass  # what cannot be told apart by its value counts by its type


def _bytes(chunk) -> bytes:
    import torch  # what needs no tensors need not wait for it

    return chunk.contiguous().cpu().view(torch.uint8).numpy().tobytes() if chunk.numel() else b""


def _is_ours(thing: object) -> bool:
    return (getattr(thing, "__module__", None) or "").split(".")[0] == "lib"


def _add_code(found, part: object, seen: set[int]) -> None:
    """Code of `lib` by its files; of a notebook by itself and what it uses; of others by name, for versions count elsewhere."""
    if isinstance(part, functools.partial):
        return _add(found, [part.func, list(part.args), part.keywords], seen)
    part = inspect.unwrap(part) if callable(part) else part
    name = part.__name__ if isinstance(part, ModuleType) else part.__module__
    if name.split(".")[0] == "lib":
        file = inspect.getfile(part)
        found.update(f"{getattr(part, '__qualname__', name)}\0{code(file)}".encode())
    elif isinstance(part, FunctionType) and name == "__main__":
        _add_instructions(found, part.__code__, part.__globals__, seen)
        _add(found, [part.__defaults__ or (), part.__kwdefaults__ or {}], seen)
        _add(found, [cell.cell_contents for cell in part.__closure__ or ()], seen)
    else:
        found.update(f"{name}.{getattr(part, '__qualname__', '')}".encode())


def _add_instructions(found, of: CodeType, around: Mapping, seen: set[int]) -> None:
    """What a piece of code does, where it stands left aside, and the values of the names that it takes from around it."""
    for step in dis.get_instructions(of):
        value = step.argval
        if isinstance(value, CodeType):
            _add_instructions(found, value, around, seen)
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.update(f"{value}\0".encode())
            if value in around:
                _add(found, around[value], seen)
        elif "JUMP" not in step.opname:  # where it goes to is a place
            value = sorted(map(repr, value)) if isinstance(value, frozenset) else value
            found.update(f"{step.opname} {value!r}\0".encode())


# --- code ---


@functools.cache
def imported(file: Path) -> tuple[Path, ...]:
    """The files of `lib` that a file of Python, or a notebook, imports, and those that these import; itself among them."""
    found, left = set(), [file]
    while left:
        if (here := left.pop()) not in found:
            found.add(here)
            left += _imports(_source(here))
    return tuple(sorted(found))


def code(file: Path | str) -> str:
    """The fingerprint of a file of Python, or a notebook, and of the `lib` that it stands on; comments and docstrings aside."""
    return fingerprint(*(_bare(_source(file)) for file in imported(Path(file).resolve())))


@functools.cache
def _source(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


@functools.cache
def _imports(source: str) -> list[Path]:
    """The files of `lib` that some code names in its imports, at its top or within functions."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    places = [ROOT / name.replace(".", "/") for name in names if name.split(".")[0] == "lib"]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if file.is_file()]


@functools.cache
def _bare(source: str) -> str:
    """Code without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return ast.dump(tree)


# --- files ---


def state(paths: Iterable[Path]) -> list:
    """Files, those in folders too: text by what it says, weights by size and time, for they are written once and large."""
    found: list = []
    for path in paths:
        for file in sorted(f for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()):
            stat = file.stat()
            small = file.suffix in (".jsonl", ".csv", ".json", ".toml", ".md") and stat.st_size < 2**26
            said = hashlib.blake2b(file.read_bytes()).hexdigest() if small else [stat.st_size, stat.st_mtime_ns]
            found.append([str(file.relative_to(path.parent)), said])
    return found


def versions() -> list[str]:
    """Of what computes."""
    return [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]


def of_table(compute: Callable, reads: Iterable[Path]) -> str:
    """Of the function that makes a table, with all that it finds around it, and of the files that it reads."""
    return fingerprint(compute, state(reads), versions())
