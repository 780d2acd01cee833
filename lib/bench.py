"""Ours against the published procedure, against other trainers and against the machine: `make bench`.

    python -m lib.bench --profile nano [--only TASK ...] [--again]

writes `results/bench.csv`, a row for each task, size and other; `results/bench_growth.csv`, how cost grows; and the
figure `bench_ratios`. Ours and the other run by turns in one process, on the same data. `ratio` is the median of
other over ours, pair by pair, and its interval is of order statistics (`scipy.stats.quantile_test`): with six pairs
the smallest and the largest ratio, which hold the median in 97% of cases. Rows of the same code are kept; an
interrupted run goes on.

A step of training is timed from one batch's being asked for to the next one's, the same way for every trainer: what
is done once before the first step, and checks on validation tokens, are not in it; they are in `training`, of the
whole grid. In `many` deltas learn together, and seconds are per delta.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from scipy.stats import linregress, quantile_test, t
from torch import Tensor, nn

from lib import activations, as_published, deltas, encoding, experiments, models, plots, profiles, results
from lib.encoding import tokens
from lib.paths import ROOT
from lib.profiles import Profile, Training
from lib.prompts import by_subset, read_jsonl
from lib.training import train
from lib.transcoders import Transcoder, save_npz

SPARSIFY = "eai-sparsify==1.3.3"
COLUMNS = ["task", "size", "other", "ours_seconds", "other_seconds", "ratio", "ratio_low", "ratio_high", "n"]
PUBLISHED, PRODUCTS = "published procedure", "matrix products alone"


@dataclass(frozen=True)
class Amount:
    """How much of everything is run: enough for a ratio, and no more. Both sides always do all of it."""

    runs: int = 6
    capture: int = 400
    """Prompts."""
    exp1: int = 20
    """Prompts of each kind; the published study had as many."""
    exp2: int = 40
    exp2_layers: int = 2
    cut: int = 30
    """Training of the whole grid: of the profile's steps and prompts, one in so many, so that there are as many epochs."""
    shapes: tuple[tuple[int, int], ...] = ((640, 16384), (768, 24576), (2304, 16384))
    """d_model x d_sae of single layers with random weights and activations."""
    d_new: int = 128
    batch: int = 1024
    steps: int = 8
    at_once: int = 8
    """Deltas of a single layer that learn together."""
    growth: int = 16
    """The largest of the sizes, powers of two, over which growth is fitted."""


class Run(NamedTuple):
    """What one run took, and the mean validation loss (FVU) that it reached where it trained."""

    seconds: float
    loss: float = np.nan


class Job(NamedTuple):
    """One row: two things to run by turns, and what is to be ready before the clock starts."""

    task: str
    size: str
    other: str
    ours: Callable[[], Run]
    theirs: Callable[[], Run]
    ready: Callable[[], object] = lambda: None


# --- timing ---


def timed(work: Callable[[], object]) -> Callable[[], Run]:
    """`work`, with the seconds that it takes; where it returns a number, that is its loss."""

    def run() -> Run:
        start = time.perf_counter()
        found = work()
        return Run(time.perf_counter() - start, found if isinstance(found, float) else np.nan)

    return run


class Clock:
    """Ticks when a batch is asked for."""

    def __init__(self):
        self.ticks: list[float] = []

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())

    def over(self, batches: Iterator) -> Iterator:
        while True:
            self.tick()
            yield next(batches)

    def step(self, parts: int = 1) -> Run:
        """The median step but the first, which warms up; or its share, where a step is of several parts."""
        return Run(float(np.median(np.diff(self.ticks)[1:])) / parts)


