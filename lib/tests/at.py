"""What tests say by layers, at the sites of a model; and a profile with other tables of its study."""

from collections.abc import Mapping, Sequence

from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile


def at(model: LanguageModel, of_layers: Mapping[int, object], name: str = "trained") -> dict[Site, object]:
    return {model.site(name, layer): one for layer, one in of_layers.items()}


def sites(model: LanguageModel, layers: Sequence[int], name: str = "trained") -> list[Site]:
    return [model.site(name, layer) for layer in layers]


def other(profile: Profile, **tables) -> Profile:
    return profile.model_copy(update={"tool": profile.tool.model_copy(update=tables)})
