"""What is measured: reconstruction, cross-entropy, and what a generation did with the tool.

Everything is first a number per prompt and then an `Estimate` over prompts (`lib.stats`).
"""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.stats import Estimate, rate, ratio
from lib.tool import Tool

TOOL_RATES = ("tool_call_rate", "valid_tool_format_rate", "parsed_rate", "math_correct_rate")
OUTCOMES = (*TOOL_RATES, "exact_match_rate")


# --- reconstruction ---


def by_prompt(values: Float[Tensor, "token"], prompt: Int[Tensor, "token"]) -> Float[Tensor, "prompt"]:
    """Sums over the tokens of each prompt, in float64."""
    return torch.zeros(int(prompt.max()) + 1, dtype=torch.float64).index_add(0, prompt.cpu(), values.double().cpu())


def reconstruction(
    y_hat: Float[Tensor, "token d_model"], y: Float[Tensor, "token d_model"], prompt: Int[Tensor, "token"]
) -> dict[str, Estimate]:
    """How near `y_hat` is to `y`.

    `cos`: mean cosine per token. `l2`: mean of |y_hat| / |y| per token, the published "l2 ratio".
    `fvu`: squared error over variance about the mean, summed over all tokens; 0 is perfect, 1 is what
    the mean alone would reach.
    """
    tokens = by_prompt(torch.ones(len(y)), prompt)
    variance = (y - y.mean(0)).square().sum(-1)
    return {
        "cos": ratio(by_prompt(torch.cosine_similarity(y_hat, y, -1), prompt), tokens),
        "l2": ratio(by_prompt(y_hat.norm(dim=-1) / y.norm(dim=-1), prompt), tokens),
        "fvu": ratio(by_prompt((y_hat - y).square().sum(-1), prompt), by_prompt(variance, prompt)),
    }


def fvu(
    mlps: Sequence[Callable[[Tensor], Tensor]],
    x: Float[Tensor, "layer token d_model"],
    y: Float[Tensor, "layer token d_model"],
    prompt: Int[Tensor, "token"],
) -> Estimate:
    """Fraction of variance unexplained, of several layers together: one replacement for each layer of `x` and `y`."""
    error = sum(by_prompt((b - mlp(a)).square().sum(-1), prompt) for mlp, a, b in zip(mlps, x, y, strict=True))
    return ratio(error, sum(by_prompt((b - b.mean(0)).square().sum(-1), prompt) for b in y))


# --- the next token ---


def log_probs(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch pos-1 vocab"]:
    """Log-probabilities of each next token, in nats; the last position, which predicts nothing given, left out."""
    return logits[:, :-1].float().log_softmax(-1)


def nats(log_p: Float[Tensor, "batch pos-1 vocab"], ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """Cross-entropy of each token given those before it; 0 for the first, which nothing predicts."""
    loss = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(loss, (1, 0))


def kl_from(
    log_p: Float[Tensor, "batch pos-1 vocab"],
) -> Callable[[Float[Tensor, "batch pos-1 vocab"]], Float[Tensor, "batch pos"]]:
    """KL(p || q) of the prediction of each token, in nats, as a function of log q; 0 for the first token.

    p is the model as it is, q the replaced one; of p is computed once what every q needs.
    """
    p = log_p.exp()
    return lambda log_q: torch.nn.functional.pad(torch.linalg.vecdot(p, log_p - log_q), (1, 0))


# --- the tool ---


def outcomes(tool: Tool, targets: Iterable[str], generations: Iterable[str]) -> pd.DataFrame:
    """One row per generation of true or false: the four of `TOOL_RATES`, and `exact_match_rate`.

    `math_correct_rate`, of calls that ask what the target asks, is missing where the target is no call.
    """
    rows = []
    for target, generation in zip(targets, generations, strict=True):
        rows.append({
            "tool_call_rate": tool.called(generation),
            "valid_tool_format_rate": tool.well_formed(generation),
            "parsed_rate": tool.argument_of(generation) is not None,
            "math_correct_rate": tool.right(generation, target) if tool.argument_of(target) else None,
            "exact_match_rate": generation == target,
        })  # fmt: skip
    return pd.DataFrame(rows)


def rates(outcomes: pd.DataFrame) -> dict[str, Estimate]:
    """Every column of `outcomes` as a rate, over the rows that have it."""
    return {name: rate(outcomes[name].dropna().astype(bool)) for name in outcomes}
