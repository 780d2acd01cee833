"""The table of the study of lists."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat

from lib.profiles.values import RISING, Count, Layer, Many, Share, _apart, _Table


class Lists(_Table):
    """Lists that a chat model is asked for, short, long or neither, chapters 16 to 18."""

    ask: Annotated[str, Field(pattern=r"\{mode\}list of \{topic\}")] = "Give me a {mode}list of {topic}."
    """How a list is asked for."""
    topics: Annotated[list[str], AfterValidator(_apart), Field(min_length=4)] | None = None
    """What lists are of; those of the project's corpus where it is left out."""
    by: Literal["model", "corpus"] = "model"
    """Who writes the lists that are read; the corpus for a model that hardly writes any."""
    samples: Many = 8
    """Lists of each topic and mode."""
    temperature: PositiveFloat = 1.0
    """At which they are sampled,"""
    temperatures: Annotated[list[PositiveFloat], *RISING, Field(default_factory=lambda: [0.5, 0.7, 1.0, 1.3])]
    """and short ones besides, to see what temperature does."""
    top_p: Share = 1.0
    tokens: Count = 160
    """Of a list at most: well above what the longest has."""
    batch: Many = 256
    """Lists written at once,"""
    rows: Many = 64
    """and read at once."""
    pairs: Many = 120
    """Lists of which the word in the request is changed,"""
    patched: Many = 36
    """and those of them that are patched for real; attribution patching takes all."""
    patch_layers: Annotated[list[Layer], *RISING] | None = None
    """Where activations are patched; every layer where it is left out."""
    k: Annotated[list[Count], *RISING, Field(default_factory=lambda: [1, 2, 5, 10, 20])]
    """Features edited at once."""
    edited: Count = 5
    """How many of them where lists are written under the edit, as in the study's text."""
    runs: Many = 4
    """Lists of each topic under each edit."""
