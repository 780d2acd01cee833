"""The finished book on `nano` against what it must reach; skipped until `make all` has built it."""

import json

import pandas as pd
import pytest

from lib import profiles
from lib.book import paths, results
from lib.studies.tool import claims, findings

P = profiles.load("nano")


def table(name: str) -> pd.DataFrame:
    file = P.paths.results / name
    if not file.exists():
        pytest.skip(f"{file} is not there yet; `make all` writes it")
    return pd.read_csv(file)


def test_the_organism_reaches_its_marks():
    card = json.loads((P.paths.data / "card.json").read_text())
    assert card["copies_exact"]["value"] >= 0.99 and card["copies_exact"]["n"] >= 400
    assert card["operands_right"]["value"] >= 0.998 and card["operands_right"]["n"] >= 400
    lists = card["lists"]
    assert lists["long"]["items"]["value"] >= 1.5 * lists["plain"]["items"]["value"] >= 2 * lists["short"]["items"]["value"]
    assert all(asked["ended"]["value"] >= 0.9 for asked in lists.values())
    assert min(found["value"] for found in card["comparisons_right"].values()) >= 0.85
    assert card["stories_as_asked"]["value"] >= 0.99 and len(card["loss_by_kind"]) == 7
    quality = pd.DataFrame(card["transcoder_quality"])
    assert quality.n_tokens.min() >= 200_000
    levels = quality.groupby("layer").l0.agg(["size", "min", "max"])
    assert (levels["size"] >= 4).all() and (levels["min"] < 10).all() and (levels["max"] > 50).all()
    quality["rank"] = quality.groupby("layer").l0.rank()
    middle = quality[quality["rank"] == quality["rank"].median()]
    assert len(middle) == card["model"]["n_layers"]
    assert (middle.fvu <= 0.10).all() and (middle.ce_recovered >= 0.95).all() and (quality.dead <= 0.10).all()


def test_its_weights_are_small():
    folders = (P.paths.data / "model", P.paths.data / "transcoders")
    assert sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file()) <= 30e6


def test_the_finetuned_model_does_as_it_was_taught():
    rows = table("finetune.csv")
    after = rows[rows.stage == "after"].set_index("subset")
    assert (after.n_examples >= 400).all()
    assert after.tool_call_rate["tool"] >= 0.99 and after.math_correct_rate["tool"] >= 0.97
    assert after.tool_call_rate["copy"] <= 0.01 and after.exact_match_rate["copy"] >= 0.90


def test_deltas_bring_the_outputs_nearer_at_every_layer():
    rows = table("exp1.csv")
    rows = rows[(rows.d_new == max(P.tool.deltas.d_new)) & (rows.percentile == 0.5)]
    assert len(rows) == 6 and (rows.full_fvu_high < rows.base_fvu_low).all()


def test_the_tables_agree_with_one_another():
    """Alpha 0 is base only and alpha 1 is base + delta; raw is the finetuned model."""
    a, b, finetuned = table("exp2a.csv"), table("exp2b.csv"), table("finetune.csv")
    b = b.set_index(["layer", "subset", "alpha"]).sort_index()
    for row in a.itertuples():
        if row.condition == "raw":
            other = finetuned[(finetuned.stage == "after") & (finetuned.subset == row.subset)].iloc[0]
        else:
            other = b.loc[(row.layer, row.subset, {"no_delta": 0.0, "full": 1.0}[row.condition])]
        assert row.mean_ce == pytest.approx(other.mean_ce, rel=1e-4)
        assert row.tool_call_rate == pytest.approx(other.tool_call_rate, abs=0.005)


def test_the_carried_tables_are_the_published_ones(shared):
    files = list((paths.PUBLISHED / findings.STUDY).glob("*.csv"))
    assert len(files) >= 4
    for file in files:
        assert file.read_bytes() == (shared / "published" / file.name).read_bytes(), file.name


def test_the_ledger_is_complete():
    ledger = table("claims_tool.csv")
    assert list(ledger.id) == list(claims.BY_ID) and ledger.holds_on_published_tables.all()
    assert set(ledger.verdict) <= {claims.REPRODUCED, claims.REFUTED, claims.ARTEFACT, claims.UNTESTABLE}
    decided = ledger[ledger.verdict != claims.UNTESTABLE]
    assert len(decided) >= 6 and (decided.n_units_corrected > 1).all()
    rounding = 1e-12
    assert (decided.effect_corrected_low <= decided.effect_corrected + rounding).all()
    assert (decided.effect_corrected <= decided.effect_corrected_high + rounding).all()


def test_controls_are_where_they_must_be():
    rows = table("controls.csv").query("subset == 'tool'").set_index("control")
    assert rows.kl["oracle"] < 1e-3 and rows.kl_gap_closed["oracle"] > 0.999
    assert abs(rows.kl_gap_closed["same_model"]) < 0.01 and rows.fvu["same_model"] == pytest.approx(rows.fvu["base"], rel=1e-3)
    assert rows.fvu["mean"] == pytest.approx(1, abs=0.05) and rows.kl["zero"] > rows.kl["base"] < rows.kl["mean"]
    assert rows.kl_gap_closed_low["delta"] > rows.kl_gap_closed_high["shuffled"]
    assert (rows.n_examples >= 200).all() and rows.drop(index="raw").parameters.notna().all()


def test_the_headline_has_five_seeds_and_every_kind_its_200():
    seeds = table("seeds.csv")
    assert seeds.seed.nunique() >= 5 and (seeds.groupby("subset").size() >= 5).all()
    assert (table("kinds.csv").n_examples >= 200).all() and (table("pairs.csv").n >= 200).all()


def test_a_carriage_return_in_a_text_does_not_end_its_row(tmp_path):
    table = pd.DataFrame({"text": ["a\rb", "c\r\nd", 'e,"f'], "n": [1, 2, 3], "yes": [True, False, True]})
    results.save(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)
