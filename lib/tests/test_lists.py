"""The study of lists: where things stand, what is read and edited there, and its rules on made-up tables."""

import random

import numpy as np
import pandas as pd
import pytest
import torch

from lib.dictionary.dictionaries import Dictionary
from lib.measure import metrics
from lib.measure.patching import Pair
from lib.model import encoding
from lib.model.hooks import edited
from lib.profiles.lists import Lists
from lib.studies.lists import features, inside, instead, material, places, readings, runs
from lib.studies.lists.runs import AT, RESAMPLED, Change
from lib.texts import lists

TOPICS = [f"topic {i}" for i in range(12)]


@pytest.fixture(scope="module")
def opened(tiny, smoke):
    return material.Opened(smoke, tiny)


# --- lists as text ---


def test_items_are_the_lines_that_open_with_a_hyphen():
    assert material.parsed(" cat\n- dog \n- a sea-lion\nBye") == ["cat", "dog ", "a sea-lion"]
    assert material.parsed("cat\n-\n- \n-dog") == ["cat", "", "", "dog"]


def test_a_list_of_the_corpus_is_read_as_it_was_written():
    rng = random.Random(0)
    for mode in material.MODES:
        items = lists.written(rng, mode, "animals")
        assert material.parsed(" " + "\n- ".join(items)) == items


def test_what_may_follow_an_item_is_told_by_what_tokens_say(tiny):
    ends, t = material.contrast(tiny), tiny.tokenizer
    assert ends.end == [encoding.end_id(t, "chat"), t.eos_token_id]
    assert all(t.decode([i]).strip(" ") == "" for i in ends.blank) and all("\n" in t.decode([i]) for i in ends.line)
    assert not {*ends.blank} & {*ends.line} and ends.these == ends.end + ends.blank


def test_every_position_holds_what_it_is_called(opened):
    t, items = opened.model.tokenizer, ["cat", "hamster ", "dog "]
    asked = material.request(opened.profile, t, "short", "animals")
    of = places.spelled(t, asked, items)
    for name, place in places.roles(opened.profile, t, "short", "animals", of).items():
        said = t.decode(of.ids[: place + 1])
        ends = {
            "mode word": " short", "list word": " list", "topic": "animals", "end of request": "animals.", "first item": " cat",
            "first break": "\n", "middle item": "hamster", "last break": "\n", "last hyphen": "\n-", "last item": " dog",
        }  # fmt: skip
        assert said.endswith(ends.get(name, "")), (name, said)
    whole = t.decode(of.ids)
    assert whole.endswith("- cat\n- hamster \n- dog")  # the last blank is what is asked for
    assert [t.decode([of.ids[i]]) for i in of.breaks] == ["\n", "\n"] and of.hyphens[0] == len(asked) - 1
    with pytest.raises(ValueError, match=r"change lists\.ask"):
        places.find(t, of.ids, "no such words")


def test_a_pair_keeps_the_list_and_changes_the_word(opened):
    table = material.write(opened)
    some = places.pairs(opened, table)
    assert len(some) == opened.settings.pairs and len({pair.unit for pair in some}) == len(some)  # topics by turns
    t = opened.model.tokenizer
    for pair in some:
        one, other = t.decode(pair.clean), t.decode(pair.corrupt)
        assert one.replace(" short list", " long list") == other != one
        assert pair.clean[pair.reads[0]] == pair.corrupt[pair.reads[1]]


def test_a_model_that_writes_no_list_is_refused(opened, smoke):
    own = smoke.model_copy(update={"lists": Lists(topics=["cats", "dogs", "birds", "fish"], samples=1, tokens=2)})
    with pytest.raises(ValueError, match=r'lists\.by = "corpus"'):
        material.write(material.Opened(own, opened.model))


# --- readings ---


def test_log_odds_are_of_sums_of_probabilities():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert float(metrics.log_odds(p.log(), [0, 1], [3])) == pytest.approx(np.log(0.3 / 0.4), rel=1e-5)


def test_readings_are_those_of_plain_logits(opened, plain):
    table = material.write(opened)
    found = readings.along(opened, table)
    row = found[found["mode"] != found.asked].iloc[5]
    source = table.loc[row["list"]]
    t = opened.model.tokenizer
    of = places.spelled(t, material.request(opened.profile, t, row.asked, row.topic), material.parsed(source.text))
    logits = plain(torch.tensor([of.ids])).logits[0, of.items[row["item"] - 1]].detach().double()
    p, ends = logits.softmax(-1), opened.endings
    assert row.entropy == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)
    assert row.varentropy == pytest.approx(float((p * (-p.log() - row.entropy) ** 2).sum()), rel=1e-3)
    assert row.p_end == pytest.approx(float(p[ends.end].sum()), rel=1e-3)
    assert row.stop == pytest.approx(float((p[ends.these].sum() / p[ends.line].sum()).log()), abs=1e-4)


