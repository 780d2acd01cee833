"""What specialists do: cross-entropy and next tokens when one is switched off or raised, against random directions as long; and
how well several features together tell a kind."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.book import stats
from lib.book.auroc import aurocs
from lib.dictionary.dictionaries import Dictionary
from lib.measure import metrics
from lib.model.encoding import Encoded, token_mask
from lib.model.hooks import edited, read, recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.features.material import Texts


@torch.no_grad()
def scored(model: LanguageModel, batches: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray, list[Tensor]]:
    """Of each text the summed nats and the number of its predicted tokens; and of each batch the likeliest next tokens."""
    nats, tokens, likeliest = [], [], []
    for batch in batches:
        batch = batch.to(model.hf.device)
        logits = model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        nats.append(metrics.of_rows(logits, batch).cpu().numpy())
        tokens.append((batch.attention.sum(1) - 1).cpu().numpy())
        likeliest.append(logits.argmax(-1).cpu())
    return np.concatenate(nats), np.concatenate(tokens), likeliest


def flips(a: Sequence[Tensor], b: Sequence[Tensor], batches: Sequence[Encoded]) -> float:
    """The share of positions at which the likeliest next token is another one."""
    differ = sum(int(((x != y) & batch.attention.bool().cpu()).sum()) for x, y, batch in zip(a, b, batches, strict=True))
    return differ / sum(int(batch.attention.sum()) for batch in batches)


def switched(site: Site, sae: Dictionary, feature: int, factor: float):
    """An edit that multiplies one feature; at 0 it is off."""

    def edit(_: Site, f: Tensor) -> Tensor:
        new = f.clone()
        new[..., feature] *= factor
        return new

    return {site: sae}, edit


@torch.no_grad()
def effects(
    model: LanguageModel, site: Site, sae: Dictionary, kind: str, features: Sequence[int], texts: Texts, size: int,
    factor: float = 0.0, draws: int = 2, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """One row per feature, on the texts of a kind that features are judged on: how much dearer the texts are with it multiplied
    by `factor`, in nats a token (`ce`, interval over templates), less the same with a random direction in the place of its
    decoder row (`over_random`: the mean over draws), and the share of next tokens that change (`flips`)."""
    own = texts.where((texts.kind == kind) & ~texts.chosen_on)
    batches = own.batches(model, size)
    plain, tokens, said = scored(model, batches)
    draw, rows = torch.Generator().manual_seed(seed), []
    for feature in features:
        dictionaries, edit = switched(site, sae, feature, factor)
        with edited(model, dictionaries, edit):
            changed, _, now = scored(model, batches)
        random = []
        for _ in range(draws):
            W_dec = sae.W_dec.detach().clone()
            direction = torch.randn(W_dec.shape[-1], generator=draw).to(W_dec)
            W_dec[feature] = direction / direction.norm() * W_dec[feature].norm()
            with edited(model, {site: sae.changed(W_dec=W_dec)}, edit):
                random.append(scored(model, batches)[0])
        ce = stats.ratio(changed - plain, tokens, own.template)
        over = stats.ratio(changed - np.mean(random, 0), tokens, own.template)
        rows.append({
            "kind": kind, "feature": feature, **ce.columns("ce"), **over.columns("over_random"), "flips": flips(said, now,
            batches), "n": ce.n, "n_templates": ce.clusters, "n_tokens": int(tokens.sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


# --- several features together ---


def probe(values: Float[np.ndarray, "text feature"], texts: Texts, kind: str, k: int = 10) -> tuple[float, float]:
    """The AUROC, on texts that nothing was chosen on, of a linear discriminant of the `k` features with the largest AUROC where
    they were chosen; and of the best single one."""
    on, label = texts.chosen_on, texts.kind == kind
    chosen_by = np.nan_to_num(aurocs(values[on], label[on][:, None])[:, 0], nan=0.0)
    best = np.argsort(-chosen_by)[:k]
    x, y = values[on][:, best], label[on]
    scale = x.std(0) + 1e-9
    a, b = x[y] / scale, x[~y] / scale
    within = np.cov(a.T) * len(a) + np.cov(b.T) * len(b)
    direction = np.linalg.solve(within / len(x) + 0.1 * np.eye(len(best)), a.mean(0) - b.mean(0))
    judged = values[~on][:, best] / scale
    both = np.stack([judged @ direction, judged[:, 0]], 1)
    found = aurocs(both, label[~on][:, None])[:, 0]
    return float(found[0]), float(found[1])


def top_ten(values: Float[np.ndarray, "text feature"], texts: Texts, kind: str, by: str) -> float:
    """The mean AUROC, on texts that nothing was chosen on, of the ten features that lead a kind: `by` the `count` of its texts
    where they are active, or by the `composite` of that share and the mean activation there."""
    on, label = texts.chosen_on, texts.kind == kind
    own = values[on & label]
    count = (own > 0).mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        strength = np.nan_to_num(own.sum(0) / (own > 0).sum(0))
    score = count if by == "count" else count * strength
    best = np.argsort(-score, kind="stable")[:10]
    return float(np.nanmean(aurocs(values[~on][:, best], label[~on][:, None])))


@torch.no_grad()
def across_layers(
    saes: dict[Site, Dictionary], codes: dict[Site, np.ndarray], features: dict[Site, Sequence[int]]
) -> pd.DataFrame:
    """For some features of each site the one of the next site that is most like it: by the cosine of decoder rows, and by the
    correlation of what they are over texts."""
    rows, order = [], sorted(saes, key=lambda site: site.layer)
    for site, following in pairwise(order):
        a, b = (torch.nn.functional.normalize(saes[one].W_dec.detach().float(), dim=-1) for one in (site, following))
        for feature in features[site]:
            cosine = a[feature] @ b.T
            x, y = codes[site][:, feature], codes[following]
            x, y = x - x.mean(), y - y.mean(0)
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = np.nan_to_num((x @ y) / (np.linalg.norm(x) * np.linalg.norm(y, axis=0)))
            rows.append({
                "layer": site.layer, "feature": feature, "next_layer": following.layer,
                "by_cosine": int(cosine.argmax()), "cosine": float(cosine.max()),
                "by_correlation": int(correlation.argmax()), "correlation": float(correlation.max()),
                "correlation_of_by_cosine": float(correlation[int(cosine.argmax())]),
            })  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def hooks_right_and_wrong(
    model: LanguageModel, right: Site, wrong: Site, sae: Dictionary, batches: Sequence[Encoded]
) -> pd.DataFrame:
    """How many features are active a token when the SAE of one site is given what flows there, and what flows at another."""
    rows = []
    points = {"right hook": right.read, "mismatched hook": wrong.read}
    active: dict[str, list[np.ndarray]] = {name: [] for name in points}
    tokens = []
    for batch in batches:
        batch = batch.to(model.hf.device)
        with recorded(model, list(points.values())) as seen:
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=1)
        keep = token_mask(model.tokenizer, batch)
        tokens.append(keep.sum(1).cpu().numpy())
        for name, point in points.items():
            f = sae.encode(read(right, seen[point])) > 0
            active[name].append((f.sum(-1) * keep).sum(1).cpu().numpy())
    for name, parts in active.items():
        e = stats.ratio(np.concatenate(parts) / sae.d_sae, np.concatenate(tokens))
        rows.append({"hook": name, "point": points[name], **e.columns("share_active"), "n": e.n, "d_sae": sae.d_sae})
    return pd.DataFrame(rows)
