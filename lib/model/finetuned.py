"""The finetuned model of a profile, loaded once a process; jobs on its layers."""

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lib.book.compute import each, slots
from lib.model import models
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile


def by_layer(function: Callable[..., pd.DataFrame], profile: Profile, **arguments) -> pd.DataFrame:
    """`function(profile, model, layers=..., **arguments)` on the finetuned model, for all the layers studied.

    Layers are shared out in chunks, a chunk a job; the tables are put together in the order of the layers.
    """
    layers = models.layers_of(profile, finetuned(profile).n_layers)
    n = min(slots(), len(layers))
    chunks = [layers[i * len(layers) // n : (i + 1) * len(layers) // n] for i in range(n)]
    jobs = [(function, profile, chunk, arguments) for chunk in chunks]
    return pd.concat(each(_on_layers, jobs, "chunks of layers"), ignore_index=True)


def _on_layers(function: Callable, profile: Profile, layers: list[int], arguments: dict) -> pd.DataFrame:
    return function(profile, finetuned(profile), layers=layers, **arguments)


def finetuned(profile: Profile) -> LanguageModel:
    """The model of chapter 2, at the site of the profile's protocol; loaded once in each process."""
    folder = profile.paths.finetuned
    return _loaded(folder, profile.model.dtype, folder.stat().st_mtime_ns).at(profile.protocol.site)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, dtype: str, written: int) -> LanguageModel:
    return models.bridged(*models.load_hf(folder, dtype), "gemma-scope")