def test_the_lens_at_the_last_layer_is_the_model(opened):
    table = material.write(opened)
    along, lens = readings.along(opened, table), readings.lens(opened, table)
    cap = opened.model.hf.config.final_logit_softcapping
    last = lens[lens.layer == lens.layer.max()].merge(along[along.asked == along["mode"]], on=["list", "item"])
    assert len(last) and cap
    assert (last.stop_x.rank() - last.stop_y.rank()).abs().max() < 0.1 * len(last)  # soft-capping bends, and hardly reorders
    assert np.corrcoef(last.stop_x, last.stop_y)[0, 1] > 0.99


def of_a_list(values: list[float], number: int = 0, topic: str = "a") -> pd.DataFrame:
    n = len(values)
    return pd.DataFrame({"list": number, "topic": topic, "item": range(1, n + 1), "from_end": range(n, 0, -1), "x": values})


def test_a_rise_and_a_jump_by_hand():
    rows = pd.concat([of_a_list([1, 2, 3, 9]), of_a_list([3, 2, 1, 1], 1, "b")])
    assert readings.rise(rows, "x", False).tolist() == [1, -1]
    assert readings.jump(rows, "x").tolist() == [7, -1]
    assert readings.over_lists(readings.jump(rows, "x")).value == 3
    assert readings.rise(of_a_list([1, 2]), "x", True).empty and readings.rise(of_a_list([1, 1, 1]), "x", True).empty


def test_the_first_layer_is_the_one_from_which_on_the_last_item_stands_out():
    grids = {"early": [0, 1, 1, 1], "late": [1, 0, 0, 1], "never": [0, 0, 0, 0]}
    rows = [
        of_a_list([0, 0, up or -1], 0, topic).assign(layer=layer)
        for topic, ups in grids.items()
        for layer, up in enumerate(ups)
    ]
    assert readings.first_layer(pd.concat(rows), "x").droplevel(0).to_dict() == {"early": 1, "late": 3, "never": 4}


# --- features and edits ---


@pytest.fixture(scope="module")
def sae(tiny):
    draw = torch.Generator().manual_seed(3)
    found = Dictionary.initialised((), tiny.d_model, 24, 1)
    return found.changed(b_enc=torch.randn(24, generator=draw) / 2)


def test_attribution_is_what_removal_costs_where_the_model_is_nearly_straight(opened, sae):
    site = opened.model.site("resid_post", 1)  # above it stand the final norm and the unembedding alone
    pairs = places.pairs(opened, material.write(opened))[:4]
    small = sae.changed(W_dec=sae.W_dec * 1e-3)
    found, sums = features.attributed(opened, pairs, {site: small})
    own = found[(found.metric == "stop") & (found.pair == 2)]
    assert set(own.position) == {pairs[2].reads[0]}  # elsewhere nothing reaches the answer from the last layer
    logits = []
    row = own.iloc[0]
    for off in (False, True):
        ids = torch.tensor([list(pairs[2].clean)])
        change = Change(at=[(0, int(row.position), int(row.feature), 0.0)] if off else [])
        with torch.no_grad(), edited(opened.model, {site: small}, change):
            logits.append(opened.model.hf(ids).logits[0, -1])
    clean, without = (metrics.log_odds(of, opened.endings.these, opened.endings.those) for of in logits)
    assert float(clean - without) == pytest.approx(row.score, rel=0.05, abs=1e-6)
    assert set(sums.metric) == set(features.METRICS) and np.isfinite(sums.error).all()


def test_an_edit_changes_the_features_that_it_names_alone():
    f = torch.ones(2, 4, 3)
    new = Change(at=[(0, -1, 2, 5.0), (1, -4, 0, 0.0)])(None, f)
    changed = {tuple(i): float(new[tuple(i)]) for i in (new != f).nonzero().tolist()}
    assert changed == {(0, 3, 2): 5.0, (1, 0, 0): 0.0}
    assert torch.equal(Change(at=[(0, -1, 2, 5.0)])(None, f[:, :1]), f[:, :1])  # a written token, not the request
    assert torch.equal(Change(everywhere=[[1], []])(None, f[:, :1])[:, 0], torch.tensor([[1.0, 0, 1], [1, 1, 1]]))


