"""What values a profile's keys may have."""

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _apart(names: list[str]) -> list[str]:
    """Names as they are, if each is there once."""
    if len(set(names)) < len(names):
        raise PydanticCustomError("apart", f"Names should stand there once each: write {list(dict.fromkeys(names))}")
    return names


def _place(name: str) -> str:
    """The name of a folder, a file or a repository as it is, if it can be one."""
    if not name.strip() or name.strip("./") == "" or not name.isprintable():
        raise PydanticCustomError("place", "A folder, a file or a repository should be named")
    return name


Place = Annotated[str, AfterValidator(_place)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]

Count = Annotated[int, Field(gt=0, le=10**9)]

Many = Annotated[int, Field(gt=0, le=10**5)]
"""Of prompts or rows: as many as are written and read in seconds."""

Share = Annotated[float, Field(ge=0, le=1)]

Layer = Annotated[int, Field(ge=0)]


def _rising(levels: list[float]) -> list[float]:
    """Levels as they are, if each is above the one before: the book speaks of a middle one and of steps up."""
    if any(b <= a for a, b in pairwise(levels)):
        raise PydanticCustomError("rising", f"Levels should rise, each once: write {sorted(set(levels))}")
    return levels


def _named_apart(alphas: list[float]) -> list[float]:
    """Alphas as they are, if the two decimals by which tables name them say them whole; others would overwrite one another."""
    if (written := [round(alpha, 2) for alpha in alphas]) != alphas:
        raise PydanticCustomError("hundredths", f"Alphas should have two decimals at most: write {sorted(set(written))}")
    return alphas


RISING = Field(min_length=1), AfterValidator(_rising)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
