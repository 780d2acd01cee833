"""Chapter 17's tables on a tiny model, and its maps."""

import numpy as np
import pandas as pd
import pytest

from lib.book.maps import maps
from lib.measure.patched import patched
from lib.measure.patching import DIRECTIONS, EVERY, NOISING, WHOLE, cells, runs
from lib.profiles.lists import Lists
from lib.studies.lists import inside, material, patch


@pytest.fixture(scope="module")
def opened(tiny, smoke):
    return material.Opened(smoke.model_copy(update={"lists": smoke.lists.model_copy(update={"patched": 3})}), tiny)


@pytest.fixture(scope="module")
def lists(opened):
    return material.write(opened)


@pytest.fixture(scope="module")
def by_role(opened, lists):
    return patch.by_role(opened, lists)


def test_a_patch_by_hand_is_the_patch(opened, lists):
    one = patch.pairs(opened, lists)[0]
    for part, layer, role in (("resid_pre", 0, "mode word"), ("v", 1, "mode word"), ("mlp_out", 0, "last item")):
        [cell] = cells(opened.model, [part], [layer], [role])
        found = patched(opened.model, [one], opened.endings, [cell], directions=[NOISING])
        assert patch.by_hand(opened, one, role, layer, part) == pytest.approx(found.value[0], abs=1e-4)


def test_one_pair_is_read_token_by_token(opened, lists):
    pair = patch.pairs(opened, lists)[0]
    table, of = patch.tokens(opened, pair), runs(opened.model, [pair], opened.endings)
    assert table.role.iloc[-1] == "last item" and table.role.iloc[0] == "end of request"
    assert table.clean.iloc[-1] == pytest.approx(of.clean[0], abs=1e-4)
    assert table.corrupt.iloc[-1] == pytest.approx(of.corrupt[0], abs=1e-4)


def test_tables_are_of_the_pairs_and_layers_that_the_profile_asks_for(opened, lists, by_role):
    roles = list(patch.pairs(opened, lists)[0].roles)
    assert len(by_role) == 2 * len(patch.PARTS) * len(roles) * opened.model.n_layers
    assert (by_role.n == 3).all() and len(patch.metric(opened, lists)) == opened.settings.pairs > 3
    few = opened.profile.lists.model_copy(update={"patched": 3, "patch_layers": [1]})
    one_layer = material.Opened(opened.profile.model_copy(update={"lists": few}), opened.model)
    own = patch.by_role(one_layer, lists)
    keys = ["part", "head", "role", "direction"]
    both = own.merge(by_role[by_role.layer == 1], on=keys, suffixes=("", "_all"))
    assert set(own.layer) == {1} and len(both) == len(own) and np.allclose(both.effect, both.effect_all, atol=1e-3)
    estimated = patch.estimated(one_layer, lists, own)
    assert set(estimated.layer) == set(range(opened.model.n_layers)), "gradients are had for every layer"
    n = estimated.groupby("of").n.unique()
    assert n["patched"].tolist() == [3] and n["all"].tolist() == [opened.settings.pairs]
    heads = patch.by_head(opened, lists, by_role)
    at = patch.telling(by_role)
    assert all(set(of.role) == {EVERY, at[part]} for part, of in heads.groupby("part")) and (heads["head"] != WHOLE).all()


def test_values_less_keys_and_queries_are_told_pair_by_pair(opened, lists):
    every = patch.every_role(opened, lists)
    values = patch.values(every)
    noising = every[(every.direction == NOISING) & (every.part == "v")]
    assert values.v.mean() == pytest.approx(noising.moved.sum() / noising.gap.sum())
    assert list(values) == ["pair", "unit", "k", "q", "v"] and len(values) == 3
    assert set(every.direction) == set(DIRECTIONS) and set(every.role) == {EVERY}
    inside.values({"values": values})


def test_direct_contributions_are_of_every_head_and_mlp(opened, lists):
    found, config = patch.direct(opened, lists), opened.model.hf.config
    assert len(found) == config.num_hidden_layers * (config.num_attention_heads + 1) + 2
    assert np.allclose(found.clean - found.corrupt, found.moved)


def test_how_concentrated_effects_are():
    of = pd.DataFrame({"part": "v", "direction": NOISING, "head": WHOLE, "layer": [0, 0, 1, 1, 2, 2],
                       "role": ["mode word", "end"] * 3, "effect": [0.6, 0.2, -0.1, 0.1, 0.0, 0.0001]})  # fmt: skip
    held = patch.cumulated(of)
    assert held.held.iloc[:2].tolist() == pytest.approx([0.6 / 1.0001, 0.8 / 1.0001]) and held.cells.iloc[-1] == 1
    depth = patch.by_depth(of).set_index("layer").share
    assert depth.to_dict() == pytest.approx({0: 0.75, 1: 0.5}), "a layer without effect has no share"
    assert patch.named(of, 2).cell.tolist() == ["v of layer 0", "v of layer 0"]


def test_a_profile_without_pairs_says_so(opened, lists):
    with pytest.raises(ValueError, match="no short list of three items ended"):
        patch.pairs(opened, lists[lists["mode"] == "long"])
    assert Lists().patched < Lists().pairs


def test_maps_mark_cells_that_may_be_nothing():
    table = pd.DataFrame({"part": ["a", "a", "b", "c"], "layer": [0, 1, 0, 1], "role": ["x", "y", "x", "y"],
                          "effect": [0.5, -0.2, 0.1, 0.9], "effect_low": [0.4, -0.3, -0.1, np.nan],
                          "effect_high": [0.6, -0.1, 0.3, np.nan]})  # fmt: skip
    fig = maps(table, "effect", "layer", "role", "part", "share", columns=2, ys=["x", "y"])
    heat, dots = fig.data[::2], fig.data[1::2]
    assert [list(d.x) for d in dots] == [[], [0], [1]] and [len(h.z) for h in heat] == [2, 1, 1]
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax == -0.9
    assert fig.layout.yaxis.categoryarray == ("y", "x"), "the first from the top"
