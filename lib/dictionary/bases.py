"""The base transcoders of a profile."""

from collections.abc import Callable, Sequence
from functools import partial

from lib.book.paths import ROOT
from lib.dictionary import bases
from lib.dictionary.dictionaries import Transcoder
from lib.dictionary.layouts import levels, load_level
from lib.dictionary.sae_lens import _folders, _ids, _trained_there, load_release, load_sae_lens
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile, Transcoders


def choose(l0s: list[float], percentile: float) -> float:
    """The L0 at `percentile` of the sorted list, from 0 (the sparsest) to 1 (the densest), as the published study chose."""
    if not 0 <= percentile <= 1:
        raise ValueError(f"percentile {percentile} is outside 0..1; 0 is the sparsest level, 1 the densest")
    ordered = sorted(l0s)
    return ordered[min(int(percentile * len(ordered)), len(ordered) - 1)]


def load_base(profile: Profile, model: LanguageModel, layer: int, percentile: float) -> tuple[Transcoder, float]:
    """The base transcoder of a layer at a percentile of the L0 levels on offer, and its average L0."""
    [found] = _load_levels(profile, model, layer, [percentile])
    return found


def load_bases(
    profile: Profile, model: LanguageModel, layers: Sequence[int], percentiles: Sequence[float]
) -> list[list[Transcoder]]:
    """Those of each layer at each percentile."""
    return [[base for base, _ in _load_levels(profile, model, layer, percentiles)] for layer in layers]


def _load_levels(
    profile: Profile, model: LanguageModel, layer: int, percentiles: Sequence[float]
) -> list[tuple[Transcoder, float]]:
    """The bases of a layer, whose files are listed once, and their average L0."""
    offer = bases.on_offer(profile.transcoders, layer, model, profile.model.source)
    l0s = [choose(list(offer), percentile) for percentile in percentiles]
    return [(offer[l0]().to(model.hf.device), l0) for l0 in l0s]


def on_offer(
    settings: Transcoders, layer: int, model: "LanguageModel | None" = None, source: str = ""
) -> dict[float, Callable[[], Transcoder]]:
    """The base transcoders to choose from in a layer, by their average L0; each is loaded when called.

    The source is in a layout of `lib.dictionary.dictionaries`; or a folder that holds folders as sae-lens saves them
    (`cfg.json`, `sae_weights.safetensors`), told apart by the layer of their `hook_name`; or a release by
    the name that sae-lens has for it, from which the ids of the layer and, where they have one, of
    `width` are taken. An L0 that is nowhere written is NaN. One that does not fit `model` is a `ValueError`: by its
    shapes, or by what sae-lens wrote of where it was trained; where only the model's name is not `source`, a warning.
    """
    d_model, fits = model and model.d_model, partial(_trained_there, model=model, layer=layer, source=source)
    folder = ROOT / settings.source
    if folder.is_dir() and any(folder.rglob("cfg.json")):
        places = _folders(folder, layer)
        loads = {l0: partial(load_sae_lens, place, d_model, fits) for l0, place in places.items()}
    elif not folder.is_dir() and "/" not in settings.source:
        if settings.revision:
            raise ValueError(f"{settings.source}: sae-lens loads the newest of a release; leave out transcoders.revision")
        ids = _ids(settings.source, layer, settings.width)
        loads = {l0: partial(load_release, settings.source, name, d_model, fits) for l0, name in ids.items()}
    else:
        files = levels(settings, layer)
        loads = {l0: partial(load_level, settings, file, d_model) for l0, file in files.items()}
    return dict(sorted(loads.items()))
