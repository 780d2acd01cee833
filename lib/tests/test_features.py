"""The study of features: AUROC by hand, the null at its stated rate, planted specialists, pooling, rules that hold and fail."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import profiles
from lib.base import saes
from lib.book import paths
from lib.book.stats import Estimate
from lib.dictionary.dictionaries import Dictionary
from lib.model import activations, models
from lib.model.encoding import batches
from lib.studies import ledger
from lib.studies.features import claims, effects, elsewhere, layers, material, pairs, scratch, specialists
from lib.studies.features import opened as opened_of
from lib.studies.features import tables as tables_of
from lib.studies.features.material import POOLINGS, Texts, pooled
from lib.studies.features.opened import Opened

KINDS, TOPICS = [f"kind{i}" for i in range(7)], [f"topic{i}" for i in range(4)]


def made_up(templates: int = 12, each: int = 2) -> Texts:
    """Texts of seven kinds in some templates each, about four topics."""
    rows = [
        (f"text {k} {m} {t}", kind, topic, f"{kind}: {m}")
        for k, kind in enumerate(KINDS) for m in range(templates) for t, topic in enumerate(TOPICS) for _ in range(each)
    ]  # fmt: skip
    text, kind, topic, template = (list(column) for column in zip(*rows, strict=True))
    chosen_on = np.array([int(one.split(": ")[1]) % 2 == 0 for one in template])
    return Texts(text, np.array(kind), np.array(topic), np.array(template), chosen_on)


@pytest.fixture(scope="module")
def texts():
    return made_up()


def noise(texts: Texts, n: int, seed: int, by_template: float = 0.0) -> np.ndarray:
    """Activations without meaning, as sparse as features are; part of them shared by a template's texts."""
    draw = np.random.default_rng(seed)
    names, index = np.unique(texts.template, return_inverse=True)
    values = draw.normal(size=(len(texts), n)) + by_template * draw.normal(size=(len(names), n))[index]
    return np.maximum(values - 0.5, 0)


# --- AUROC ---


def test_aurocs_are_those_of_all_pairs(texts):
    values, label = noise(texts, 5, 0), texts.kind == "kind2"
    found = specialists.aurocs(values, label[:, None])[:, 0]
    for i in range(5):
        pairs_of = [(a > b) + 0.5 * (a == b) for a in values[label, i] for b in values[~label, i]]
        assert found[i] == pytest.approx(np.mean(pairs_of), abs=1e-5)
        e = specialists.auroc(values[:, i], label, texts.template)
        assert e.value == pytest.approx(found[i], abs=1e-5) and e.low < e.value < e.high
        assert e.clusters == 7 * 12 and e.n == len(texts)
        weights = np.ones((1, len(texts)), np.float32)
        assert specialists.resampled_aurocs(values[:, i], label, weights)[0] == pytest.approx(found[i], abs=1e-5)


def test_the_interval_of_an_auroc_holds_the_truth():
    """Texts of 12 templates, whose activations go together: the true AUROC of two normals a standard deviation apart."""
    held, wide = 0, []
    texts, truth = made_up(), 0.7602  # Phi(1 / sqrt 2)
    label = texts.kind == "kind0"
    names, index = np.unique(texts.template, return_inverse=True)
    for seed in range(150):
        draw = np.random.default_rng(seed)
        values = 0.6 * draw.normal(size=len(texts)) + 0.8 * draw.normal(size=len(names))[index] + label
        e = specialists.auroc(values, label, texts.template)
        held += e.low <= truth <= e.high
        wide.append(e.high - e.low)
    assert held / 150 > 0.85 and np.mean(wide) < 0.4


# --- the null ---


