"""Context managers that read or replace what flows through a model, and always unhook.

Each acts at every position and in every forward pass inside the block: prompts, cached decoding and
left-padded batches alike. The only exception is a BOS token, recognised by its id and not by its
position: transcoders are not trained on it, so it keeps the dense MLP's output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from lib.models import LanguageModel

MLP = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


@contextmanager
def capture(model: LanguageModel, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that each forward pass inside the block fills, by hook point name."""
    cache: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(tensor, hook):
            cache[name] = tensor.detach()

        return hook

    with model.bridge.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        yield cache


@contextmanager
def replaced(model: LanguageModel, mlps: Mapping[int, MLP]) -> Iterator[None]:
    """Inside the block the MLP of each given layer is the given function of the site's input, in float32."""
    seen: dict[int | str, Tensor] = {}

    def remember(key):
        def hook(tensor, hook):
            seen[key] = tensor

        return hook

    def write(layer: int, mlp: MLP):
        def hook(tensor, hook):
            is_bos = (seen["ids"] == model.tokenizer.bos_token_id)[..., None]  # (batch, pos, 1)
            return tensor.where(is_bos, mlp(seen.pop(layer).float()).to(tensor.dtype))

        return hook

    hooks = [("embed.hook_in", remember("ids"))]
    for layer, mlp in mlps.items():
        read, out = model.site.at(layer)
        hooks += [(read, remember(layer)), (out, write(layer, mlp))]
    with model.bridge.hooks(fwd_hooks=hooks):
        yield
