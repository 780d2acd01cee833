"""The table of the study of features."""

from typing import Annotated

from pydantic import Field, PositiveFloat, model_validator

from lib.profiles.organism import Text, Training
from lib.profiles.values import RISING, Count, Layer, Many, Place, _Table

Layers = Annotated[list[Layer], *RISING]


class Scratch(_Table):
    """How much chapter 11 trains its own SAEs."""

    tokens: Count = 100_000
    steps: Count = 1000
    batch: Count = 512
    """Tokens a step."""


class Features(_Table):
    """What features of SAEs mean, chapters 11 to 13."""

    sites: Annotated[dict[str, Layers], Field(min_length=1)]
    """The layers of each hook point (`resid_post`, `attn_out`, `mlp_out`, ...) with an SAE; the first hook point is the one
    whose layers are compared."""
    releases: Annotated[dict[str, Place], Field(default_factory=dict)]
    """For each hook point a release of sae-lens whose SAEs are taken; where it is left out they are trained here."""
    widths: Annotated[dict[str, str], Field(default_factory=dict)]
    """Which width of a release, where it has several."""
    d_sae: Count = 1024
    l0: PositiveFloat = 8.0
    """Features active at a token that training aims at."""
    training: Training | None = None
    text: Text | None = None
    """Running text, where a profile has none for transcoders."""
    texts: Many = 13
    """Of each kind and topic."""
    texts_file: Place | None = None
    """Texts of one's own instead: JSONL of `text`, `kind` and, where known, `topic` and `template`, relative to the project."""
    matched_file: Place | None = None
    """Texts that say one thing in several forms, instead of the book's: JSONL of `text`, `form`, `topic` and `meaning`."""
    batch: Many = 64
    """Texts in a forward pass."""
    scratch: Scratch = Scratch()

    @model_validator(mode="after")
    def _has_its_saes(self) -> "Features":
        for name in self.sites:
            if name not in self.releases and self.training is None:
                raise ValueError(
                    f"features.sites has {name}, but no features.releases.{name} to take SAEs from; add it, or a table "
                    "[features.training] to train them here"
                )
        return self