def test_shuffled_kinds_have_no_specialists_beyond_the_stated_rate():
    """Twenty runs with kinds that mean nothing: of 140 kinds about one in twenty may pass."""
    texts, passed, found = made_up(), 0, 0
    for seed in range(20):
        values = noise(texts, 200, seed, by_template=1.0)
        table = specialists.specialists(values, texts, permutations=200, seed=seed)
        passed += int(table.passes.sum())
        share, alive = specialists.passing_share(values, texts, permutations=50, seed=seed)
        found += share
        assert alive == 200
    assert passed <= 14  # .05 of 140 is 7; more than 14 has a chance of less than .01
    assert found <= 0.02 * 20 * 200


def test_planted_specialists_are_found_on_other_templates(texts):
    values = noise(texts, 100, 3, by_template=1.0)
    for k, kind in enumerate(KINDS[:3]):
        values[:, 10 + k] += 6 * (texts.kind == kind)
    only_there = np.zeros(len(texts))
    only_there[(texts.kind == "kind5") & texts.chosen_on] = 9  # tells its kind where it was chosen, and nowhere else
    values[:, 50] = only_there
    table = specialists.specialists(values, texts, permutations=200).set_index("kind")
    assert table.feature[KINDS[:3]].tolist() == [10, 11, 12] and table.passes[KINDS[:3]].all()
    assert table.auroc[KINDS[:3]].min() > 0.99 and not table.passes[["kind3", "kind4", "kind6"]].any()
    assert table.feature["kind5"] == 50 and table.auroc_chosen["kind5"] > 0.99 and not table.passes["kind5"]


def test_without_a_living_feature_no_kind_has_a_specialist(texts):
    values = np.zeros((len(texts), 4))
    table = specialists.specialists(values, texts)
    assert not len(table) and {"kind", "feature", "passes", "auroc"} <= set(table)
    n, drawn, which = specialists.categories(table, values, texts, np.ones((3, int((~texts.chosen_on).sum())), np.float32))
    assert n == 0 and drawn.tolist() == [0] * 3 and set(which) == set(KINDS)
    assert specialists.passing_share(values, texts) == (0, 0)
    assert list(specialists.specialists(noise(texts, 4, 0), texts, permutations=20)) == list(specialists.COLUMNS)


# --- pooling ---


@pytest.fixture(scope="module")
def held(tiny):
    said = ["A 12 + 3", "Tom has 5.\nThen 7", "x", "Room 250 and 3 more rooms"]
    return said, activations.collect(tiny, [tiny.site("resid_post", 0)], batches(tiny.tokenizer, said, 3))


def test_pooling_by_hand(tiny, held):
    said, found = held
    sae = Dictionary.initialised((), 32, 20, 3).changed(b_enc=torch.full((20,), -0.3))
    got = pooled(sae, found, 0, len(said))
    for i, text in enumerate(said):
        ids = tiny.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            x = tiny.hf(ids, output_hidden_states=True).hidden_states[1][0, 1:]  # <bos> left out
            f = torch.relu(x @ sae.W_enc + sae.b_enc)
            of_mean = torch.relu(x.mean(0) @ sae.W_enc + sae.b_enc)
        by_hand = {
            "encode, then mean": f.mean(0),
            "encode, then max": f.amax(0),
            "mean, then encode": of_mean,
            "last token": f[-1],
        }
        assert list(by_hand) == list(POOLINGS)
        for name, values in by_hand.items():
            np.testing.assert_allclose(got[name][i], values.numpy(), rtol=1e-3, atol=1e-4)


