"""The plan as a page to be read."""

import math

import numpy as np
import pandas as pd
import torch

from lib.dictionary import deltas
from lib.model import precision
from lib.plan.machine import GPUS, Machine
from lib.plan.needs import GPU_RESERVE, Need
from lib.plan.work import Work


def gigabytes(parts: dict[str, float]) -> str:
    """The sum and what it is of, the largest first."""
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return f"{sum(parts.values()) / 1e9:.2f} GB" + (
        " = " + " + ".join(f"{size / 1e9:.2f} {name}" for name, size in largest if size >= 5e6) if parts else ""
    )


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds > 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def page(work: Work, here: Machine, found: list[Need], to_download: dict[str, float]) -> str:
    """The plan, to be read."""
    p, tokens = work.profile, work.tokens("train", "validation")
    held, to_files = deltas.held_size(p, work.each_split, work.at_once, len(p.transcoders.l0_ranks), work.d_model)
    where = f"GPU of {here.gpu / 1e9:.1f} GB free" if here.gpu else "no GPU"
    counted = "" if work.own_tokenizer else ", at most: counted with nano's tokenizer, the model's own is not here"
    table = pd.DataFrame(
        {
            "chapter": need.name,
            "device GB": sum(need.device.values()) / 1e9,
            "host GB": sum(need.host.values()) / 1e9,
            "disk GB": sum(need.disk.values()) / 1e9,
            "TFLOP": need.flops / 1e12,
            "time": "" if math.isnan(need.seconds) else duration(need.seconds),
        }
        for need in found
    )
    peak = max(found, key=lambda need: sum(need.device.values()))
    on_gpu = sum(peak.device.values()) + GPU_RESERVE
    enough = next((f"a GPU of {size} GB suffices" for size in GPUS if size * 2**30 >= on_gpu), "more than any GPU here known")
    lines = [
        f"{p.name}: {p.model.source}, {len(work.layers)} layers, d_model {work.d_model}, {work.parameters / 1e6:,.1f} M "
        f"parameters in {p.model.dtype}; bases of {work.d_sae} features",
        f"this machine: {here.host / 1e9:.1f} GB of memory and {here.disk / 1e9:.1f} GB of disk free, {where}; "
        f"{here.flops / 1e9:,.0f} GFLOP/s in {p.model.dtype}, {here.bandwidth / 1e9:.1f} GB/s",
        *precision.slow(getattr(torch, p.model.dtype), "cuda" if here.gpu else "cpu"),
        f"prompts: {tokens:,} tokens to train and validate deltas on{counted}",
        f"downloads: {gigabytes(to_download)}",
        f"byte budget: {p.tool.memory.data_gb:g} GB; inputs and targets of {work.at_once} of {len(work.layers)} layers, "
        f"{held / 1e9:.2f} GB, go to {'files' if to_files else 'memory'}",
        "",
        table.to_string(index=False, float_format="{:,.2f}".format, na_rep=""),
        "",
        f"in all: {duration(np.nansum([need.seconds for need in found]))}; less where patience ends training early",
        f"peak of the device: {peak.name}, {gigabytes(peak.device)}",
        f"with {GPU_RESERVE / 1e9:.0f} GB for its context, {on_gpu / 1e9:.1f} GB: {enough}",
        "not planned: chapters 0, 7, 9 and 10, and the time of chapter 8",
    ]
    return "\n".join(lines)
