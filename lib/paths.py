"""Every path of the project, and the one way in which files are written: whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PUBLISHED = ROOT / "data" / "published"


@dataclass(frozen=True)
class Paths:
    """Where the things of one profile are."""

    profile: str

    @property
    def data(self) -> Path:
        return ROOT / "data" / self.profile

    @property
    def prompts(self) -> Path:
        return self.data / "prompts"

    @property
    def finetuned(self) -> Path:
        return self.data / "finetuned"

    @property
    def deltas(self) -> Path:
        return self.data / "deltas"

    @property
    def results(self) -> Path:
        return self.data / "results"

    @property
    def generations(self) -> Path:
        return self.results / "generations"

    @property
    def figures(self) -> Path:
        return ROOT / "figures" / self.profile

    @property
    def build(self) -> Path:
        return ROOT / "build" / self.profile


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to `path` when the block ends well.

    If the block fails (or the disk is full, or the run is killed) what stood at `path` still stands.
    A folder is replaced whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
