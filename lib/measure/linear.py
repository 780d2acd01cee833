"""What gradients and sums say of patching, without patching: attribution patching, and direct logit attribution.

Attribution patching (Nanda 2023; Syed et al., arXiv 2310.10348) takes the model for linear around a run: a patch then moves the
metric by (what is put in - what stood there) . gradient, for every cell at once from one forward and one backward pass.
Where softmax or a norm saturates this is wrong, so `agreement` holds it against real patching.

Direct logit attribution (Elhage et al. 2021) splits the stream where a text is read into what the embedding, every head and
every MLP have written there, and asks how far each moves the metric by itself, all norms' scales frozen as they are.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from tqdm.auto import tqdm

from lib.measure.patching import CELL, DIRECTIONS, WHOLE, Cell, Pair, Sets, Texts, batched, long, metric_of, places, taken
from lib.model.hooks import recorded
from lib.model.models import LanguageModel


def attributed(
    model: LanguageModel, pairs: Sequence[Pair], contrast: Sets, some: Sequence[Cell], size: int = 16,
    progress: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """What `patched.patched` gives, by attribution patching: `value`, what the metric would be, were the model linear.

    `size`: pairs in a pass; what stands at every hook point, and its gradient, is held at once.
    """
    model.hf.requires_grad_(False)
    found, points, roles = np.zeros((2, len(some), len(pairs))), sorted({cell.point for cell in some}), list(pairs[0].roles)
    for batch in tqdm(batched(pairs, size), desc=progress, disable=progress is None, mininterval=2):
        both = []
        for side in (0, 1):
            texts = Texts.of(model, [pairs[i] for i in batch], side)
            with torch.enable_grad(), recorded(model, points, gradients=True) as seen:
                metric = metric_of(texts.forward(model), contrast)
                metric.sum().backward()
            both.append((texts, metric.detach(), {name: (seen[name].detach(), seen[name].grad) for name in points}))
        for d in range(len(DIRECTIONS)):
            (into, metric, own), (of, _, other) = both[d], both[1 - d]
            moves = {(name, role): _move(role, roles, into, of, *own[name], other[name][0])
                     for name, role in {(cell.point, cell.role) for cell in some}}  # fmt: skip
            values = torch.stack([_of_head(moves[cell.point, cell.role], cell.head) for cell in some])
            found[d][:, batch] = (metric + values).cpu().numpy()
    return long(some, DIRECTIONS, found)


def _move(
    role: str, roles: Sequence[str], into: Texts, of: Texts, own: Tensor, grad: Tensor, other: Tensor
) -> Float[Tensor, "pair ..."]:
    """To first order what a role's patch does, by head where there are heads."""
    at, there, counts = places(role, roles, into, of)
    each = ((taken(other, there) - taken(own, at)) * taken(grad, at)).sum(-1)
    return (each * counts.reshape(*counts.shape, *[1] * (each.ndim - 2))).sum(1)


def _of_head(move: Float[Tensor, "pair ..."], head: int) -> Float[Tensor, " pair"]:
    return move[:, head] if head != WHOLE else move.flatten(1).sum(1) if move.ndim > 1 else move