def test_encoding_the_mean_makes_the_published_artefact(tiny):
    """A feature that fires at one token of a text: encoded first, it is seen; of the mean of the text nothing is left."""
    d, n = 32, 6
    x = 0.1 * torch.randn(1, n * 20, d, generator=torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize(torch.ones(d), dim=0)
    x[0, 3::20] += 4 * direction  # one of twenty tokens of each text
    planted = activations.Activations(x, x, torch.arange(n).repeat_interleave(20))
    sae = Dictionary.initialised((), d, 8, 0)
    W_enc, b_enc = 0.01 * sae.W_enc.detach(), torch.full((8,), -1.0)
    W_enc[:, 5] = direction
    got = pooled(sae.changed(W_enc=W_enc, b_enc=b_enc), planted, 0, n)
    assert (got["encode, then max"][:, 5] > 2.5).all() and (got["encode, then mean"][:, 5] > 0.1).all()
    assert (got["mean, then encode"] == 0).all() and (got["last token"] == 0).all()


def test_masks_are_the_two_by_two(tiny):
    batch = batches(tiny.tokenizer, ["A 12 + 3 and more", "x"], 2)[0]
    n, length = batch.attention.sum(1), batch.ids.shape[1]
    counts = {cell: where(tiny.tokenizer, batch).sum(1).tolist() for cell, where in material.MASKS.items()}
    assert counts["out", "out"] == (n - 1).tolist() and counts["out", "in"] == n.tolist()
    assert counts["in", "out"] == [length - 1] * 2 and counts["in", "in"] == [length] * 2


# --- depth ---


def test_trends_leaders_and_late_kinds_by_hand():
    rising = layers.Drawn(np.array([1.0, 2, 4]), np.array([[1.0, 3], [2, 2], [4, 1]]))
    value, drawn = layers.over_depth(rising)
    assert value == 1 and drawn.tolist() == [1, -1]
    assert layers.over_depth(layers.Drawn(np.array([2.0, 2]), np.array([[2.0], [2]])))[0] == 0
    passed = [
        {"social": np.array([False]), "conversation": np.array([False]), "python": np.array([True]), "url": np.array([False])},
        {"social": np.array([True]), "conversation": np.array([False]), "python": np.array([True]), "url": np.array([True])},
    ]
    assert layers._late_first(passed)[0] == (1 + 2) / 2 - (0 + 1) / 2  # one that never comes counts as after the last
    clear = np.array([[[2.0], [1]], [[1], [2]], [[1], [3]]])  # (layer, kind, resample)
    assert layers._leader_changes(clear) == 0
    assert layers._leader_changes(np.array([[[2.0], [1]], [[3], [2]], [[1], [3]]])) == 1


@pytest.fixture(scope="module")
def opened(tiny):
    """Texts of the study, and SAEs of three sites, the one between active nowhere."""
    profile = profiles.load("smoke", "features")
    profile = profile.model_copy(update={"features": profile.features.model_copy(update={"sites": {"resid_post": [0, 1, 2]}})})
    own = [replace(tiny.site("resid_post", 0), layer=layer) for layer in range(3)]
    living = Dictionary.initialised((), 32, 20, 3)
    dead = living.changed(b_enc=torch.full((20,), -1e6))
    texts = material.texts(profile, tiny)
    held = activations.collect(tiny, own, texts.batches(tiny, 64))
    return Opened(profile, tiny, dict(zip(own, (living, dead, living), strict=True)), texts, held)


def test_a_layer_without_a_living_feature_is_left_out(opened, monkeypatch):
    monkeypatch.setattr(opened_of, "compared", lambda profile, model: opened.order)
    assert [site.layer for site in opened.compared] == [0, 2] and opened.middle.layer == 2
    found = tables_of.layers(opened)
    assert set(found.by_layer.layer) == set(found.specialists.layer) == {0, 2} and found.trends.trend.notna().all()
    for make in (tables_of.general, tables_of.sites, tables_of.forms, tables_of.probes, tables_of.padding):
        assert set(make(opened).layer.dropna()) == {0, 2}, make
    assert set(tables_of.followed(opened).next_layer) == {2}


def test_nothing_can_be_compared_where_no_layer_lives(opened, monkeypatch):
    dead = opened.saes[opened.order[1]]
    other = Opened(opened.profile, opened.model, dict.fromkeys(opened.order, dead), opened.texts, opened.held)
    monkeypatch.setattr(opened_of, "compared", lambda profile, model: opened.order)
    with pytest.raises(ValueError, match="no feature of any layer is active in any of the texts"):
        other.compared  # noqa: B018


def test_depth_counts_nothing_where_nothing_is_active(opened):
    """Encoded after the mean a living SAE may be silent: that is a count of 0, and no kind leads there."""
    found = layers.depth(opened.order, opened.saes, opened.held, opened.order, opened.texts)
    silent = found.by_layer[found.by_layer.layer == 1]
    assert len(silent) == len(POOLINGS) and (silent[["categories", "coverage", "peak"]] == 0).all(axis=None)
    assert not (found.specialists.layer == 1).any() and found.trends.trend.notna().all()
    assert layers._leader_changes(np.array([[[2.0], [1]], [[0], [0]]])) == 0  # nothing leads in the last layer


# --- form and meaning ---


def test_variance_is_split_by_hand(texts):
    k = np.array([KINDS.index(kind) for kind in texts.kind], float)
    t = np.array([TOPICS.index(topic) for topic in texts.topic], float)
    found = pairs.variance_shares(np.stack([k, t, k + t, k * t], 1), texts)
    assert found.form[0] == pytest.approx(1) and found.meaning[1] == pytest.approx(1)
    assert found.form[2] + found.meaning[2] == pytest.approx(1) and found.both[2] == pytest.approx(0, abs=1e-9)
    assert found.both[3] > 0.05 and (found[["form", "meaning", "both"]].sum(axis=1) <= 1 + 1e-9).all()


def test_cosines_tell_codes_of_form_from_codes_of_meaning(texts):
    draw = np.random.default_rng(0)
    by_kind = np.stack([np.eye(7)[KINDS.index(kind)] for kind in texts.kind])
    by_topic = np.stack([np.eye(4)[TOPICS.index(topic)] for topic in texts.topic])
    for values, sign in ((by_kind, -1), (by_topic, 1)):
        e, same_topic, same_kind = pairs.cosines_over_templates(values + 0.1 * draw.random(values.shape), texts)
        assert e.value == pytest.approx(same_topic - same_kind) and sign * e.value > 0.5
        assert e.low < e.value < e.high and (e.low > 0 or e.high < 0)


def test_minimal_pairs_differ_in_the_form_alone():
    for kind, (what, texts) in pairs.PAIRS.items():
        assert what and len(texts) >= 30 and len(set(texts)) == len(texts)
        assert all(any(noun in " ".join(pair) for noun in pairs.NOUNS) for pair in texts), kind
    assert not any(c.isdigit() or c in "+-*/=<>^" for text in pairs.WORDS_ONLY for c in text)


# --- probes and effects ---


def test_a_probe_adds_up_what_no_feature_has_alone(texts):
    draw = np.random.default_rng(1)
    label = texts.kind == "kind1"
    hints = np.maximum(draw.normal(size=(len(texts), 10)) + 0.8 * label[:, None], 0)
    values = np.concatenate([noise(texts, 40, 5), hints], 1)
    both, single = effects.probe(values, texts, "kind1")
    assert both > single + 0.05 > 0.6
    plain, _ = effects.probe(noise(texts, 40, 6), texts, "kind1")
    assert abs(plain - 0.5) < 0.15


def test_effects_are_those_of_the_edited_model(tiny):
    said = [f"Tom has {n} and {m}" for n in range(4) for m in range(3)]
    texts = Texts(
        said, np.array(["a"] * 12), np.array(["t"] * 12), np.array([f"a: {i % 4}" for i in range(12)]), np.zeros(12, bool)
    )
    site = tiny.site("resid_post", 0)
    sae = Dictionary.initialised((), 32, 30, 3).changed(W_dec=3 * Dictionary.initialised((), 32, 30, 3).W_dec.detach())
    table = effects.effects(tiny, site, sae, "a", [4, 7], texts, 5)
    for row in table.itertuples():
        nats, changed, tokens = 0.0, 0.0, 0
        for text in said:
            ids = tiny.tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                plain = tiny.hf(ids).logits[0].log_softmax(-1)
                x = tiny.hf(ids, output_hidden_states=True).hidden_states[1][0]
                f = torch.relu(x @ sae.W_enc + sae.b_enc)[:, row.feature]
                f[0] = 0
                take = (f[:, None] * sae.W_dec[row.feature])[None]
                with tiny.hooks([(site.write, lambda tensor, hook, take=take: tensor - take)]):
                    edited = tiny.hf(ids).logits[0].log_softmax(-1)
            for at in range(ids.shape[1] - 1):
                nats -= float(plain[at, ids[0, at + 1]])
                changed -= float(edited[at, ids[0, at + 1]])
                tokens += 1
        assert row.ce == pytest.approx((changed - nats) / tokens, abs=2e-4) and row.n_tokens == tokens
    off = effects.effects(tiny, site, sae, "a", [4], texts, 5, factor=1.0)
    assert off.ce[0] == 0 and off.flips[0] == 0 and off.over_random[0] == 0  # nothing edited changes nothing


# --- chapter 11 ---


def test_a_penalty_between_those_tried_gives_the_l0_between():
    assert scratch.penalty_for(10, [1, 4], [20, 5]) == pytest.approx(2)
    assert scratch.penalty_for(100, [1, 4], [20, 5]) == 1


def test_folded_is_the_sae_on_unscaled_vectors():
    draw = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(8, 20, generator=draw), torch.randn(20, 8, generator=draw)
    b_enc, b_dec, x = (torch.randn(n, generator=draw) for n in (20, 8, 8))
    scale = 0.3
    want = (torch.relu((x * scale - b_dec) @ W_enc + b_enc) @ W_dec + b_dec) / scale
    torch.testing.assert_close(scratch.folded(W_enc, b_enc, W_dec, b_dec, scale)(x[None])[0], want, rtol=1e-4, atol=1e-4)


def test_sae_lens_trains_and_reads_back_as_ours():
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    (loose, tight), seconds = scratch.by_sae_lens(x * 0.5, 16, [0.01, 20.0], 60, 64, 1e-2, 0.5)
    assert seconds > 0
    l0 = [(sae.encode(x) > 0).sum(-1).float().mean() for sae in (loose, tight)]
    assert l0[0] > l0[1]
    assert (loose(x) - x).square().sum() < 0.6 * (x - x.mean(0)).square().sum()


# --- the ledger ---


def tables(holds: bool) -> dict[str, pd.DataFrame]:
    """Tables in which every claim of the study is true, or none is."""
    draw, sign = np.random.default_rng(0), 1 if holds else -1

    def with_interval(name, value, half=0.02):
        return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}

    at_layers = range(4)
    trend = {"categories": 0.9, "coverage": -0.9, "peak": 0.9, "peak_over_norm": 0.9, "late_first": 2.0}
    trends = [
        {"pooling": pooling, "figure": figure, **with_interval("trend", sign * value), "n": 700, "n_templates": 80}
        for pooling in POOLINGS for figure, value in trend.items()
    ]  # fmt: skip
    trends += [{"pooling": pooling, "figure": "leader_changes", "trend": 0.99 if holds else 0.2} for pooling in POOLINGS]
    kinds = list(material.kinds.KINDS)
    return {
        "hooks": pd.DataFrame([
            {"hook": "right hook", **with_interval("share_active", 0.005 if holds else 0.02, 0.001), "n": 700},
            {"hook": "mismatched hook", **with_interval("share_active", 0.12 if holds else 0.03, 0.01), "n": 700},
        ]),
        "general": pd.DataFrame({"layer": at_layers, "in_half_of_kinds": 0.7 * (1 if holds else 0.3) + 0.01 * draw.random(4),
                                 "share_passing": (0.002 if holds else 0.2) + 0.0001 * draw.random(4)}),
        "masks": pd.DataFrame([{"effect": "padding", **with_interval("categories", 3 * sign, 0.5)},
                               {"effect": "first", **with_interval("categories", 0.5, 0.3)}]).assign(n=700, n_templates=80),
        "trends": pd.DataFrame(trends),
        "pairs": pd.DataFrame([{"kind": kind, **with_interval("difference", 0.5 * sign), "n": 48, "n_nouns": 8}
                               for kind in ("maths", "python", "conversation")]),
        "words": pd.DataFrame([{"auroc": 0.52 if holds else 0.8}]),
        "forms": pd.DataFrame(
            [{"measured": "variance", "form": 0.6 + 0.01 * i if holds else 0.1, "meaning": 0.1 if holds else 0.3 + 0.01 * i}
             for i in range(5)]
            + [{"measured": "cosine", **with_interval("difference", 0.2 * sign), "n": 700, "n_templates": 80}]),
        "ranking": pd.DataFrame({"kind": kinds, "count": 0.6, "composite": 0.6 + 0.1 * sign + 0.01 * draw.random(7)}),
        "sites": pd.DataFrame([{"kind": kind, "layer": layer, "point": point,
                                "auroc": 0.8 + 0.1 * sign * (point == "mlp_out") + 0.01 * draw.random()}
                               for kind in kinds for layer in (1, 3) for point in ("resid_post", "mlp_out")]),
        "probes": pd.DataFrame([{"layer": layer, "kind": kind, "single": 0.8, "probe": (0.95 if holds else 0.8) + 0.005 * layer}
                                for layer in at_layers for kind in kinds]),
        "effects": pd.DataFrame([{"kind": kind, "specialist": i == 0, "auroc": 0.9 - 0.1 * i,
                                  "ce": (0.1 * i if holds else -0.1 * i) + 0.001 * k, "over_random": 0.1 * sign + 0.01 * k,
                                  "flips": 0.02 if holds else 0.3} for k, kind in enumerate(kinds) for i in range(6)]),
    }  # fmt: skip


