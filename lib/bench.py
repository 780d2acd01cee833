"""Ours against the published procedure, against other trainers and against the machine: `make bench`.

    python -m lib.bench --profile nano [--only TASK ...] [--again]

writes `results/bench.csv`, a row for each task, size and other; `results/bench_growth.csv`, how cost grows; and the
figure `bench_ratios`. Ours and the other run by turns in one process, on the same data. `ratio` is the median of
other over ours, pair by pair, and its interval is of order statistics (`scipy.stats.quantile_test`): with six pairs
the smallest and the largest ratio, which hold the median in 97% of cases. Rows of the same code and machine are kept; an
interrupted run goes on.

`training` is of the whole grid, with all that is done once. The row with both sides by one recipe, the profile's, says
what the order of work is worth. Beside it stands a row in which the published procedure has its own recipe, of which the
rate alone was tuned (`as_published.RECIPE`), where several settings of ours were: it says what a recipe is worth too.
`step` is a step of training of one delta and `many` of one of several that learn together, timed as `lib.trainers` says.
"""

import argparse
import functools
import hashlib
import shutil
import sys
import textwrap
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
from scipy.stats import linregress, quantile_test, t

from lib import activations, as_published, deltas, encoding, experiments, models, plots, precision, profiles, results, trainers
from lib.encoding import tokens
from lib.paths import ROOT
from lib.profiles import Profile, Training
from lib.prompts import by_subset, read_jsonl
from lib.trainers import SPARSIFY, Layers
from lib.transcoders import Transcoder, save_npz

COLUMNS = ["task", "size", "other", "ours_seconds", "other_seconds", "ratio", "ratio_low", "ratio_high", "n"]
PUBLISHED = "published procedure"
# what the published side's recipe is in a row of `training`, the headline first
RECIPES = {"one recipe": {}, "each its recipe (theirs tuned in its rate alone)": as_published.RECIPE}


@dataclass(frozen=True)
class Amount:
    """How much of everything is run: enough for a ratio, and no more. Both sides always do all of it."""

    runs: int = 6
    capture: int = 400
    """Prompts."""
    exp1: int = 50
    """Prompts of each kind, tool and copy; the published study had 20 in all."""
    exp2: int = 20
    """Prompts of each of the three subsets."""
    cut: int = 10
    """Training of the whole grid: of a recipe's steps and of the prompts, one in so many, so that there are as many epochs."""
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


