"""The ledger's rules on tables made up so that each claim is known to hold or to fail."""

import itertools

import pandas as pd
import pytest

from lib.studies import ledger
from lib.studies.tool import claims, findings, rules

LAYERS = range(6)


def tables(holds: bool) -> ledger.Tables:
    """Experiments in which every published claim is true, or none is."""
    exp1 = [
        {
            "layer": layer, "d_new": d, "percentile": q,
            "base_mean_cos": 0.4 if holds else 0.9,
            "full_mean_cos": (0.7 + gain - q / 10 if holds else 0.7 - gain + q / 10) + layer / 1000,
            "base_fvu": 0.2, "dce_base": 12.0 if holds else 0.0, "dce_full": 0.1 + layer / 1000,
        }
        for layer, (d, gain), q in itertools.product(LAYERS, ((8, 0.0), (16, 0.05), (32, 0.07)), (0.25, 0.5, 0.75))
    ]  # fmt: skip

    def calls(subset, condition, layer):
        if subset == "copy":
            return 0.3 if holds and condition == "no_delta" and layer == 0 else 0.0
        if subset == "tool_ood":
            return {"raw": 0.9, "full": 0.6 if holds else 0.95, "no_delta": 0.3}[condition]
        if holds:
            return {"raw": 1.0, "full": 0.6 if layer >= 4 else 0.99, "no_delta": 0.0}[condition]
        return {"raw": 1.0, "full": 0.8 + layer / 100, "no_delta": 0.78}[condition]

    exp2a = [
        {
            "layer": layer, "subset": subset, "condition": condition, "tool_call_rate": calls(subset, condition, layer),
            "tool_call_rate_low": calls(subset, condition, layer) - 0.02,
            "tool_call_rate_high": calls(subset, condition, layer) + 0.02,
            "n_examples": 400, "n_clusters": 40, "call_log_prob": calls(subset, condition, layer) - 1,
            "mean_ce": (2.0 if holds and condition == "no_delta" else 0.1) + layer / 1000,
            "mean_abs_base_acts": 1.0 + layer * (1 if holds else -0.1),
            "mean_abs_delta_acts": 1.0 + layer * (1 if holds else -0.1),
        }
        for layer, subset, condition in itertools.product(LAYERS, ("tool", "copy", "tool_ood"), ("raw", "no_delta", "full"))
    ]  # fmt: skip
    exp2b = []
    for layer, subset, alpha in itertools.product(LAYERS, ("tool", "copy", "tool_ood"), (None, 0.0, 0.5, 1.0)):
        rate = {"tool": (alpha or 0) if holds else 0.7, "copy": 0.0 if holds else 0.3, "tool_ood": 0.5}[subset]
        row = {"layer": layer, "subset": subset, "alpha": alpha, "condition": "raw" if alpha is None else f"alpha_{alpha}"}
        rate = 1.0 if alpha is None else rate
        interval = {"tool_call_rate_low": rate - 0.01, "tool_call_rate_high": rate + 0.01, "n_examples": 400}
        exp2b.append(row | {"tool_call_rate": rate, "call_log_prob": rate - 1, **interval})
    return {name: pd.DataFrame(rows) for name, rows in (("exp1", exp1), ("exp2a", exp2a), ("exp2b", exp2b))}


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_every_rule_can_go_both_ways(claim):
    yes, no = claim.test(tables(True)), claim.test(tables(False))
    assert yes.holds and yes.testable and not no.holds and no.testable
    assert yes.effect.low <= yes.effect.value <= yes.effect.high and yes.effect.n > 0


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_every_rule_holds_on_the_tables_that_it_describes(claim):
    """Those of collapse, decline and copies did not; nor, at the edge, the one of OOD."""
    found = claim.test(claims.published())
    assert found.holds and found.testable


def test_the_published_tables_are_those_that_were_published(shared):
    for file in (claims.PUBLISHED / findings.STUDY).glob("*.csv"):
        assert file.read_bytes() == (shared / "published" / file.name).read_bytes()
    assert len(list((claims.PUBLISHED / findings.STUDY).glob("*.csv"))) == 4


