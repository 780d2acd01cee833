"""The study's ablated runs and its tables of features, counted again, and how its published means came about.

A run zeroes a few features of one SAE and goes on from before the last item of a finished list, so it can never have fewer
items than that list: what it has more is no effect yet, for there is no run that went on from there with nothing zeroed.
"""

import pandas as pd

from lib.book.stats import columns, difference, mean, rate
from lib.studies.lists.recount import Given, published

LAYERS = 26
SAMPLES = [0, 1, 2, 3, 4]


def layer(name: pd.Series) -> pd.Series:
    """The layer in an SAE's or a site's name."""
    return name.str.extract(r"(\d+)")[0].astype(int)


def ablated(given: Given = None, by: str = "sae") -> pd.DataFrame:
    """Items that ablated runs have more than their lists, by SAE or by topic, beside the published mean.

    `more` is the mean over runs, `ended` the share that ended within the limit, `repeated` the items that were there
    already, a run. The interval is over topics for an SAE, and over a topic's lists, which seven SAEs share, for a topic.
    """
    runs, rows = published("ablation_rows") if given is None else given, []
    for name, some in runs.groupby(by, sort=False):
        units = some["topic" if by == "sae" else "sample"]
        found = {"more": difference(some.items_ablated, some.items_base, units), "ended": rate(some.ended, units),
                 "repeated": mean(some.repeated_items, units)}  # fmt: skip
        rows.append(
            {by: name, **columns(found), "items": some.items_ablated.mean(), "n": len(some), "n_units": units.nunique()}
        )
    theirs = published(f"ablation_by_{by}")[[by, "published_items_mean"]]
    table = pd.DataFrame(rows).merge(theirs, how="left", on=by, validate="1:1")
    return table.assign(layer=layer(table.sae)).sort_values("layer", ignore_index=True) if by == "sae" else table


def published_again(given: Given = None, by: str = "sae") -> pd.DataFrame:
    """How the published means came about: a row's variance stood in the table before its mean was taken.

    A row is an SAE and a topic with five differences. Its variance was added as a sixth column, and then the mean of six
    columns taken: `mean` and `variance` are right, `with_variance` is (5 mean + variance) / 6, and `off` what is
    published less that. `items_more` are the items that the study counted more than there are lines that open with a
    hyphen, in all of the runs, as follows from both published figures; it is a whole number.
    """
    runs = published("ablation_rows") if given is None else given
    runs = runs.assign(more=runs.items_ablated - runs.items_base)
    wide = runs.pivot(index=["sae", "topic"], columns="sample", values="more")
    wide = wide[SAMPLES].assign(variance=wide.var(axis=1))
    wide["with_variance"] = wide[[*SAMPLES, "variance"]].mean(axis=1)
    wide["mean"] = wide[SAMPLES].mean(axis=1)
    found = wide.groupby(by, sort=False)[["mean", "variance", "with_variance"]].mean().reset_index()
    found = found.merge(published(f"ablation_by_{by}").iloc[:, :4], on=by, validate="1:1")
    behind = (6 * found.published_items_mean - found.published_items_variance) / 5
    found["off"] = found.published_items_mean - found.with_variance
    return found.assign(items_more=(behind - found["mean"]) * found.n)


def overlap(given: Given = None) -> pd.DataFrame:
    """How much topics share of their important features (Jaccard), by SAE, with its kind, its layer and its group.

    Of 26 layers those of the second half are `late`, and those of the middle half are `middle`.
    """
    table = published("overlap_by_sae") if given is None else given.copy()
    kind = table.site.str.contains("resid").map({True: "residual", False: "attention"})
    at = layer(table.site)
    table = table.assign(kind=kind, layer=at, late=at >= LAYERS / 2, middle=at.between(LAYERS / 4, 3 * LAYERS / 4))
    return table[["kind", "layer", "late", "middle", *table.columns[2:-4]]]


def attributed(n: int = 3) -> pd.DataFrame:
    """The features with the largest clean less corrupt attribution of one prompt, `n` an SAE, and what they are said to be.

    Position 0 is the beginning of the text, which the published list of the largest leaves out.
    """
    table = published("attribution_difference").sort_values("attribution", ascending=False)
    table = table.assign(layer=layer(table.SAE), at_beginning=table.position == 0).groupby("SAE").head(n)
    named = published("features_named").set_index("feature").explanation
    meant = [named.get(f"res_{at}_{feature}", "") for at, feature in zip(table.layer, table.feature, strict=True)]
    table = table.assign(explanation=meant)[["layer", "position", "feature", "attribution", "at_beginning", "explanation"]]
    return table.sort_values(["layer", "attribution"], ascending=[True, False], ignore_index=True)
