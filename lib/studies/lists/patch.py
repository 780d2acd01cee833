"""Patching of pairs of requests: which activations carry the word that decides where a list ends.

Clean is a short list after the request for a short one, corrupt the same list after the request for a long one; what is asked
is how far the model would rather stop than go on, after the last item.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from lib.book import stats
from lib.measure import linear, patching
from lib.measure.patched import patched
from lib.measure.patching import EVERY, NOISING, OF_HEADS, WHOLE, Cell, Pair, cells, effects
from lib.model.encoding import readable
from lib.model.hooks import recorded
from lib.studies.lists import places
from lib.studies.lists.material import Opened

PARTS = ("resid_pre", "attn_out", "mlp_out", "q", "k", "v")
"""Of a layer, whole; z, all heads together, is attn_out."""
ATTENTION = ("q", "k", "v")
ROWS = 128
"""Rows of a forward pass."""


def layers(o: Opened) -> list[int]:
    """Where activations are patched for real."""
    return list(range(o.model.n_layers) if o.settings.patch_layers is None else o.settings.patch_layers)


def pairs(o: Opened, lists: pd.DataFrame) -> list[Pair]:
    """Of all lists that will do; `ValueError` where there is none."""
    if not (found := places.pairs(o, lists)):
        raise ValueError(f"profile {o.profile.name}: no short list of three items ended; raise lists.samples")
    return found


def some(o: Opened, lists: pd.DataFrame) -> list[Pair]:
    """Those that are patched for real: topics by turns, so that all are there."""
    return pairs(o, lists)[: o.settings.patched]


# --- one pair ---


def tokens(o: Opened, pair: Pair) -> pd.DataFrame:
    """One row per token of the list: `role`, and at it the metric of both runs, nats. Requests are of equal length or not."""
    rows, named = [], {at[0]: role for role, at in reversed(pair.roles.items())}
    shift = pair.reads[1] - pair.reads[0]
    with torch.no_grad():
        clean, corrupt = (
            patching.metric_of(o.model.hf(torch.tensor([list(ids)], device=o.model.hf.device)).logits[0], o.endings)
            for ids in (pair.clean, pair.corrupt)
        )
    for at in range(pair.roles["end of request"][0], pair.reads[0] + 1):
        token = readable(o.model.tokenizer, pair.clean[at]).replace("\n", "\\n")
        token = token if token.strip() else f"{len(token)} x space"
        rows.append((at, token, named.get(at, ""), clean[at].item(), corrupt[at + shift].item()))
    return pd.DataFrame(rows, columns=["position", "token", "role", "clean", "corrupt"])


def by_hand(o: Opened, pair: Pair, role: str, layer: int, part: str = "resid_pre") -> float:
    """The metric of the clean run with what the corrupt one has at a role: what `patched` does, in full."""
    name, (to, of) = Cell(part, layer, role).point, pair.roles[role]
    clean, corrupt = (torch.tensor([list(ids)], device=o.model.hf.device) for ids in (pair.clean, pair.corrupt))
    with torch.no_grad(), recorded(o.model, [name]) as seen:
        o.model.hf(corrupt)
    new = seen[name][:, of]
    with torch.no_grad(), o.model.hooks([(name, lambda x, hook: torch.cat([x[:, :to], new[:, None], x[:, to + 1 :]], 1))]):
        return patching.metric_of(o.model.hf(clean).logits[:, pair.reads[0]], o.endings).item()


# --- all pairs ---


def metric(o: Opened, lists: pd.DataFrame) -> pd.DataFrame:
    """One row per pair: `unit` (the topic), `clean` and `corrupt`, nats."""
    return patching.runs(o.model, pairs(o, lists), o.endings)


def _patched(o: Opened, lists: pd.DataFrame, which: Sequence[Cell], progress: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    chosen = some(o, lists)
    return patched(o.model, chosen, o.endings, which, ROWS, progress=progress), patching.runs(o.model, chosen, o.endings)


def by_role(o: Opened, lists: pd.DataFrame) -> pd.DataFrame:
    """Effects of every part at every role in every layer patched, whole."""
    return effects(*_patched(o, lists, cells(o.model, PARTS, layers(o), list(pairs(o, lists)[0].roles)), "roles"))


def every_role(o: Opened, lists: pd.DataFrame) -> pd.DataFrame:
    """One row per pair, direction, layer and part of the attention, patched at every role at once: `moved` and `gap`, nats."""
    return patching.per_pair(*_patched(o, lists, cells(o.model, ATTENTION, layers(o), [EVERY]), "every role"))


def telling(of: pd.DataFrame) -> dict[str, str]:
    """For each part with heads the role at which patching it does most, over layers and directions; z's is attn_out's."""
    size = of.assign(size=of.effect.abs()).groupby(["part", "role"])["size"].sum().unstack("part")
    return {part: size["attn_out" if part == "z" else part].idxmax() for part in OF_HEADS}


def _heads(o: Opened, where: dict[str, str], of: Sequence[int]) -> list[Cell]:
    return [cell for part in OF_HEADS for role in (EVERY, where[part]) for cell in cells(o.model, [part], of, [role], True)]


def by_head(o: Opened, lists: pd.DataFrame, roles: pd.DataFrame) -> pd.DataFrame:
    """Effects of every head (z, q) and KV head (k, v), at every role at once and at the role that tells most in `roles`."""
    return effects(*_patched(o, lists, _heads(o, telling(roles), layers(o)), "heads"))


def values(of: pd.DataFrame) -> pd.DataFrame:
    """One row per pair: `q`, `k` and `v`, what noising each at every role takes away, mean over layers.

    In shares of the mean gap between clean and corrupt, so that the mean over pairs is the effect.
    """
    noising = of[of.direction == NOISING]
    gap = noising.drop_duplicates("pair").gap.mean()
    found = (noising.groupby(["pair", "unit", "part"]).moved.mean() / gap).unstack("part").reset_index()
    return found.rename_axis(columns=None)


# --- what is told without patching ---


def estimated(o: Opened, lists: pd.DataFrame, roles: pd.DataFrame) -> pd.DataFrame:
    """Effects by attribution patching, in every layer: the cells of `by_role` and `by_head`, and z whole.

    `of`: over the pairs that are `patched` for real, with which they can be compared, or over `all`.
    """
    every, n = pairs(o, lists), range(o.model.n_layers)
    which = cells(o.model, [*PARTS, "z"], n, list(every[0].roles)) + _heads(o, telling(roles), n)
    found, base = linear.attributed(o.model, every, o.endings, which, progress="attribution"), metric(o, lists)
    few = found[found.pair < o.settings.patched]
    return pd.concat([effects(few, base).assign(of="patched"), effects(found, base).assign(of="all")], ignore_index=True)


def direct(o: Opened, lists: pd.DataFrame) -> pd.DataFrame:
    """One row per head, MLP, the embedding and biases: what each adds to the metric directly, in logits, mean over pairs.

    `clean`, `corrupt`, and `moved`, the difference, with intervals over topics.
    """
    every, rows = pairs(o, lists), []
    found, units = linear.contributions(o.model, every, o.endings), np.array([pair.unit for pair in every])
    for (part, layer, head), of in found.groupby(["part", "layer", "head"], sort=False):
        clean, corrupt = (of[of.run == run].sort_values("pair").value.to_numpy() for run in ("clean", "corrupt"))
        e = {"clean": stats.mean(clean, units), "corrupt": stats.mean(corrupt, units),
             "moved": stats.difference(clean, corrupt, units)}  # fmt: skip
        rows.append({"part": part, "layer": layer, "head": head, **stats.columns(e), "n": len(clean),
                     "n_units": e["moved"].clusters})  # fmt: skip
    return pd.DataFrame(rows)


# --- how concentrated ---


def cumulated(of: pd.DataFrame) -> pd.DataFrame:
    """For each part and direction the share of all absolute effect in its largest cells: `cells` and `held`, both shares."""
    rows = []
    for (part, direction), own in of.groupby(["part", "direction"], sort=False):
        sizes = np.sort(own.effect.abs().to_numpy())[::-1]
        held, n = sizes.cumsum() / sizes.sum(), len(sizes)
        rows += [{"part": part, "direction": direction, "cells": (i + 1) / n, "held": share} for i, share in enumerate(held)]
    return pd.DataFrame(rows)


def by_depth(of: pd.DataFrame, role: str = "mode word") -> pd.DataFrame:
    """For each part, direction and layer the share of absolute effect that is at a role.

    Layers with less than a hundredth of the effect that the part has there in all layers are left out.
    """
    size = of.assign(size=of.effect.abs())
    keys = ["part", "direction", "layer"]
    whole = size.groupby(keys, sort=False)["size"].sum()
    share = size[size.role == role].groupby(keys, sort=False)["size"].sum() / whole
    return share[whole >= 0.01 * whole.groupby(keys[:2]).transform("sum")].rename("share").reset_index()


def named(of: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n cells with the largest effects, as one name each."""
    largest = of.loc[of.effect.abs().sort_values(ascending=False).index[:n]]
    heads = largest["head"].map(lambda head: "" if head == WHOLE else f", head {head}")
    return largest.assign(cell=largest.part + " of layer " + largest.layer.astype(str) + heads)
