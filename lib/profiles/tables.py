"""The tables of a profile, and what may stand in them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lib.book.paths import ROOT, Paths
from lib.profiles.features import Features
from lib.profiles.lists import Lists
from lib.profiles.organism import Made, Organism, Text
from lib.profiles.tool import ToolStudy
from lib.profiles.transport import Transport
from lib.profiles.untangle import Untangle
from lib.profiles.values import RISING, Count, Layer, Place, Seed, Share, _Table


class Package(_Table):
    """A package of Python's registry that carries a model as a GGUF file, for where no hub can be reached."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+!_-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of its wheel."""
    file: Place
    """Of the model in it."""
    bytes: Count
    """Of its wheel, for `make plan`."""


class Model(_Table):
    source: Place
    """A folder, relative to the project, or a repository on the hub."""
    package: Package | None = None
    """Where that folder is made from, if it is not there."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    config: dict[str, str | int | float | bool] | None = None
    """What counts of its `config.json`, for `make plan` before the model is downloaded."""


class Transcoders(_Table):
    source: Place
    """A folder, relative to the project, or a repository on the hub; for transcoders that sae-lens saved, their
    folder, and for a release of sae-lens its name (`lib.dictionary.sae_lens`)."""
    revision: str | None = None
    layout: Literal["gemma-scope", "gemma-scope-2", "gemma-scope-2-affine", "circuit-tracer", "sparsify"] = "gemma-scope"
    """How its files are named and what is in them; see `lib.dictionary.dictionaries`."""
    width: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$")] = ""
    """Which width, such as `16k`, where the layout has several."""
    l0_ranks: Annotated[list[Share], *RISING]
    """Which of the L0 levels on offer, by their place in the sorted list, rising: 0 the sparsest, 1 the densest. Experiment 2
    takes the middle one. Tables call it `percentile`, as the published ones do."""
    layers: Annotated[list[Layer], *RISING] | None = None
    """All layers where it is left out."""
    made: Made | None = None
    """How they are trained here, if they are not there."""


STUDIES = ("tool", "features", "transport", "lists", "untangle")
"""The tables of a profile that are a study's."""


class Profile(_Table):
    """A model, its dictionaries, and a table for each study; chapters of a study without one are left out."""

    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=100)]
    """That of its file, and of its folders under `data`, `build` and `figures`."""
    model: Model | None = None
    """The language model; only the study of a toy, which it trains itself, does without."""
    transcoders: Transcoders | None = None
    tool: ToolStudy | None = None
    features: Features | None = None
    transport: Transport | None = None
    lists: Lists | None = None
    untangle: Untangle | None = None
    seed: Seed = 0
    organism: Organism | None = None
    """Only where this project makes the model itself."""

    @model_validator(mode="after")
    def _has_what_its_studies_need(self) -> "Profile":
        of_a_model = ("transcoders", "tool", "features", "transport", "lists", "organism")
        if not self.model and (of := [name for name in of_a_model if getattr(self, name)]):
            raise ValueError(f"{of[0]}: is of a language model; add a table [model]")
        if self.tool and not self.transcoders:
            raise ValueError("tool: its deltas are trained on base transcoders; add a table [transcoders]")
        if self.transcoders and self.transcoders.made and not (self.text or self.organism):
            raise ValueError("transcoders.made has no text to train on; add a table [transcoders.made.text]")
        if self.features and not (self.text or self.organism):
            raise ValueError("features has no text besides its own; add a table [features.text]")
        if self.transport and not (self.text or self.organism):
            raise ValueError("transport has no text besides its own; add a table [features.text]")
        return self

    @property
    def text(self) -> Text | None:
        """The natural text that dictionaries are trained and judged on; None where it is the organism's corpus."""
        made = self.transcoders.made.text if self.transcoders and self.transcoders.made else None
        return made or (self.features.text if self.features else None)

    @property
    def paths(self) -> Paths:
        return Paths(self.name)

    @property
    def inputs(self) -> list[Path]:
        """The files and folders of this machine that the profile names."""
        sources, files = [self.model and self.model.source, self.transcoders and self.transcoders.source], []
        if self.tool:
            asked = self.tool.prompts
            sources += [self.tool.finetune.source, self.tool.deltas.source]
            files = [f for f in (asked.train_file, asked.test_file, asked.copies) if f and "://" not in f]
        if self.features:
            files += [self.features.texts_file, self.features.matched_file]
        if self.transport:
            files.append(self.transport.sentences)
        return [path for name in filter(None, (*files, *sources)) if (path := ROOT / name).exists()]

    @property
    def made(self) -> list[Path]:
        """What chapters 1 to 3 make, and all others read."""
        return [self.paths.prompts, self.paths.finetuned, self.paths.deltas / self.tool.protocol.site] if self.tool else []
