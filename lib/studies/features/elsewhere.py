"""The specialists of one model in another, on the same texts.

The finetuned models of the same profile are read through the same SAE: is the same direction still a specialist there? Models
of other profiles have SAEs of their own; what their own specialists do on these texts stands beside their figures.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.book import stats
from lib.book.auroc import auroc
from lib.book.fingerprint import fingerprint
from lib.model import activations, models
from lib.profiles.tables import Profile
from lib.studies.features.material import Texts, pooled
from lib.studies.features.opened import POOLING, Opened
from lib.studies.features.specialists import over_resamples, resamples, specialists
from lib.texts.kinds import KINDS

FILE = "features_by_text.csv"
"""Beside the figures of every profile that has run chapter 13."""
COLUMNS = (
    "model", "finetuned", "kind", "auroc", "auroc_low", "auroc_high", "correlation", "correlation_low", "correlation_high",
    "within", "within_low", "within_high", "same_feature", "n", "n_own", "n_templates",
)  # fmt: skip
"""Of a table of specialists elsewhere."""


def by_text(o: Opened, features: dict[str, int]) -> pd.DataFrame:
    """One row per text: `text`, a mark of it, and for each kind what its specialist at the middle site is, over its largest."""
    of = o.values(o.middle)[:, list(features.values())]
    share = of / np.maximum(of.max(0), np.finfo(np.float32).tiny)
    return pd.DataFrame({"text": marks(o.texts)} | {kind: share[:, i].round(4) for i, kind in enumerate(features)})


def marks(texts: Texts) -> list[str]:
    """Of each text a mark by which another model's run knows it."""
    return [fingerprint(text) for text in texts.text]


def elsewhere(o: Opened, features: dict[str, int], figures: Path) -> pd.DataFrame:
    """One row per other model and kind: what its specialist of the kind is worth there, and how far it does as the one here.

    `features`: the specialists here, by kind. `figures`: the folder that holds the figures of every profile. `auroc`, on the
    texts that chose no feature; `correlation` with the specialist here over all texts, and `within` over those of its own kind
    alone, where neither can be high just for telling the kind; with intervals over templates. `same_feature`: of a finetuned
    model, whether the same feature would be chosen there.
    """
    own = o.values(o.middle)[:, list(features.values())]
    rows = [
        {"model": name, "finetuned": False, "kind": kind, **_beside(own[where, i], there, o.texts.where(where), kind)}
        for name, where, values in _profiles(o, figures)
        for i, kind in enumerate(features)
        if (there := values.get(kind)) is not None
    ]  # fmt: skip
    for name, folder in finetuned(o.profile).items():
        values = _through(o, folder)
        chosen = specialists(values, o.texts, permutations=2, seed=o.profile.seed).set_index("kind").feature
        rows += [
            {"model": name, "finetuned": True, "kind": kind, **_beside(own[:, i], values[:, feature], o.texts, kind),
             "same_feature": bool(chosen.get(kind) == feature)}
            for i, (kind, feature) in enumerate(features.items())
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def finetuned(profile: Profile) -> dict[str, Path]:
    """The finetuned models that the study of the tool has left, by name; none where it has left none."""
    data = profile.paths.data
    places = {f"finetuned, seed {profile.seed}": data / "finetuned"}
    places |= {f"finetuned, seed {place.parent.name}": place for place in sorted((data / "seeds").glob("*/finetuned"))}
    return {name: place for name, place in places.items() if (place / "config.json").exists()}


def reads(profile: Profile, figures: Path) -> list[Path]:
    """The files of other models from which the table is made."""
    return [*_others(profile, figures), *finetuned(profile).values()]


def _others(profile: Profile, figures: Path) -> list[Path]:
    """What other profiles have left."""
    return [file for file in sorted(figures.glob(f"*/{FILE}")) if file.parent.name != profile.name]


def _through(o: Opened, folder: Path) -> Float[np.ndarray, "text feature"]:
    """The features of the middle site's SAE in a finetuned model, a number for every text."""
    model = models.load(o.profile, folder)
    held = activations.collect(model, [o.middle], o.texts.batches(model, o.profile.features.batch), folder.parent.name)
    return pooled(o.saes[o.middle], held, 0, len(o.texts))[POOLING]


def _profiles(o: Opened, figures: Path) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """Other profiles that have read some of these texts: name, which texts, and the values of their specialists by kind."""
    here = pd.Series(marks(o.texts), name="text")
    for file in _others(o.profile, figures):
        table = pd.read_csv(file).drop_duplicates("text").set_index("text")
        where = here.isin(table.index).to_numpy()
        if where.any():
            there = table.loc[here[where]]
            yield file.parent.name, where, {kind: there[kind].to_numpy() for kind in KINDS if kind in there}


def _beside(own: Float[np.ndarray, " text"], there: Float[np.ndarray, " text"], texts: Texts, kind: str) -> dict[str, float]:
    judged, label = ~texts.chosen_on, texts.kind == kind
    told = auroc(there[judged], label[judged], texts.template[judged])
    found = {**told.columns("auroc"), "n": len(texts), "n_own": int(label.sum()), "n_templates": len(np.unique(texts.template))}
    for name, which in (("correlation", np.ones(len(texts), dtype=bool)), ("within", label)):
        found |= correlated(own[which], there[which], texts, which).columns(name)
    return found


def correlated(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], texts: Texts, which: np.ndarray) -> stats.Estimate:
    """Pearson's correlation over the texts `which`, with its interval over templates; nan where either does not vary."""
    weights = np.concatenate([np.ones((1, len(x)), np.float32), resamples(texts, which)])
    weights = weights / weights.sum(1, keepdims=True)
    mean_x, mean_y = weights @ x, weights @ y
    var_x, var_y = (weights @ v**2 - m**2 for v, m in ((x, mean_x), (y, mean_y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        of = (weights @ (x * y) - mean_x * mean_y) / np.sqrt(np.maximum(var_x, 0) * np.maximum(var_y, 0))
    varies = (var_x > 1e-9 * (weights @ x**2)) & (var_y > 1e-9 * (weights @ y**2))
    of = np.where(varies, of, np.nan)
    return over_resamples(float(of[0]), of[1:], len(x), len(np.unique(texts.template[which])))
