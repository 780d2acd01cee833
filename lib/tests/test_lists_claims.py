"""The rules about lists: each holds on made-up tables in which its claim is true, and fails where it is not."""

import numpy as np
import pandas as pd
import pytest

from lib.studies.lists import claims
from lib.studies.lists.instead import BIASED, STEERED
from lib.studies.lists.runs import AT, RESAMPLED

TOPICS = [f"topic {i}" for i in range(40)]
N = 6
"""Lists of each topic."""


def written(holds: bool) -> pd.DataFrame:
    rows, aims = [], {"short": 5, "plain": 10, "long": 30}
    for t, topic in enumerate(TOPICS):
        for temperature in (0.5, 1.0, 1.3):
            for mode, n in aims.items() if temperature == 1.0 else [("short", 5)]:
                for i in range(N):
                    items = n + (i % 3) - 1 if holds else 2 * n + 3 * t
                    last = holds and mode == "short" and (temperature == 1.0 or i / N < temperature / 1.4) and t + i > 0
                    last |= not holds and mode == "long"
                    blanks = str(items) if last else "1;2" if not holds and i % 2 else ""
                    rows.append({"topic": topic, "mode": mode, "temperature": temperature, "sample": i, "ended": True,
                                 "items": items, "single": items - 1 if holds else 1, "blanks": blanks})  # fmt: skip
    return pd.DataFrame(rows)


def along(holds: bool) -> pd.DataFrame:
    rows = []
    for t, topic in enumerate(TOPICS):
        for asked in ("short", "long"):
            up = 1 if (asked == "short") == holds else -1
            for i in range(6):
                value = up * i + (i == 5) * (10 if (asked == "long") == holds else -10) + t / 100
                rows.append({"list": t, "topic": topic, "mode": "short", "asked": asked, "item": i + 1, "from_end": 6 - i,
                             "entropy": value})  # fmt: skip
    return pd.DataFrame(rows)


def lens(holds: bool) -> pd.DataFrame:
    rows, starts = [], {"stop": 7, "blank": 7, "end": 6} if holds else {"stop": 1, "blank": 5, "end": 6}
    for t, topic in enumerate(TOPICS):
        for layer in range(8):
            for i in range(5):
                value = {name: (i if layer >= start else -i) + t / 100 for name, start in starts.items()}
                rows.append({"list": t, "topic": topic, "item": i + 1, "from_end": 5 - i, "temperature": 1.0, "layer": layer,
                             **value})  # fmt: skip
    return pd.DataFrame(rows)


def features(holds: bool) -> pd.DataFrame:
    rows = []
    for t, topic in enumerate(TOPICS):
        for point, layer in (("resid_post", 0), ("resid_post", 5), ("attn_out", 1), ("attn_out", 3), ("attn_out", 5)):
            same = holds and (point, layer) == ("resid_post", 5)
            own = [i if same and i < 8 else 100 + 10 * t + i for i in range(10)]
            if not holds and point == "attn_out":
                own = [100 + (10 * t + i) % 60 for i in range(10)]
            rows += [{"point": point, "layer": layer, "topic": topic, "feature": i} for i in own]
    return pd.DataFrame(rows)


def written_runs(holds: bool) -> pd.DataFrame:
    rows = []
    for t, topic in enumerate(TOPICS):
        for i in range(4):
            row = {"topic": topic, "sample": i}
            rows.append(row | {"mode": "short", "edit": RESAMPLED, "point": "", "layer": -1, "ended": True, "items": 5 + t % 3})
            rows.append(row | {"mode": "long", "edit": RESAMPLED, "point": "", "layer": -1, "ended": True, "items": 30 + t % 3})
            for point, layer, items in (("resid_post", 0, 29), ("resid_post", 5, 10), ("attn_out", 1, 14), ("attn_out", 3, 9),
                                        ("attn_out", 5, 6)):  # fmt: skip
                shown = items + t % 3 if holds else 5 + t % 3 + (layer if point == "attn_out" else 0) / 10
                rows.append(
                    row | {"mode": "short", "edit": AT, "point": point, "layer": layer, "ended": not holds, "items": shown}
                )
    return pd.DataFrame(rows)


def instead(holds: bool) -> pd.DataFrame:
    rows = [
        {"topic": topic, "sample": i, "edit": edit, "items": (35 if holds else 1) + t % 3}
        for t, topic in enumerate(TOPICS) for i in range(4) for edit in (STEERED, BIASED)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def metric(holds: bool) -> pd.DataFrame:
    clean = np.linspace(0, 1, 120)
    return pd.DataFrame({"unit": np.tile(TOPICS, 3), "clean": clean, "corrupt": clean + (-1 if holds else 0.5) + clean / 10})


def patching(holds: bool) -> pd.DataFrame:
    rows = []
    for layer in range(8):
        for role in ("mode word", "topic", "last item", "last break", "turn"):
            large = (role, layer) in (("mode word", 0), ("last item", 6)) if holds else True
            at_mode = layer / 10 if not holds and role == "mode word" else 0
            rows.append({"part": "v", "layer": layer, "head": -1, "role": role, "direction": "noising",
                         "effect": (0.9 if large else 0.01) + at_mode})  # fmt: skip
    return pd.DataFrame(rows)


def values(holds: bool) -> pd.DataFrame:
    v = np.linspace(0.1, 0.3, 40) + (1 if holds else 0)
    return pd.DataFrame({"unit": TOPICS, "v": v, "k": 0.2, "q": 0.4})


MADE = {
    "metric": metric,
    "patching": patching,
    "values": values,
    "written": written,
    "along": along,
    "lens": lens,
    "features": features,
    "runs": written_runs,
    "instead": instead,
}
RULES = [rule for rule in claims.RULES if set(rule.needs) <= set(MADE)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_can_hold_and_can_fail(rule):
    yes, no = (rule.test({name: make(holds) for name, make in MADE.items()}) for holds in (True, False))
    assert yes.holds and yes.testable and not no.holds and no.testable, (yes, no)
