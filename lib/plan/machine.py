"""What this machine can do."""

import io
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from lib.book.paths import ROOT
from lib.dictionary import deltas
from lib.model import models, precision
from lib.model.adapters import with_lora
from lib.model.finetune import collate
from lib.plan.work import Work, is_here

GPUS = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # as they are sold: GiB


@dataclass(frozen=True)
class Machine:
    """What there is, in bytes, and how fast it is."""

    host: float
    gpu: float
    """0 where there is none."""
    disk: float
    process: float
    """What a process of the book takes before it has any data."""
    flops: float
    """Per second, of matrix products in the model's dtype."""
    flops_float32: float
    """In that of transcoders."""
    bandwidth: float
    """Bytes per second, read and written."""


def machine(dtype: torch.dtype) -> Machine:
    """This one, measured for about three seconds."""
    process = psutil.Process().memory_info().rss
    gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    device = "cuda" if gpu else "cpu"

    def matmul(dtype: torch.dtype) -> float:
        a, b = (torch.randn(1024, 2048, device=device).to(dtype) for _ in range(2))
        return 2 * 1024**2 * 2048 / seconds_of(lambda: a @ b.T)

    source = torch.randn(32_000_000, device=device)
    to = torch.empty_like(source)
    return Machine(
        psutil.virtual_memory().available, gpu, shutil.disk_usage(ROOT).free, process,
        matmul(dtype), matmul(torch.float32), 2 * source.nbytes / seconds_of(lambda: to.copy_(source)),
    )  # fmt: skip


def seconds_of(work: Callable, budget: float = 1.0) -> float:
    """Seconds of one call, after one to warm up: the median of as many as take `budget` seconds, three at least."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    taken: list[float] = []
    work()
    while len(taken) < 3 or sum(taken) < budget:
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


@dataclass(frozen=True)
class Pace:
    """Seconds, on this machine."""

    forward: float
    """Of a token in a forward pass."""
    learn: float
    """Of a token in a step of finetuning."""
    decode: float
    """Of one more token for a batch of generations."""
    delta_step: float
    """Of a step of the deltas trained together."""


def reckoned(work: Work, here: Machine) -> Pace:
    """Worked out from operations and bytes; nothing is run."""
    p = work.profile
    forward = work.flops_a_token / here.flops
    learn = work.learning[2] / here.flops / (p.tool.finetune.micro_batch * work.longest)
    decode = max(work.parameters * work.n_bytes / here.bandwidth, p.tool.evaluation.generate_batch * forward)
    numbers = work.at_once * len(p.transcoders.l0_ranks) * p.tool.deltas.training.batch * work.d_model
    step = 12 * numbers * sum(p.tool.deltas.d_new) / here.flops_float32 + 40 * numbers / here.bandwidth
    return Pace(forward, learn, decode, step)


def pace(work: Work, here: Machine) -> Pace:
    """Measured: deltas always, the model where it is on this machine. To be called where the memory suffices."""
    profile = work.profile
    if not is_here(profile):
        return replace(reckoned(work, here), delta_step=delta_step(work))
    learn = _learning(work)  # before the other model is loaded: two of them may be too many
    bridged = models.load(profile)
    one = work.encoded["test"][0].to(bridged.hf.device)
    ids = one.ids[:, : max(8, work.longest - work.answer)].repeat(-(-profile.tool.evaluation.generate_batch // len(one.ids)), 1)

    @torch.no_grad()
    def forward_once() -> None:
        bridged.hf(input_ids=one.ids, attention_mask=one.attention, use_cache=False)

    def write(n: int) -> None:
        bridged.hf.generate(ids[: profile.tool.evaluation.generate_batch], max_new_tokens=n, min_new_tokens=n, do_sample=False)

    decode = (seconds_of(lambda: write(9), 0.5) - seconds_of(lambda: write(1), 0.5)) / 8
    return Pace(seconds_of(forward_once) / one.ids.numel(), learn, max(decode, 1e-4), delta_step(work))


def _learning(work: Work) -> float:
    """Seconds of a token in a step of finetuning."""
    hf, tokenizer = models.load_plain(work.profile)
    asked = work.splits["train"][:: max(1, len(work.splits["train"]) // work.profile.tool.finetune.micro_batch)]
    batch = {
        name: tensor.to(hf.device)
        for name, tensor in collate(tokenizer, asked[: work.profile.tool.finetune.micro_batch]).items()
    }
    model = with_lora(hf, work.profile.tool.finetune)

    def learn_once() -> None:
        with precision.products(getattr(torch, work.profile.tool.finetune.precision), hf.device):
            model(**batch).loss.backward()

    return seconds_of(learn_once) / batch["input_ids"].numel()


def delta_step(work: Work) -> float:
    """Seconds of one step, from steps on random numbers in the shapes of the profile."""
    settings, device = work.profile.tool.deltas.training, "cuda" if torch.cuda.is_available() else "cpu"
    shape = work.at_once, len(work.profile.transcoders.l0_ranks)
    x = torch.randn(shape[0], 1, settings.batch, work.d_model, device=device)
    target = torch.randn(*shape, settings.batch, work.d_model, device=device)
    few, dtype = (x[..., :8, :], target[..., :8, :]), deltas.dtypes(work.profile)[0]
    x, target = x.to(dtype), target.to(dtype)
    brief = settings.model_copy(update={"steps": 5, "check_every": 5})
    with redirect_stderr(io.StringIO()):  # progress bars of no interest
        return seconds_of(lambda: deltas.fit(brief, (x, target), few, work.profile.tool.deltas.d_new, 0)) / brief.steps