def agreement(real: pd.DataFrame, estimated: pd.DataFrame, by: Sequence[str] = ("direction", "part")) -> pd.DataFrame:
    """How near attribution patching comes to patching, over the cells that both tables of effects have.

    `pearson`, `spearman`; `slope`, of the real effect on the estimated one (1: as large; below: it promises too much); `error`,
    the mean absolute difference, and `size`, the mean absolute real effect; `same_sign`, of the `n_clear` cells whose real
    interval leaves out 0.
    """
    both, rows = beside(real, estimated), []
    for keys, some in both.groupby(list(by), sort=False):
        x, y = some.estimated.to_numpy(), some.effect.to_numpy()
        clear = ((some.effect_low > 0) | (some.effect_high < 0)).to_numpy()
        varies = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        rows.append(dict(zip(by, keys, strict=True)) | {
            "n": len(x), "pearson": pearsonr(x, y)[0] if varies else np.nan,
            "spearman": spearmanr(x, y)[0] if varies else np.nan, "slope": np.polyfit(x, y, 1)[0] if varies else np.nan,
            "error": np.abs(x - y).mean(), "size": np.abs(y).mean(),
            "same_sign": (np.sign(x) == np.sign(y))[clear].mean() if clear.any() else np.nan, "n_clear": clear.sum(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def beside(real: pd.DataFrame, estimated: pd.DataFrame) -> pd.DataFrame:
    """Real effects, with `estimated` and `off`, how far above the real one it is."""
    other = estimated[[*CELL, "effect"]].rename(columns={"effect": "estimated"})
    both = real.merge(other, on=CELL)
    return both.assign(off=both.estimated - both.effect)


# --- direct logit attribution ---


@torch.no_grad()
def contributions(model: LanguageModel, pairs: Sequence[Pair], contrast: Sets, size: int = 64) -> pd.DataFrame:
    """One row per pair, run (`clean`, `corrupt`) and part: `value`, in logits, what it adds to the metric directly.

    `part`: `embedding`, `head`, `mlp`, or `bias`, what is the same for every text. Of a set of several tokens each logit
    counts as much as its token has of the set's probability in this run (the metric's own gradient); so the sum over parts is
    the logit difference of single tokens, before Gemma's soft-capping, which is left out as in `lib.measure.lens`. What a head
    writes is taken after Gemma's norm of the attention's output, whose scale is frozen too.
    """
    rows = []
    for batch in batched(pairs, size):
        for side, run in enumerate(("clean", "corrupt")):
            texts = Texts.of(model, [pairs[i] for i in batch], side)
            for part, layer, head, values in _split(model, texts, contrast):
                rows.append({"run": run, "part": part, "layer": layer, "head": head, "pair": batch, "value": values.tolist()})
    table = pd.DataFrame(rows).explode(["pair", "value"], ignore_index=True)
    return table.astype({"pair": int, "value": float})


def _split(model: LanguageModel, texts: Texts, contrast: Sets) -> Iterator[tuple[str, int, int, Float[Tensor, " pair"]]]:
    """Part, layer, head, and what it adds for each text, where that is read."""
    layers, gated = range(model.n_layers), "blocks.0.ln1_post.hook_scale" in model.points
    names = ["blocks.0.hook_in", "ln_final.hook_scale"]
    for layer in layers:
        block = f"blocks.{layer}."
        names += [f"{block}attn.hook_z", f"{block}hook_attn_out", f"{block}hook_mlp_out"]
        names += [f"{block}ln1_post.hook_scale"] if gated else []
    with recorded(model, names) as seen:
        logits = texts.forward(model)
    wide = torch.promote_types(logits.dtype, torch.float32)  # sums of hundreds of terms, too many for bfloat16
    at = {name: seen[name][:, -1].to(wide) for name in names}
    unembed = model.hf.get_output_embeddings().weight
    these, those = (
        logits[:, list(ids)].to(wide).softmax(-1) @ unembed[list(ids)].to(wide) for ids in (contrast.these, contrast.those)
    )
    norm, toward = model.bridge.ln_final, these - those
    direction = _before(model, norm, at["ln_final.hook_scale"], toward)
    bias = toward @ norm.bias if isinstance(norm.original_component, torch.nn.LayerNorm) else torch.zeros(len(toward))
    yield "embedding", WHOLE, WHOLE, (at["blocks.0.hook_in"] * direction).sum(-1)
    for layer in layers:
        block, own = f"blocks.{layer}.", model.bridge.blocks[layer]
        inner = _before(model, own.ln1_post, at[f"{block}ln1_post.hook_scale"], direction) if gated else direction
        heads = torch.einsum("phd,hdm,pm->ph", at[f"{block}attn.hook_z"], own.attn.W_O.to(wide), inner)
        for head in range(heads.shape[1]):
            yield "head", layer, head, heads[:, head]
        yield "mlp", layer, WHOLE, (at[f"{block}hook_mlp_out"] * direction).sum(-1)
        bias = bias + (at[f"{block}hook_attn_out"] * direction).sum(-1) - heads.sum(1)
    yield "bias", WHOLE, WHOLE, bias


def _before(
    model: LanguageModel, norm: torch.nn.Module, scale: Float[Tensor, "pair 1"], direction: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "pair d_model"]:
    """The direction before a norm that is this one after it, the norm's scale as it is."""
    gain = 1 + norm.weight if model.hf.config.model_type.startswith("gemma") else norm.weight
    direction = direction * gain / scale
    centred = isinstance(norm.original_component, torch.nn.LayerNorm)
    return direction - direction.mean(-1, keepdim=True) if centred else direction
