"""Arrays in npz and safetensors files that others made: looked at by their headers, then read; finite or refused."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib.book.files import present

SWELLING = 100
"""How many times its own size a compressed file of numbers may take in memory; weights hardly shrink at all."""


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in an npz or safetensors file, read from its headers alone.

    Refused is an npz whose arrays are of no numbers, or would take `SWELLING` times the file's size.
    """
    with _explained(path):
        if path.suffix != ".npz":
            with safe_open(present(path), framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        found, needed = {}, 0
        with ZipFile(present(path)) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    shape, dtype = _npy_header(file)
                name = member.filename.removesuffix(".npy")
                if dtype.kind not in "fiub" and dtype.str.lstrip("|<") != "V2":
                    raise ValueError(f"array {name} is of {dtype}, no numbers")
                needed += math.prod(shape) * dtype.itemsize
                found[name] = shape
    if needed > SWELLING * path.stat().st_size:
        raise ValueError(
            f"{path}: its {path.stat().st_size} bytes would take {needed} in memory, and weights do not shrink so; "
            "download it again"
        )
    return found


def read(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some arrays of an npz or safetensors file, in float32; never unpickles.

    bfloat16 in an npz may be two bytes of no type, as jax saves it.
    """
    with _explained(path):
        if path.suffix != ".npz":
            with safe_open(present(path), framework="pt") as file:
                return {name: file.get_tensor(name).float() for name in names}
        with np.load(path, allow_pickle=False) as file:
            return {name: _float32(file[name]) for name in names}


def finite(where: Path | str, tensors: dict[str, Tensor], remedy: str) -> None:
    """Raise for the first tensor that holds NaN or inf."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            n = int((~tensor.isfinite()).sum())
            raise ValueError(f"{where}: {name} has {n} values of {tensor.numel()} that are NaN or infinite; {remedy}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors in reading a file of arrays inside the block, in one line each."""
    try:
        yield
    except (BadZipFile, EOFError, OSError, ValueError, SafetensorError, MemoryError, NotImplementedError, KeyError) as error:
        said = str(error).split("\n")[0] or type(error).__name__
        if said.startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: damaged or not of its kind ({said:.200}); make or download it again") from None


def _npy_header(file) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, from the first bytes of its member of an npz."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy of version {version}")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _float32(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.uint16).astype(np.uint32) << 16).view(torch.float32)
    return torch.from_numpy(array.astype(np.float32))
