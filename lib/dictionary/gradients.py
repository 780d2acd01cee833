"""The gradients of the training loss, by hand."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lib.dictionary.dictionaries import Dictionary, activate, shared


@torch.no_grad()
def gradients(
    stacks: Sequence[Dictionary],
    x: Float[Tensor, "*n token d_model"],
    target: Float[Tensor, "*n token d_model"],
    scale: Float[Tensor, "*n 1"],
    l1: float,
) -> list[tuple[Float[Tensor, "*n d_sae"], dict[str, Tensor]]]:
    """For each stack, at how many tokens each feature is active, and the gradient of each member's loss by the name of
    the parameter.

    The loss is the mean of `(y - target / scale)^2` plus `l1 / scale` times the mean of f. Written out, for where there
    are fewer features than dimensions the error need not be formed: with `G = W_dec W_dec^T`,

        (y - t) W_dec^T = f G + (b_dec - t) W_dec^T,   f^T (y - t) = f^T f W_dec + f^T (b_dec - t),

    which takes four products over d_model, not five, and no pass over a matrix of tokens x d_model. In these products
    the features of all stacks stand side by side: a few wide ones instead of many narrow ones. `of` says which feature is
    whose, and masks what would mix stacks.
    """
    widths, n, one_over = [stack.d_sae for stack in stacks], target.shape[-2], 1 / scale[..., None]
    unformed = stacks[0].W_skip is None and max(widths) < stacks[0].d_model
    if len(stacks) > 1 and not unformed:
        return [gradients([stack], x, target, scale, l1)[0] for stack in stacks]
    W_enc, b_enc, threshold = (beside([getattr(stack, name) for stack in stacks]) for name in ("W_enc", "b_enc", "threshold"))
    f = activate(x, W_enc, b_enc, threshold)
    each = f.new_ones(1, n)  # sums over tokens as products: much faster than `sum`
    of = torch.block_diag(*(f.new_ones(1, width) for width in widths))  # (stack, feature)
    found = {}
    if unformed:
        W_dec, b_dec = beside([stack.W_dec for stack in stacks], -2), torch.stack([stack.b_dec for stack in stacks], -2)
        total, same = each @ f * of, of.mT @ of
        df = f @ (W_dec @ W_dec.mT * same) + (b_dec @ W_dec.mT * of).sum(-2, keepdim=True)
        df = torch.addcmul(df, target @ W_dec.mT, one_over, value=-1)
        found["W_dec"] = (f.mT @ f * same) @ W_dec + total.mT @ b_dec - (f.mT @ target) * one_over
        found["b_dec"] = total @ W_dec + n * b_dec - (each @ target) * one_over
    else:
        (stack,) = stacks
        error = torch.addcmul(stack.decode(f, x), target, one_over, value=-1)
        df = error @ stack.W_dec.mT
        found["W_dec"], found["b_dec"] = f.mT @ error, each @ error
        if stack.W_skip is not None:
            found["W_skip"] = shared(x.mT, error)
    squared = 2 / target.shape[-2:].numel()
    found = {name: gradient * squared for name, gradient in found.items()}
    active = f.sign()
    penalty = l1 * one_over / n * (of / of.sum(-1, keepdim=True)).sum(-2)
    dp = df.mul_(squared).add_(penalty).mul_(active)
    found["W_enc"], found["b_enc"] = shared(x.mT, dp), (each @ dp).squeeze(-2)
    apart = {name: found[name].split(widths, dim) for name, dim in (("W_enc", -1), ("b_enc", -1), ("W_dec", -2))}
    apart["b_dec"] = found["b_dec"].unbind(-2)
    if "W_skip" in found:
        apart["W_skip"] = [found["W_skip"]]
    counts = (each @ active).squeeze(-2).float().split(widths, -1)
    return [(count, {name: parts[i] for name, parts in apart.items()}) for i, count in enumerate(counts)]


def beside(tensors: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Side by side in one; itself where there is but one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)
