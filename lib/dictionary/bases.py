"""The base dictionaries of a profile: those that it found at a site, and the choice among them."""

from collections.abc import Callable, Sequence
from functools import partial

from lib.book.paths import ROOT
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import LAYOUTS, levels, load_level
from lib.dictionary.sae_lens import folders, ids, load_release, load_sae_lens, trained_there
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.features import Features
from lib.profiles.tables import Profile, Transcoders


def choose(l0s: list[float], rank: float) -> float:
    """The L0 at a rank share of the sorted list, from 0 (the sparsest) to 1 (the densest), as the published study chose."""
    if not 0 <= rank <= 1:
        raise ValueError(f"L0 rank {rank} is outside 0..1; 0 is the sparsest level, 1 the densest")
    ordered = sorted(l0s)
    return ordered[min(int(rank * len(ordered)), len(ordered) - 1)]


def load(profile: Profile, model: LanguageModel, site: Site, ranks: Sequence[float]) -> list[Dictionary]:
    """The bases of a site at some ranks of the L0 levels on offer (`choose`), whose files are listed once."""
    offer = on_offer(profile.transcoders, site.layer, model, site, profile.model.source)
    return [offer[choose(list(offer), rank)]().to(model.hf.device) for rank in ranks]


def at_rank(profile: Profile, model: LanguageModel, sites: Sequence[Site], rank: float) -> dict[Site, Dictionary]:
    """The base of every site at one rank."""
    return {site: load(profile, model, site, [rank])[0] for site in sites}


def level(settings: Transcoders, layer: int, rank: float) -> float:
    """The average L0 of the base of a layer at a rank."""
    return choose(list(on_offer(settings, layer)), rank)


def released(features: Features, point: str) -> Transcoders | None:
    """Where the SAEs of a hook point are from; None where they are trained here."""
    if point not in features.releases:
        return None
    return Transcoders(source=features.releases[point], width=features.widths.get(point, ""), l0_ranks=[0.5])


def on_offer(
    settings: Transcoders,
    layer: int,
    model: LanguageModel | None = None,
    site: Site | None = None,
    source: str = "",
) -> dict[float, Callable[[], Dictionary]]:
    """The dictionaries to choose from in a layer, by their average L0; each is loaded when called.

    The source is in a layout of `lib.dictionary.layouts`; or a folder that holds folders as sae-lens saves them
    (`cfg.json`, `sae_weights.safetensors`), told apart by the layer of their `hook_name`; or a release by
    the name that sae-lens has for it, from which the ids of the layer and, where they have one, of
    `width` are taken. An L0 that is nowhere written is NaN. One that does not fit `model` is a `ValueError`: by its
    shapes, or by what sae-lens wrote of where it was trained, which is not `site`; where only the model's name is not
    `source`, a warning.
    """
    width = model and model.width(site)
    fits = partial(trained_there, model=model, site=site, source=source)
    folder = ROOT / settings.source
    if folder.is_dir() and any(folder.rglob("cfg.json")) and LAYOUTS[settings.layout].config != "cfg.json":
        places = folders(folder, layer)
        loads = {l0: partial(load_sae_lens, place, width, fits) for l0, place in places.items()}
    elif not folder.is_dir() and "/" not in settings.source:
        if settings.revision:
            raise ValueError(f"{settings.source}: sae-lens loads the newest of a release; leave out transcoders.revision")
        named = ids(settings.source, layer, settings.width)
        loads = {l0: partial(load_release, settings.source, name, width, fits) for l0, name in named.items()}
    else:
        files = levels(settings, layer)
        loads = {l0: partial(load_level, settings, file, width) for l0, file in files.items()}
    return dict(sorted(loads.items()))