def test_verdicts():
    for corrected, published, wanted in (
        (True, True, claims.REPRODUCED), (True, False, claims.REPRODUCED),
        (False, True, claims.ARTEFACT), (False, False, claims.REFUTED),
    ):  # fmt: skip
        found = claims.ledger(tables(corrected), tables(published))
        assert len(found) == len(claims.CLAIMS) == 13 and set(found.verdict) == {wanted}
        assert found.holds_on_published_tables.all() and (found.study == "tool").all() and found.id.is_unique


def test_what_was_not_measured_is_not_testable():
    without = {k: v for k, v in tables(True).items() if k != "exp2b"}
    found = claims.ledger(without, tables(True)).set_index("id").verdict
    assert found[found == claims.UNTESTABLE].index.tolist() == ["D12", "D13"] and not found.isna().any()


def test_a_mistake_in_a_rule_is_not_taken_for_a_missing_table():
    broken = {k: v.rename(columns={"tool_call_rate": "calls"}) if k == "exp2a" else v for k, v in tables(True).items()}
    with pytest.raises((KeyError, AttributeError), match="tool_call_rate"):
        claims.ledger(broken, tables(True))


def at_the_ceiling() -> ledger.Tables:
    """Single layers lose nothing without their delta."""
    found = tables(True)
    tool = found["exp2a"].subset != "copy"
    found["exp2a"].loc[tool, ["tool_call_rate", "tool_call_rate_low", "tool_call_rate_high"]] = (1.0, 0.98, 1.0)
    calls = found["exp2b"].subset == "tool"
    found["exp2b"].loc[calls, ["tool_call_rate", "tool_call_rate_low", "tool_call_rate_high"]] = (1.0, 0.98, 1.0)
    return found


def test_a_ceiling_refutes_nothing():
    found = claims.ledger(at_the_ceiling(), tables(False)).set_index("id").verdict
    assert (found[["D8", "D9", "D10", "D12"]] == claims.UNTESTABLE).all()
    assert found["D6"] == claims.REFUTED, "a collapse would have been seen"


def sets(full: float) -> pd.DataFrame:
    """The first n layers replaced: calls are lost without deltas as n grows."""
    rows = []
    for n, condition in itertools.product(range(1, 7), ("raw", "no_delta", "full")):
        rate = {"raw": 1.0, "no_delta": 1 - n / 10, "full": full}[condition]
        interval = {"tool_call_rate_low": rate - 0.02, "tool_call_rate_high": min(1, rate + 0.02), "n_examples": 200}
        rows.append(
            {"layer": n, "subset": "tool", "condition": condition, "tool_call_rate": rate, "n_clusters": 39, **interval}
        )
    return pd.DataFrame(rows)


def test_all_layers_at_once_decide_where_single_ones_cannot():
    dial = tables(True)["exp2b"].query("layer == 0").assign(layer="all", n_clusters=39)
    good = at_the_ceiling() | {"extent": sets(1.0), "dial": dial}
    found = claims.ledger(good, tables(False)).set_index("id")
    assert found.verdict["D8"] == found.verdict["D12"] == claims.REPRODUCED and found.verdict["D9"] == claims.REFUTED
    assert found.unit_corrected["D8"] == "templates" and found.n_units_corrected["D8"] == 39
    bad = at_the_ceiling() | {
        "extent": sets(0.5),
        "dial": dial.assign(tool_call_rate=0.5, tool_call_rate_low=0.4, tool_call_rate_high=0.6),
    }
    assert claims.ledger(bad, tables(False)).set_index("id").verdict["D8"] == claims.REFUTED


def test_nothing_is_said_of_a_model_that_makes_no_calls_or_of_bases_worse_than_a_mean():
    silent = tables(True)
    silent["exp2a"].loc[silent["exp2a"].condition == "raw", "tool_call_rate"] = 0.01
    silent["exp1"]["base_fvu"] = 2.7
    assert set(claims.ledger(silent, tables(True)).verdict) == {claims.UNTESTABLE}


