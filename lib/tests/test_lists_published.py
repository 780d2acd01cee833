"""The study's own lists counted again: against plain scripts, by hand, and its rules on made-up tables."""

import csv
from collections import defaultdict
from statistics import mean, variance

import numpy as np
import pandas as pd
import pytest

from lib.book.paths import PUBLISHED
from lib.studies.lists import artefacts, recount, recount_runs

FOLDER = PUBLISHED / "lists"


def rows(name: str) -> list[dict]:
    with (FOLDER / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def by(table: list[dict], *names: str) -> dict[tuple, list[dict]]:
    found = defaultdict(list)
    for row in table:
        found[tuple(row[name] for name in names)].append(row)
    return found


def one(template: str = "short", topic: str = "a", items: int = 5, ended: int = 1, blank: str | None = None, **more) -> dict:
    """A list of a made-up table."""
    return {"template": template, "temperature": 0.8, "topic": topic, "sample": 0, "items": items, "ended": ended,
            "new_tokens": 0, "blank_items": blank, "single_token_items": 0} | more  # fmt: skip


# --- against plain scripts ---


def test_lists_are_counted_as_a_plain_script_counts_them():
    kinds = by(rows("generations"), "template", "temperature")
    items, where, tokens = (
        table().set_index(["template", "temperature"]) for table in (recount.items, recount.only_last, recount.single_tokens)
    )
    assert len(kinds) == len(items) == len(tokens) == 11
    for (template, temperature), some in kinds.items():
        at = template, float(temperature)
        over = [row for row in some if row["ended"] == "1"]
        assert (items.ended[at], items.n[at], items.n_topics[at]) == (len(over), len(some), len(by(some, "topic")))
        single = sum(int(row["single_token_items"]) for row in some) / sum(int(row["items"]) for row in some)
        assert tokens.share[at] == pytest.approx(single)
        if not over:
            assert np.isnan(items["items"][at]) and np.isnan(items.all_items[at]) and at not in where.index
            continue
        assert items["items"][at] == pytest.approx(mean(int(row["items"]) for row in over))
        have = [row for row in over if row["blank_items"]]
        assert where["last"][at] == pytest.approx(mean(row["blank_items"].split(";")[-1] == row["items"] for row in over))
        assert where.alone[at] == pytest.approx(mean(row["blank_items"] == row["items"] for row in have))
        assert where.with_blank[at] == len(have)


def test_blanks_by_position_are_counted_as_a_plain_script_counts_them():
    found = recount.blanks().set_index(["template", "temperature", "counted_from", "position"]).share
    some = by(rows("generations"), "template", "temperature")["short", "0.8"]
    for k in range(1, 11):
        long_enough = [row for row in some if int(row["items"]) >= k]
        blank = [{int(i) for i in row["blank_items"].split(";") if i} for row in long_enough]
        assert found["short", 0.8, "start", k] == pytest.approx(mean(k in at for at in blank))
        going_on = [k in at for row, at in zip(long_enough, blank, strict=True) if int(row["items"]) > k]
        assert found["short", 0.8, "start, the list goes on", k] == pytest.approx(mean(going_on))
        last = [int(row["items"]) + 1 - k in at for row, at in zip(long_enough, blank, strict=True)]
        assert found["short", 0.8, "end", k] == pytest.approx(mean(last))


@pytest.mark.parametrize("unit", ["sae", "topic"])
def test_runs_are_counted_as_a_plain_script_counts_them(unit):
    found = recount_runs.ablated(by=unit).set_index(unit)
    for (name,), some in by(rows("ablation_rows"), unit).items():
        assert found.more[name] == pytest.approx(mean(int(row["items_ablated"]) - int(row["items_base"]) for row in some))
        assert found.ended[name] == pytest.approx(mean(row["ended"] == "1" for row in some))
        assert found.repeated[name] == pytest.approx(mean(int(row["repeated_items"]) for row in some))
        assert found.n[name] == len(some)
    assert len(found) == len(by(rows("ablation_rows"), unit))


def test_no_run_can_be_shorter_than_its_list():
    runs = recount.published("ablation_rows")
    assert (runs.items_ablated >= runs.items_base).all()
    lists = recount.lists(template="short").set_index(["topic", "sample"])["items"]
    assert (lists.loc[list(zip(runs.topic, runs["sample"], strict=True))].to_numpy() == runs.items_base).all()


# --- the published means ---


@pytest.mark.parametrize(("unit", "exact", "of"), [("sae", 5, 7), ("topic", 15, 23)])
def test_the_published_means_are_means_of_six_columns(unit, exact, of):
    """To the published digits, but for whole items that the study counted more or fewer in some runs."""
    groups = by(rows("ablation_rows"), unit)
    wrong = {}
    for (name,), some in groups.items():
        each = by(some, "topic" if unit == "sae" else "sae").values()
        more = [[int(row["items_ablated"]) - int(row["items_base"]) for row in five] for five in each]
        wrong[name] = mean(mean([*five, variance(five)]) for five in more)
    theirs = {row[unit]: float(row["published_items_mean"]) for row in rows(f"ablation_by_{unit}")}
    close = {name for name, value in wrong.items() if abs(value - theirs[name]) < 1e-6}
    assert (len(close), len(theirs)) == (exact, of)
    found = recount_runs.published_again(by=unit).set_index(unit)
    for name, value in wrong.items():
        assert found.with_variance[name] == pytest.approx(value)
        assert found.off[name] == pytest.approx(theirs[name] - value)
        assert (abs(found.items_more[name]) < 0.01) == (name in close)
    assert np.allclose(found.items_more, found.items_more.round(), atol=0.01) and found.items_more.abs().max() < 6


def test_the_mistake_by_hand():
    """Five runs that have 0 0 0 0 5 items more: their mean is 1, their variance 5, the mean of all six numbers 10 / 6."""
    runs = [{"sae": "attn_layer_2", "topic": topic, "sample": i, "items_base": 5, "items_ablated": 5 + 5 * (i == 4)}
            for topic in "ab" for i in range(5)]  # fmt: skip
    [found] = recount_runs.published_again(pd.DataFrame(runs)).to_dict("records")
    assert (found["mean"], found["variance"]) == (1, 5) and found["with_variance"] == pytest.approx(10 / 6)


# --- by hand ---


def test_kaplan_meier_by_hand():
    """Lists of 3, 6 and 8 items ended, of 5 and 6 were cut: 4/5 have more than 3, of these 2/3 more than 6, none above 8."""
    table = pd.DataFrame([one(items=n, ended=e, topic=t) for n, e, t in zip([3, 5, 6, 6, 8], [1, 0, 1, 0, 1], "abcde",
                                                                            strict=True)])  # fmt: skip
    assert recount.still(table, 9) == pytest.approx([1, 1, 1, 0.8, 0.8, 0.8, 8 / 15, 8 / 15, 0])
    [row] = recount.items(table).to_dict("records")
    assert row["all_items"] == pytest.approx(3 + 3 * 0.8 + 2 * 8 / 15) and row["median"] == 8
    assert row["items"] == pytest.approx(17 / 3) and row["items_where_cut"] == 5.5 and (row["ended"], row["n"]) == (3, 5)
    curve = recount.survival(table, "short")
    assert curve.still.tolist() == pytest.approx(recount.still(table, 9)) and curve.lists.tolist() == [5] * 4 + [4] * 2 + [
        3,
        1,
        1,
    ]


def test_where_no_list_was_cut_kaplan_meier_is_the_mean():
    found = recount.items().query("ended == n")
    assert len(found) == 8
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(found[f"items{end}"], found[f"all_items{end}"])


def test_blanks_by_hand():
    table = pd.DataFrame([one(items=4, blank="4"), one(items=4, blank="1;3;4", topic="b"), one(items=4, topic="c"),
                          one(items=6, blank="2", ended=0, topic="d")])  # fmt: skip
    [found] = recount.only_last(table).to_dict("records")
    assert (found["last"], found["alone"], found["with_blank"], found["n"]) == (pytest.approx(2 / 3), 0.5, 2, 3)
    assert found["near"] == pytest.approx(mean([1 / 2 - 0, 1 - 1 / 2, 0]))
    share = recount.blanks(table).set_index(["counted_from", "position"]).share
    assert share["end", 1] == pytest.approx(2 / 3) and share["start", 2] == 0.25 and ("end", 5) not in share.index


def test_zeros_of_padding_are_told_from_entropy():
    """Two lists, of two readings and of one: the second reading from the end is one list's alone."""
    table = pd.DataFrame([("a", 0, 1, 2, 0.4), ("a", 0, 2, 1, 2.0), ("b", 0, 1, 1, 1.0)],
                         columns=["topic", "sample", "reading", "from_end", "entropy_nats"])  # fmt: skip
    found = recount.entropies(table).set_index(["counted_from", "reading"])
    assert found.loc[("end", 2), ["entropy", "padded", "n"]].tolist() == [0.4, 0.2, 1]
    assert found.entropy["end", 1] == found.padded["end", 1] == 1.5
    assert list(found.loc["start"].index) == [1], "a list's last reading is another place"


def test_the_share_of_topics_by_hand_and_at_both_ends():
    """Two of six and two of ten: F = 16 / 2 = 8 with two lists a topic, so (8 - 1) / (8 - 1 + 2)."""
    values = {"a": (5, 7), "b": (9, 11)}
    table = pd.DataFrame([one(topic=t, items=n) for t, both in values.items() for n in both])
    assert recount.between_topics(table).value == pytest.approx(7 / 9)
    apart = pd.DataFrame([one(topic=t, items=n) for t, n in zip("abcd", [5, 8, 9, 12], strict=True) for _ in range(3)])
    assert recount.between_topics(apart).value == 1
    rng = np.random.default_rng(0)
    alike = pd.DataFrame([one(topic=f"{t}", items=rng.integers(5, 11)) for t in range(40) for _ in range(5)])
    e = recount.between_topics(alike)
    assert e.low < 0 < e.high < 0.25 and abs(e.value) < 0.1, "eta squared would be a fifth"


def test_the_interval_of_that_share_holds_the_truth():
    """Of lists of five items or ten whose topics have shares of ten that are spread evenly, a third lies between topics."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        ten = rng.random((23, 5)) < rng.random(23)[:, None]
        e = recount.between_topics(pd.DataFrame({"topic": np.repeat(range(23), 5), "items": 5 + 5 * ten.ravel()}))
        held += e.low <= 1 / 3 <= e.high
    assert held >= 54


# --- rules ---


TOPICS = 36  # of fewer, the upper bound of a rate of 0 is not below a tenth


def made(holds: bool) -> dict[str, pd.DataFrame]:
    """Tables of 36 topics in which every claim is true, or none is."""
    table = []
    for t in range(TOPICS):
        topic = f"t{t:02}"
        for sample in range(5):
            for template, n in (("short", 5), ("plain_selection", 10), ("long", 30)):
                n = n + (sample + t) % 3 - 1 if holds else 2 * n + t
                blank = {True: f"{n}" if template != "long" else None, False: f"1;{n - 1};{n}" if sample else f"{n}"}[holds]
                if template == "short" and not holds:
                    blank = ";".join(map(str, range(1, n + 1)))
                single = n - 1 if holds else 1
                table.append(one(template, topic, n, blank=blank, sample=sample, single_token_items=single))
            for k, temperature in enumerate((0.1, 0.5, 0.7, 0.9, 1.3)):
                blank = ";".join(map(str, range(1, (k if holds else 4 - k) + 2)))
                table.append(one("short_by_temperature", topic, 6, blank=blank, sample=sample, temperature=temperature))
    runs = []
    for layer in (0, 7, 14, 22):
        more = {0: 25, 7: 5, 14: 1, 22: 0} if holds else {0: 1, 7: 2, 14: 3, 22: 4}
        for t in range(TOPICS):
            for sample in range(5):
                sae = f"{'res' if layer < 10 else 'attn'}_layer_{layer}"
                runs.append({"sae": sae, "topic": f"t{t:02}", "sample": sample, "items_base": 5, "repeated_items": 0,
                             "items_ablated": 5 + more[layer], "ended": int(not holds or layer > 0)})  # fmt: skip
    features = [(f"t{t:02}", f if holds and f < 6 else 100 * t + f) for t in range(TOPICS) for f in range(10)]
    sites = [(f"blocks.{at}.hook_{kind}", (0.5 if kind == "resid_post" else 0.1) if holds else 0.3, 0.0, 0.0)
             for kind in ("resid_post", "z") for at in (7, 14, 15, 20)]  # fmt: skip
    columns = ["site", "jaccard_between_topics", "jaccard_lists_same_topic", "jaccard_lists_other_topic"]
    overlap = pd.DataFrame(sites, columns=columns).assign(metric="", features=0)
    overlap.jaccard_between_topics += 0.01 * (overlap.index % 2)
    overlap = overlap[["site", "metric", "features", *columns[1:]]]
    return {"lists": pd.DataFrame(table), "runs": pd.DataFrame(runs), "overlap": overlap,
            "features": pd.DataFrame(features, columns=["topic", "feature"])}  # fmt: skip


ABOUT = {"L15": "features", "L16": "overlap", "L18": "runs", "L19": "runs", "L20": "runs"}


@pytest.mark.parametrize("claim", artefacts.DECIDED)
def test_every_rule_can_hold_and_can_fail(claim):
    rule = artefacts.DECIDED[claim]
    for holds in (True, False):
        tables = made(holds)
        own = [tables[ABOUT.get(claim, "lists")], *([tables["lists"]] if claim == "L18" else [])]
        found = rule(*own)
        assert found.holds is holds and found.effect.n > 0 and found.effect.clusters > 0


def test_a_template_of_which_no_list_ended_keeps_nothing_of_its_promise():
    table = made(True)["lists"]
    table.loc[table.template == "plain_selection", "ended"] = 0
    found = artefacts.l1(table)
    assert not found.holds and found.effect.value == pytest.approx(1, abs=0.2)


def test_what_the_study_s_own_tables_say():
    found = {claim: rule() for claim, rule in artefacts.DECIDED.items()}
    assert {claim for claim in found if found[claim].holds} == {"L3", "L15", "L20"}
    assert set(found) == {f"L{i}" for i in (*range(1, 8), 15, 16, 18, 19, 20)}
    assert all(np.isnan(f.effect.low) or f.effect.low <= f.effect.value <= f.effect.high for f in found.values())


# --- the tables that are carried ---


def test_the_carried_tables_are_those_that_were_counted(shared):
    carried = sorted(FOLDER.glob("*.csv"))
    for file in carried:
        if file.name != "published.csv":
            assert file.read_bytes() == (shared / "companions/lists" / file.name).read_bytes()
    assert len(carried) == 10 and sum(file.stat().st_size for file in carried) < 150_000


def test_what_is_published_is_told_the_same_way_twice():
    """`published.csv` against the tables that it stands beside, and the rules' promises."""
    said = {row["what"]: row["value"] for row in rows("published")}
    for row in rows("ablation_by_sae"):
        kind, layer = row["sae"].split("_layer_")
        value = said[f"items more, ablated, {'residual' if kind == 'res' else 'attention'} {layer}"]
        digits = len(value.split(".")[1])
        assert round(float(row["published_items_mean"]), digits) == float(value)
    above = [float(row["published_items_mean"]) > 1 for row in rows("ablation_by_topic")]
    assert said["topics with more than one item more"].startswith(f"{sum(above)} of {len(above)}")
    for template, promised in artefacts.PROMISED.items():
        assert said[f"items of a {template.split('_')[0]} list"].split()[0] == str(promised)
    assert {row["kind"] for row in rows("published")} == {"text", "number", "picture"}
    largest = recount_runs.attributed(1000).query("not at_beginning").groupby("layer").first()
    assert said["attribution clean less corrupt, residual 0"] == (
        f"{largest.feature[0]} at position {largest.position[0]}: {largest.attribution[0]:.3f}"
    )
    assert said["attribution clean less corrupt, residual 20"] == f"{largest.feature[20]}: {largest.attribution[20]:.3f}"
