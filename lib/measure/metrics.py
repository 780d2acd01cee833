"""What is measured: reconstruction, cross-entropy, and what a generation did with the tool.

Everything is first a number per prompt and then an `Estimate` over prompts (`lib.book.stats`).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.book.stats import Clusters, Estimate, ratio
from lib.model.encoding import Encoded

# --- reconstruction ---


def by_prompt(values: Float[Tensor, " token"], prompt: Int[Tensor, " token"]) -> Float[Tensor, " prompt"]:
    """Sums over the tokens of each prompt, in float64."""
    return torch.zeros(int(prompt.max()) + 1, dtype=torch.float64).index_add(0, prompt.cpu(), values.double().cpu())


def reconstruction(
    y_hat: Float[Tensor, "token d_model"],
    y: Float[Tensor, "token d_model"],
    prompt: Int[Tensor, " token"],
    clusters: Clusters = None,
) -> dict[str, Estimate]:
    """How near `y_hat` is to `y`; `clusters` has the template of each prompt.

    `cos`: mean cosine per token. `l2`: mean of |y_hat - y| / |y| per token, the published "l2 ratio"; 0 is perfect.
    `length`: mean of |y_hat| / |y| per token; 1 is as long as it should be. `fvu`: squared error over variance about
    the mean, summed over all tokens; 0 is perfect, 1 is what the mean alone would reach.
    """
    tokens = by_prompt(torch.ones(len(y)), prompt)
    variance, size = (y - y.mean(0)).square().sum(-1), y.norm(dim=-1)

    def per_token(values: Tensor) -> Estimate:
        return ratio(by_prompt(values, prompt), tokens, clusters)

    return {
        "cos": per_token(torch.cosine_similarity(y_hat, y, -1)),
        "l2": per_token((y_hat - y).norm(dim=-1) / size),
        "length": per_token(y_hat.norm(dim=-1) / size),
        "fvu": ratio(by_prompt((y_hat - y).square().sum(-1), prompt), by_prompt(variance, prompt), clusters),
    }


def fvu(
    mlps: Sequence[Callable[[Tensor], Tensor]],
    x: Float[Tensor, "layer token d_model"],
    y: Float[Tensor, "layer token d_model"],
    prompt: Int[Tensor, " token"],
    clusters: Clusters = None,
) -> Estimate:
    """Fraction of variance unexplained, of several layers together: one replacement for each layer of `x` and `y`."""
    error = sum(by_prompt((b - mlp(a)).square().sum(-1), prompt) for mlp, a, b in zip(mlps, x, y, strict=True))
    return ratio(error, sum(by_prompt((b - b.mean(0)).square().sum(-1), prompt) for b in y), clusters)


# --- the next token ---


def log_probs(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch pos-1 vocab"]:
    """Log-probabilities of each next token, in nats; the last position, which predicts nothing given, left out."""
    return logits[:, :-1].float().log_softmax(-1)


def nats(log_p: Float[Tensor, "batch pos-1 vocab"], ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """Cross-entropy of each token given those before it; 0 for the first, which nothing predicts."""
    loss = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(loss, (1, 0))


def log_odds(logits: Float[Tensor, "*n vocab"], these: Sequence[int], those: Sequence[int]) -> Float[Tensor, "*n"]:
    """Of one set of next tokens against another, in nats: the logit difference of two single tokens."""
    return logits[..., list(these)].logsumexp(-1) - logits[..., list(those)].logsumexp(-1)


def of_answers(logits: Float[Tensor, "batch some vocab"], batch: Encoded) -> Float[Tensor, " batch"]:
    """Cross-entropy of each answer, its tokens together, of logits at the positions `batch.foreseen`."""
    ids, answer = (part[:, batch.foreseen + 1] for part in (batch.ids, batch.answer))
    nats = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none")
    return (nats.view(ids.shape) * answer).sum(1)


def of_rows(logits: Float[Tensor, "batch pos vocab"], batch: Encoded, at_once: int = 2**25) -> Float[Tensor, " batch"]:
    """Cross-entropy of each row of text, its tokens together; so many logits at once, for in float32 they take gigabytes."""
    rows = max(1, at_once // logits[0].numel())
    parts = zip(logits.split(rows), batch.ids.split(rows), strict=True)
    return (torch.cat([nats(log_probs(some), ids) for some, ids in parts]) * batch.attention).sum(1)


def kl_from(
    log_p: Float[Tensor, "batch pos-1 vocab"],
) -> Callable[[Float[Tensor, "batch pos-1 vocab"]], Float[Tensor, "batch pos"]]:
    """KL(p || q) of the prediction of each token, in nats, as a function of log q; 0 for the first token.

    p is the model as it is, q the replaced one; of p is computed once what every q needs.
    """
    p = log_p.exp()
    return lambda log_q: torch.nn.functional.pad(torch.linalg.vecdot(p, log_p - log_q), (1, 0))


# --- the tool ---
