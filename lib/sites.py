"""Where a transcoder reads and writes, by architecture and convention.

`gemma-scope`: Gemma Scope (arXiv 2408.05147, section 3) trained its Gemma-2 transcoders on the
RMS-normalised MLP input *without* the norm's (1+w) gain, and on the MLP output *after* the
post-feedforward norm. In transformer-lens names: `ln2.hook_normalized` and `hook_mlp_out`.

`published`: the study this book repeats fed the same transcoders the residual stream *before* the
norm, divided by sqrt(d_model), and multiplied what they gave by sqrt(d_model).
"""

from dataclasses import dataclass


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


SITES = {
    "gemma2": (
        Site("gemma-scope", "blocks.{layer}.ln2.hook_normalized", "blocks.{layer}.hook_mlp_out"),
        Site("published", "blocks.{layer}.ln2.hook_in", "blocks.{layer}.hook_mlp_out", by_root=True),
    ),
}


def site_for(model_type: str, name: str) -> Site:
    """The site of a model's MLPs under a convention; `ValueError` where the table has none."""
    for site in SITES.get(model_type, ()):
        if site.name == name:
            return site
    known = "; ".join(f"{site.name} of {model}" for model, sites in SITES.items() for site in sites)
    raise ValueError(f"no site {name!r} for {model_type!r}; known: {known}")
