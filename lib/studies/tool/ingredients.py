"""What controls are made from."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lib.dictionary import deltas
from lib.dictionary.dictionaries import Transcoder
from lib.model import models
from lib.model.activations import Activations
from lib.model.hooks import MLP
from lib.model.sites import DenseMLP
from lib.profiles.tables import Profile, Training


def dense_mlps(profile: Profile, layers: list[int], folder: Path | None = None) -> dict[int, DenseMLP]:
    """The MLPs of the profile's model, or of the one in `folder`, each by itself."""
    hf, _ = models.load_plain(profile, folder)
    return {layer: DenseMLP(hf, layer) for layer in layers}


@dataclass(frozen=True)
class Material:
    """What controls are made from, in the order of `layers`."""

    layers: list[int]
    bases: dict[int, Transcoder]
    train: Activations
    """The finetuned model's (x, y); `validation` likewise, and `base_*` the base model's on the same prompts."""
    validation: Activations
    base_train: Activations
    base_validation: Activations
    finetuned_mlps: dict[int, DenseMLP]
    base_mlps: dict[int, DenseMLP]
    d_new: int
    settings: Training
    retrain: Training | None
    seed: int = 0

    def left_by(self, mlps: dict[int, MLP], held: Activations) -> Float[Tensor, "layer token d_model"]:
        """y - mlp(x) of every layer."""
        return deltas.left_by([[mlps[layer]] for layer in self.layers], held.x, held.y)[:, 0]


@dataclass(frozen=True)
class Control:
    """A replacement for every layer, and what it cost."""

    mlps: dict[int, MLP]
    parameters: int
    """Trained ones, in each layer; 0 where nothing is trained anew."""
    seconds: float
    """Of making it, for all layers."""
