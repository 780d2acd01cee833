"""Which delta features carry the behaviour: attribution, and keeping or removing some of them.

Features are ranked on one split and the ranks tested on another. A delta's constant, `b_dec`, is no
feature: it stays where features are removed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.book import stats
from lib.dictionary.dictionaries import BaseDelta, Transcoder
from lib.measure import metrics
from lib.model.encoding import batches, kept
from lib.model.hooks import replaced
from lib.model.models import LanguageModel
from lib.profiles.tables import Profile
from lib.texts.prompts import Prompt


@dataclass
class _Traced:
    """base + delta whose delta activations are remembered, and have gradients."""

    mlp: BaseDelta
    f: Tensor | None = None  # (batch, pos, feature)

    def __call__(self, x: Tensor) -> Tensor:
        f_base, self.f = self.mlp.encode(x)
        self.f = self.f.detach().requires_grad_() if not self.f.requires_grad else self.f
        self.f.retain_grad()
        return self.mlp.decode(f_base, self.f, x)


def attribution(
    profile: Profile, model: LanguageModel, prompts: Sequence[Prompt], pairs: Mapping[int, BaseDelta]
) -> pd.DataFrame:
    """One row per delta feature of the layers given, all in place at once, from the most to the least useful.

    `score`: minus activation times the gradient of the answers' cross-entropy, summed over positions,
    mean over prompts, in nats: to first order, what removing the feature would cost (attribution
    patching, Nanda 2023; arXiv 2310.10348). `frequency`: share of positions at which it is active;
    `size`: its mean activation times the length of its decoder row.
    """
    model.hf.requires_grad_(False)
    totals = {layer: torch.zeros(3, mlp.delta.d_sae, dtype=torch.float64) for layer, mlp in pairs.items()}
    positions = 0
    for batch in batches(model.tokenizer, list(prompts), profile.evaluation.tokens_batch):
        batch = batch.to(model.hf.device)
        traced = {layer: _Traced(mlp) for layer, mlp in pairs.items()}
        with torch.enable_grad(), replaced(model, traced):
            logits = model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
            nats = metrics.nats(metrics.log_probs(logits), batch.ids)
            (nats * batch.answer).sum().backward()
        acts_at = kept(model.tokenizer, batch)[..., None]
        positions += int(acts_at.sum())
        for layer, t in traced.items():
            f = t.f.detach() * acts_at
            parts = torch.stack([(-f * t.f.grad).sum((0, 1)), f.sign().sum((0, 1)), f.sum((0, 1))])
            totals[layer] += parts.double().cpu()
    rows = []
    for layer, (score, active, total) in totals.items():
        length = pairs[layer].delta.W_dec.norm(dim=-1).double().cpu()
        columns = {"score": score / len(prompts), "frequency": active / positions, "size": total / positions * length}
        rows.append(pd.DataFrame({"layer": layer, "feature": range(len(score)), **columns}))
    return pd.concat(rows).sort_values("score", ascending=False, ignore_index=True)


def masked(delta: Transcoder, keep: Sequence[int]) -> Transcoder:
    """A delta of which only the features `keep` write anything."""
    mask = torch.zeros(delta.d_sae, 1, device=delta.W_dec.device)
    mask[list(keep)] = 1
    return Transcoder(delta.W_enc, delta.b_enc, delta.threshold, delta.W_dec * mask, delta.b_dec).requires_grad_(False)


def keeping(pairs: Mapping[int, BaseDelta], chosen: pd.DataFrame) -> dict[int, BaseDelta]:
    """base + delta with only the chosen features (rows of `layer` and `feature`)."""
    return {
        layer: replace(mlp, delta=masked(mlp.delta, chosen.feature[chosen.layer == layer].tolist()))
        for layer, mlp in pairs.items()
    }


def removing(pairs: Mapping[int, BaseDelta], chosen: pd.DataFrame, features: pd.DataFrame) -> dict[int, BaseDelta]:
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
