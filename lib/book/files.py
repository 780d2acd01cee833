"""Text and JSON that others wrote. Whatever is wrong is a `ValueError` of one line: the file, the place, the remedy."""

import json
from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"


def present(path: Path) -> Path:
    """The path, if a file lies there that is not a mere pointer of git-lfs."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder, where a file is needed; give the path of a file in it") from None
    except (OSError, ValueError) as error:  # a name with NUL is a ValueError
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}; check the path") from None
    if start == POINTER:
        raise ValueError(f"{path}: a pointer of git-lfs in place of the file; run `git lfs pull` there, or download it again")
    return path


def text(path: Path) -> str:
    """A file in UTF-8, with a byte order mark or without."""
    try:
        return present(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def parsed(place: Path | str, said: str) -> object:
    """What a JSON text says, every number within what Python takes and every character one that can be written."""
    try:
        found = json.loads(said)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: half of a character ({error.object[error.start]!a}); remove it") from None
    except (ValueError, RecursionError) as error:  # also of numbers too long and brackets too deep for Python
        raise ValueError(f"{place}: not JSON ({getattr(error, 'msg', error)}); mend or download it again") from None
    return found


def json_object(path: Path) -> dict:
    """The object in a JSON file."""
    found = parsed(path, text(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no object {{...}} but a {type(found).__name__}; download or make it again")
    return found


def first_line(error: Exception) -> str:
    """What went wrong, as a library says it, in few words."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