def alternate(ours: Callable[[], Run], theirs: Callable[[], Run], runs: int) -> dict[str, float]:
    """The columns from `ours_seconds` on."""
    pairs = [(ours(), theirs()) for _ in range(runs)]
    a, b = (np.array([pair[i] for pair in pairs]) for i in (0, 1))  # (run, seconds and loss)
    ratios = b[:, 0] / a[:, 0]
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return {
        "ours_seconds": np.median(a[:, 0]), "other_seconds": np.median(b[:, 0]),
        "ratio": np.median(ratios), "ratio_low": interval.low, "ratio_high": interval.high, "n": runs,
        "ours_loss": np.median(a[:, 1]), "other_loss": np.median(b[:, 1]),
    }  # fmt: skip


# --- one step of training, by each trainer ---


@dataclass(frozen=True)
class Layers:
    """What trainers are compared on: inputs, outputs and bases of some layers, several targets each."""

    name: str
    x: Float[Tensor, "layer 1 token d_model"]
    y: Float[Tensor, "layer 1 token d_model"]
    target: Float[Tensor, "layer delta token d_model"]
    base: Transcoder
    """Of the first layer."""
    d_new: int

    @property
    def n(self) -> int:
        """Deltas that learn at once."""
        return self.target.shape[0] * self.target.shape[1]

    def one(self) -> "Layers":
        """The first delta alone."""
        return Layers(self.name, self.x[:1], self.y[:1], self.target[:1, :1], self.base, self.d_new)


def picks(layers: Layers, settings: Training) -> Iterator[Tensor]:
    return activations.repeated(layers.x.shape[-2], settings.batch, 0)


def initialised(layers: Layers, settings: Training) -> Transcoder:
    return Transcoder.initialised(layers.target.shape[:2], layers.x.shape[-1], layers.d_new, 0, settings.threshold)


def our_step(layers: Layers, settings: Training) -> Run:
    clock, x, target = Clock(), layers.x, layers.target
    drawn = clock.over(picks(layers, settings))
    batches = ((x.index_select(-2, pick), target.index_select(-2, pick)) for pick in drawn)
    train(initialised(layers, settings), batches, (x[..., :64, :], target[..., :64, :]), settings)
    return clock.step(layers.n)


def published_step(layers: Layers, settings: Training) -> Run:
    clock, x, y = Clock(), layers.x[0, 0], layers.y[0, 0]
    start, held = initialised(layers, settings)[0, 0], (x[:64], y[:64])
    as_published.train_delta(start, layers.base, (x, y), held, clock.over(picks(layers, settings)), settings)
    return clock.step()


@torch.no_grad()
def products_alone(layers: Layers, settings: Training) -> Run:
    """The matrix products of a step, forward and backward: x W_enc, f W_dec, and the gradients of f, W_dec and W_enc."""
    clock, pick, stack = Clock(), next(picks(layers, settings)), initialised(layers, settings)
    dy = layers.target[..., pick, :]
    x = layers.x[..., pick, :].expand_as(dy).contiguous()
    for _ in range(settings.steps):
        clock.tick()
        f = x @ stack.W_enc
        f @ stack.W_dec
        df = dy @ stack.W_dec.mT
        f.mT @ dy
        x.mT @ df
    return clock.step(layers.n)


def sae_lens_step(layers: Layers, settings: Training) -> Run:
    """sae-lens's trainer of several SAEs, ReLU with L1. It trains no transcoders: x is input and target."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    clock, d_model = Clock(), layers.x.shape[-1]
    names = [(str(layer), f"{layer}.{i}") for layer, i in product(*map(range, layers.target.shape[:2]))]
    saes = {
        name: StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_model, d_sae=layers.d_new, l1_coefficient=settings.l1))
        for _, name in names
    }
    batches = ({str(layer): x[0, pick] for layer, x in enumerate(layers.x)} for pick in clock.over(picks(layers, settings)))
    config = SAETrainerConfig(
        total_training_samples=settings.steps * settings.batch, train_batch_size_samples=settings.batch,
        lr=settings.lr, lr_end=settings.lr, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    MultiSAETrainer(config, saes, {name: layer for layer, name in names}, batches).fit()
    return clock.step(layers.n)


class Site(nn.Module):
    """A module whose input and output are given."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y


