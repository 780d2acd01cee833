"""Every path of the project, and the one way in which files are written: whole or not at all."""

import errno
import fcntl
import glob
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
    _sweep(path)
    temporary = _beside(path)
    try:
        yield temporary
        if path.is_dir():
            discard(path)
        os.replace(temporary, path)
        written.append(path)
        note([path])
    except Exception as error:  # each library says it in its own way, torch as "unexpected pos 64 vs 0"
        full = getattr(error, "errno", None) in FULL or "No space left" in str(error)
        if full or shutil.disk_usage(path.parent).free < 2**16:
            held = sum(f.stat().st_size for f in (temporary, *temporary.rglob("*")) if f.is_file())
            raise OSError(
                errno.ENOSPC,
                f"{path.parent}: the disk is full, at {held / 1e6:.1f} MB of {path.name}; free some space (`make plan` says "
                "what a profile takes) and start again",
            ) from None
        raise
    finally:
        _remove(temporary)


FULL = (errno.ENOSPC, errno.EDQUOT)


written: list[Path] = []
"""Every file and folder that this process has put in its place."""


def note(paths: Iterable[Path]) -> None:
    """Tell the run of a chapter, where there is one, which files are its own (`lib.run`)."""
    if file := os.environ.get("CHAPTER_WROTE"):
        with Path(file).open("a", encoding="utf-8") as log:
            log.writelines(f"{os.path.relpath(path, ROOT)}\n" for path in paths)


def discard(path: Path) -> None:
    """Remove a file or a folder, which is gone at once under its own name, however long its files take."""
    _sweep(path)
    if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
        path = path.rename(_beside(path))
    _remove(path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside the block no other process is in such a block of the same path; a death ends it too.

    `ValueError`, one line, where another one is in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read() or "of another run"
                raise ValueError(f"{path}: process {who} is at it; wait for it, or stop it") from None
            if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
                continue  # the one before has just taken its file away
            file.truncate(0)
            file.write(f"{os.getpid()}")
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _sweep(path: Path) -> None:
    """Remove what a run of this machine that was killed has left beside `path` under a hidden name."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{HOST}-*"):
        if not _alive(int(left.name.split("-")[-2])):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


HOST = re.sub(r"\W", "", platform.node()) or "host"


def _beside(path: Path) -> Path:
    """A hidden name that says whose it is."""
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
