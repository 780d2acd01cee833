"""One meaning in several forms: are the features of a text those of what it says, or of how it says it?

The book's own texts are the minimal pairs of chapter 13; a profile may name a file of others.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.book.paths import ROOT
from lib.model import activations, encoding
from lib.studies.features import material, pairs
from lib.studies.features.material import pooled
from lib.studies.features.opened import Opened
from lib.texts import labelled
from lib.texts.labelled import Matched

TOP = 20
"""Features of a form: those with the largest means over its texts."""
POOLING = "encode, then mean"


def texts(o: Opened) -> list[Matched]:
    """Those of the profile's file, or the book's pairs; the shortest first."""
    file = material.features(o.profile).matched_file
    rows = labelled.matched(ROOT / file) if file else [
        Matched(text, form, kind, f"{kind} {i}")
        for kind, (_, both) in pairs.PAIRS.items() for i, pair in enumerate(both)
        for form, text in zip(("form", "meaning alone"), pair, strict=True)
    ]  # fmt: skip
    return material.by_length(o.model, rows, file)


def matched(o: Opened) -> pd.DataFrame:
    """One row per layer compared and topic.

    `jaccard`, of the `TOP` features of two forms of the topic, the mean over its pairs of forms; `jaccard_elsewhere`, of a form
    of it and one of another topic. And the mean cosine of the codes of two texts: of one `meaning` in two forms, of the `topic`
    in two forms with other meanings, and of `other` topics.
    """
    rows = texts(o)
    batches = encoding.batches(o.model.tokenizer, [row.text for row in rows], o.profile.features.batch)
    held, tables = activations.collect(o.model, o.compared, batches, "texts in several forms"), []
    for i, site in enumerate(o.compared):
        values = pooled(o.saes[site], held, i, len(rows))[POOLING]
        tables.append(compared(values, rows).assign(layer=site.layer))
    return pd.concat(tables, ignore_index=True)


def compared(values: Float[np.ndarray, "text feature"], rows: list[Matched]) -> pd.DataFrame:
    """`matched` of one layer."""
    form, topic, meaning = (np.array([getattr(row, name) for row in rows]) for name in ("form", "topic", "meaning"))
    leading = {
        (t, f): frozenset(np.argsort(-values[(topic == t) & (form == f)].mean(0), kind="stable")[:TOP].tolist())
        for t in dict.fromkeys(topic) for f in dict.fromkeys(form[topic == t])
    }  # fmt: skip
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    cosine, found = unit @ unit.T, []
    same_topic, other_form = topic[:, None] == topic, form[:, None] != form
    same_meaning = same_topic & (meaning[:, None] == meaning)
    for one in dict.fromkeys(topic):
        own, here = [key for key in leading if key[0] == one], topic == one
        other = [key for key in leading if key[0] != one]
        found.append({
            "topic": one, "forms": len(own), "n": int(here.sum()), "n_meanings": len(set(meaning[here])),
            "jaccard": _mean(jaccard(leading[a], leading[b]) for a, b in combinations(own, 2)),
            "jaccard_elsewhere": _mean(jaccard(leading[a], leading[b]) for a in own for b in other),
            "meaning": _mean(cosine[here][(same_meaning & other_form)[here]]),
            "topic_alone": _mean(cosine[here][(same_topic & ~same_meaning & other_form)[here]]),
            "other": _mean(cosine[here][~same_topic[here]]),
        })  # fmt: skip
    return pd.DataFrame(found)


def jaccard(a: frozenset, b: frozenset) -> float:
    """Members of both over members of either."""
    return len(a & b) / len(a | b)


def _mean(values) -> float:
    values = np.fromiter(values, float)
    return float(values.mean()) if len(values) else float("nan")
