"""Training deltas through the model: on what they write (MSE), on what the model then says (KL), or on both.

The deltas of chapter 3 are trained layer by layer on activations alone. Here all given layers are in place
at once and learn together, from where they are; their L0 is held by their thresholds, so that objectives
are compared at equal sparsity.
"""

from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import BaseDelta, Transcoder
from lib.dictionary.training import hold
from lib.measure import metrics
from lib.model import activations
from lib.model.encoding import encode, kept
from lib.model.hooks import capture, replaced
from lib.model.models import LanguageModel
from lib.texts.prompts import Prompt

OBJECTIVES = {"MSE": (1.0, 0.0), "MSE + KL": (1.0, 1.0), "KL": (0.0, 1.0)}
"""Weights of the mean squared error, over the output's variance, and of the mean KL(raw || replaced) in nats."""


def train_through(
    model: LanguageModel,
    pairs: Mapping[int, BaseDelta],
    prompts: Sequence[Prompt],
    weights: tuple[float, float],
    l0: Mapping[int, float],
    steps: int,
    batch: int,
    lr: float = 1e-3,
    seed: int = 0,
    progress: str = "through the model",
) -> dict[int, BaseDelta]:
    """The pairs with deltas trained further under one objective; the pairs given are left as they are."""
    model.hf.requires_grad_(False)
    learned = {layer: Transcoder.stacked([mlp.delta])[0].requires_grad_(True) for layer, mlp in pairs.items()}
    current = {layer: BaseDelta(pairs[layer].base, delta) for layer, delta in learned.items()}
    parameters = [parameter for delta in learned.values() for parameter in delta.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=True)
    sites, scale = {layer: model.site.at(layer) for layer in pairs}, model.site.scale(model.d_model)
    floors = {layer: delta.threshold.clone() for layer, delta in learned.items()}
    of_mse, of_kl = weights
    order = activations.repeated(len(prompts), batch, seed)
    for step in (bar := tqdm(range(steps), desc=progress, mininterval=2)):
        tokens = encode(model.tokenizer, [prompts[i] for i in next(order)]).to(model.hf.device)
        keep = kept(model.tokenizer, tokens)
        run = dict(input_ids=tokens.ids, attention_mask=tokens.attention, use_cache=False)
        with torch.no_grad(), capture(model, [name for site in sites.values() for name in site]) as seen:
            kl_from_raw = metrics.kl_from(metrics.log_probs(model.hf(**run).logits))
        loss, active = torch.zeros((), device=keep.device), {}
        for layer, (read, write) in sites.items():
            x, y = seen[read][keep].float() / scale, seen[write][keep].float() / scale
            f_base, f = current[layer].encode(x)
            active[layer] = f.detach().sign().sum(-1).mean()
            if of_mse:
                error = (current[layer].decode(f_base, f, x) - y).square().sum()
                loss = loss + of_mse * error / (y - y.mean(0)).square().sum() / len(sites)
        if of_kl:
            with torch.enable_grad(), replaced(model, current):
                kl = kl_from_raw(metrics.log_probs(model.hf(**run).logits))
            loss = loss + of_kl * (kl * tokens.attention).sum() / tokens.attention.sum()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 10, 2 * (1 - step / steps))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for layer, delta in learned.items():
            hold(delta, active[layer], torch.tensor(l0[layer]).to(active[layer]), lr, floors[layer])
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return {layer: BaseDelta(mlp.base, mlp.delta.requires_grad_(False)) for layer, mlp in current.items()}
