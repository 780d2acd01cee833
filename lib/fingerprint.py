"""What a result was made from, in one short text: settings, data, weights, and the code of `lib` behind it."""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from lib.paths import ROOT


def fingerprint(*parts: object) -> str:
    """Sixteen characters that change with any of the parts: JSON values, settings, tensors, files, and many of these."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        _add(found, part)
    return found.hexdigest()


def _add(found, part: object) -> None:
    found.update(type(part).__name__.encode())
    match part:
        case Tensor():
            found.update(repr((part.dtype, tuple(part.shape))).encode())
            for chunk in part.detach().reshape(-1).split(2**24):
                found.update(chunk.contiguous().cpu().view(torch.uint8).numpy() if chunk.numel() else b"")
        case np.ndarray():
            found.update(repr((part.dtype, part.shape)).encode() + part.tobytes())
        case Path():
            found.update(part.read_bytes())
        case BaseModel():
            found.update(part.model_dump_json().encode())
        case Mapping():
            for key, value in sorted(part.items()):  # a vocabulary comes in any order
                found.update(f"{key}\0".encode())
                _add(found, value)
        case list() | tuple() | Iterator():
            for value in part:
                _add(found, value)
        case str() | int() | float() | bool() | None:
            found.update(json.dumps(part).encode() + b"\0")
        case _:
            raise TypeError(f"no fingerprint of a {type(part).__name__}")


@functools.cache
def imported(file: Path) -> tuple[Path, ...]:
    """The files of `lib` that a file of Python imports, and those that these import, and so on; itself among them."""
    found, left = set(), [file]
    while left:
        if (here := left.pop()) not in found:
            found.add(here)
            left += _imports(here.read_text(encoding="utf-8"))
    return tuple(sorted(found))


def _imports(code: str) -> list[Path]:
    """The files of `lib` that some code names in its imports, at its top or within functions."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    places = [ROOT / name.replace(".", "/") for name in names if name.split(".")[0] == "lib"]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if file.is_file()]


def code(file: Path | str) -> str:
    """The fingerprint of a file of Python and of all of `lib` that it stands on, comments and docstrings left out."""
    return fingerprint(*(ast.dump(_bare(file.read_text(encoding="utf-8"))) for file in imported(Path(file).resolve())))


def _bare(source: str) -> ast.Module:
    """Code without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            if isinstance(body[0].value.value, str):
                body[0].value.value = ""
    return tree