# --- what is compared ---


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
        batches = encoding.streamed(model.tokenizer, self.prompts(split, n), self.profile.evaluation.tokens_batch)
        return activations.collect(model, layers or self.layers, batches, f"{split} activations")

    @functools.cached_property
    def real(self) -> Layers:
        held = self.captured(self.model, "validation")
        percentiles = self.profile.transcoders.percentiles
        bases = deltas.load_bases(self.profile, self.model, self.layers, percentiles)
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

    def recipe(self, **changes) -> Training:
        """The profile's, or what it is with `changes`, so much shorter as there is less data."""
        learn = self.profile.deltas.training.model_copy(update=changes)
        steps, warmup = (max(4, n // self.amount.cut) for n in (learn.steps, learn.l1_warmup))
        return learn.model_copy(update={"steps": steps, "l1_warmup": warmup, "patience": steps})

    def grid_ours(self) -> float:
        profile, percentiles, settings = self.scratch, self.profile.transcoders.percentiles, self.recipe()
        bases = deltas.load_bases(profile, self.model, self.layers, percentiles)
        data, kept = (
            (held.x[:, None].to(dtype), deltas.left_by(bases, held.x, held.y, dtype))
            for held, dtype in zip(self.grid_data, deltas.dtypes(profile), strict=True)
        )
        losses = []
        widths = profile.deltas.d_new
        for d_new, (stack, curve) in zip(widths, deltas.fit(settings, data, kept, widths, profile.seed), strict=True):
            for (i, layer), (j, percentile) in product(enumerate(self.layers), enumerate(percentiles)):
                save_npz(stack[i, j], deltas.delta_file(profile, self.model, layer, d_new, percentile))
            losses.append(curve.groupby("member").fvu.min().mean())
        return float(np.mean(losses))

    def grid_published(self, **changes) -> float:
        profile, (held, validation), losses = self.scratch, self.grid_data, []
        settings, percentiles = self.recipe(**changes), profile.transcoders.percentiles
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

    def exp2_ours(self, keep: Path | None = None) -> pd.DataFrame:
        model = models.load(self.profile, self.profile.paths.finetuned)
        asked, doses = self.test(self.amount.exp2), experiments.AT_ENDS
        return experiments.exp2_by_layer(self.profile, model, asked, self.layers, doses, keep)

    def exp2_published(self) -> tuple[pd.DataFrame, dict]:
        tokenizer = self.load()[1]

        def longest(asked) -> int:
            return max(len(tokens(tokenizer, p)[1]) for p in asked) + self.profile.evaluation.margin

        d_new, percentile = experiments.widest(self.profile)
        pair = functools.partial(self.pair, d_new=d_new, percentile=percentile)
        asked = self.test(self.amount.exp2)
        return as_published.exp2(self.load, pair, self.layers, asked, experiments.AT_ENDS, longest, self.profile.tool)


def jobs(work: Workplace) -> Iterator[Job]:
    """Every row of `bench.csv`. Nothing is loaded or drawn before its job is run."""
    profile, amount, name = work.profile, work.amount, work.profile.name
    n, widths, percentiles = len(work.layers), profile.deltas.d_new, profile.transcoders.percentiles

    def whole(task: str, size: str, ours: Callable, theirs: Callable, ready: Callable = lambda: None) -> Job:
        return Job(task, f"{name}, {size}", PUBLISHED, timed(ours), timed(theirs), ready)

    size = f"{n} layers, {amount.capture} prompts"
    yield whole("capture", size, work.capture_ours, work.capture_published)
    grid = f"{n} layers x {len(widths)} d_new x {len(percentiles)} percentiles"
    for recipe, changes in RECIPES.items():
        size = f"{grid}, 1/{amount.cut} of the prompts, {recipe}"
        theirs = functools.partial(work.grid_published, **changes)
        yield whole("training", size, work.grid_ours, theirs, lambda: work.grid_data)
    size = f"{grid}, {2 * amount.exp1} prompts"
    yield whole("exp1", size, work.exp1_ours, work.exp1_published, lambda: work.model)
    size = f"{n} layers x {len(experiments.AT_ENDS)} conditions, 3 x {amount.exp2} prompts"
    yield whole("exp2", size, work.exp2_ours, work.exp2_published, lambda: work.model)

    settings = profile.deltas.training.model_copy(
        update={"batch": amount.batch, "steps": amount.steps, "check_every": amount.steps, "precision": "float32"}
    )
    places = {name: lambda: work.real}
    for d_model, d_sae in amount.shapes:
        title, sizes = f"{d_model} x {d_sae}", (d_model, d_sae, amount.d_new, 4 * amount.batch)
        places[title] = functools.partial(trainers.random_layers, 1, amount.at_once, *sizes, title)
    for title, place in places.items():
        place = functools.cache(place)

        def side(step: Callable, layers: Callable) -> Callable[[], Run]:
            return lambda: Run(step(layers(), settings))

        def one(place=place) -> Layers:
            return place().one()

        d_new = max(widths) if title == name else amount.d_new
        for other, step in ({PUBLISHED: trainers.published_step} | trainers.others()).items():
            size = f"{title} x {d_new}, batch {amount.batch}"
            yield Job("step", size, other, side(trainers.our_step, one), side(step, one), place)
        at_once = n * len(percentiles) if title == name else amount.at_once
        for other, step in trainers.others().items():
            size = f"{title} x {d_new}, batch {amount.batch}, {at_once} at once"
            yield Job("many", size, other, side(trainers.our_step, place), side(step, place), place)


def run(job: Job, runs: int) -> dict:
    """The row of a job."""
    job.ready()
    key = {"task": job.task, "size": job.size, "other": job.other}
    return key | alternate(job.ours, job.theirs, runs) | {"machine": precision.machine()}


# --- how cost grows ---


def growths(work: Workplace) -> Iterator[tuple[str, str, int, Callable[[int], float]]]:
    """Task, what grows, its smallest size, and the seconds at a size."""
    profile, amount = work.profile, work.amount
    learn, d_model = profile.deltas.training, work.load()[0].config.hidden_size
    learn = learn.model_copy(update={"batch": amount.batch, "precision": "float32"})
    settings = learn.model_copy(update={"steps": amount.steps, "check_every": amount.steps})

    def step(layers: int = 1, at_once: int = 1, d_new: int = 32) -> float:
        held = trainers.random_layers(layers, at_once, d_model, 8 * d_model, d_new, 2 * amount.batch)
        return trainers.our_step(held, settings) * held.n

    def epochs(tokens: int) -> float:
        """The base once, then three epochs."""
        held = trainers.random_layers(1, 1, d_model, 8 * d_model, 32, tokens)
        steps = 3 * tokens // amount.batch
        often = learn.model_copy(update={"steps": steps, "check_every": steps})

        def learn_all() -> None:
            target = deltas.left_by([[held.base]], held.x[:, 0], held.y[:, 0])
            deltas.fit(often, (held.x, target), (held.x[..., :64, :], target[..., :64, :]), [32], 0)

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
    """A mark of the code, the profile, the versions and the machine that a row is from."""
    parts = [file.read_bytes() for file in sorted((ROOT / "lib").glob("*.py"))]
    parts += [text.encode() for text in (profile.model_dump_json(), torch.__version__, precision.machine())]
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


def titles(table: pd.DataFrame) -> pd.Series:
    """What each row timed, in words."""
    return table.task + ": " + table["size"]


def figure(table: pd.DataFrame, profile: Profile) -> None:
    """The ratios, on a logarithmic axis."""
    fig = go.Figure()
    rows = table.assign(row=titles(table).map(lambda title: "\n".join(textwrap.wrap(title, 64))))
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
        height=200 + 44 * rows.row.nunique(),
        width=1250,
        margin_t=80,
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=1, xanchor="right"),
    )
    alt = "How many times longer the published procedure, other trainers and matrix products alone take than ours, by task."
    plots.save_figure(fig, profile.paths.figures / "bench_ratios", table, alt)


def markdown(table: pd.DataFrame) -> str:
    """The ratios for reading, a row for each task and a column for each other, as `value [low, high]`."""
    cells = [f"{row.ratio:.3g} [{row.ratio_low:.3g}, {row.ratio_high:.3g}]" for row in table.itertuples()]
    rows = titles(table).rename("seconds of the other / seconds of ours")
    wide = pd.Series(cells, index=[rows, table.other]).unstack().reindex(index=rows.unique(), columns=table.other.unique())
    lines = [[wide.index.name, *wide.columns], ["---"] * (1 + wide.shape[1]), *wide.fillna("").reset_index().values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    if trainers.sparsify_step not in trainers.others().values():
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
        table = bench(profiles.load(arguments.profile), Amount(), arguments.only, arguments.again)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    if len(table):
        print(markdown(table))


if __name__ == "__main__":
    main()
