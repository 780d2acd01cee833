"""One plotly template, fixed looks for the conditions, and `save_figure`.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; line styles and markers differ
too, so that a print without colour still reads.
"""

import atexit
import functools
import html
import os
import subprocess
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import kaleido
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from choreographer.browsers import Chromium
from IPython.display import HTML
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from lib.book.paths import replacing
from lib.book.results import save

BLACK, ORANGE, BLUE, GREEN, PINK, SKY, GREY = "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#777777"

LOOKS = {  # condition or subset -> how it is always drawn
    "raw": dict(name="raw model", color=BLACK, dash="solid", symbol="circle"),
    "no_delta": dict(name="base only", color=ORANGE, dash="dash", symbol="square"),
    "full": dict(name="base + delta", color=BLUE, dash="solid", symbol="diamond"),
    "tool": dict(name="tool", color=BLUE, dash="solid", symbol="circle"),
    "copy": dict(name="copy", color=GREEN, dash="dash", symbol="square"),
    "tool_ood": dict(name="tool, OOD", color=PINK, dash="dot", symbol="diamond"),
}
_SERIES = [(BLUE, "solid", "circle"), (ORANGE, "dash", "square"), (GREEN, "dot", "diamond"), (PINK, "dashdot", "x"),
           (SKY, "longdash", "triangle-up"), (GREY, "solid", "cross"), (BLACK, "dash", "star")]  # fmt: skip

CONFIG = dict(
    responsive=True, displaylogo=False, showSendToCloud=False, plotlyServerURL=""
)  # a page asks nothing of the network
WIDTH = 900  # of a picture, in pixels, where a figure names no other; a page's figure is as wide as the page
PATIENCE = 60  # seconds that a browser has for its start, and for a picture

RATE = dict(range=[-0.03, 1.03])  # the axis of a rate, with room for markers at its ends

pio.templates["book"] = go.layout.Template(
    layout=dict(
        font=dict(family="DejaVu Sans, Arial, sans-serif", size=15, color="black"),
        paper_bgcolor="white", plot_bgcolor="white", height=480,
        margin=dict(l=75, r=25, t=55, b=65),
        title=dict(x=0.02, xanchor="left", font=dict(size=17)),
        xaxis=dict(showline=True, linecolor="black", ticks="outside", gridcolor="#e5e5e5", zeroline=False),
        yaxis=dict(automargin=True, showline=True, linecolor="black", ticks="outside", gridcolor="#e5e5e5", zeroline=False),
        legend=dict(bgcolor="rgba(255,255,255,0.8)"),
        colorscale=dict(sequential="Cividis"),
    )
)  # fmt: skip
pio.templates.default = "book"


def look(key: str, index: int = 0) -> dict:
    """Name, colour, dash and marker of a condition or subset; for anything else, of series `index`."""
    color, dash, symbol = _SERIES[index % len(_SERIES)]
    return LOOKS.get(key, dict(name=str(key), color=color, dash=dash, symbol=symbol))


def interval(table: pd.DataFrame, value: str, within: tuple[float, float] = (-np.inf, np.inf)) -> dict | None:
    """The error bars of a column's interval, `<value>_low` to `<value>_high`, cut at the ends of what is drawn."""
    if f"{value}_low" not in table:
        return None
    at, low, high = (table[f"{value}{end}"].clip(*within) for end in ("", "_low", "_high"))
    return dict(array=high - at, arrayminus=at - low, thickness=1.2, width=3)


def add_line(fig: go.Figure, table: pd.DataFrame, x: str, y: str, key: str, index: int = 0, **place) -> None:
    """One series with its interval (`<y>_low` to `<y>_high`) as error bars; `place` is row and col."""
    style = look(key, index)
    table = table.sort_values(x)
    fig.add_trace(
        go.Scatter(
            x=table[x], y=table[y], name=style["name"], legendgroup=style["name"], mode="lines+markers",
            line=dict(color=style["color"], dash=style["dash"], width=2), marker=dict(symbol=style["symbol"], size=8),
            error_y=interval(table, y),
            showlegend=all(t.name != style["name"] for t in fig.data),
        ),
        **place,
    )  # fmt: skip


