"""The table of the study of vehicles."""

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat

from lib.profiles.values import RISING, Count, Layer, Many, Place, _apart, _Table

Factors = Annotated[list[PositiveFloat], *RISING]


class Transport(_Table):
    """SAEs of several kinds on stories about vehicles, and what it does to edit their features, chapters 14 and 15."""

    layer: Layer
    """After which the residual stream is read."""
    ask: str = "Write a short story that begins with: {sentence}"
    """How a story is asked for."""
    story_tokens: Count = 80
    """Of a story, at most."""
    sentences: Place | None = None
    """A file of sentences about vehicles besides the project's own, from which a word's features are read."""
    tokens: Count = 200_000
    """Of stories to train on, at least."""
    l0: Annotated[list[PositiveFloat], *RISING]
    """Features active at a token that the SAEs of each kind aim at; tied and wider ones have the middle one."""
    expansion: PositiveFloat = 5.0
    """Features, in multiples of `d_model`,"""
    wider: Annotated[Factors, Field(default_factory=lambda: [10.0, 25.0])]
    """and of SAEs that are wider,"""
    wide: Annotated[list[str], AfterValidator(_apart), Field(default_factory=lambda: ["ReLU"])]
    """which are of these kinds."""
    fewer: Annotated[list[Count], *RISING, Field(default_factory=lambda: [2000, 20_000])]
    """Tokens that some SAEs learn from instead."""
    seeds: Many = 3
    steps: Count = 250
    batch: Count = 512
    lr: PositiveFloat = 3e-3
    pairs: Many = 60
    """Pairs of vehicles that questions are asked about."""
    doses: Annotated[Factors, Field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])]
    """Of an edit, in multiples of what a vehicle's features have in the mean at its own name."""
    written: Many = 60
    """Texts written under each edit, to look for words."""
