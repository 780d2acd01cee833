"""The tables of chapters 12 and 13, each computed from the same texts, SAEs and activations."""

import numpy as np
import pandas as pd
import torch

from lib.book.auroc import auroc, aurocs
from lib.dictionary.dictionaries import Dictionary
from lib.studies.features import effects, pairs
from lib.studies.features.layers import Depth, depth, masks
from lib.studies.features.opened import POOLING, Opened
from lib.studies.features.specialists import passing_share, specialists
from lib.texts.kinds import KINDS

CANDIDATES = 12
"""Features of each kind whose effects are measured."""


# --- chapter 12 ---


def hooks(o: Opened) -> pd.DataFrame:
    """Features active a token when the SAE is given its own hook point, and the MLP's output of the same layer."""
    wrong = o.model.site("mlp_out", o.middle.layer)
    return effects.hooks_right_and_wrong(o.model, o.middle, wrong, o.saes[o.middle], o.batches())


def features(o: Opened) -> pd.DataFrame:
    """One row per feature of the middle site that is active in any text.

    In how many texts and kinds it is, its maximum, its AUROC for the kind that it tells best where features are judged, and by
    kind its mean activation and the share of texts where it is active.
    """
    values, texts = o.values(o.middle), o.texts
    on, judged = texts.chosen_on, ~texts.chosen_on
    names = list(KINDS)
    label = np.stack([texts.kind == kind for kind in names], 1)
    chosen, found = (aurocs(values[part], label[part]) for part in (on, judged))
    best = np.nan_to_num(chosen, nan=0).argmax(1)
    table = pd.DataFrame({
        "feature": range(values.shape[1]), "texts": (values > 0).sum(0), "maximum": values.max(0),
        "kinds": np.stack([(values[texts.kind == kind] > 0).any(0) for kind in names]).sum(0),
        "best_kind": np.array(names)[best], "auroc_chosen": chosen[np.arange(len(best)), best],
        "auroc": found[np.arange(len(best)), best],
    })  # fmt: skip
    for kind in names:
        table[f"mean_{kind}"] = values[texts.kind == kind].mean(0)
        table[f"share_{kind}"] = (values[texts.kind == kind] > 0).mean(0)
    return table[table.texts > 0].reset_index(drop=True)


def ranking(o: Opened) -> pd.DataFrame:
    """The mean AUROC, on other texts, of ten features that lead each kind by count and by composite."""
    values = o.values(o.middle)
    by = {name: [effects.top_ten(values, o.texts, kind, name) for kind in KINDS] for name in ("count", "composite")}
    return pd.DataFrame({"kind": list(KINDS), **by})


# --- chapter 13 ---


def layers(o: Opened) -> Depth:
    """What changes with depth."""
    return depth(o.compared, o.saes, o.held, o.order, o.texts, o.profile.seed)


def padding(o: Opened) -> pd.DataFrame:
    """The four ways of taking the mean of a text."""
    return masks(o.model, o.compared, o.saes, o.texts, o.profile.features.batch, o.profile.seed)


def general(o: Opened) -> pd.DataFrame:
    """Per layer: of the living features the share that is active in half of the kinds or more, and that passes for any kind."""
    rows = []
    for site in o.compared:
        values = o.values(site)
        alive = (values > 0).any(0)
        kinds = np.stack([(values[o.texts.kind == kind] > 0).any(0) for kind in KINDS]).sum(0)[alive]
        passing, n = passing_share(values, o.texts, seed=o.profile.seed)
        share = passing / n
        rows.append({"layer": site.layer, "alive": n, "in_half_of_kinds": (kinds >= len(KINDS) / 2).mean(), "passing": passing,
                     "share_passing": share})  # fmt: skip
    return pd.DataFrame(rows)


def sites(o: Opened) -> pd.DataFrame:
    """The specialist of every kind at every site (`specialists`), for the layers that all hook points have."""
    shared = set.intersection(*({site.layer for site in o.living if site.name == name} for name in o.profile.features.sites))
    found = [
        specialists(o.values(site), o.texts, seed=o.profile.seed).assign(point=site.name, layer=site.layer)
        for site in o.living if site.layer in shared
    ]  # fmt: skip
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def forms(o: Opened) -> pd.DataFrame:
    """Form against meaning: how much of the variance of each specialist kind and topic explain; and the cosines of whole codes.

    Those are of texts about the same topic in other kinds, and of the same kind about other topics.
    """
    rows = []
    for site in o.compared:
        values = o.values(site, "encode, then mean")
        shares = pairs.variance_shares(values, o.texts)
        for row in specialists(values, o.texts, permutations=100, seed=o.profile.seed).itertuples():
            rows.append({"measured": "variance", "layer": site.layer, "kind": row.kind, "feature": row.feature,
                         **shares.loc[row.feature].to_dict()})  # fmt: skip
        e, same_topic, same_kind = pairs.cosines_over_templates(values, o.texts)
        rows.append({"measured": "cosine", "layer": site.layer, "same_topic": same_topic, "same_kind": same_kind,
                     **e.columns("difference"), "n": e.n, "n_templates": e.clusters})  # fmt: skip
    return pd.DataFrame(rows).sort_values("measured", kind="stable", ignore_index=True)


