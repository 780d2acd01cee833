"""The finetuned model of a profile, loaded once a process; jobs on its layers."""

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lib.book.compute import each, slots
from lib.model import models
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile


def over_layers(function: Callable[..., pd.DataFrame], profile: Profile, site: str = "", **arguments) -> pd.DataFrame:
    """`function(profile, model, sites=..., **arguments)` on the finetuned model, for all the layers studied.

    `site` is the name of the sites (`lib.model.sites`); that of the profile's protocol where it is left out.

    Layers are shared out in chunks, a chunk a job; the tables are put together in the order of the layers.
    """
    layers = models.layers_of(profile, finetuned(profile).n_layers)
    n = min(slots(), len(layers))
    chunks = [layers[i * len(layers) // n : (i + 1) * len(layers) // n] for i in range(n)]
    name = site or profile.tool.protocol.site
    jobs = [(function, profile, name, chunk, arguments) for chunk in chunks]
    return pd.concat(each(_on_layers, jobs, "chunks of layers"), ignore_index=True)


def _on_layers(function: Callable, profile: Profile, name: str, layers: list[int], arguments: dict) -> pd.DataFrame:
    model = finetuned(profile)
    return function(profile, model, sites=[model.site(name, layer) for layer in layers], **arguments)


def finetuned(profile: Profile) -> LanguageModel:
    """The model of chapter 2; loaded once in each process."""
    folder = profile.paths.finetuned
    return _loaded(folder, profile.model.dtype, folder.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, dtype: str, written: int) -> LanguageModel:
    return models.bridged(*models.load_hf(folder, dtype))
