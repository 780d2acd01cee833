"""The tables of what this project makes itself: a model, dictionaries, and the text for them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from lib.profiles.values import RISING, Count, Many, Seed, Share, _Table


class Training(_Table):
    """How transcoders are trained: deltas, and the organism's own base."""

    lr: PositiveFloat
    betas: Annotated[list[Share], Field(min_length=2, max_length=2, default_factory=lambda: [0.9, 0.999])]
    batch: Count
    """Tokens a step."""
    steps: Count
    """At most; see `patience`."""
    l1: NonNegativeFloat = 0.0
    """Weight of the mean activation, beside the mean squared error."""
    l1_warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which that weight rises from zero."""
    threshold: NonNegativeFloat = 0.0
    """Of the JumpReLU, where no L0 is aimed at."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in training, as for finetuning."""
    check_every: Count = 100
    """Steps between two looks at the validation loss."""
    patience: Count = 10
    """Looks without improvement anywhere before training stops."""


class OrganismModel(_Table):
    """The size of the organism and of its pretraining."""

    vocab_size: Count
    d_model: Count
    n_layers: Count
    n_heads: Count
    n_key_value_heads: Count
    d_head: Count
    d_mlp: Count
    sliding_window: Count
    context: Count
    """Tokens a row."""
    batch: Count
    """Rows a step."""
    steps: Count
    lr: PositiveFloat
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in training; float32 all the same on a CPU without instructions for bfloat16."""
    compile: bool = False
    """By torch.compile, which needs a C++ compiler and a minute: worth it on long runs."""
    seed: Seed = 0

    @property
    def tokens(self) -> int:
        """Tokens seen in training."""
        return self.steps * self.batch * self.context


class Text(_Table):
    """Natural text for transcoders, from what is here without a network (`lib.base.text`); how much of each kind."""

    prose: Annotated[int, Field(ge=0)] = 0
    """Characters of READMEs and licences,"""
    docstring: Annotated[int, Field(ge=0)] = 0
    """of docstrings,"""
    code: Annotated[int, Field(ge=0)] = 0
    """and of Python sources of the packages installed (`lib.texts.natural`)."""
    written: Annotated[int, Field(ge=0)] = 0
    """Texts that the model writes when asked (`lib.texts.requests`),"""
    written_tokens: Count = 200
    """of at most so many tokens."""
    corpus: Annotated[int, Field(ge=0)] = 0
    """Documents of the organism's corpus, which has the prompts' own kinds."""
    context: Count = 128
    """Tokens a row, in which documents stand one after another."""
    rows: Many = 32
    """Rows in a forward pass."""
    round: Many = 512
    """Rows whose tokens are drawn in a new order before others are read,"""
    passes: Count = 1
    """so many times."""


class Made(_Table):
    """Base transcoders that are trained here."""

    d_sae: Count
    l0: Annotated[list[PositiveFloat], *RISING]
    """The mean numbers of active features aimed at, one transcoder a layer for each."""
    training: Training
    probe_tokens: Count
    """Held-out tokens behind the card's figures."""
    text: Text | None = None
    """Natural text; the organism's own corpus where it is left out."""


class Organism(_Table):
    model: OrganismModel
    probes: Count
    """Held-out examples behind each rate of the model card."""
