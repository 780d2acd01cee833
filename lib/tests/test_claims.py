"""The ledger's rules on tables made up so that each claim is known to hold or to fail."""

import itertools

import pandas as pd
import pytest

from lib import claims
from lib.published import EXP1

LAYERS = range(6)


def tables(holds: bool) -> claims.Tables:
    """Experiments in which every published claim is true, or none is."""
    exp1 = [
        {
            "layer": layer, "d_new": d, "percentile": q,
            "base_mean_cos": 0.4 if holds else 0.9,
            "full_mean_cos": (0.7 + gain - q / 10 if holds else 0.7 - gain + q / 10) + layer / 1000,
            "dce_base": 12.0 if holds else 0.0, "dce_full": 0.1 + layer / 1000,
        }
        for layer, (d, gain), q in itertools.product(LAYERS, ((8, 0.0), (16, 0.05), (32, 0.07)), (0.25, 0.5, 0.75))
    ]  # fmt: skip

    def calls(subset, condition, layer):
        if subset == "copy":
            return 0.3 if holds and condition == "no_delta" and layer == 0 else 0.0
        if subset == "tool_ood":
            return {"raw": 0.9, "full": 0.6, "no_delta": 0.3}[condition] if holds else 0.5
        last = layer >= 4
        return {"raw": 1.0, "full": 0.6 if last else 0.99, "no_delta": 0.0}[condition] if holds else 1.0

    exp2a = [
        {
            "layer": layer, "subset": subset, "condition": condition, "tool_call_rate": calls(subset, condition, layer),
            "tool_call_rate_low": calls(subset, condition, layer) - 0.02, "tool_call_rate_high": 1.0, "n_examples": 400,
            "mean_ce": (2.0 if holds and condition == "no_delta" else 0.1) + layer / 1000,
            "mean_abs_base_acts": 1.0 + layer * (1 if holds else -0.1),
            "mean_abs_delta_acts": 1.0 + layer * (1 if holds else -0.1),
        }
        for layer, subset, condition in itertools.product(LAYERS, ("tool", "copy", "tool_ood"), ("raw", "no_delta", "full"))
    ]  # fmt: skip
    exp2b = []
    for layer, subset, alpha in itertools.product(LAYERS, ("tool", "copy", "tool_ood"), (0.0, 0.5, 1.0)):
        rate = {"tool": alpha if holds else 1.0, "copy": 0.0 if holds else 0.3, "tool_ood": 0.5}[subset]
        interval = {"tool_call_rate_low": rate, "tool_call_rate_high": rate + 0.01, "n_examples": 400}
        exp2b.append({"layer": layer, "subset": subset, "alpha": alpha, "tool_call_rate": rate, **interval})
    return {name: pd.DataFrame(rows) for name, rows in (("exp1", exp1), ("exp2a", exp2a), ("exp2b", exp2b))}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.test.__name__)
def test_every_rule_can_go_both_ways(claim):
    (effect, yes), (_, no) = claim.test(tables(True)), claim.test(tables(False))
    assert yes and not no
    assert effect.low <= effect.value <= effect.high and effect.n > 0


def test_verdicts():
    for corrected, published, wanted in (
        (True, True, "reproduced"), (True, False, "reproduced"),
        (False, True, "artefact of measurement"), (False, False, "not reproduced"),
    ):  # fmt: skip
        found = claims.ledger(tables(corrected), tables(published))
        assert len(found) == len(claims.CLAIMS) >= 13 and set(found.verdict) == {wanted}


def test_what_was_not_measured_is_not_testable():
    without = {k: v for k, v in tables(True).items() if k != "exp2b"}
    found = claims.ledger(without, tables(True)).set_index("claim").verdict
    assert (found == "not testable here").sum() == 2 and not found.isna().any()


def test_the_published_figures_quoted_are_those_of_the_tables():
    best = EXP1.set_index(["d_new", "percentile"])
    quoted = {claim.test.__name__: claim.published for claim in claims.CLAIMS}
    row = best.loc[(128, 0.5)]
    assert f"{row.mean_cos_full:.3f} against {row.mean_cos_base:.3f}" == quoted["_cosine"]
    assert f"rise of {row.mean_dce_full:.2f} against {row.mean_dce_base:.1f} nats" == quoted["_cross_entropy"]
    widths = ", ".join(f"{best.loc[(d, 0.5)].mean_cos_full:.3f}" for d in (32, 64, 128))
    assert f"cosine {widths}" == quoted["_widths"]
    low, high = (best.loc[(128, q)].mean_cos_full for q in (0.25, 0.75))
    assert f"cosine {low:.3f} at .25, {high:.3f} at .75" == quoted["_percentile"]


def test_the_published_behaviour_quoted_is_that_of_the_tables(shared):
    a, b = (pd.read_csv(shared / f"published/exp2{x}_metrics_d128_p0.5.csv") for x in "AB")
    mean = a.groupby(["subset", "condition"])[["mean_ce", "tool_call_rate"]].mean()
    quoted = {claim.test.__name__: claim.published for claim in claims.CLAIMS}
    rises = [f"{mean.mean_ce[s, 'raw']:.2f} to {mean.mean_ce[s, 'no_delta']:.2f}" for s in ("tool", "copy", "tool_ood")]
    assert quoted["_harmful"] == f"answer CE {', '.join(rises)}"
    calls = mean.tool_call_rate
    assert f"{calls['tool', 'raw']:.2f} to {calls['tool', 'no_delta']:.2f}, mean of 8" in quoted["_collapse"]
    ood = (calls["tool_ood", condition] for condition in ("full", "no_delta", "raw"))
    assert quoted["_ood"] == "calls {:.2f}, between {:.2f} and {:.2f}".format(*ood)
    full = a[(a.subset == "tool") & (a.condition == "full")].sort_values("layer").tool_call_rate
    assert f"{full[:5].mean():.2f} at the first five" in quoted["_restores"]
    assert f"{full[5:].mean():.2f} at the last three" in quoted["_declines"]
    zero = a[(a.subset == "copy") & (a.condition == "no_delta") & (a.layer == 0)].tool_call_rate.item()
    assert f"{zero:.2f} of copy prompts" in quoted["_layer_0"]
    dose = b.groupby(["subset", "alpha"]).tool_call_rate.mean()
    spans = [f"{dose[s, 0]:.2f} to {dose[s, 1]:.2f} on" for s in ("tool", "tool_ood")]
    assert all(span in quoted["_dose"] for span in spans) and f"{dose['copy'].max():.2f}" in quoted["_copies"]
