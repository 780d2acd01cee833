"""Which delta features it takes: kept or removed, beside others like them."""

from collections.abc import Sequence

import pandas as pd

from lib.book import results, stats
from lib.dictionary import deltas
from lib.measure.attribution import attribution, compared, keeping, matched, removing
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.studies.tool import scores
from lib.texts.prompts import Prompt

COUNTS = (1, 4, 16, 64, 256)


def some_features(
    profile: Profile,
    model: LanguageModel,
    sites: Sequence[Site],
    rank_on: Sequence[Prompt],
    asked: Sequence[Prompt],
    n_draws: int,
) -> pd.DataFrame:
    """One row for each condition: k features, the best by attribution on `rank_on` or others like them, kept or removed.

    Beside it are written `features.csv`, the ranking, and `necessity_paired.csv`, the best against the others.
    """
    pairs = deltas.pairs(profile, model, sites)
    ranked = attribution(model, rank_on, pairs, profile.tool.evaluation.forward_batch)
    results.save(ranked, profile.paths.results / "features.csv")
    base_only = {site: pair.at(0.0) for site, pair in pairs.items()}
    conditions = {("raw", 0, 0): {}, ("base", 0, 0): base_only, ("full", 0, 0): pairs}
    conditions |= {("keep the best", 0, 0): keeping(pairs, ranked.head(0))}
    for k in [k for k in COUNTS if k <= len(ranked) // 2]:
        chosen = {("the best", 0): ranked.head(k)}
        chosen |= {("others like them", d): matched(ranked, ranked.head(k), profile.seed + d) for d in range(n_draws)}
        for (which, draw), some in chosen.items():
            conditions[f"keep {which}", k, draw] = keeping(pairs, some)
            conditions[f"remove {which}", k, draw] = removing(pairs, some, ranked)
    tables = scores.measure(profile.tool, model, asked, list(conditions.values()), progress="features")
    found = dict(zip(conditions, tables, strict=True))
    rows = []
    for (name, k, draw), one in found.items():
        gaps = stats.columns(scores.gaps(one, found["base", 0, 0], found["raw", 0, 0]))
        rows.append({"condition": name, "k": k, "draw": draw, "features": len(ranked), **scores.summary(one), **gaps})
    kl = {key: scores.total_kl(one) for key, one in found.items()}
    results.save(compared(kl, tables[0].template), profile.paths.results / "necessity_paired.csv")
    return pd.DataFrame(rows)