def test_every_rule_can_hold_and_can_fail():
    for holds, verdict in ((True, ledger.REPRODUCED), (False, ledger.REFUTED)):
        found = claims.ledger(tables(holds)).set_index("id")
        assert found.index.tolist() == [f"F{i}" for i in range(1, 19)] and (found.study == "features").all()
        assert (found.holds == holds).all(), found[found.holds != holds].index.tolist()
        assert (found.verdict == verdict).all() and found.effect.notna().all()


def test_a_claim_without_its_table_or_without_room_is_not_testable():
    made = tables(True)
    left = claims.ledger({name: table for name, table in made.items() if name != "masks"}).set_index("id")
    assert left.verdict["F4"] == ledger.UNTESTABLE and (left.drop("F4").verdict == ledger.REPRODUCED).all()
    full = made | {"probes": made["probes"].assign(single=0.99, probe=0.995)}
    assert claims.ledger(full).set_index("id").verdict["F16"] == ledger.UNTESTABLE  # a ceiling refutes nothing
    residual = made["sites"][made["sites"].point == "resid_post"]
    assert claims.ledger(made | {"sites": residual}).set_index("id").verdict["F15"] == ledger.UNTESTABLE


def test_what_the_study_has_left_decides_five_claims():
    found = claims.ledger(tables(True)).set_index("id").holds_on_artefacts
    assert found.dropna().to_dict() == {"F4": True, "F5": False, "F6": True, "F7": True, "F10": True}


