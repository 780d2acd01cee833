"""The rows of the bench, its tables and its figure."""

import functools
import shutil
import textwrap
from collections.abc import Callable, Iterator

import pandas as pd
import plotly.graph_objects as go

from lib.bench import as_published, browsing, trainers
from lib.bench.timing import COLUMNS, Job, Run, code, run, timed, with_earlier
from lib.bench.trainers import SPARSIFY, Layers
from lib.bench.workplace import PUBLISHED, Amount, Workplace
from lib.book import plots
from lib.profiles.tables import Profile
from lib.studies.tool import experiments

# what the published side's recipe is in a row of `training`, the headline first
RECIPES = {"one recipe": {}, "each its recipe (theirs tuned in its rate alone)": as_published.RECIPE}


# --- timing ---


# --- what is compared ---


def jobs(work: Workplace) -> Iterator[Job]:
    """Every row of `bench.csv`. Nothing is loaded or drawn before its job is run."""
    profile, amount, name = work.profile, work.amount, work.profile.name
    n, widths, ranks = len(work.layers), profile.tool.deltas.d_new, profile.transcoders.l0_ranks

    def whole(task: str, size: str, ours: Callable, theirs: Callable, ready: Callable = lambda: None) -> Job:
        return Job(task, f"{name}, {size}", PUBLISHED, timed(ours), timed(theirs), ready)

    size = f"{n} layers, {amount.capture} prompts"
    yield whole("capture", size, work.capture_ours, work.capture_published)
    grid = f"{n} layers x {len(widths)} d_new x {len(ranks)} L0 ranks"
    for recipe, changes in RECIPES.items():
        size = f"{grid}, 1/{amount.cut} of the prompts, {recipe}"
        theirs = functools.partial(work.grid_published, **changes)
        yield whole("training", size, work.grid_ours, theirs, lambda: work.grid_data)
    size = f"{grid}, {2 * amount.exp1} prompts"
    yield whole("exp1", size, work.exp1_ours, work.exp1_published, lambda: work.model)
    size = f"{n} layers x {len(experiments.AT_ENDS)} conditions, 3 x {amount.exp2} prompts"
    yield whole("exp2", size, work.exp2_ours, work.exp2_published, lambda: work.model)

    if browsing.ENVIRONMENT.exists():
        scene = browsing.Scene()
        size = f"{scene.d_sae} features of a GPT-2 of {scene.n_layers} x {scene.d_model}, {scene.rows * scene.context} tokens"
        yield Job("browse", size, browsing.DASHBOARD.replace("==", " "), scene.ours, scene.theirs, lambda: scene.made)

    size = f"{name}, batch {profile.tool.evaluation.forward_batch}, {profile.model.dtype}"
    yield Job("forward", size, trainers.PRODUCTS, timed(work.forward_ours), timed(work.forward_products), lambda: work.asked)

    settings = profile.tool.deltas.training.model_copy(
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
        at_once = n * len(ranks) if title == name else amount.at_once
        for other, step in trainers.others().items():
            size = f"{title} x {d_new}, batch {amount.batch}, {at_once} at once"
            yield Job("many", size, other, side(trainers.our_step, place), side(step, place), place)

    if study := profile.transport:
        d_sae, at_once = round(study.expansion * work.d_model), len(study.l0) * study.seeds
        sizes, learn = (work.d_model, d_sae, d_sae, 4 * study.batch), settings.model_copy(update={"batch": study.batch})
        place = functools.cache(functools.partial(trainers.random_layers, 1, at_once, *sizes, "SAEs"))
        size = f"SAEs of {work.d_model} x {d_sae}, batch {study.batch}, {at_once} at once"
        yield Job("saes", size, trainers.autoencoders(), lambda: Run(trainers.our_step(place(), learn)),
                  lambda: Run(trainers.sae_lens_step(place(), learn)), place)  # fmt: skip


# --- the tables and the figure ---


def titles(table: pd.DataFrame) -> pd.Series:
    """What each row timed, in words."""
    return table.task + ": " + table["size"]


def figure(table: pd.DataFrame, profile: Profile) -> None:
    """The ratios, on a logarithmic axis."""
    fig = go.Figure()
    rows = table.assign(row=titles(table).map(lambda title: "\n".join(textwrap.wrap(title, 64))))
    for index, (other, part) in enumerate(rows.groupby("other", sort=False)):
        style = plots.look(other, index)
        interval = plots.interval(part, "ratio")
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
    """The table and the figure; returns `bench.csv`."""
    work, mark = Workplace(profile, amount), code(profile)
    rows = {(job.task, job.size, job.other): functools.partial(run, job, amount.runs) for job in jobs(work)}
    known = sorted({key[0] for key in rows})
    if only and (unknown := set(only) - set(known)):
        raise ValueError(f"--only {', '.join(sorted(unknown))}: no such task; there are {', '.join(known)}")
    if trainers.sparsify_step not in trainers.others().values():
        print(f"{SPARSIFY} is not installed, so its rows are left out: pip install {SPARSIFY}", flush=True)
    if not browsing.ENVIRONMENT.exists():
        print(f"{browsing.DASHBOARD} is not installed in .venv/dashboard, so its row is left out", flush=True)
    folder, asked = profile.paths.results, {key: value for key, value in rows.items() if not only or key[0] in only}
    try:
        table = with_earlier(folder / "bench.csv", COLUMNS[:3], asked, mark, again, not only)
    finally:
        shutil.rmtree(work.scratch, ignore_errors=True)
    if len(table):
        figure(table, profile)
    return table
