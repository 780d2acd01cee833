"""Where a transcoder reads and writes, by architecture and convention.

Gemma Scope (arXiv 2408.05147, section 3) trained its Gemma-2 transcoders on the RMS-normalised MLP
input *without* the norm's (1+w) gain, and on the MLP output *after* the post-feedforward norm. In
transformer-lens names: `ln2.hook_normalized` and `hook_mlp_out`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Hook points of one kind of MLP, with the layer left open."""

    read: str
    write: str

    def at(self, layer: int) -> tuple[str, str]:
        """The names of the two hook points in one layer."""
        return self.read.format(layer=layer), self.write.format(layer=layer)


SITES = {
    ("gemma2", "gemma-scope"): Site("blocks.{layer}.ln2.hook_normalized", "blocks.{layer}.hook_mlp_out"),
}


def site_for(model_type: str, convention: str) -> Site:
    """The site of a model's MLPs; `ValueError` where the table has none."""
    try:
        return SITES[model_type, convention]
    except KeyError:
        known = "; ".join(f"{model} by {name}" for model, name in SITES)
        raise ValueError(f"no site for {model_type!r} by {convention!r}; known: {known}") from None
