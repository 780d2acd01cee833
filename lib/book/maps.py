"""Maps of many cells with intervals: colours about 0, and a mark where 0 cannot be ruled out."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

SCALE = "RdBu"
BETWEEN = 70
"""Pixels between a panel and the one below."""


def maps(
    table: pd.DataFrame, value: str, x: str, y: str, by: str, title: str, columns: int = 3, ys: Sequence | None = None,
    most: float | None = None,
) -> go.Figure:  # fmt: skip
    """One panel for each value of the column `by`: the column `value` by `x` and `y`, blue above 0 and red below.

    A cell whose interval (`<value>_low` to `<value>_high`) holds 0 has a grey dot, one without an interval too. `ys`: the
    order of `y`, from the top. Colours end at `most`, where it is given, and else at the largest value.
    """
    names = list(dict.fromkeys(table[by]))
    across = min(columns, len(names))
    down = -(-len(names) // across)
    most = most or float(table[value].abs().max()) or 1.0
    tall = down * max(170, 24 * (len(ys) if ys is not None else table[y].nunique())) + (down - 1) * BETWEEN
    fig = make_subplots(
        down, across, subplot_titles=[str(name) for name in names], shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.02, vertical_spacing=BETWEEN / tall,
    )  # fmt: skip
    for i, name in enumerate(names):
        rows, place = table[table[by] == name], dict(row=i // across + 1, col=i % across + 1)
        fig.add_trace(go.Heatmap(x=rows[x], y=rows[y], z=rows[value], coloraxis="coloraxis", xgap=1, ygap=1), **place)
        pale = rows[~((rows[f"{value}_low"] > 0) | (rows[f"{value}_high"] < 0))]
        dots = dict(size=4, color="#999999")
        fig.add_trace(
            go.Scatter(x=pale[x], y=pale[y], mode="markers", marker=dots, showlegend=False, hoverinfo="skip"), **place
        )
        fig.update_xaxes(title=x if place["row"] == down or i + across >= len(names) else None, **place)
    ticks = sorted(table[x].unique())
    fig.update_xaxes(tickvals=ticks[:: max(1, len(ticks) // 8)], showgrid=False, showticklabels=True)
    fig.update_yaxes(showgrid=False, title=None)
    fig.update_yaxes(title=y if ys is None else None, col=1)
    if ys is not None:
        fig.update_yaxes(categoryorder="array", categoryarray=list(ys)[::-1], type="category")
    bar = dict(title=dict(text=title, side="right"), thickness=14)
    fig.update_layout(coloraxis=dict(colorscale=SCALE, cmin=-most, cmax=most, cmid=0, colorbar=bar))
    return fig.update_layout(width=1150, height=tall + 130, showlegend=False)
