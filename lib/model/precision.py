"""In what precision matrix products are computed: what a profile asks for, where the device is made for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16. A CPU without them takes some fifty times as long as in float32."""
    return torch.device(device).type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)


def of_products(asked: torch.dtype, device: torch.device | str) -> torch.dtype:
    """`asked`, or float32 where `asked` is slower than that."""
    return asked if asked != torch.bfloat16 or has_bfloat16(device) else torch.float32


@contextmanager
def products(asked: torch.dtype, device: torch.device | str) -> Iterator[torch.dtype]:
    """Inside the block matrix products are in `of_products(asked, device)`, which it gives."""
    dtype = of_products(asked, device)
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        yield dtype


def slow(dtype: torch.dtype, device: torch.device | str) -> list[str]:
    """What to tell the user of a model in `dtype` on such a device, if anything."""
    if of_products(dtype, device) == dtype:
        return []
    return ['no instructions for bfloat16 here; with model.dtype = "float32" in the profile the model is many times faster']


def machine() -> str:
    """What figures of speed are from."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    has, lacks = torch.cpu.get_capabilities(), "" if has_bfloat16("cpu") else "no "
    return f"{has.get('cpu_name', has['architecture'])}, {torch.get_num_threads()} threads, {lacks}bfloat16"
