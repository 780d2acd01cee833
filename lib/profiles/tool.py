"""The tables of the study of a finetuned tool user."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from lib.profiles.organism import Training
from lib.profiles.values import RISING, Count, Layer, Many, Place, Seed, Share, _apart, _named_apart, _Table
from lib.texts.tool import CALCULATOR, Tool


class Protocol(_Table):
    """How a replacement is measured. The first value of each is right, the other is what the published study did."""

    site: Literal["trained", "published"] = "trained"
    """Where transcoders read and write; see `lib.model.sites`."""
    scope: Literal["all", "prompt"] = "all"
    """Whether generated tokens run on the replacement too. `prompt` restores position 0 of every forward
    pass, meant for BOS; with a key-value cache every generated token is at position 0."""
    ce_format: Literal["training", "published"] = "training"
    """The text of teacher forcing: as in training, or without BOS and the newline before the answer."""


class Prompts(_Table):
    train: Many
    """Examples of each label, tool and copy, for finetuning."""
    validation: Many
    test: Many
    """Examples of each subset, `tool_ood` among them, for the evaluations."""
    train_file: Place | None = None
    """JSONL of `input, target, label` to use instead of generated prompts; relative to the project."""
    test_file: Place | None = None
    copies: Place | None = None
    """Where the sentences to copy are from: JSONL of `text`, relative to the project, or such a file on the
    hub, `hf://datasets/owner/name@revision/path`; generated where it is left out."""
    seed: Seed = 0


class Finetune(_Table):
    rank: Count
    alpha: PositiveFloat
    dropout: Share
    targets: Annotated[list[Place], Field(min_length=1), AfterValidator(_apart)]
    lr: PositiveFloat
    warmup: Share
    """Share of the steps in which the learning rate rises; then a cosine to zero."""
    epochs: Count
    batch: Many
    """Prompts a step."""
    micro_batch: Many
    """Prompts a forward pass, of which `batch` is a multiple; gradients are accumulated up to it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products in training; float32 all the same on a CPU without instructions for bfloat16."""
    source: Place | None = None
    """A PEFT adapter or a merged model, in a folder or on the hub, to use instead of finetuning here."""
    revision: str | None = None
    """Of that source on the hub."""

    @model_validator(mode="after")
    def _accumulates_whole_passes(self) -> "Finetune":
        if self.batch % self.micro_batch:
            fits = max(n for n in range(1, min(self.batch, self.micro_batch) + 1) if self.batch % n == 0)
            raise ValueError(
                f"tool.finetune.batch is {self.batch}, not a multiple of tool.finetune.micro_batch, {self.micro_batch}; "
                f"write micro_batch = {fits}, the next lower that divides it"
            )
        return self


class Deltas(_Table):
    d_new: Annotated[list[Count], *RISING]
    training: Training
    source: Place | None = None
    """Trained deltas, in a folder or on the hub, to use instead of training here; see `lib.dictionary.sae_lens`."""
    revision: str | None = None
    """Of that source on the hub."""


class Controls(_Table):
    """What deltas are compared with in chapter 8, which holds activations of two models in memory."""

    layers: Annotated[list[Layer], *RISING] | None = None
    """Those replaced together there, of the layers studied; all where it is left out."""
    prompts: Count | None = None
    """Of each kind at most, from which controls are made; all training and validation prompts where it is left out."""
    retrain: Training | None = None
    """Of a whole transcoder on the finetuned model, from the base's parameters on. Left out where there is no memory for
    it: five times the bases of these layers."""


class Memory(_Table):
    """How much of what deltas are trained on is held at once."""

    data_gb: NonNegativeFloat = 8.0
    """Inputs and targets of the layers trained together, in GB (1e9 bytes), that are held in memory (the GPU's, where there
    is one); more than that goes to files under the profile's data."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of those that are trained on, and of the bases' products where targets are made; validation is in float32."""
    layers: Count | None = None
    """Layers whose deltas are trained together, each group after a pass of the model of its own; all where it is left out."""


Alphas = Annotated[list[NonNegativeFloat], *RISING, AfterValidator(_named_apart)]


class Evaluation(_Table):
    alphas: Alphas
    """At which all layers are replaced together,"""
    alphas_by_layer: Annotated[Alphas, Field(default_factory=lambda read: read.get("alphas"))]
    """and one layer at a time; the same where it is left out."""
    margin: Count = 8
    """Tokens that a generation may be longer than its target."""
    beside: Count | None = None
    """Prompts of each kind at most in chapters 7 to 10, which measure the same under many conditions; their own number where
    it is left out."""
    generate_batch: Count
    """Prompts generated at once."""
    forward_batch: Count
    """Rows in a teacher-forced forward pass: prompts, each once for every condition that shares the pass."""


class Bench(_Table):
    """How much `make bench` runs: enough for a ratio. Both sides always do all of it."""

    runs: Count = 6
    capture: Count = 400
    """Prompts."""
    exp1: Count = 50
    """Prompts of each kind, tool and copy; the published study had 20 in all."""
    exp2: Count = 20
    """Prompts of each of the three subsets."""


class ToolStudy(_Table):
    """The study of a finetuned tool user, chapters 1 to 10."""

    prompts: Prompts
    finetune: Finetune
    deltas: Deltas
    controls: Controls = Controls()
    evaluation: Evaluation
    grammar: Tool = CALCULATOR
    """Of a call: `open before argument after close`."""
    protocol: Protocol = Protocol()
    memory: Memory = Memory()
    bench: Bench = Bench()
    seeds: Count = 5
    """Finetunings of which chapter 9b tells the headline figures."""

    @model_validator(mode="after")
    def _has_its_prompts(self) -> "ToolStudy":
        for key in ("train_file", "test_file"):
            if self.grammar.argument == "text" and not getattr(self.prompts, key):
                raise ValueError(
                    f"tool.grammar.argument is 'text', and the project writes arithmetic alone; name your tool.prompts.{key}"
                )
        return self