class Replay(nn.Module):
    """For a trainer that hooks a model: one that answers token ids with the activations held under them."""

    def __init__(self, layers: Layers, clock: Clock):
        super().__init__()
        self.layers, self.clock, self.device = layers, clock, layers.x.device
        self.sites = nn.ModuleList(Site() for _ in layers.x)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> "Replay":
        return self

    def forward(self, input_ids: Tensor) -> None:
        self.clock.tick()
        for site, x, y in zip(self.sites, self.layers.x, self.layers.y, strict=True):
            site(x[0, input_ids], y[0, input_ids])


def sparsify_step(layers: Layers, settings: Training) -> Run:
    """eai-sparsify's trainer of transcoders, TopK with a quarter of the features, Adam; deltas of one layer differ in seed."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), tempfile.TemporaryDirectory() as folder:
        from sparsify import SparseCoderConfig, TrainConfig, Trainer

        clock = Clock()
        coder = SparseCoderConfig(num_latents=layers.d_new, k=max(1, layers.d_new // 4), transcode=True)
        config = TrainConfig(
            coder, batch_size=1, optimizer="adam", lr=settings.lr, init_seeds=list(range(layers.target.shape[1])),
            hookpoints=[f"sites.{i}" for i in range(len(layers.x))], log_to_wandb=False, save_dir=folder,
        )  # fmt: skip
        asked = picks(layers, settings)
        trainer = Trainer(config, [{"input_ids": next(asked)} for _ in range(settings.steps)], Replay(layers, clock))
        clock.ticks.clear()  # it has looked at the widths
        trainer.fit()
    return clock.step(layers.n)


# --- what is compared ---


def trainers() -> dict[str, Callable[[Layers, Training], Run]]:
    """Whatever trains on given activations, by the name of the other side."""
    found = {PRODUCTS: products_alone, f"sae-lens {importlib.metadata.version('sae-lens')}, autoencoders": sae_lens_step}
    if importlib.util.find_spec("sparsify"):
        found[SPARSIFY.replace("==", " ")] = sparsify_step
    return found


def random_layers(layers: int, at_once: int, d_model: int, d_sae: int, d_new: int, tokens: int, name: str = "") -> Layers:
    """Random weights and activations, some 1% of the base's features active; one base and one target for all deltas."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(layers, 1, tokens, d_model, generator=draw) for _ in range(2))
    base = Transcoder.initialised((), d_model, d_sae, 1, threshold=2.3).requires_grad_(False)
    target = deltas.left_by([[base]] * layers, x[:, 0], y[:, 0])
    return Layers(name, x, y, target.expand(-1, at_once, -1, -1), base, d_new)