def by_subset(table: pd.DataFrame, x: str, y: str, series: str, title: str, path: Path, alt: str, **y_axis) -> HTML:
    """One panel per `subset` that has values, one line per value of the column `series`; saved at `path`."""
    subsets, keys = table.dropna(subset=y).subset.unique(), table[series].unique()
    names = [look(subset)["name"] for subset in subsets]
    fig = make_subplots(1, len(subsets), shared_yaxes=True, subplot_titles=names, horizontal_spacing=0.03)
    for column, subset in enumerate(subsets, 1):
        for index, key in enumerate(keys):
            rows = table[(table.subset == subset) & (table[series] == key)].dropna(subset=y)
            add_line(fig, rows, x, y, key, index, row=1, col=column)
    ticks = sorted(table[x].unique())
    fig.update_xaxes(title=x, tickvals=ticks[:: max(1, len(ticks) // 6)])
    fig.update_yaxes(title=title, col=1).update_yaxes(**y_axis)
    fig.update_layout(legend=dict(orientation="h", y=-0.24))
    return save_figure(fig, path, table, alt)


def save_figure(fig: go.Figure, path: Path, numbers: pd.DataFrame, alt: str) -> HTML:
    """Write `path`.png, .html and .csv (the numbers behind the picture); returns it for display.

    `alt` tells in words what the picture shows, for those who cannot see it. Text in a figure is plain text, whatever it
    holds; a line break in it is one. Without a Chrome that works there is no PNG, and that is all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fig = go.Figure(_plain(fig.to_plotly_json()))
    wide = go.Figure(fig).update_layout(width=None, autosize=True)
    chart = wide.to_html(full_html=False, include_plotlyjs=False, div_id=path.name, config=CONFIG)
    figure = f'<figure role="img" aria-label="{html.escape(alt)}" style="margin: 0">{chart}</figure>'
    library = path.with_name("plotly.min.js")
    if not library.exists():
        _write(library, get_plotlyjs())
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{view}<title>{html.escape(path.name)}</title><script src="{library.name}"></script>'
    _write(path.with_suffix(".html"), f'<!doctype html><html lang="en"><head>{head}</head><body>{figure}</body></html>\n')
    save(numbers, path.with_suffix(".csv"))
    if has_chrome():
        _picture(fig, path.with_suffix(".png"))
    return HTML(_library(path.name) + figure)


def _plain(part):
    """Of a figure's JSON the same, with every text as plain text: plotly takes tags and entities in it for markup."""
    if isinstance(part, dict):
        return {key: value if key in ("hovertemplate", "template") else _plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(value) for value in part]
    if isinstance(part, np.ndarray) and part.dtype.kind in "OU":
        return [_plain(value) for value in part]
    return html.escape(part, quote=False).replace("\n", "<br>") if isinstance(part, str) else part


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# --- pictures, by a browser that may not be there, or die ---


@functools.cache
def has_chrome() -> bool:
    """Whether there is a Chrome or Chromium that works; plotly's static pictures need one. A note says where one does not."""
    named = os.environ.get("BROWSER_PATH")
    found = named or Chromium.find_browser(skip_local=False)
    if not found:
        return False
    command = [str(found), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "about:blank"]
    try:
        works = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).stdout.strip() != b""
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if not works:
        print(f"{found}{' (BROWSER_PATH)' if named else ''} is no browser that works: figures come without pictures (PNG).")
    return works


def _picture(fig: go.Figure, path: Path) -> None:
    """Write a PNG; where the browser takes too long or dies, a note instead, and no pictures from then on."""
    if _given_up:
        return

    def draw() -> None:
        _kaleido()
        with replacing(path) as temporary, warnings.catch_warnings(action="ignore"):
            # plotly hands kaleido options that a running one ignores
            fig.write_image(temporary, format="png", scale=2, width=fig.layout.width or WIDTH)
            _with_palette(temporary)

    if error := _in_time(draw):
        _given_up.append(True)
        path.unlink(missing_ok=True)
        print(f"{path.name}: the browser gave no picture ({error}); this and later figures come without (PNG).")


def _with_palette(picture: Path) -> None:
    """Write a PNG anew with 256 colours, the nearest of its own: a third of the bytes, and no eye tells the two apart."""
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(picture, "PNG", optimize=True)


_given_up: list[bool] = []


def _in_time(work: Callable[[], None]) -> str:
    """What went wrong in a piece of work that may hang; nothing where it ended well within `PATIENCE`."""
    errors: list[str] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            errors.append(f"{error}".strip().split("\n")[0][:200] or type(error).__name__)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return f"nothing for {PATIENCE} seconds" if thread.is_alive() else "".join(errors[:1])


@functools.cache
def _kaleido() -> None:
    """Start one Chrome for all the pictures of this process."""
    kaleido.start_sync_server(silence_warnings=True)
    atexit.register(lambda: _given_up or _in_time(lambda: kaleido.stop_sync_server(silence_warnings=True)))


# --- plotly's script, once on a page ---

_with_library: list[str] = []


def _library(figure: str) -> str:
    """plotly's script, in front of the first figure that this process shows, each time that this one is shown."""
    if figure not in _with_library[:1] and _with_library:
        return ""
    _with_library[:] = [figure]
    return f"<script>{get_plotlyjs()}</script>"


if __name__ == "__main__" and not has_chrome():
    print("No Chrome or Chromium was found: figures have pages and numbers, but no pictures (PNG).")