def test_positions_count_from_the_end_of_the_request():
    pair = Pair([0] * 9, [0] * 9, {"turn": (3, 3)}, (8, 8), "a")  # so the request has five tokens
    row = {"pair": 0, "topic": "a", "point": "z", "layer": 0, "metric": "stop", "feature": 7, "activation": 1.0, "score": 1.0}
    found = pd.DataFrame([row | {"position": at} for at in (0, 4, 5)])
    assert features.at_positions(found, [pair], 5).set_index("position").from_end.to_dict() == {0: 5, 4: 1}


def test_others_are_near_in_length_and_never_those_chosen():
    writes, draw = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 100]), np.random.default_rng(0)
    picked = {features.like(writes, 3, {3, 4}, draw) for _ in range(200)}
    assert picked == {1, 2, 5, 6, 7} - {7} | ({7} & picked) and not picked & {0, 3, 4}
    assert features.like(torch.tensor([0.0, 5.0]), 1, {1}, draw) == 0  # none is left: one that is not active


def test_less_likely_tokens_have_just_so_much_less(opened):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = opened.model.hf(ids).logits
        with pytest.raises(RuntimeError, match="in between"), instead.biased(opened.model, [3, 4], 2.0):
            inside_it = opened.model.hf(ids).logits
            raise RuntimeError("in between")
        after = opened.model.hf(ids).logits
    assert torch.equal(before, after)
    torch.testing.assert_close(before - inside_it, torch.zeros_like(before).index_fill(-1, torch.tensor([3, 4]), 2.0))


def test_runs_begin_after_the_request_and_are_the_same_where_nothing_is_edited(opened, sae):
    site = opened.model.site("resid_post", 0)
    none = pd.DataFrame(columns=["point", "layer", "topic", "position", "from_end", "feature"])
    chosen = runs.Chosen.of({site: sae}, none, none)
    found = runs.runs(opened, chosen)
    n = len(material.topics(opened.profile)) * opened.settings.runs
    assert found.groupby(["edit", "mode"]).size().to_dict() == {
        (RESAMPLED, "short"): n, (RESAMPLED, "long"): n, (AT, "short"): n, (runs.RANDOM, "short"): n, (runs.ADDED, "long"): n,
        (runs.EVERYWHERE, "short"): n,
    }  # fmt: skip
    asked = [material.request(opened.profile, opened.model.tokenizer, "short", topic) for topic in ("cats", "dogs")]
    plain = material.continuations(opened, asked, 1.0, 5, None)
    same = material.continuations(opened, asked, 1.0, 5, None, lambda rows: edited(opened.model, {site: sae}, Change()))
    pd.testing.assert_frame_equal(plain, same)


def test_the_price_of_nothing_is_nothing_and_a_bias_pushes_as_it_says(opened):
    pairs = places.pairs(opened, material.write(opened))[:4]
    none = instead.price(opened, pairs, lambda rows: instead.biased(opened.model, [], 0.0))
    assert none == {"push": 0.0, "kl_other": 0.0}
    pushed = instead.price(opened, pairs, lambda rows: instead.biased(opened.model, opened.endings.these, 1.5))
    assert pushed["push"] == pytest.approx(1.5, abs=1e-4)


# --- what is shared ---


def sets(features_of: dict[str, list[int]], point: str = "resid_post", layer: int = 5) -> pd.DataFrame:
    return pd.DataFrame(
        [{"point": point, "layer": layer, "topic": topic, "feature": i} for topic, of in features_of.items() for i in of]
    )


def test_overlap_by_hand():
    found = features.jaccard(sets({"a": [1, 2], "b": [2, 3], "c": [9]}))
    assert found.set_index(["topic", "other"]).jaccard.to_dict() == {("a", "b"): 1 / 3, ("a", "c"): 0, ("b", "c"): 0}
    assert inside.shared_by_topic(found).to_dict() == {"a": 1 / 6, "b": 1 / 6, "c": 0}


def test_what_topics_share_by_chance_is_no_family():
    draw = np.random.default_rng(1)
    own = {topic: draw.choice(200, 10, replace=False).tolist() for topic in TOPICS}
    e, beyond = inside.shared_by_half(sets(own))
    assert e.value <= beyond
    e, beyond = inside.shared_by_half(sets({topic: [1, 2, 3, *of[:7]] for topic, of in own.items()}))
    assert e.value == 3 > beyond


def test_a_cut_list_counts_for_as_long_as_it_was_seen():
    rows = pd.DataFrame({"items": [1, 2, 2, 4], "ended": [True, True, False, True]})
    assert readings.going_on(rows).going_on.tolist()[:5] == pytest.approx([1, 3 / 4, 1 / 2, 1 / 2, 0])