class Workplace:
    """The finetuned model of a profile, its prompts and its transcoders."""

    def __init__(self, profile: Profile, amount: Amount):
        self.profile, self.amount = profile, amount
        self.layers = models.layers_of(profile, self.load()[0].config.num_hidden_layers)
        # what is trained here is not for the book
        self.scratch = profile.model_copy(update={"name": f"{profile.name}.bench"})

    def load(self):
        return models.load_plain(self.profile, self.profile.paths.finetuned)

    @functools.cached_property
    def model(self) -> models.LanguageModel:
        return models.load(self.profile, self.profile.paths.finetuned)

    def prompts(self, split: str, n: int | None = None) -> list:
        """All prompts of a split, or `n` of them from all over it."""
        found = read_jsonl(self.profile.paths.prompts / f"{split}.jsonl")
        return found if n is None else found[:: max(1, len(found) // n)][:n]

    def test(self, n: int) -> dict[str, list]:
        return by_subset(self.prompts("test"), n)

    def captured(self, model: models.LanguageModel, split: str, n: int | None = None, layers: list[int] | None = None):
        batches = encoding.batches(model.tokenizer, self.prompts(split, n), self.profile.evaluation.tokens_batch)
        return activations.collect(model, layers or self.layers, batches, f"{split} activations")

    @functools.cached_property
    def real(self) -> Layers:
        held = self.captured(self.model, "validation")
        percentiles = self.profile.transcoders.percentiles
        bases = [[deltas.load_base(self.profile, self.model, layer, q)[0] for q in percentiles] for layer in self.layers]
        target = deltas.left_by(bases, held.x, held.y)
        width = max(self.profile.deltas.d_new)
        return Layers(self.profile.name, held.x[:, None], held.y[:, None], target, bases[0][0], width)

    # capture

    def capture_ours(self) -> None:
        self.captured(models.load(self.profile, self.profile.paths.finetuned), "train", self.amount.capture)

    def capture_published(self) -> None:
        as_published.capture(self.load, self.layers, self.prompts("train", self.amount.capture))

    # training of the whole grid

    @functools.cached_property
    def grid_data(self) -> list[activations.Activations]:
        """Activations of one in so many training and validation prompts."""
        splits = ("train", "validation")
        return [self.captured(self.model, split, len(self.prompts(split)) // self.amount.cut) for split in splits]

    @property
    def grid_profile(self) -> Profile:
        learn = self.profile.deltas.training
        steps = max(4, learn.steps // self.amount.cut)
        training = learn.model_copy(update={"steps": steps, "patience": steps})
        return self.scratch.model_copy(update={"deltas": self.profile.deltas.model_copy(update={"training": training})})

    def grid_ours(self) -> float:
        profile, percentiles = self.grid_profile, self.profile.transcoders.percentiles
        bases = [[deltas.load_base(profile, self.model, layer, q)[0] for q in percentiles] for layer in self.layers]
        data, kept = ((held.x[:, None], deltas.left_by(bases, held.x, held.y)) for held in self.grid_data)
        losses = []
        for d_new in profile.deltas.d_new:
            stack, curve = deltas.fit(profile.deltas.training, data, kept, d_new, profile.seed)
            for (i, layer), (j, percentile) in product(enumerate(self.layers), enumerate(percentiles)):
                save_npz(stack[i, j], deltas.delta_file(profile, self.model, layer, d_new, percentile))
            losses.append(curve.groupby("member").fvu.min().mean())
        return float(np.mean(losses))

    def grid_published(self) -> float:
        profile, (held, validation), losses = self.grid_profile, self.grid_data, []
        settings, percentiles = profile.deltas.training, profile.transcoders.percentiles
        for d_new in profile.deltas.d_new:
            shape = (len(self.layers), len(percentiles))
            starts = Transcoder.initialised(shape, self.model.d_model, d_new, profile.seed, settings.threshold)
            for (i, layer), (j, percentile) in product(enumerate(self.layers), enumerate(percentiles)):
                base, _ = deltas.load_base(profile, self.model, layer, percentile)
                asked = activations.repeated(len(held.prompt), settings.batch, profile.seed)
                data, kept = (held.x[i], held.y[i]), (validation.x[i], validation.y[i])
                delta, loss = as_published.train_delta(starts[i, j], base, data, kept, asked, settings)
                save_npz(delta, deltas.delta_file(profile, self.model, layer, d_new, percentile))
                losses.append(loss)
        return float(np.mean(losses))

    # the experiments

    def pair(self, layer: int, d_new: int, percentile: float):
        return deltas.load_pair(self.profile, self.model, layer, d_new, percentile)

    @functools.cached_property
    def exp1_prompts(self) -> list:
        found = self.test(self.amount.exp1)
        return found["tool"] + found["copy"]

    def exp1_ours(self) -> pd.DataFrame:
        model = models.load(self.profile, self.profile.paths.finetuned)
        return experiments.exp1(self.profile, model, self.exp1_prompts, self.layers)

    def exp1_published(self) -> pd.DataFrame:
        grid = list(product(self.profile.deltas.d_new, self.profile.transcoders.percentiles))
        return as_published.exp1(self.load, self.pair, grid, self.layers, self.exp1_prompts)

    @property
    def exp2_layers(self) -> list[int]:
        return self.layers[:: max(1, len(self.layers) // self.amount.exp2_layers)]

    def exp2_ours(self, keep: Path | None = None) -> pd.DataFrame:
        model = models.load(self.profile, self.profile.paths.finetuned)
        asked, doses = self.test(self.amount.exp2), experiments.AT_ENDS
        return experiments.exp2_by_layer(self.profile, model, asked, self.exp2_layers, doses, keep)

    def exp2_published(self) -> tuple[pd.DataFrame, dict]:
        tokenizer = self.load()[1]

        def longest(asked) -> int:
            return max(len(tokens(tokenizer, p)[1]) for p in asked) + self.profile.evaluation.margin

        d_new, percentile = experiments.widest(self.profile)
        pair = functools.partial(self.pair, d_new=d_new, percentile=percentile)
        asked = self.test(self.amount.exp2)
        return as_published.exp2(self.load, pair, self.exp2_layers, asked, experiments.AT_ENDS, longest, self.profile.tool)


def jobs(work: Workplace) -> Iterator[Job]:
    """Every row of `bench.csv`. Nothing is loaded or drawn before its job is run."""
    profile, amount, name = work.profile, work.amount, work.profile.name
    n, widths, percentiles = len(work.layers), profile.deltas.d_new, profile.transcoders.percentiles

    def whole(task: str, size: str, ours: Callable, theirs: Callable, ready: Callable = lambda: None) -> Job:
        return Job(task, f"{name}, {size}", PUBLISHED, timed(ours), timed(theirs), ready)

    size = f"{n} layers, {amount.capture} prompts"
    yield whole("capture", size, work.capture_ours, work.capture_published)
    steps = work.grid_profile.deltas.training.steps
    grid = f"{n} layers x {len(widths)} d_new x {len(percentiles)} percentiles"
    size = f"{grid}, {steps} steps, 1/{amount.cut} of the prompts"
    yield whole("training", size, work.grid_ours, work.grid_published, lambda: work.grid_data)
    size = f"{grid}, {2 * amount.exp1} prompts"
    yield whole("exp1", size, work.exp1_ours, work.exp1_published, lambda: work.model)
    size = f"{len(work.exp2_layers)} layers x {len(experiments.AT_ENDS)} conditions, 3 x {amount.exp2} prompts"
    yield whole("exp2", size, work.exp2_ours, work.exp2_published, lambda: work.model)

    settings = profile.deltas.training.model_copy(
        update={"batch": amount.batch, "steps": amount.steps, "check_every": amount.steps, "precision": "float32"}
    )
    places = {name: lambda: work.real}
    for d_model, d_sae in amount.shapes:
        title, sizes = f"{d_model} x {d_sae}", (d_model, d_sae, amount.d_new, 4 * amount.batch)
        places[title] = functools.partial(random_layers, 1, amount.at_once, *sizes, title)
    for title, place in places.items():
        place = functools.cache(place)

        def side(step: Callable, layers: Callable) -> Callable[[], Run]:
            return lambda: step(layers(), settings)

        def one(place=place) -> Layers:
            return place().one()

        d_new = max(widths) if title == name else amount.d_new
        for other, step in ({PUBLISHED: published_step} | trainers()).items():
            size = f"{title} x {d_new}, batch {amount.batch}"
            yield Job("step", size, other, side(our_step, one), side(step, one), place)
        at_once = n * len(percentiles) if title == name else amount.at_once
        for other, step in trainers().items():
            size = f"{title} x {d_new}, batch {amount.batch}, {at_once} at once"
            yield Job("many", size, other, side(our_step, place), side(step, place), place)


def run(job: Job, runs: int) -> dict:
    """The row of a job."""
    job.ready()
    return {"task": job.task, "size": job.size, "other": job.other, **alternate(job.ours, job.theirs, runs)}


# --- how cost grows ---


def growths(work: Workplace) -> Iterator[tuple[str, str, int, Callable[[int], float]]]:
    """Task, what grows, its smallest size, and the seconds at a size."""
    profile, amount = work.profile, work.amount
    learn, d_model = profile.deltas.training, work.load()[0].config.hidden_size
    settings = learn.model_copy(update={"batch": amount.batch, "steps": amount.steps, "check_every": amount.steps})

    def step(layers: int = 1, at_once: int = 1, d_new: int = 32) -> float:
        held = random_layers(layers, at_once, d_model, 8 * d_model, d_new, 2 * amount.batch)
        return our_step(held, settings).seconds * held.n

    def epochs(tokens: int) -> float:
        """The base once, then three epochs."""
        held = random_layers(1, 1, d_model, 8 * d_model, 32, tokens)
        steps = 3 * tokens // amount.batch
        often = learn.model_copy(update={"batch": amount.batch, "steps": steps, "check_every": steps})

        def learn_all() -> None:
            target = deltas.left_by([[held.base]], held.x[:, 0], held.y[:, 0])
            deltas.fit(often, (held.x, target), (held.x[..., :64, :], target[..., :64, :]), 32, 0)

        return timed(learn_all)().seconds

    def capture(prompts: int, layers: list[int] | None = None) -> float:
        return timed(lambda: work.captured(work.model, "train", prompts, layers))().seconds

    yield "capture", "prompts", max(1, amount.capture // amount.growth), capture
    yield "capture", "layers", 1, lambda n: capture(amount.capture // 4, work.layers[:n])
    yield "training", "tokens", 2 * amount.batch, epochs
    yield "training step", "layers", 1, lambda n: step(layers=n)
    yield "training step", "deltas at once", 1, lambda n: step(at_once=n)
    yield "training step", "d_new", 8, lambda n: step(d_new=n)


def exponent(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """The slope of log seconds on log size, with its 95% t interval."""
    line = linregress(np.log(sizes), np.log(seconds))
    half = t.ppf(0.975, len(sizes) - 2) * line.stderr
    return {"exponent": line.slope, "exponent_low": line.slope - half, "exponent_high": line.slope + half, "n": len(sizes)}


def grown(smallest: int, seconds: Callable[[int], float], most: int, runs: int) -> dict[str, float]:
    """The row of one growth: sizes `smallest` to `most` times as large, all of them in turn, several times."""
    sizes = [smallest * 2**k for k in range(most.bit_length())]
    seconds(sizes[0])  # warms up
    found = [(size, seconds(size)) for _ in range(runs) for size in sizes]
    return {"smallest": sizes[0], "largest": sizes[-1], **exponent(*map(list, zip(*found, strict=True)))}


# --- the tables and the figure ---


def code(profile: Profile) -> str:
    """A mark of the code, the profile and the versions that a row is from."""
    parts = [file.read_bytes() for file in sorted((ROOT / "lib").glob("*.py"))]
    parts += [profile.model_dump_json().encode(), torch.__version__.encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:10]


def kept(
    file: Path, keys: list[str], wanted: dict[tuple, Callable[[], dict]], mark: str, again: bool, whole: bool
) -> pd.DataFrame:
    """The table at `file` with all `wanted` rows: those it has from the same code, the others computed and written one by one.

    Rows that are not wanted stay as they are; where `whole`, that is all the table is to hold, they go.
    """
    rows = {}
    if file.exists():
        rows = {tuple(row[key] for key in keys): row for row in pd.read_csv(file).to_dict("records")}
    for i, (key, compute) in enumerate(wanted.items(), 1):
        shown = f"[{i}/{len(wanted)}] {', '.join(map(str, key))}"
        if not again and key in rows and rows[key]["code"] == mark:
            print(f"{shown}: kept", flush=True)
            continue
        print(f"{shown} ...", flush=True)
        start = time.perf_counter()
        rows[key] = {**dict(zip(keys, key, strict=True)), **compute(), "code": mark}
        results.save(pd.DataFrame(rows.values()), file)
        found = {k: f"{v:.4g}" for k, v in rows[key].items() if isinstance(v, float) and not np.isnan(v)}
        print(f"    {' '.join(f'{k} {v}' for k, v in found.items())} ({time.perf_counter() - start:.0f} s)", flush=True)
    table = pd.DataFrame([rows[key] for key in wanted] if whole else rows.values())
    if len(table):
        results.save(table, file)
    return table


def figure(table: pd.DataFrame, profile: Profile) -> None:
    """The ratios, on a logarithmic axis."""
    fig = go.Figure()
    rows = table.assign(row=table.task + ": " + table["size"])
    for index, (other, part) in enumerate(rows.groupby("other", sort=False)):
        style = plots.look(other, index)
        interval = dict(array=part.ratio_high - part.ratio, arrayminus=part.ratio - part.ratio_low, thickness=1.2, width=3)
        marker = dict(color=style["color"], symbol=style["symbol"], size=9)
        fig.add_trace(go.Scatter(x=part.ratio, y=part.row, mode="markers", name=other, marker=marker, error_x=interval))
    fig.add_vline(x=1, line_dash="dot")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    fig.update_xaxes(type="log", tickvals=ticks, title="seconds of the other / seconds of ours").update_yaxes(
        autorange="reversed"
    )
    fig.update_layout(
        height=160 + 36 * rows.row.nunique(), width=1250, legend=dict(orientation="h", y=1.01, x=1, xanchor="right")
    )
    alt = "How many times longer the published procedure, other trainers and matrix products alone take than ours, by task."
    plots.save_figure(fig, profile.paths.figures / "bench_ratios", table, alt)


def bench(profile: Profile, amount: Amount, only: list[str] | None = None, again: bool = False) -> pd.DataFrame:
    """Both tables and the figure; returns `bench.csv`."""
    work, mark = Workplace(profile, amount), code(profile)
    rows = {(job.task, job.size, job.other): functools.partial(run, job, amount.runs) for job in jobs(work)}
    curves = {
        (task, of): functools.partial(grown, smallest, seconds, most(work, of), max(2, amount.runs // 2))
        for task, of, smallest, seconds in growths(work)
    }
    known = sorted({key[0] for key in rows} | {"growth"})
    if only and (unknown := set(only) - set(known)):
        raise ValueError(f"--only {', '.join(sorted(unknown))}: no such task; there are {', '.join(known)}")
    if not importlib.util.find_spec("sparsify"):
        print(f"{SPARSIFY} is not installed, so its rows are left out: pip install {SPARSIFY}", flush=True)
    folder, asked = profile.paths.results, {key: value for key, value in rows.items() if not only or key[0] in only}
    try:
        table = kept(folder / "bench.csv", COLUMNS[:3], asked, mark, again, not only)
        if not only or "growth" in only:
            kept(folder / "bench_growth.csv", ["task", "of"], curves, mark, again, True)
    finally:
        shutil.rmtree(work.scratch.paths.data, ignore_errors=True)
    if len(table):
        figure(table, profile)
    return table


def most(work: Workplace, of: str) -> int:
    """How many times larger than the smallest the largest size is: there are only so many layers."""
    return len(work.layers) if of == "layers" else work.amount.growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="a name, or the path of a .toml file")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="these tasks, or `growth`; all others stay as they are")
    parser.add_argument("--again", action="store_true", help="also rows that are there from the same code")
    arguments = parser.parse_args()
    try:
        bench(profiles.load(arguments.profile), Amount(), arguments.only, arguments.again)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
