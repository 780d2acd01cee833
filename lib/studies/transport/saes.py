"""The SAEs of the study: five kinds, tied or not, at several L0, wider ones, with less text, and the published recipe."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from lib.book.fingerprint import fingerprint
from lib.book.paths import replacing
from lib.dictionary import variants
from lib.dictionary.dictionaries import Constant, Dictionary
from lib.dictionary.sae_lens import load_sae_lens
from lib.dictionary.variants import KINDS, Variant
from lib.measure.quality import losses
from lib.model import activations
from lib.model.hooks import Condition
from lib.profiles.transport import Transport
from lib.studies.transport.material import Opened, batches

PUBLISHED = 8e-8 * 512 * 896
"""The study's first penalty on a token's L1 norm, where the squared error is summed over d_model.

It was 8e-8 on the sum over a batch of 512, beside a mean over batch and 896 numbers.
"""
PUBLISHED_RATE = 1e-3
"""And its rate."""
HELD = 8000
"""Tokens of a held-out split on which SAEs are measured,"""
STORIES = 96
"""and held-out stories on which cross-entropy is told."""
CHECKS = 12
"""Looks at the cross-entropy in the course of training."""


def middle(table: Transport) -> float:
    """The L0 at which kinds are compared where there is one."""
    return table.l0[len(table.l0) // 2]


def grid(table: Transport) -> list[Variant]:
    """Every SAE, those that are trained side by side one after another."""
    seeds, l0, own = range(table.seeds), middle(table), table.expansion
    found = [Variant(kind, aim, False, own, seed=seed) for kind in KINDS for aim in table.l0 for seed in seeds]
    found += [Variant(kind, l0, True, own, seed=seed) for kind in KINDS for seed in seeds]
    found += [Variant(kind, l0, False, wide, seed=seed) for kind in table.wide for wide in table.wider for seed in seeds]
    found += [Variant("ReLU", l0, False, own, tokens=n, seed=seed) for n in table.fewer for seed in seeds]
    return found + [Variant("ReLU", 0.0, False, own, penalty=PUBLISHED, seed=seed) for seed in seeds]


def together(variant: Variant) -> tuple:
    """What SAEs that are trained side by side have in common."""
    return variant.kind, variant.tied, variant.expansion, variant.penalty is not None


def home(o: Opened) -> Path:
    """Where SAEs are kept; others' have another."""
    table, learned = o.settings, o.stories[o.stories.split == "train"]
    # what the activations that they learn from are made of: to collect these takes far longer than to read an SAE
    made_of = (learned, o.model.hf.state_dict(), table.layer, table.tokens, o.profile.seed, activations)
    of = fingerprint(made_of, table.steps, table.batch, table.lr, (variants, PUBLISHED, PUBLISHED_RATE))
    return o.profile.paths.data / "transport" / "saes" / of


def make(o: Opened, wanted: Sequence[Variant]) -> dict[Variant, Path]:
    """Train what is not there yet; a folder of each, as sae-lens saves it, with `trained.json` besides."""
    folder, table = home(o), o.settings
    missing = [variant for variant in wanted if not (folder / variant.name / "trained.json").exists()]
    bar = tqdm(total=len(missing), desc="SAEs", mininterval=2, disable=not missing)
    for _, some in groupby(missing, key=together):
        some = list(some)
        followed = some[0].penalty is not None or (some[0].kind == "ReLU" and not some[0].tied)
        looks = sorted({int(n) for n in np.geomspace(4, table.steps, CHECKS)}) if followed else ()
        lr = table.lr if some[0].penalty is None else PUBLISHED_RATE
        trained = variants.train(o.train * o.scale, some, o.scale, table.steps, table.batch, lr, looks)
        for variant, one in zip(some, trained, strict=True):
            parameters = sum(p.numel() for p in one.sae.parameters()) - variant.tied * one.sae.W_dec.numel()
            said = {"seconds": one.seconds, "parameters": parameters, "to_twice": to_twice(one.history[:, 0])}
            said["curve"] = curve(o, one) if followed else []
            with replacing(folder / variant.name) as temporary:
                variants.save(one.sae, temporary)
                (temporary / "trained.json").write_text(json.dumps(said))
            bar.update()
    return {variant: folder / variant.name for variant in wanted}