def probes(o: Opened) -> pd.DataFrame:
    """For every layer and kind: the AUROC of a discriminant of ten features, and of the best single one."""
    rows = []
    for site in o.compared:
        for kind in KINDS:
            both, single = effects.probe(o.values(site), o.texts, kind)
            rows.append({"layer": site.layer, "kind": kind, "probe": both, "single": single})
    return pd.DataFrame(rows)


def of_middle(o: Opened, pooling: str = POOLING) -> dict[str, int]:
    """The specialist of each kind at the middle site."""
    table = specialists(o.values(o.middle, pooling), o.texts, seed=o.profile.seed)
    return dict(zip(table.kind, table.feature.astype(int), strict=True))


def minimal_pairs(o: Opened) -> pd.DataFrame:
    """What the specialists of some kinds detect."""
    return pairs.minimal_pairs(o.model, o.middle, o.saes[o.middle], of_middle(o))


def words_only(o: Opened) -> pd.DataFrame:
    """How well the maths specialist tells texts about maths without a sign or a digit from texts of the other kinds."""
    feature = of_middle(o)["maths"]
    own = pairs.largest(o.model, o.middle, o.saes[o.middle], [feature], pairs.WORDS_ONLY)[:, 0]
    other = o.values(o.middle)[o.texts.kind != "maths", feature]
    values = np.concatenate([own, other])
    units = np.concatenate(
        [[f"words {i % len(pairs.NOUNS)}" for i in range(len(own))], o.texts.template[o.texts.kind != "maths"]]
    )
    e = auroc(values, np.arange(len(values)) < len(own), units)
    return pd.DataFrame([{"feature": feature, **e.columns("auroc"), "n": e.n, "n_units": e.clusters}])


def caused(o: Opened) -> pd.DataFrame:
    """What it costs to switch off features that tell each kind, the specialist first (`effects.effects`), with their AUROC."""
    values, found = o.values(o.middle), []
    on = o.texts.chosen_on
    for kind in KINDS:
        label = (o.texts.kind == kind)[:, None]
        chosen = np.nan_to_num(aurocs(values[on], label[on])[:, 0], nan=0.0)
        own = np.flatnonzero((values[(o.texts.kind == kind) & ~on] > 0).any(0))
        ranked = own[np.argsort(-chosen[own])]
        some = [int(i) for i in ranked[np.unique(np.linspace(0, len(ranked) - 1, CANDIDATES).astype(int))]]
        table = effects.effects(o.model, o.middle, o.saes[o.middle], kind, some, o.texts, o.profile.features.batch)
        found.append(
            table.assign(auroc=aurocs(values[~on], label[~on])[some, 0], specialist=[i == 0 for i in range(len(some))])
        )
    return pd.concat(found, ignore_index=True)


def steered(o: Opened, factor: float = 4.0) -> pd.DataFrame:
    """What it does to raise the specialist of each kind on texts of its own kind."""
    found = [
        effects.effects(o.model, o.middle, o.saes[o.middle], kind, [feature], o.texts, o.profile.features.batch, factor)
        for kind, feature in of_middle(o).items()
    ]
    return pd.concat(found, ignore_index=True).assign(factor=factor)


def followed(o: Opened) -> pd.DataFrame:
    """For the specialists of every layer the feature of the next layer that is most like each."""
    chosen = {
        site: sorted(set(specialists(o.values(site), o.texts, permutations=100, seed=o.profile.seed).feature))
        for site in o.compared
    }
    return effects.across_layers({s: o.saes[s] for s in o.compared}, {s: o.values(s) for s in o.compared}, chosen)


def chance(o: Opened, n: int = 50) -> pd.DataFrame:
    """For the first features of the middle SAE the nearest of as many random directions: the cosines that chance gives."""
    sae = o.saes[o.middle]
    rows = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=-1)[:n]
    random = Dictionary.initialised((), sae.d_model, sae.d_sae, o.profile.seed + 1).W_dec.detach().to(rows)
    return pd.DataFrame({"feature": range(len(rows)), "cosine": (rows @ random.T).amax(-1).tolist()})
