"""Where transcoders read and write, by architecture and convention: one table, in transformer-lens's names.

`gemma-scope` is where a model's transcoders were trained:

- Gemma 2, Gemma Scope (arXiv 2408.05147, section 3): the RMS-normalised MLP input *without* the norm's
  (1+w) gain; the MLP output *after* the post-feedforward norm.
- Gemma 3, Gemma Scope 2: the MLP input *with* the gain (`pre_feedforward_layernorm.output` in its own
  configs); the MLP output after the post-feedforward norm.
- Qwen3, the transcoders of circuit-tracer (`mlp.hook_in` and `mlp.hook_out` in their own config): the MLP
  input with the gain; the MLP output.
- GPT-2, transcoders of Dunefsky et al. (arXiv 2406.11944; `ln2.hook_normalized` and `hook_mlp_out` in their
  own configs): the normalised MLP input without gain and bias; the MLP output. They were trained on weights as
  transformer-lens centres them: their targets have no mean over d_model, which every later norm takes away anyway.

`published`: the study this book repeats fed the transcoders the residual stream *before* the norm,
divided by sqrt(d_model), and multiplied what they gave by sqrt(d_model).
"""

from copy import deepcopy
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Site:
    """Hook points of one kind of MLP, with the layer left open."""

    name: str
    read: str
    write: str
    by_root: bool = False
    """Whether a replacement's input is divided, and its output multiplied, by sqrt(d_model)."""

    def at(self, layer: int) -> tuple[str, str]:
        """The names of the two hook points in one layer."""
        return self.read.format(layer=layer), self.write.format(layer=layer)

    def scale(self, d_model: int) -> float:
        """What a replacement's input is divided, and its output multiplied, by."""
        return d_model**0.5 if self.by_root else 1.0


@dataclass(frozen=True)
class Architecture:
    """What differs between models: the point read, and the modules of a Hugging Face block from there to the MLP's output."""

    read: str
    modules: tuple[str, ...]
    blocks: str = "layers"
    """The list of blocks in the Hugging Face model."""


ARCHITECTURES = {  # by a config's model_type
    "gemma2": Architecture("ln2.hook_normalized", ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm")),
    "gemma3_text": Architecture("mlp.hook_in", ("mlp", "post_feedforward_layernorm")),
    "qwen3": Architecture("mlp.hook_in", ("mlp",)),
    "gpt2": Architecture("ln2.hook_normalized", ("ln_2", "mlp"), blocks="h"),
}
WRITE = "blocks.{layer}.hook_mlp_out"  # what the MLP adds to the residual stream, in every architecture


def site_for(model_type: str, name: str) -> Site:
    """The site of a model's MLPs under a convention; `ValueError` where the table has none."""
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"no site is known for models of type {model_type!r}, only for {', '.join(ARCHITECTURES)}; add it to lib/sites.py"
        )
    sites = {
        "gemma-scope": Site("gemma-scope", f"blocks.{{layer}}.{ARCHITECTURES[model_type].read}", WRITE),
        "published": Site("published", "blocks.{layer}.ln2.hook_in", WRITE, by_root=True),
    }
    if name not in sites:
        raise ValueError(f"no site {name!r}; known: {', '.join(sites)}")
    return sites[name]


class DenseMLP(nn.Sequential):
    """A model's own MLP of one layer, in float32, as a function of what the `gemma-scope` site reads.

    Where the norm's gain is still to come the norm itself is applied: what it has normalised already it
    leaves as it is, up to its epsilon, and gives it the gain.
    """

    def __init__(self, hf: PreTrainedModel, layer: int):
        architecture = ARCHITECTURES[hf.config.model_type]
        block = getattr(hf.base_model, architecture.blocks)[layer]
        super().__init__(*(deepcopy(getattr(block, name)) for name in architecture.modules))
        self.float().requires_grad_(False)
