"""Which delta features carry the behaviour: attribution, and keeping or removing some of them.

Features are ranked on one split and the ranks tested on another. A delta's constant, `b_dec`, is no
feature: it stays where features are removed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from lib.book import stats
from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.measure import metrics
from lib.model.encoding import batches, token_mask
from lib.model.hooks import Record, replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.texts.prompts import Prompt


def attribution(
    model: LanguageModel, prompts: Sequence[Prompt], pairs: Mapping[Site, BaseDelta], rows: int = 64
) -> pd.DataFrame:
    """One row per delta feature of the sites given, all in place at once, from the most to the least useful.

    `score`: minus activation times the gradient of the answers' cross-entropy, summed over positions,
    mean over prompts, in nats: to first order, what removing the feature would cost (attribution
    patching, Nanda 2023; arXiv 2310.10348). `frequency`: share of positions at which it is active;
    `size`: its mean activation times the length of its decoder row. `rows`: prompts in a forward pass.
    """
    model.hf.requires_grad_(False)
    totals = {site: torch.zeros(3, pair.delta.d_sae, dtype=torch.float64) for site, pair in pairs.items()}
    positions = 0
    for batch in batches(model.tokenizer, list(prompts), rows):
        batch = batch.to(model.hf.device)
        record = Record(gradients=True)
        with torch.enable_grad(), replaced(model, pairs, edit=record.keep):
            logits = model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
            nats = metrics.nats(metrics.log_probs(logits), batch.ids)
            (nats * batch.answer).sum().backward()
        acts_at = token_mask(model.tokenizer, batch)[..., None]
        positions += int(acts_at.sum())
        for site, (_, of_delta) in record.features.items():
            f = of_delta.detach() * acts_at
            parts = torch.stack([(-f * of_delta.grad).sum((0, 1)), f.sign().sum((0, 1)), f.sum((0, 1))])
            totals[site] += parts.double().cpu()
    found = []
    for site, (score, active, total) in totals.items():
        length = pairs[site].delta.W_dec.norm(dim=-1).double().cpu()
        columns = {"score": score / len(prompts), "frequency": active / positions, "size": total / positions * length}
        found.append(pd.DataFrame({"layer": site.layer, "feature": range(len(score)), **columns}))
    return pd.concat(found).sort_values("score", ascending=False, ignore_index=True)


def masked(delta: Dictionary, keep: Sequence[int]) -> Dictionary:
    """A delta of which only the features `keep` write anything."""
    mask = torch.zeros(delta.d_sae, 1, device=delta.W_dec.device)
    mask[list(keep)] = 1
    return delta.changed(W_dec=delta.W_dec.detach() * mask)


def keeping(pairs: Mapping[Site, BaseDelta], chosen: pd.DataFrame) -> dict[Site, BaseDelta]:
    """base + delta with only the chosen features (rows of `layer` and `feature`)."""
    return {
        site: replace(pair, delta=masked(pair.delta, chosen.feature[chosen.layer == site.layer].tolist()))
        for site, pair in pairs.items()
    }


def removing(pairs: Mapping[Site, BaseDelta], chosen: pd.DataFrame, features: pd.DataFrame) -> dict[Site, BaseDelta]:
    """base + delta without the chosen features."""
    return keeping(pairs, features.drop(index=chosen.index))


def matched(features: pd.DataFrame, chosen: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As many others, each like one of the chosen in size and frequency: at random one of the five nearest left.

    Nearness is in the logarithm of the size and in the frequency, each over its spread; so a chosen feature of twice the
    size is as far as one of half, however many lie between. `ValueError` where fewer others are left than chosen.
    """
    others = features.drop(index=chosen.index)
    if len(others) < len(chosen):
        raise ValueError(f"{len(chosen)} features chosen of {len(features)}: too few others to match them; choose fewer")
    where = pd.DataFrame({"size": np.log(features["size"] + 1e-9), "frequency": features.frequency})
    where, draw, picked = where / where.std().replace(0, 1), np.random.default_rng(seed), []
    for index in chosen.index:
        distance = (where.loc[others.index] - where.loc[index]).abs().sum(axis=1)
        pick = draw.choice(distance.nsmallest(5).index)
        picked.append(pick)
        others = others.drop(index=pick)
    return features.loc[picked]


def compared(kl: Mapping[tuple[str, int, int], pd.Series], units: Sequence) -> pd.DataFrame:
    """The best k features against others like them, prompt by prompt; a row for kept and removed and each k.

    `kl` has KL(raw || replaced) of each prompt by (condition, k, draw). `advantage`: how much lower it is with the best
    kept, or higher with the best removed, than with the others, in nats a prompt: the mean over draws, with its interval
    over `units`; `smallest` and `largest` of the draws.
    """
    rows = []
    for verb, sign in (("keep", 1), ("remove", -1)):
        for k in sorted({k for name, k, _ in kl if name == f"{verb} others like them"}):
            draws = [values for (name, at, _), values in kl.items() if (name, at) == (f"{verb} others like them", k)]
            each = [sign * (values - kl[f"{verb} the best", k, 0]) for values in draws]
            e, means = stats.mean(sum(each) / len(each), units), [values.mean() for values in each]
            row = {"comparison": "kept" if sign > 0 else "removed", "k": k, "draws": len(draws), **e.columns("advantage")}
            rows.append(row | {"smallest": min(means), "largest": max(means), "n": e.n, "n_clusters": e.clusters})
    return pd.DataFrame(rows)