def test_the_published_tables_are_those_of_the_study(shared):
    folder = shared / "companions" / "features"
    for name in ("layers", "specialists", "strongest_five"):
        theirs = pd.read_csv(folder / f"{name}.csv").drop(columns="its_text", errors="ignore")
        pd.testing.assert_frame_equal(claims.published(name), theirs)


def test_the_published_tables_contradict_one_another(shared):
    """Recomputed from its tokens and scores: README against notebook, and what its own maths feature fires on."""
    folder = shared / "companions" / "features"
    scores = pd.read_csv(folder / "specialists.csv").pivot_table(
        index=["layer", "category"], columns="measured", values="score", dropna=False
    )
    readme = scores[next(name for name in scores if "README" in name)].fillna(0)
    notebook = scores[next(name for name in scores if "phase 3, after" in name)].fillna(0)
    both = pd.concat([readme, notebook], axis=1).fillna(0)
    both = both[both.index.get_level_values("layer").isin([6, 8, 10, 11])]
    assert len(both) == 28 and int((both.iloc[:, 0] != both.iloc[:, 1]).sum()) == 13
    tokens = pd.read_csv(folder / "tokens_layer_11.csv", keep_default_na=False)
    tokens = tokens[tokens.position > 0]
    maths = tokens[tokens.specialist_for == "Math"]
    by_text = maths.groupby(["category", "text"]).activation.max() > 5
    inside = by_text.index.get_level_values("category") == "Math"
    assert (by_text[inside].sum(), by_text[~inside].sum()) == (10, 7)  # a specialist by its maker's count, and in 7 other texts
    table = claims.published("tokens_layer_11_by_sort").query("specialist_for == 'Math'")
    assert table.n.sum() == len(maths) and table.maximum.max() == pytest.approx(maths.activation.max(), abs=1e-3)


