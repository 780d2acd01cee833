"""Training deltas through the model: on what they write (MSE), on what the model then says (KL), or on both.

The deltas of chapter 3 are trained layer by layer on activations alone. Here all given layers are in place
at once and learn together, from where they are; their L0 is held by their thresholds, so that objectives
are compared at equal sparsity.
"""

from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.dictionary.training import adjust_threshold
from lib.measure import metrics
from lib.model import activations
from lib.model.encoding import encode, token_mask
from lib.model.hooks import read, recorded, replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.texts.prompts import Prompt

OBJECTIVES = {"MSE": (1.0, 0.0), "MSE + KL": (1.0, 1.0), "KL": (0.0, 1.0)}
"""Weights of the mean squared error, over the output's variance, and of the mean KL(raw || replaced) in nats."""


def train_through(
    model: LanguageModel,
    pairs: Mapping[Site, BaseDelta],
    prompts: Sequence[Prompt],
    weights: tuple[float, float],
    l0: Mapping[Site, float],
    steps: int,
    batch: int,
    lr: float = 1e-3,
    seed: int = 0,
    progress: str = "through the model",
) -> dict[Site, BaseDelta]:
    """The pairs with deltas trained further under one objective; the pairs given are left as they are."""
    model.hf.requires_grad_(False)
    learned = {site: Dictionary.stacked([pair.delta])[0].requires_grad_(True) for site, pair in pairs.items()}
    current = {site: BaseDelta(pairs[site].base, delta) for site, delta in learned.items()}
    parameters = [parameter for delta in learned.values() for parameter in delta.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=True)
    points = [name for site in pairs for name in (site.read, site.write)]
    floors = {site: delta.threshold.clone() for site, delta in learned.items()}
    of_mse, of_kl = weights
    order = activations.repeated(len(prompts), batch, seed)
    for step in (bar := tqdm(range(steps), desc=progress, mininterval=2)):
        tokens = encode(model.tokenizer, [prompts[i] for i in next(order)]).to(model.hf.device)
        keep = token_mask(model.tokenizer, tokens)
        run = dict(input_ids=tokens.ids, attention_mask=tokens.attention, use_cache=False)
        with torch.no_grad(), recorded(model, points) as seen:
            kl_from_raw = metrics.kl_from(metrics.log_probs(model.hf(**run).logits))
        loss, active = torch.zeros((), device=keep.device), {}
        for site, pair in current.items():
            x, y = (read(site, seen[name])[keep] for name in (site.read, site.write))
            f = pair.encode(x)
            active[site] = f[1].detach().sign().sum(-1).mean()
            if of_mse:
                error = (pair.decode(f, x) - y).square().sum()
                loss = loss + of_mse * error / (y - y.mean(0)).square().sum() / len(current)
        if of_kl:
            with torch.enable_grad(), replaced(model, current):
                kl = kl_from_raw(metrics.log_probs(model.hf(**run).logits))
            loss = loss + of_kl * (kl * tokens.attention).sum() / tokens.attention.sum()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 10, 2 * (1 - step / steps))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for site, delta in learned.items():
            adjust_threshold(delta, active[site], torch.tensor(l0[site]).to(active[site]), lr, floors[site])
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return {site: BaseDelta(pair.base, pair.delta.requires_grad_(False)) for site, pair in current.items()}