def test_the_figures_quoted_are_those_of_the_published_tables():
    t = claims.published()
    best, quoted = t["exp1_summary"].set_index(["d_new", "percentile"]), {claim.id: claim.published for claim in claims.CLAIMS}
    row = best.loc[(128, 0.5)]
    assert f"{row.mean_cos_full:.3f} against {row.mean_cos_base:.3f}, mean of {len(t['exp1'])} layers" == quoted["D1"]
    assert f"rise of {row.mean_dce_full:.2f} against {row.mean_dce_base:.1f} nats" in quoted["D2"]
    widths = ", ".join(f"{best.loc[(d, 0.5)].mean_cos_full:.3f}" for d in (32, 64, 128))
    assert f"cosine {widths}" == quoted["D3"]
    low, high = (best.loc[(128, q)].mean_cos_full for q in (0.25, 0.75))
    assert f"cosine {low:.3f} at .25, {high:.3f} at .75" == quoted["D4"]
    a, b = t["exp2a"], t["exp2b"]
    mean = a.groupby(["subset", "condition"])[["mean_ce", "tool_call_rate"]].mean()
    rises = [f"{mean.mean_ce[s, 'raw']:.2f} to {mean.mean_ce[s, 'no_delta']:.2f}" for s in ("tool", "copy", "tool_ood")]
    assert quoted["D5"] == f"answer CE {', '.join(rises)}"
    calls = {c: rules.by_layer(t, "tool", c) for c in ("raw", "no_delta", "full")}
    raw, base = (calls[c][calls[c].index >= 12].mean() for c in ("raw", "no_delta"))
    assert f"{raw:.2f} to {base:.2f}, mean of the last five of 8 layers" in quoted["D6"]
    ood = (mean.tool_call_rate["tool_ood", condition] for condition in ("full", "no_delta", "raw"))
    assert quoted["D10"] == "calls {:.2f}, between {:.2f} and {:.2f}".format(*ood)
    first, last = rules.last_part(calls["full"])
    assert len(last) == 3 and f"{first.mean():.2f} at the first five" in quoted["D8"]
    assert f"{last.mean():.2f} at the last three of 8 layers, {first.mean():.2f} before" in quoted["D9"]
    assert f"{rules.by_layer(t, 'copy', 'no_delta')[0]:.2f} of copy prompts" in quoted["D7"]
    dose = b.dropna(subset="alpha").groupby(["subset", "alpha"]).tool_call_rate.mean()
    spans = [f"{dose[s, 0]:.2f} to {dose[s, 1]:.2f} on" for s in ("tool", "tool_ood")]
    assert all(span in quoted["D12"] for span in spans) and f"{dose['copy'].max():.2f}" in quoted["D13"]


def test_ledgers_of_models_stand_side_by_side():
    """What two models say of each claim, and what would decide it where they differ."""
    ids = list(claims.BY_ID)
    verdicts = [claims.REPRODUCED, claims.REFUTED, claims.ARTEFACT, claims.UNTESTABLE]
    one = pd.DataFrame({"study": "tool", "id": ids, "claim": "x", "verdict": [verdicts[i % 4] for i in range(len(ids))]})
    other = one.iloc[:-1].assign(verdict=claims.REPRODUCED)
    found = ledger.beside({"a": one, "b": other}).set_index("id")
    assert list(found.a) == list(one.verdict) and found.b.isna().tolist() == [False] * (len(ids) - 1) + [True]
    said = found["what would decide"]
    assert said[ids[0]] == said[ids[-1]] == ""  # the same, and one that is missing
    assert said[ids[1]].startswith("a third model") and said[ids[2]].startswith("the published site")
    assert said[ids[3]].startswith("a setting in which the claim and its opposite can be told apart")
    elsewhere = one.assign(study="features")  # ids are a study's own
    assert len(ledger.beside({"a": one, "b": elsewhere})) == 2 * len(ids)


def test_ledgers_of_studies_become_one():
    made = claims.ledger(tables(True), tables(True))
    features = pd.DataFrame([{"study": "features", "id": "F1", "effect": 1.0, "effect_low": 0.5, "verdict": claims.REPRODUCED}])
    found = ledger.of_all([made, features])
    assert list(found.columns) == ledger.COLUMNS and len(found) == len(made) + 1
    assert found.effect.iloc[0] == made.effect_corrected.iloc[0] and found.effect.iloc[-1] == 1.0
    assert (found.holds_on_artefacts[: len(made)] == made.holds_on_published_tables).all()
