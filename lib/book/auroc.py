"""How well a feature tells some texts from others: the area under its ROC curve, the share of pairs that it puts in order."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from lib.book import stats


def aurocs(values: Float[np.ndarray, "text feature"], positive: Bool[np.ndarray, "text label"]) -> np.ndarray:
    """The AUROC of every feature for every labelling, (feature, label); ties count half."""
    ranks = rankdata(values, axis=0).astype(np.float32)
    n = positive.sum(0).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks.T @ positive.astype(np.float32) - n * (n + 1) / 2) / (n * (len(values) - n))


def auroc(values: Float[np.ndarray, " text"], positive: Bool[np.ndarray, " text"], units: np.ndarray) -> stats.Estimate:
    """One feature's AUROC with its 95% interval over templates.

    It is the mean over positives of the share of negatives below them, and the other way round; the variance is the sum of
    those of the two means (DeLong 1988), each over templates. With twelve templates of the kind whose texts go together it
    holds the truth 88 times of 100.
    """
    a, b = values[positive], values[~positive]
    if not len(a) or not len(b):
        return stats.NOTHING
    above = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    of_a, of_b = stats.mean(above.mean(1), units[positive]), stats.mean(above.mean(0), units[~positive])
    half = np.hypot(of_a.high - of_a.value, of_b.high - of_b.value)
    return stats.Estimate(
        of_a.value, of_a.value - half, min(1.0, of_a.value + half), len(values), of_a.clusters + of_b.clusters
    )
