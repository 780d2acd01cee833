"""Tables on disk: computed once, then read; figures are drawn from what was read."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from lib.paths import replacing


def table(path: Path, compute: Callable[[], pd.DataFrame], redraw: bool) -> pd.DataFrame:
    """The CSV at `path`: computed and written now, or, to `redraw` only, read as it is.

    Either way what is returned was read from the file, so a redrawn figure equals the first.
    """
    if not redraw:
        save(compute(), path)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: nothing to redraw from; run `make all` first")
    return pd.read_csv(path)


def save(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV, whole or not at all."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)


def with_intervals(frame: pd.DataFrame, keep: list[str], names: list[str]) -> pd.DataFrame:
    """For reading: the columns `keep`, and each of `names` as `value [low, high]`, empty where there is none."""
    shown = frame[keep].copy()
    for name in names:
        cells = zip(frame[name], frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
        digits = 5 if 0 < frame[name].abs().max() < 0.02 else 3
        shown[name] = [
            "" if pd.isna(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for value, low, high in cells
        ]
    return shown


def texts(frame: pd.DataFrame) -> Styler:
    """For reading: text that may hold anything, shown as it is; tags in it are not markup."""
    return frame.style.hide().format(escape="html").set_properties(**{"text-align": "left", "white-space": "pre-wrap"})


def renamed(frame: pd.DataFrame, name: str, to: str) -> pd.DataFrame:
    """`frame` with `name` and its interval under another name, whatever had that name before dropped."""
    ends = ("", "_low", "_high")
    return frame.drop(columns=[f"{to}{end}" for end in ends], errors="ignore").rename(
        columns={f"{name}{end}": f"{to}{end}" for end in ends}
    )
