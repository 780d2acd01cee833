"""Natural text that every installation of this project holds: what the packages it is built on say of themselves.

READMEs and licences, docstrings, and Python sources. The packages are pinned, so the texts are the same everywhere.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lib.texts.corpus import Document

PACKAGES = (
    "torch", "transformers", "peft", "transformer-lens", "sae-lens", "datasets", "huggingface-hub", "safetensors", "tokenizers",
    "pydantic", "numpy", "pandas", "scipy", "statsmodels", "plotly", "kaleido", "ipywidgets", "ipykernel", "ipython",
    "jupyterlab", "jupyter-server", "notebook-shim", "nbconvert", "nbformat", "nbclient", "papermill", "tqdm", "psutil",
    "pytest", "hypothesis", "playwright", "pre-commit", "sympy", "networkx", "jinja2", "markupsafe", "fsspec", "filelock",
    "requests", "urllib3", "certifi", "idna", "charset-normalizer", "packaging", "pyyaml", "regex", "rich", "click", "httpx",
    "anyio", "beautifulsoup4", "bleach", "mistune", "pygments", "python-dateutil", "tornado", "traitlets", "pyzmq", "pyarrow",
    "accelerate", "patsy", "setuptools", "jsonschema", "attrs", "aiohttp", "dill", "multiprocess", "simple-parsing", "nltk",
)  # fmt: skip
"""Those not installed are passed over."""
PIECE = 2_000
"""Characters: longer texts are cut, between lines, into pieces of about so many."""
SHORTEST = 200
OF_A_FILE = 20
"""Texts at most, so that none is all there is."""
SHARES = {"validation": 1, "test": 5}
"""Of a hundred texts, those held out."""


def split_of(document: Document) -> str:
    """`train`, `validation` or `test`: by what the text says, so that it is so wherever it stands."""
    place = int.from_bytes(hashlib.blake2b(document.text.encode(), digest_size=4).digest(), "big") % 100
    for split, share in SHARES.items():
        if (place := place - share) < 0:
            return split
    return "train"


def drawn(kind: str, characters: int, split: str, seed: int = 0) -> list[Document]:
    """Texts of a kind, `prose`, `docstring` or `code`, and a split, each once, of about so many characters in all.

    Files are taken in a random order, and no more are read than it takes.
    """
    paths = sorted({path for package in PACKAGES for path in _files(package)})
    random.Random(f"{kind}/{seed}").shuffle(paths)
    found: dict[str, Document] = {}
    total = 0
    for path in paths:
        for text in islice(KINDS[kind](path), OF_A_FILE):
            if len(text) >= SHORTEST and text not in found and split_of(document := Document(kind, text)) == split:
                found[text] = document
                total += len(text)
        if total >= characters:
            break
    return list(found.values())


def _files(package: str) -> list[Path]:
    try:
        return [Path(file.locate()) for file in importlib.metadata.files(package) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def _prose(file: Path) -> Iterator[str]:
    """READMEs, as packages carry them in their metadata, licences and notes."""
    if file.name == "METADATA" or file.suffix in (".md", ".rst") or re.match("LICEN[CS]E|NOTICE|COPYING|AUTHORS", file.name):
        text = _read(file)
        yield from pieces(text.partition("\n\n")[2] if file.name == "METADATA" else text)


def _docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield from pieces(inspect.cleandoc(text))


def _code(file: Path) -> Iterator[str]:
    yield from pieces(_read(file)) if file.suffix == ".py" else ()


KINDS = {"prose": _prose, "docstring": _docstrings, "code": _code}


def pieces(text: str) -> Iterator[str]:
    """Parts of about `PIECE` characters that end where a line does."""
    part: list[str] = []
    for line in text.splitlines():
        part.append(line)
        if sum(map(len, part)) >= PIECE:
            yield "\n".join(part)
            part = []
    yield "\n".join(part)


def _tree(file: Path) -> ast.AST:
    try:
        return ast.parse(_read(file)) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError, RecursionError):  # sources for other versions of Python
        return ast.Module([], [])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