# --- profiles ---


def test_a_table_without_saes_is_refused(tmp_path):
    smoke = (profiles.FOLDER / "smoke.toml").read_text()
    (tmp_path / "mine.toml").write_text(
        smoke.replace("[features.training]\nlr = 2e-3\nbatch = 128\nsteps = 10\ncheck_every = 5", "")
    )
    with pytest.raises(profiles.ProfileError, match=r"no features\.releases\.resid_post to take SAEs from"):
        profiles.load(str(tmp_path / "mine.toml"))


def test_one_study_s_settings_are_not_another_s():
    p, other = profiles.load("smoke", "tool"), profiles.load("smoke", "features")
    assert p.features is None and p.tool and other.tool is None and other.features
    with pytest.raises(ValueError, match=r"has no table \[features\]"):
        saes.features(p)


# --- the same texts, another model ---


def test_a_correlation_over_texts_is_that_of_numpy_with_an_interval_over_templates(texts):
    draw = np.random.default_rng(0)
    x = draw.normal(size=len(texts))
    y, which = x + draw.normal(size=len(texts)), np.ones(len(texts), dtype=bool)
    e = elsewhere.correlated(x, y, texts, which)
    assert e.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5) and e.low < e.value < e.high
    assert (e.n, e.clusters) == (len(texts), 7 * 12)
    own = texts.kind == "kind3"
    e = elsewhere.correlated(x[own], y[own], texts, own)
    assert e.value == pytest.approx(np.corrcoef(x[own], y[own])[0, 1], abs=1e-5) and e.clusters == 12
    assert np.isnan(elsewhere.correlated(x, np.full(len(x), 0.3), texts, which).value)


