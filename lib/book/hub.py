"""Repositories of the Hugging Face hub, or folders in their place: what files there are, and each where it lies.

Everything goes through the hub's own cache, so what was fetched once is there without a network, with
`HF_HUB_OFFLINE=1` too. Whatever goes wrong is a one-line `ValueError` that says what to do.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import get_cached_repo_tree, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lib.book.paths import ROOT

TOKENIZER = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL = (*TOKENIZER, "*.safetensors")
"""The files of a model with its tokenizer; never a pickle."""
DATASET = re.compile(r"hf://datasets/([^/]+/[^/@]+)@([^/]+)/(.+)")
LOG_IN = "log in with `.venv/bin/hf auth login`"


@contextmanager
def explained(repository: str, revision: str | None, what: str = "") -> Iterator[None]:
    """The hub's errors inside the block, in one line each."""
    page, at = f"https://huggingface.co/{repository}", f" at revision {revision}" if revision else ""
    try:
        yield
    except GatedRepoError:
        raise ValueError(f"{repository}: accept its licence at {page} first, then {LOG_IN}, and start again") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{repository}: there is no {page}, or it is private; check the name, or {LOG_IN}") from None
    except RevisionNotFoundError:
        raise ValueError(f"{repository}: it has no revision {revision}; see {page}/commits") from None
    except RemoteEntryNotFoundError:
        raise ValueError(f"{repository}: it has no file {what}{at}; see {page}/tree/{revision or 'main'}") from None
    except (LocalEntryNotFoundError, EntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError):
        raise ValueError(
            f"{repository}: {what}{at} is not in the cache, and the hub cannot be reached; connect (and unset HF_HUB_OFFLINE), "
            f"or name a folder instead"
        ) from None


def files(source: Path | str, revision: str | None = None) -> list[str]:
    """The names of all files of a folder or a repository.

    Without a network those of the listing in the cache; where an older cache has none, of the files in it.
    """
    if isinstance(source, Path):
        return _below(source)
    try:
        return _listed(source, revision)
    except CachedRepoTreeNotFoundError:
        folder_of_it = folder(source, revision, ("README.md",))  # fetches next to nothing, and keeps the list of all
    try:
        return _listed(source, revision)
    except CachedRepoTreeNotFoundError:
        return _below(folder_of_it)


def _listed(repository: str, revision: str | None) -> list[str]:
    return [file.path for file in get_cached_repo_tree(repository, revision=revision)]


def _below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def file(source: Path | str, name: str, revision: str | None = None, repo_type: str | None = None) -> Path:
    """Where one file of a folder or a repository lies on this machine."""
    if isinstance(source, Path):
        if not (source / name).is_file():
            raise ValueError(f"{source / name}: no such file; the folder is not whole, or not what it was taken for")
        return source / name
    with explained(source, revision, name):
        return Path(hf_hub_download(source, name, revision=revision, repo_type=repo_type))


def rows(source: str) -> Iterator[dict]:
    """The rows of a JSONL file, compressed or not: the path of one, or `hf://datasets/owner/name@revision/path`.

    One on the hub is read from the cache where it is there, and otherwise streamed, as far as it is wanted.
    """
    import datasets  # slow to import, and few need it

    name, revision, path = source, None, source
    if match := DATASET.fullmatch(source):
        name, revision, path = match.groups()
        kept = try_to_load_from_cache(name, path, revision=revision, repo_type="dataset")
        source = kept if isinstance(kept, str) else source
    elif not Path(source).is_file():
        raise ValueError(f"{source}: no such file, and not hf://datasets/owner/name@revision/path; give one of these")
    with explained(name, revision, path):
        yield from datasets.load_dataset("json", data_files=source, split="train", streaming=True)


def folder(source: Path | str, revision: str | None = None, patterns: tuple[str, ...] = MODEL) -> Path:
    """The folder itself, or that of a repository in the cache, with all files like `patterns`."""
    if isinstance(source, Path):
        return source
    with explained(source, revision, ", ".join(patterns)):
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))


def local_or_hub(source: str) -> Path | str:
    """The folder a source names, relative to the project; or the source itself, a hub repository."""
    folder = ROOT / source
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith(("/", ".")):
        raise ValueError(f"{source}: no such folder, and not an owner/name of the hub; `make base` makes an organism's")
    return source
