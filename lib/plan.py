"""`make plan`: what a profile will need, before anything of it is started, and whether this machine has it.

    python -m lib.plan --profile gemma-2-2b

prints downloads, disk, peak memory, operations and time of each part of the book, and ends with exit status 1
and one line where something does not fit. Planned are chapters 2 to 6, and of chapter 8 its memory; chapters 0 and
7, 9 and 10 repeat their work.

Sizes are arithmetic on shapes. Parameters, operations and what backpropagation keeps are counted on the model
itself, built without memory on torch's meta device. Times come from about ten seconds of measurement here: of the
model where it is on disk, of matrix products where it is not.
"""

import argparse
import io
import math
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lib import deltas, encoding, models, precision, profiles, prompts
from lib.encoding import Encoded
from lib.finetune import collate, with_lora
from lib.imports import on_offer
from lib.paths import ROOT
from lib.profiles import Profile, local_or_hub
from lib.sites import ARCHITECTURES
from lib.transcoders import LAYOUTS

STAND_IN = ROOT / "data/nano/model"
"""Its tokenizer counts where a model's own is not here; with far fewer words it gives more tokens, never fewer."""
GENERATED = 0.2
"""Share of a finetuned model's answers that teacher forcing does not already give: one in ten with one layer of `nano`
replaced, more with all of them."""
GPUS = (8, 12, 16, 24, 32, 40, 48, 80, 141)  # as they are sold: GiB
GPU_RESERVE = 1.0e9  # of a GPU: its context, libraries, and what the allocator cannot use
CHUNK = 2048  # tokens in a step of validation


@dataclass(frozen=True)
class Need:
    """What one part of the book needs. Bytes are by what they are for; those of `device` are the host's without a GPU."""

    name: str
    device: dict[str, float]
    host: dict[str, float]
    flops: float
    seconds: float
    remedy: str
    """What to change in the profile where the memory is not there."""
    disk: dict[str, float] = field(default_factory=dict)


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


# --- what the profile's model and prompts are ---


def config_of(profile: Profile) -> PreTrainedConfig:
    """The model's config, from its folder or the hub's cache; or else the one in the profile. Nothing is downloaded."""
    try:
        return AutoConfig.from_pretrained(
            local_or_hub(profile.model.source), revision=profile.model.revision, local_files_only=True
        )
    except OSError:
        if profile.model.config:
            return AutoConfig.for_model(**profile.model.config)
        raise ValueError(
            f"profile {profile.name}: {profile.model.source} is not on this machine and model.config is not in the profile; "
            "add it (model_type, hidden_size, ... as in its config.json), or download the model"
        ) from None


def tokenizer_of(profile: Profile) -> tuple[PreTrainedTokenizerBase, bool]:
    """The model's tokenizer, or the stand-in; and whether it is the model's own."""
    try:
        source, revision = local_or_hub(profile.model.source), profile.model.revision
        return AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True), True
    except OSError:
        return AutoTokenizer.from_pretrained(STAND_IN), False


def is_here(source: str) -> bool:
    """Whether a model need not be downloaded."""
    files = ("model.safetensors", "model.safetensors.index.json")
    here = local_or_hub(source)
    return isinstance(here, Path) or any(isinstance(try_to_load_from_cache(here, file), str) for file in files)


def bases_to_download(work: "Work") -> int:
    """Files of transcoders that are neither in a folder here nor in the hub's cache."""
    settings, source = work.profile.transcoders, local_or_hub(work.profile.transcoders.source)
    if isinstance(source, Path):
        return 0
    cache = Path(HF_HUB_CACHE, f"models--{source.replace('/', '--')}", "snapshots")
    here = {"/".join(path.relative_to(cache).parts[1:]) for path in cache.rglob("*") if path.is_file()}
    patterns = [re.compile(LAYOUTS[settings.layout].files.format(layer=layer, width=settings.width)) for layer in work.layers]
    found = [name for name in here if any(pattern.fullmatch(name) for pattern in patterns)]
    return max(0, len(work.layers) * len(settings.percentiles) - len(found))


def d_sae_of(profile: Profile) -> int:
    """Features of a base: from a file of them, or from the width's name, such as 16k."""
    settings, source = profile.transcoders, local_or_hub(profile.transcoders.source)
    if isinstance(source, Path):
        layer = settings.layers[0] if settings.layers else 0
        return next(iter(on_offer(settings, layer).values()))().d_sae
    if not (name := re.fullmatch(r"(\d+)([km]?)", settings.width)):
        raise ValueError(f"profile {profile.name}: transcoders.width {settings.width!r} is not like 16k; say it so")
    return int(name[1]) * {"": 1, "k": 2**10, "m": 2**20}[name[2]]


