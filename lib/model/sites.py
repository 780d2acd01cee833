"""Sites: where in a model a dictionary reads and writes, in transformer-lens's names of hook points.

An SAE reads and writes one point: `resid_pre`, `resid_post`, `attn_out`, `mlp_out`, or `z`, the heads' outputs side by
side. A transcoder reads what an MLP reads and writes what it writes; `trained` is where a model's transcoders were trained:

- Gemma 2, Gemma Scope (arXiv 2408.05147, section 3): the RMS-normalised MLP input *without* the norm's
  (1+w) gain; the MLP output *after* the post-feedforward norm.
- Gemma 3, Gemma Scope 2: the MLP input *with* the gain (`pre_feedforward_layernorm.output` in its own
  configs); the MLP output after the post-feedforward norm.
- Qwen3, the transcoders of circuit-tracer (`mlp.hook_in` and `mlp.hook_out` in their own config), and Llama: the MLP
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
    """A hook point that is read and one that is written, in one layer."""

    name: str
    layer: int
    read: str
    write: str
    scale: float = 1.0
    """What a dictionary's input is divided, and its output multiplied, by."""

    @property
    def ends_block(self) -> bool:
        """Whether what is written there alone decides, with what stood before it, what the block leaves."""
        return self.write in (f"blocks.{self.layer}.hook_mlp_out", f"blocks.{self.layer}.hook_resid_post")

    @property
    def added_to(self) -> str | None:
        """Where a block ends there: the point to whose value what is written is added; None where it is all there is."""
        return None if self.write.endswith("resid_post") else f"blocks.{self.layer}.ln2.hook_in"


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
    "llama": Architecture("mlp.hook_in", ("mlp",)),
    "gpt2": Architecture("ln2.hook_normalized", ("ln_2", "mlp"), blocks="h"),
}
POINTS = {
    "resid_pre": "hook_resid_pre", "attn_out": "hook_attn_out", "z": "attn.hook_z", "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}  # fmt: skip
"""Of SAEs, which read and write them."""
OF_MLPS = ("trained", "published")


def site(model_type: str, name: str, layer: int, d_model: int) -> Site:
    """The site of that name in a layer; `ValueError` for a name or an architecture that the tables lack."""
    if name not in (*OF_MLPS, *POINTS):
        raise ValueError(f"no site {name!r}; known: {', '.join((*OF_MLPS, *POINTS))}")
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"no site is known for models of type {model_type!r}, only for {', '.join(ARCHITECTURES)}; "
            "add it to lib/model/sites.py"
        )
    block, out = f"blocks.{layer}.", f"blocks.{layer}.hook_mlp_out"  # what the MLP adds to the stream, in each of them
    if name == "published":
        return Site(name, layer, f"{block}ln2.hook_in", out, d_model**0.5)
    if name == "trained":
        return Site(name, layer, block + ARCHITECTURES[model_type].read, out)
    return Site(name, layer, block + POINTS[name], block + POINTS[name])


class DenseMLP(nn.Sequential):
    """A model's own MLP of one layer, in float32, as a function of what the site `trained` reads.

    Where the norm's gain is still to come the norm itself is applied: what it has normalised already it
    leaves as it is, up to its epsilon, and gives it the gain.
    """

    def __init__(self, hf: PreTrainedModel, layer: int):
        architecture = ARCHITECTURES[hf.config.model_type]
        block = getattr(hf.base_model, architecture.blocks)[layer]
        super().__init__(*(deepcopy(getattr(block, name)) for name in architecture.modules))
        self.float().requires_grad_(False)