def curve(o: Opened, one: variants.Trained) -> list[dict[str, float]]:
    """At some steps what a batch found, in scaled activations, and the cross-entropy added by the SAE, nats a token."""
    at = list(one.snapshots)
    conditions: list[Condition] = [{o.site: variants.unscaled(sae, o.scale)} for sae in one.snapshots.values()]
    nats, tokens = losses(o.model, held_stories(o)[:1], [{}, *conditions])
    added = (nats[1:].sum(1) - nats[0].sum()) / tokens.sum()
    return [
        {"step": step, "mse": float(mse), "l1": float(l1), "l0": float(l0), "ce_added": float(ce)}
        for step, (mse, l1, l0), ce in zip(at, one.history[np.array(at) - 1], added, strict=True)
    ]


def to_twice(mse: Float[np.ndarray, " step"], over: int = 10) -> int:
    """The first step after which the squared error, a mean over some steps, is no more than twice what it ends with."""
    over = min(over, len(mse))
    means = np.convolve(mse, np.ones(over) / over, "valid")
    return int(np.argmax(means <= 2 * means[-1])) + over


def load(folder: Path, o: Opened) -> Dictionary:
    """An SAE of a folder, as ours."""
    return load_sae_lens(folder, o.model.width(o.site)).to(o.model.hf.device)


def held_stories(o: Opened) -> list:
    """Batches of stories that no SAE has learned from."""
    table = o.stories
    return batches(o.model, table[(table.split == "story") & (table.decoding == "sampled")][:STORIES])


@torch.no_grad()
def measured(o: Opened, folders: dict[Variant, Path]) -> pd.DataFrame:
    """One row per SAE: what it leaves, and what the model loses by it.

    `fvu`, `l0_held` and the share of `dead` features are on held-out stories, `fvu_vehicle` on those of held-out vehicles.
    `density` is the median share of tokens at which a living feature is active. `recovered` is the cross-entropy recovered
    against mean ablation, `recovered_zero` that against zeros in the place of the activations.
    """
    held, other = o.activations("story", HELD), o.activations("vehicle", HELD)
    centre, text = o.train.mean(0), held_stories(o)
    loaded = {variant: load(folder, o) for variant, folder in folders.items()}
    ablations: list[Condition] = [{}, {o.site: Constant(centre)}, {o.site: Constant(torch.zeros_like(centre))}]
    nats, _ = losses(o.model, text, [*ablations, *({o.site: sae} for sae in loaded.values())])
    plain, mean, zero, *each = nats.sum(1)
    rows = []
    for (variant, sae), ce in zip(loaded.items(), each, strict=True):
        f = sae.encode(held)
        active = (f > 0).float().mean(0)
        said = json.loads((folders[variant] / "trained.json").read_text())
        rows.append({
            **asdict(variant), "group": group(variant, o.settings), "d_sae": sae.d_sae, "fvu": fvu(sae.decode(f), held),
            "fvu_vehicle": fvu(sae(other), other), "l0_held": float(active.sum()), "dead": float((active == 0).float().mean()),
            "density": float(active[active > 0].median()) if active.any() else np.nan,
            "recovered": (mean - ce) / (mean - plain), "recovered_zero": (zero - ce) / (zero - plain),
            "ce_added": (ce - plain) / sum(int((b.attention.sum(1) - 1).sum()) for b in text),
            "seconds": said["seconds"], "parameters": said["parameters"],
            "to_twice": said["to_twice"], "n_tokens": len(held), "n_stories": nats.shape[1],
        })  # fmt: skip
    return pd.DataFrame(rows)


def group(variant: Variant, table: Transport) -> str:
    """What an SAE is there to be compared in."""
    if variant.penalty is not None:
        return "published recipe"
    if variant.tied:
        return "tied"
    if variant.expansion != table.expansion:
        return "wider"
    return "less text" if variant.tokens else "frontier"


def fvu(found: torch.Tensor, x: torch.Tensor) -> float:
    """The share of the variance of `x` that is left unexplained."""
    return float((found - x).square().sum() / (x - x.mean(0)).square().sum())


def curves(folders: dict[Variant, Path]) -> pd.DataFrame:
    """The curves of training of the SAEs that have one."""
    rows = [
        {"penalty": variant.penalty, "l0_aim": variant.l0, "tokens": variant.tokens, "expansion": variant.expansion,
         "seed": variant.seed, **point}
        for variant, folder in folders.items() for point in json.loads((folder / "trained.json").read_text())["curve"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def at_l0(table: pd.DataFrame, l0: float) -> pd.Series:
    """The FVU of each kind and seed where exactly so many features are active: between those trained, in logarithms."""

    def between(some: pd.DataFrame) -> float:
        some = some.sort_values("l0_held")
        return float(np.exp(np.interp(np.log(l0), np.log(some.l0_held), np.log(some.fvu))))

    return table[table.group == "frontier"].groupby(["kind", "seed"], sort=False)[["l0_held", "fvu"]].apply(between)