def used(batches: list[Encoded]) -> int:
    """Tokens without padding and the first of each row."""
    return sum(int(batch.attention.sum()) - len(batch.ids) for batch in batches)


@dataclass(frozen=True)
class Work:
    """The shapes of a profile's work."""

    profile: Profile
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    own_tokenizer: bool
    d_sae: int

    @classmethod
    def of(cls, profile: Profile) -> "Work":
        return cls(profile, config_of(profile), *tokenizer_of(profile), d_sae_of(profile))

    @property
    def d_model(self) -> int:
        return self.config.hidden_size

    @cached_property
    def layers(self) -> list[int]:
        return models.layers_of(self.profile, self.config.num_hidden_layers)

    @property
    def at_once(self) -> int:
        return len(deltas.groups(self.profile, self.layers)[0])

    @property
    def n_bytes(self) -> int:
        """Of a number of the model."""
        return getattr(torch, self.profile.model.dtype).itemsize

    @cached_property
    def splits(self) -> dict[str, list[prompts.Prompt]]:
        asked = self.profile.prompts
        on_hub = asked.copies and "://" in asked.copies  # nothing is downloaded; the project's own sentences stand in
        return prompts.splits(asked.model_copy(update={"copies": None}) if on_hub else asked, self.profile.tool)

    @cached_property
    def encoded(self) -> dict[str, list[Encoded]]:
        size = self.profile.evaluation.tokens_batch
        return {split: encoding.streamed(self.tokenizer, asked, size) for split, asked in self.splits.items()}

    def tokens(self, *splits: str, padded: bool = False) -> int:
        """Tokens whose activations are used; or, `padded`, all that go through the model."""
        batches = [batch for split in splits for batch in self.encoded[split]]
        return sum(batch.ids.numel() for batch in batches) if padded else used(batches)

    @property
    def each_split(self) -> tuple[int, int]:
        """Tokens that deltas are trained on, and validated on."""
        return self.tokens("train"), self.tokens("validation")

    @cached_property
    def longest(self) -> int:
        return max(batch.ids.shape[1] for batches in self.encoded.values() for batch in batches)

    @cached_property
    def answer(self) -> int:
        """Tokens that a generation is allowed."""
        longest = max(int(batch.answer.sum(1).max()) for batch in self.encoded["test"])
        return longest + self.profile.evaluation.margin

    @cached_property
    def control_tokens(self) -> int:
        """Tokens that controls are made from."""
        asked = [
            q for split in ("train", "validation") for q in prompts.at_most(self.splits[split], self.profile.controls.prompts)
        ]
        return used(encoding.streamed(self.tokenizer, asked, 64))

    @cached_property
    def mlp(self) -> int:
        """Parameters of an MLP with its norms."""
        architecture = ARCHITECTURES[self.config.model_type]
        block = getattr(self.meta.base_model, architecture.blocks)[0]
        return sum(p.numel() for name in architecture.modules for p in getattr(block, name).parameters())

    @cached_property
    def meta(self) -> torch.nn.Module:
        """The model without memory."""
        return self.built()

    def built(self) -> torch.nn.Module:
        dtype = getattr(torch, self.profile.model.dtype)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(deepcopy(self.config), dtype=dtype, attn_implementation="eager")

    @cached_property
    def parameters(self) -> int:
        return self.meta.num_parameters()

    @cached_property
    def flops_a_token(self) -> float:
        """Of a forward pass."""
        ids = torch.zeros(1, self.longest, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.meta(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return counter.get_total_flops() / ids.numel()

    @cached_property
    def learning(self) -> tuple[int, float, float]:
        """Trained parameters of the LoRA; and of one micro-batch, bytes kept for backpropagation and operations."""
        with torch.device("meta"):
            model = with_lora(self.built(), self.profile.finetune)
        ids = torch.zeros(self.profile.finetune.micro_batch, self.longest, dtype=torch.long, device="meta")
        own, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        size = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)
        return sum(p.numel() for p in model.parameters() if p.requires_grad), size, counter.get_total_flops()


# --- how fast this machine is at it ---


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
    learn = work.learning[2] / here.flops / (p.finetune.micro_batch * work.longest)
    decode = max(work.parameters * work.n_bytes / here.bandwidth, p.evaluation.batch * forward)
    numbers = work.at_once * len(p.transcoders.percentiles) * p.deltas.training.batch * work.d_model
    step = 12 * numbers * sum(p.deltas.d_new) / here.flops_float32 + 40 * numbers / here.bandwidth
    return Pace(forward, learn, decode, step)


def pace(work: Work, here: Machine) -> Pace:
    """Measured: deltas always, the model where it is on this machine. To be called where the memory suffices."""
    profile = work.profile
    if not is_here(profile.model.source):
        return replace(reckoned(work, here), delta_step=delta_step(work))
    hf, tokenizer = models.load_plain(profile)
    asked = work.splits["train"][:: max(1, len(work.splits["train"]) // profile.finetune.micro_batch)]
    batch = {name: tensor.to(hf.device) for name, tensor in collate(tokenizer, asked[: profile.finetune.micro_batch]).items()}
    model = with_lora(hf, profile.finetune)

    def learn_once() -> None:
        with precision.products(getattr(torch, profile.finetune.precision), hf.device):
            model(**batch).loss.backward()

    learn = seconds_of(learn_once) / batch["input_ids"].numel()
    del hf, model  # two of them may be too many
    bridged = models.load(profile)
    one = work.encoded["test"][0].to(bridged.hf.device)
    ids = one.ids[:, : max(8, work.longest - work.answer)].repeat(-(-profile.evaluation.batch // len(one.ids)), 1)

    @torch.no_grad()
    def forward_once() -> None:
        bridged.hf(input_ids=one.ids, attention_mask=one.attention, use_cache=False)

    def write(n: int) -> None:
        bridged.hf.generate(ids[: profile.evaluation.batch], max_new_tokens=n, min_new_tokens=n, do_sample=False)

    decode = (seconds_of(lambda: write(9), 0.5) - seconds_of(lambda: write(1), 0.5)) / 8
    return Pace(seconds_of(forward_once) / one.ids.numel(), learn, max(decode, 1e-4), delta_step(work))


def delta_step(work: Work) -> float:
    """Seconds of one step, from steps on random numbers in the shapes of the profile."""
    settings, device = work.profile.deltas.training, "cuda" if torch.cuda.is_available() else "cpu"
    shape = work.at_once, len(work.profile.transcoders.percentiles)
    x = torch.randn(shape[0], 1, settings.batch, work.d_model, device=device)
    target = torch.randn(*shape, settings.batch, work.d_model, device=device)
    few, dtype = (x[..., :8, :], target[..., :8, :]), deltas.dtypes(work.profile)[0]
    x, target = x.to(dtype), target.to(dtype)
    brief = settings.model_copy(update={"steps": 5, "check_every": 5})
    with redirect_stderr(io.StringIO()):  # progress bars of no interest
        return seconds_of(lambda: deltas.fit(brief, (x, target), few, work.profile.deltas.d_new, 0)) / brief.steps


# --- what each part needs ---


def needs(work: Work, here: Machine, at: Pace) -> list[Need]:
    """Chapters 2 to 6, and what memory chapter 8 takes."""
    p, d, vocab, b = work.profile, work.d_model, work.config.vocab_size, work.n_bytes
    n_layers, n_percentiles, widths = len(work.layers), len(p.transcoders.percentiles), p.deltas.d_new
    batch = p.evaluation.tokens_batch * work.longest
    weights = {"weights": work.parameters * b}
    process = {"process": here.process}
    base = 4 * work.d_sae * (2 * d + 2)
    base_flops = 4 * work.d_sae * d  # a token
    loading = {"weights being loaded": work.parameters * b} if here.gpu else {}
    trained, kept, learning_flops = work.learning
    micro_tokens = p.finetune.micro_batch * work.longest

    def evaluated(
        tokens: int, raw: int = 0, single: int = 0, every: int = 0, answers: float = 0, bases: int | None = None
    ) -> tuple[float, float]:
        """Operations and seconds of conditions that replace no layer, a single one, or every one; `answers` are generated.

        A base is run once a condition and layer, or `bases` times in all.
        """
        # a replacement runs the layers above it: about half of them in the mean
        passes = raw + every + single / 2
        of_bases = (single + every * n_layers if bases is None else bases) * base_flops
        seconds = tokens * (passes * at.forward + of_bases / here.flops_float32)
        # log-probabilities, KL and their sums: 12 times over float32 logits
        seconds += tokens * (raw + single + every) * 48 * vocab / here.bandwidth
        seconds += answers / p.evaluation.batch * work.answer * at.decode
        return tokens * (passes * work.flops_a_token + of_bases), seconds

    test = work.tokens("test", padded=True)
    asked = len(work.splits["test"])
    # chapter 2: epochs of training, the model measured before and after
    passes = p.finetune.epochs * work.tokens("train", padded=True)
    flops, seconds = evaluated(test, raw=2, answers=(1 + GENERATED) * asked)
    logits_back = 8 * micro_tokens * vocab
    found = [Need(
        "2 finetune",
        weights | {"LoRA and Adam": 16 * trained, "kept for backpropagation": kept, "logits' gradients": logits_back},
        process | loading, flops + passes * learning_flops / micro_tokens, seconds + passes * at.learn,
        "lower finetune.micro_batch",
        {"finetuned model": work.parameters * b, "checkpoints": 12 * trained},
    )]  # fmt: skip

    # chapter 3: one pass of the model for each group of layers; then the deltas
    n_tokens = work.tokens("train", "validation")
    held, to_files = deltas.held_size(p, work.each_split, work.at_once, n_percentiles, d)
    data = {} if to_files else {"inputs and targets": held}
    groups = len(deltas.groups(p, work.layers))
    padded = work.tokens("train", "validation", padded=True)
    of_bases = n_tokens * n_layers * n_percentiles * base_flops
    bases = {"bases": work.at_once * n_percentiles * base}
    logits = {"logits": 3 * b * batch * vocab}
    part = {"a batch": 4 * batch * (d * work.at_once * (5 + 2 * n_percentiles) + 3 * work.d_sae)}
    found.append(Need(
        "3 capture", weights | bases | data | logits | part, process | loading,
        groups * padded * work.flops_a_token + of_bases, groups * padded * at.forward + of_bases / here.flops_float32,
        "lower memory.layers, memory.data_gb or evaluation.tokens_batch",
        {"inputs and targets": held} if to_files else {},
    ))  # fmt: skip
    members, together, widest = work.at_once * n_percentiles, sum(widths), max(widths)
    of_grid = together * (2 * d + 2) + len(widths) * d  # parameters at one layer and percentile
    settings = p.deltas.training
    checks = settings.steps / settings.check_every * work.tokens("validation") / settings.batch / 3
    steps = groups * settings.steps
    found.append(Need(
        "3 delta training",
        weights | data | {
            "parameters, Adam, best": 6 * 4 * members * of_grid,
            "a step or a check": 4 * members * max(settings.batch * (7 * d + 4 * together), CHUNK * (7 * d + 3 * widest)),
        },
        process | loading, steps * members * settings.batch * together * (8 * d + 4 * together),
        steps * at.delta_step * (1 + checks / settings.steps),
        "lower memory.layers, memory.data_gb or deltas.training.batch",
        {"deltas": 4 * n_layers * n_percentiles * of_grid},
    ))  # fmt: skip

    # chapters 4 to 6: teacher forcing keeps the raw model's log-probabilities beside a condition's
    in_test = sum(subset != "tool_ood" for subset in (q.subset for q in work.splits["test"])) / asked
    seen = 8 * int(in_test * work.tokens("test")) * d
    scoring = {"logits": (20 + 3 * b) * batch * vocab}
    conditions = n_percentiles * (1 + len(widths))
    of_bases = 2 * n_percentiles * n_layers  # under the model, and on the activations
    flops, seconds = evaluated(int(in_test * test), raw=2 * groups, single=conditions * n_layers, bases=of_bases)
    found.append(Need(
        "4 exp1",
        weights | scoring | bases | {
            "a layer's activations": 3 * seen, "features": 8 * batch * work.d_sae,
            "what layers read and write": (4 + 3 * b) * batch * d * work.at_once,
        },
        process | loading | {"activations": work.at_once * seen}, flops, seconds,
        "lower memory.layers, evaluation.tokens_batch or prompts.test",
    ))  # fmt: skip
    cache = 4 * b * p.evaluation.batch * work.longest * work.config.num_key_value_heads * work.config.head_dim
    behaviour = weights | scoring | {
        "bases": n_layers * base, "key-value cache": cache * work.config.num_hidden_layers,
        "features": 8 * p.evaluation.batch * work.longest * work.d_sae,
    }  # fmt: skip
    doses = len(p.evaluation.alphas)
    for name, kinds in (
        ("5 exp2a", dict(raw=1, single=2 * n_layers)), ("6 exp2b", dict(raw=2, single=doses * n_layers, every=doses)),
    ):  # fmt: skip
        flops, seconds = evaluated(test, **kinds, answers=GENERATED * asked * sum(kinds.values()))
        found.append(Need(
            name, behaviour, process | loading, flops, seconds, "lower evaluation.tokens_batch or evaluation.batch"
        ))  # fmt: skip
    return [*found, controls(work, weights, process | loading, behaviour)]


def controls(work: Work, weights: dict[str, float], host: dict[str, float], behaviour: dict[str, float]) -> Need:
    """Chapter 8: more of what it takes to make the controls and what it takes to measure them. Its time is not planned."""
    p, d, n_tokens = work.profile, work.d_model, work.control_tokens
    layers, base = len(models.control_layers(p, work.config.num_hidden_layers)), 4 * work.d_sae * (2 * d + 2)
    retrained = layers * base * bool(p.controls.retrain)
    made = weights | {"bases": layers * base, "MLPs of two models": 8 * layers * work.mlp, "transcoders retrained": retrained}
    making = made | {
        "activations of two models": 16 * layers * n_tokens * d, "targets": 4 * layers * n_tokens * d,
        "the other model, Adam or float64": max(sum(weights.values()), 4 * retrained, 40 * n_tokens * d),
    }  # fmt: skip
    _, kept, _ = work.learning
    through = made | {
        "kept for backpropagation": kept,
        "log-probabilities and their gradients": 24 * p.finetune.micro_batch * work.longest * work.config.vocab_size,
    }  # fmt: skip
    device = max(making, through, behaviour | made, key=lambda parts: sum(parts.values()))
    return Need("8 controls", device, host, math.nan, math.nan, "lower controls.prompts or name fewer in controls.layers")


def downloads(work: Work) -> dict[str, float]:
    """Bytes still to be downloaded."""
    stored = getattr(torch, str(work.config.dtype or "float32").removeprefix("torch.")).itemsize
    p, found = work.profile, {}
    if not is_here(p.model.source):
        found["model"] = work.parameters * stored
    if files := bases_to_download(work):
        found["transcoders"] = files * 4 * (work.d_sae * (2 * work.d_model + 2) + work.d_model)
    return found


def refusals(profile: Profile, found: list[Need], here: Machine, to_download: dict[str, float]) -> list[str]:
    """One line for each thing that cannot fit."""
    lines = []
    for need in found:
        host, device = sum(need.host.values()), sum(need.device.values())
        places = [("memory", host, here.host)] if here.gpu else [("memory", host + device, here.host)]
        places += [("GPU memory", device + GPU_RESERVE, here.gpu)] if here.gpu else []
        lines += [
            f"profile {profile.name}: {need.name} needs {needed / 1e9:.1f} GB of {place}, {there / 1e9:.1f} GB are there; "
            f"{need.remedy}, or use a larger machine"
            for place, needed, there in places
            if needed > there
        ]
    disk = sum(to_download.values()) + sum(sum(need.disk.values()) for need in found)
    if disk > here.disk:
        lines.append(
            f"profile {profile.name}: {disk / 1e9:.1f} GB of disk are needed, {here.disk / 1e9:.1f} GB are free; "
            "free some, or lower memory.layers"
        )
    return lines


# --- the page ---


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
    held, to_files = deltas.held_size(p, work.each_split, work.at_once, len(p.transcoders.percentiles), work.d_model)
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
        f"byte budget: {p.memory.data_gb:g} GB; inputs and targets of {work.at_once} of {len(work.layers)} layers at once, "
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


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    try:
        profile = profiles.load(parser.parse_args().profile)
        here = machine(getattr(torch, profile.model.dtype))
        work = Work.of(profile)
        found, to_download = needs(work, here, reckoned(work, here)), downloads(work)
        refused = refusals(profile, found, here, to_download)
        if not refused:
            found = needs(work, here, pace(work, here))
    except ValueError as error:
        sys.exit(str(error))
    print(page(work, here, found, to_download))
    if refused:
        sys.exit("\n".join(refused))


if __name__ == "__main__":
    main()
