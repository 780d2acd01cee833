"""The table of the study of two tasks in a toy transformer."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from lib.profiles.values import Count, Many, Share, _apart, _Table


class Toy(_Table):
    """A transformer with an SAE on its last hidden state, and how both learn."""

    tokenizer: Literal["numbers", "characters", "pairs"] = "numbers"
    decoder_alone: bool = False
    """Two layers that look backwards, instead of an encoder layer and a decoder layer."""
    d_model: Count = 256
    heads: Count = 4
    d_ff: Count = 1024
    d_sae: Count = 1024
    embedding: PositiveFloat = 1.0
    """Standard deviation of the embeddings at the start; torch's is 1."""
    sae: Literal["joint", "post hoc", "none"] = "joint"
    """Whether the SAE learns with the model, which then learns from its loss too, or afterwards."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the SAE's mean squared error,"""
    l1: NonNegativeFloat = 0.01
    """and of its mean activation."""
    split: Literal["pair", "example"] = "pair"
    """What is drawn for training: unordered pairs of numbers, or single examples, as published."""
    train: Share = 0.3
    validation: Share = 0.2
    batch: Many = 512
    epochs: Count = 1000
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in training, where the processor has instructions for it; what is measured is in float32."""
    check_every: Count = 10
    """Epochs between two looks at the validation loss."""

    @model_validator(mode="after")
    def _divides_into_heads(self) -> "Toy":
        if self.d_model % self.heads:
            raise ValueError(f"untangle.toy.d_model is {self.d_model}, not a multiple of heads, {self.heads}; mend either")
        return self


VARIANTS: dict[str, Callable[[Toy], dict[str, object]]] = {
    "no SAE": lambda toy: {"sae": "none"},
    "post hoc": lambda toy: {"sae": "post hoc"},
    "lambda 0": lambda toy: {"l1": 0.0},
    "lambda / 10": lambda toy: {"l1": toy.l1 / 10},
    "lambda x 10": lambda toy: {"l1": toy.l1 * 10},
    "characters": lambda toy: {"tokenizer": "characters"},
    "pairs of digits": lambda toy: {"tokenizer": "pairs"},
    "decoder alone": lambda toy: {"decoder_alone": True},
    "rate x 3": lambda toy: {"lr": toy.lr * 3},
    "rate / 3": lambda toy: {"lr": toy.lr / 3},
    "half the decay, twice as long": lambda toy: {"weight_decay": toy.weight_decay / 2, "epochs": toy.epochs * 2},
    "published split": lambda toy: {"split": "example", "validation": 1 - toy.train},
}
"""How each variant of a toy differs from it."""


def _known(names: list[str]) -> list[str]:
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"untangle: no variant {name!r}; there are {', '.join(VARIANTS)}")
    return names


Variants = Annotated[list[str], Field(default_factory=list), AfterValidator(_apart), AfterValidator(_known)]


class Untangle(_Table):
    """Two tasks in a toy transformer, chapters 19 and 20."""

    operands: Count = 100
    """Both numbers are below it."""
    seeds: Many = 5
    """Toys of each kind; a seed draws what is to train, too."""
    toy: Toy = Toy()
    variants: Variants
    """Those of `VARIANTS` that are trained as long as the toy,"""
    briefly: Variants
    """and those that are trained for fewer epochs, as is the toy itself beside them."""
    brief_epochs: Count = 100