def test_specialists_beside_those_of_another_profile(opened, monkeypatch, tmp_path):
    monkeypatch.setattr(opened_of, "compared", lambda profile, model: opened.order)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    chosen = tables_of.of_middle(opened)
    own = elsewhere.by_text(opened, chosen)
    assert own.text.is_unique and list(own)[1:] == list(chosen) and own[list(chosen)].max().max() == 1
    assert elsewhere.elsewhere(opened, chosen, tmp_path).empty, "there is no other yet"
    for name, table in {opened.profile.name: own, "alike": own, "unread": own.assign(text="another"), "half": own[::2]}.items():
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / elsewhere.FILE, index=False)
    draw = np.random.default_rng(0)
    mixed = own.assign(**{kind: draw.permutation(own[kind]) for kind in chosen})
    (tmp_path / "mixed").mkdir()
    mixed.to_csv(tmp_path / "mixed" / elsewhere.FILE, index=False)
    found = elsewhere.elsewhere(opened, chosen, tmp_path)
    assert set(found.model) == {"alike", "half", "mixed"} and list(found) == list(elsewhere.COLUMNS)
    assert set(elsewhere.reads(opened.profile, tmp_path)) == {
        tmp_path / name / elsewhere.FILE for name in ("alike", "half", "mixed", "unread")
    }
    by = {name: rows.set_index("kind") for name, rows in found.groupby("model")}
    here = specialists.specialists(opened.values(opened.middle), opened.texts).set_index("kind")
    assert np.allclose(by["alike"].correlation, 1, atol=1e-3)
    assert np.allclose(by["alike"].auroc, here.auroc[by["alike"].index], atol=0.01)
    assert (by["half"].n < by["alike"].n).all() and np.allclose(by["half"].correlation, 1, atol=1e-3)
    assert by["mixed"].correlation.abs().max() < 0.5 and by["mixed"].within.abs().max() < 0.9
    assert not found.finetuned.any() and found.same_feature.isna().all()


