"""The rules about the toy, on tables made so that every claim holds, and so that none does; and the study's own figures."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.studies import ledger
from lib.studies.untangle import claims, rules
from lib.studies.untangle.ablate import TASKS
from lib.studies.untangle.trade import TOLERANCES

SEEDS = range(5)


def tables(holds: bool) -> ledger.Tables:
    """Tables of five seeds in which every claim is true, or none is."""

    def toy(name: str, seed: int, **changes) -> dict:
        shake = (seed - 2) / 1000
        row = {
            "toy": name, "seed": seed, "right_sum": (0.98 if holds else 0.9) + shake, "right_join": 0.99 + shake,
            "best_ce_published": (0.1 if holds else 0.2) + shake, "best_ce": 0.3 + 5 * shake, "ce": 0.3 + shake,
            "ce_per_character": 0.2 + shake, "share_active": (0.005 if holds else 0.3) + shake / 10, "late_sd": 0.2 + shake,
            "ce_through": (0.01 if holds else 0.2) + shake, "epochs_to_train": 100,
            "epochs_to_validation": 400 if holds else 2000,
        }  # fmt: skip
        return row | changes

    worse = 0.5 if holds else -0.5
    toys = []
    for seed in SEEDS:
        shake = (seed - 2) / 1000
        toys += [toy("the toy", seed), toy("the toy (brief)", seed, best_ce=0.3 + 5 * shake)]
        toys += [
            toy("post hoc", seed, ce=0.3 - worse / 5 + shake),
            toy("lambda 0 (brief)", seed, share_active=0.9 if holds else 0.4),
            toy("characters (brief)", seed, ce_per_character=0.2 + worse + 2 * shake),
            toy("decoder alone (brief)", seed, right_sum=0.9 - worse + 2 * shake, right_join=0.9 - worse + 2 * shake),
            toy("rate x 3 (brief)", seed, ce=0.3 + worse + 2 * shake),
            toy("rate / 3 (brief)", seed, ce=0.3 + worse + 2 * shake),
            toy(f"{rules.STEADY} (brief)", seed, best_ce=0.3 + shake * (1 if holds else 20), late_sd=0.1 if holds else 0.4),
        ]  # fmt: skip
    wrong = [
        {"seed": seed, "kind": kind, "share": share + seed / 1000}
        for seed in SEEDS for kind, share in (("one digit", 0.8 if holds else 0.2), ("several digits", 0.1))
    ]  # fmt: skip
    selective = [
        {"toy": name, "seed": seed, "of": of, "selective": (0.6 if (of == "latents") == holds else 0.1) + seed / 100,
         "correlation": (0.8 if (name == "post hoc") == holds else 0.1) + seed / 100 * (1 if name == "post hoc" else -1),
         "ratio": (5 if holds else 1.5) + seed / 100}
        for name in ("the toy", "post hoc") for seed in SEEDS for of in ("latents", "random directions")
    ]  # fmt: skip
    sets = []
    for seed in SEEDS:
        for task, other in (TASKS, TASKS[::-1]):
            for i, tolerance in enumerate(TOLERANCES):
                share = i / (len(TOLERANCES) - 1)
                taken = 0.08 + 0.75 * share if holds else 0.5 - 0.4 * share
                other_lost = 0.01 + 0.08 * share if holds else 0.4 - 0.3 * share
                row = {"toy": "the toy", "seed": seed, "task": task, "method": "latents", "strength": tolerance}
                lost = {f"lost_{task}": taken + seed / 1000, f"lost_{other}": other_lost + seed / 1000}
                sets.append(row | lost | {f"{name}_select": value for name, value in lost.items()})
    areas = [
        {"toy": name, "seed": seed, "task": task, "method": "latents",
         "area": (0.9 if (name == "the toy") == holds else 0.6) + seed / 100 * (1 if name == "the toy" else 2)}
        for name in ("the toy", "post hoc") for seed in SEEDS for task in TASKS
    ]  # fmt: skip
    gradients = [{"seed": seed, "auroc": (0.52 if holds else 0.95) + seed / 1000} for seed in SEEDS]
    made = {"toys": toys, "wrong": wrong, "selective": selective, "sets": sets, "areas": areas, "gradients": gradients}
    return {name: pd.DataFrame(rows) for name, rows in made.items()}


@pytest.mark.parametrize("rule", claims.RULES, ids=lambda rule: rule.id)
def test_every_rule_can_hold_and_can_fail(rule):
    yes, no = rule.test(tables(True)), rule.test(tables(False))
    assert yes.holds and yes.testable and not no.holds and no.testable
    assert yes.effect.n == len(SEEDS) and yes.unit == "seeds"


def test_a_claim_about_a_variant_that_was_not_trained_is_not_testable():
    found = tables(True)
    found["toys"] = found["toys"][found["toys"].toy == "the toy"]
    for name in ("selective", "sets", "areas"):
        found[name] = found[name][found[name].toy == "the toy"]
    verdicts = claims.ledger(found).set_index("id").verdict
    untestable = set(verdicts[verdicts == ledger.UNTESTABLE].index)
    assert untestable == {"U4", "U5", "U6", "U11", "U12", "U14", "U15"}


def test_a_toy_that_never_learns_its_training_part_cannot_grok():
    found = tables(True)
    found["toys"]["epochs_to_train"] = np.nan
    assert claims.ledger(found).set_index("id").verdict["U16"] == ledger.UNTESTABLE
    found = tables(True)
    found["toys"]["epochs_to_validation"] = np.nan
    assert claims.ledger(found).set_index("id").verdict["U16"] == ledger.REFUTED


def test_one_seed_that_goes_the_other_way_is_enough_to_doubt():
    found = tables(True)
    of = (found["toys"].toy == "the toy") & (found["toys"].seed == 0)
    found["toys"].loc[of, "right_sum"] = 0.7
    assert claims.ledger(found).set_index("id").verdict["U1"] == ledger.REFUTED


def test_what_the_study_has_left_decides_six_claims():
    own = claims.ledger(tables(True)).set_index("id").holds_on_artefacts.dropna().astype(bool)
    assert own.to_dict() == {"U2": True, "U8": True, "U9": True, "U10": True, "U13": False, "U16": True}


def test_the_published_tables_are_those_of_the_study(shared):
    said = json.loads((shared / "companions/untangle/published.json").read_text())
    log = claims.published("training_log")
    np.testing.assert_allclose(log.to_numpy(), np.array(said["training_log"], float))
    top = {(row.task, row.latent): row.loss for row in claims.published("top_latents").itertuples()}
    names = {"concatenation": "join", "sum": "sum"}
    assert top == {(names[task], j): loss for task in names for j, loss in said["top_latents"][task]}
    rows = claims.published("ablations").set_index("rule")
    for row in said["ablating_concatenation"]:
        assert tuple(rows.loc[row["rule"]]) == (row["sum_correct"], row["concatenation_correct"])
