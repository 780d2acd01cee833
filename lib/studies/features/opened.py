"""What the tables of chapters 12 and 13 are computed from: the model, its SAEs, and what flows at their sites in the texts."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from lib.base.saes import compared
from lib.base.saes import saes as made
from lib.dictionary.dictionaries import Dictionary
from lib.model import activations, models
from lib.model.activations import Activations
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.studies.features import material
from lib.studies.features.material import Texts, pooled

POOLING = "encode, then max"
"""Where one way of pooling stands for all."""


@dataclass
class Opened:
    """What all tables are computed from."""

    profile: Profile
    model: LanguageModel
    saes: dict[Site, Dictionary]
    texts: Texts
    held: Activations

    @classmethod
    def of(cls, profile: Profile) -> "Opened":
        model = models.load(profile)
        saes, texts = made(profile, model), material.texts(profile, model)
        held = activations.collect(model, list(saes), texts.batches(model, profile.features.batch), "texts")
        return cls(profile, model, saes, texts, held)

    @property
    def order(self) -> list[Site]:
        """The sites of `held`, one after another."""
        return list(self.saes)

    @cached_property
    def living(self) -> list[Site]:
        """Those where any feature is active at any token: of the others nothing can be told."""
        return [
            site for site, x in zip(self.order, self.held.x, strict=True)
            if any((self.saes[site].encode(some) > 0).any() for some in x.split(4096))
        ]  # fmt: skip

    @property
    def compared(self) -> list[Site]:
        """The living ones of which layers are compared; `ValueError` where there is none."""
        found = [site for site in compared(self.profile, self.model) if site in self.living]
        if not found:
            raise ValueError("no feature of any layer is active in any of the texts; choose other texts or SAEs")
        return found

    @property
    def middle(self) -> Site:
        """The one that chapter 12 looks at."""
        return self.compared[len(self.compared) // 2]

    @cached_property
    def _pooled(self) -> dict[Site, dict[str, np.ndarray]]:
        return {}

    def values(self, site: Site, pooling: str = POOLING) -> Float[np.ndarray, "text feature"]:
        """One number of each feature for every text."""
        if site not in self._pooled:
            self._pooled[site] = pooled(self.saes[site], self.held, self.order.index(site), len(self.texts))
        return self._pooled[site][pooling]

    def batches(self):
        return self.texts.batches(self.model, self.profile.features.batch)