def test_specialists_in_finetuned_models_of_the_profile(opened, folder, monkeypatch, tmp_path):
    """A model that is the same has the same specialists; one whose embeddings are in another order has not."""
    monkeypatch.setattr(opened_of, "compared", lambda profile, model: opened.order)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    data, chosen = opened.profile.paths.data, tables_of.of_middle(opened)
    hf, tokenizer = models.load_hf(folder, "float32")
    for place in (data / "finetuned", data / "seeds/3/finetuned"):
        hf.save_pretrained(place)
        tokenizer.save_pretrained(place)
        weight = hf.get_input_embeddings().weight
        with torch.no_grad():
            weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])
    (data / "seeds/4/finetuned").mkdir(parents=True)  # begun, with no model in it
    found = elsewhere.elsewhere(opened, chosen, tmp_path)
    same, other = (found[found.model == f"finetuned, seed {seed}"] for seed in (opened.profile.seed, 3))
    assert len(found) == 2 * len(chosen) == len(same) + len(other) and found.finetuned.all()
    assert np.allclose(same.correlation, 1, atol=1e-4) and same.same_feature.all()
    assert other.correlation.max() < 0.999 and not other.same_feature.all()


# --- the ledger of a study, from its tables on disk ---


def test_a_ledger_is_made_of_the_tables_that_are_there_and_again_when_one_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    profile = profiles.load("smoke", "features")
    profile.paths.results.mkdir(parents=True)
    a, b = (profile.paths.results / f"made_up_{name}.csv" for name in "ab")

    def effect(tables):
        value = tables["a"].x.mean()
        return ledger.Finding(Estimate(value, value - 1, value + 1, 3, 3), value > 2, "rows")

    rules = [ledger.Rule(f"M{name}", "<b>it grows</b>", "2", "above 2", effect, (name,)) for name in "ab"]

    def of() -> pd.DataFrame:
        judge = functools.partial(ledger.judged, "made up", rules)
        return ledger.of_study(profile, "made_up", ("a", "b"), judge, redraw=False).set_index("id")

    pd.DataFrame({"x": [2.0, 4, 6]}).to_csv(a, index=False)
    assert of().verdict.to_dict() == {"Ma": ledger.REPRODUCED, "Mb": ledger.UNTESTABLE}
    pd.DataFrame({"x": [1.0]}).to_csv(a, index=False)
    pd.DataFrame({"x": [1.0]}).to_csv(b, index=False)
    found = of()
    assert (found.verdict == ledger.REFUTED).all()
    page = ledger.shown(found.reset_index()).to_html()
    assert "1.000 [0.000, 2.000]" in page and "3 rows" in page and "<b>" not in page and "study</th>" not in page
    two = pd.concat([found, found.assign(study="another")]).reset_index()
    assert "another" in ledger.shown(two).to_html()
