"""The study of vehicles: SAEs as sae-lens saves them, edits by hand, and its rules on made-up tables."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from lib.dictionary import variants
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.sae_lens import load_sae_lens
from lib.dictionary.variants import HELD, KINDS, Variant
from lib.measure import metrics
from lib.model import encoding
from lib.model.encoding import asked
from lib.model.hooks import replaced
from lib.studies import ledger
from lib.studies.transport import claims, effects, material, saes, steer, words
from lib.studies.transport.trials import ACTIVATE, LARGEST, OTHER, RANDOM, RAW, SUPPRESS, THROUGH
from lib.texts.prompts import Prompt
from lib.texts.vehicles import VEHICLES

D = 16


def data(n: int, seed: int = 0) -> torch.Tensor:
    """Sums of a few directions out of forty."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(40, D, generator=torch.Generator().manual_seed(9)), dim=-1)
    active = (torch.rand(n, 40, generator=draw) < 0.08) * (1 + torch.rand(n, 40, generator=draw))
    return active @ rows


@pytest.fixture(scope="module", params=[(kind, tied) for kind in KINDS for tied in (False, True)], ids=str)
def trained(request):
    kind, tied = request.param
    x = data(4000)
    scale = float(D**0.5 / x.norm(dim=-1).mean())
    some = [Variant(kind, l0, tied, 4.0) for l0 in (4.0, 6.0)]
    return some, variants.train(x * scale, some, scale, 250, 256, 5e-3, (10, 250)), scale


def test_what_sae_lens_saved_is_ours_as_it_is_theirs(trained, tmp_path):
    from sae_lens import SAE

    _, found, _ = trained
    variants.save(found[0].sae, tmp_path)
    theirs, ours, x = SAE.load_from_disk(tmp_path), load_sae_lens(tmp_path, D), data(200, 1)
    with torch.no_grad():
        f = theirs.encode(x)
        # theirs may leave the length of decoder rows in the activations
        assert torch.equal(f > 0, ours.encode(x) > 0)
        torch.testing.assert_close(ours(x), theirs.decode(f), atol=1e-5, rtol=1e-5)
        if not theirs.cfg.to_dict().get("rescale_acts_by_decoder_norm"):
            torch.testing.assert_close(ours.encode(x), f, atol=1e-5, rtol=1e-5)


def test_l0_is_held_within_five_percent(trained):
    some, found, _ = trained
    for variant, one in zip(some, found, strict=True):
        assert np.mean(one.history[-40:, 2]) == pytest.approx(variant.l0, rel=0.05)
    assert set(HELD) < set(KINDS)


def test_in_use_l0_is_the_aim_too(trained):
    """On other tokens within 5%, and within 10% after these few steps where a penalty alone holds it; where thresholds were set
    at the end, on the training's own tokens as it was asked for."""
    some, found, _ = trained
    for variant, one in zip(some, found, strict=True):
        sae = variants.from_sae_lens(variants.for_use(one.sae), "")
        own, other = (float((sae.encode(x) > 0).sum(1).float().mean()) for x in (data(4000), data(4000, 1)))
        assert other == pytest.approx(variant.l0, rel=0.1 if variant.kind in ("ReLU", "Gated") else 0.05)
        if variant.kind == "JumpReLU":
            assert own == pytest.approx(variant.l0, rel=0.001)


def test_tied_weights_are_one_matrix_and_two_otherwise(trained):
    some, found, scale = trained
    for variant, one in zip(some, found, strict=True):
        state = one.sae.state_dict()
        same = torch.allclose(state["W_enc"] / scale, state["W_dec"].T * scale, atol=1e-6)
        assert same == variant.tied


def test_a_snapshot_is_what_the_sae_was_then(trained):
    _, found, scale = trained
    x = data(100, 2)
    ours = variants.unscaled(found[0].snapshots[250], scale)
    last = variants.from_sae_lens(variants.for_use(found[0].sae), "")
    with torch.no_grad():  # one step of the optimizer lies between them
        assert float((ours(x) - last(x)).norm() / last(x).norm()) < 0.1
        first = variants.unscaled(found[0].snapshots[10], scale)
        assert float((first(x) - x).norm()) > float((ours(x) - x).norm())


def test_those_that_learn_from_fewer_tokens_see_those_alone():
    x = torch.cat([data(300), 50 + data(300)])
    [few] = variants.train(x, [Variant("TopK", 4.0, tokens=300)], 1.0, 60, 128, 5e-3)
    [all_of_it] = variants.train(x, [Variant("TopK", 4.0)], 1.0, 60, 128, 5e-3)
    assert few.history[0, 0] < all_of_it.history[0, 0] / 10


def test_the_first_step_to_twice_the_end_by_hand():
    assert saes.to_twice(np.array([8.0, 4, 2, 1, 1, 1]), 1) == 3
    assert saes.to_twice(np.array([1.0, 1, 1]), 2) == 2


# --- words ---


def test_a_word_is_found_at_its_own_tokens(tiny):
    texts = ["There is a car here", "An ambulance"]
    batch, where = material.at_word(tiny, texts, ["car", "ambulance"])
    for row, word in enumerate(("car", "ambulance")):
        said = tiny.tokenizer.decode(batch.ids[row][where[row]]).strip()
        assert word in said and len(said) <= len(word) + 2


def test_the_published_sentences_come_before_ours(shared):
    file = shared / "companions/transport/sentences.json"
    table = material.sentences(list(VEHICLES), str(file))
    theirs = table[table.template >= len(material.SENTENCES)]
    given = [one for one in json.loads(file.read_text()) if one["vehicle"].lower() in VEHICLES]
    assert theirs.text.tolist() == [one["sentence"] for one in given] and len(given) > 100
    assert theirs.groupby("name").template.nunique().eq(10).all()
    assert len(table) == len(given) + len(VEHICLES) * len(material.SENTENCES)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "no list"), ('[{"vehicle": "car"}]', "number 0"), ('[{"vehicle": "car", "sentence": "x"}]', "does not hold")],
)
def test_a_file_of_sentences_that_is_none_is_refused_in_one_line(tmp_path, text, said):
    file = tmp_path / "sentences.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        material.sentences(["car"], str(file))
    assert "\n" not in str(error.value)


def test_counts_read_as_indices_edit_the_same_few_latents():
    """A hand example: latent 7 was counted five times, latent 2 twice, all others never."""
    counted = torch.zeros(10)
    counted[7], counted[2] = 5, 2
    own = words.taken_as_indices(counted)
    assert own.tolist() == [0, 2, 5], "not 7 and 2, whose counts they are"
    other = torch.tensor([0, 1])
    v, f = steer.as_published(own, other, 10), torch.arange(10.0)
    new = f.clone()
    new[other] = 0
    new /= 2
    new[own] += 1
    assert steer.first_published(f, v).tolist() == new.tolist() == [1, 0, 2, 1.5, 2, 3.5, 3, 3.5, 4, 4.5]


def test_largest_entries_by_hand():
    assert words.largest(torch.tensor([1.0, 5, 3]), 2).tolist() == [0, 5, 3]


def test_the_leading_feature_of_a_word_is_found_and_told(tiny):
    """A dictionary that was made of the very vectors at two words."""
    site = tiny.site("resid_post", 0)
    known = words.Words.of(tiny, site, material.sentences(["car", "yacht"]))
    means = torch.stack(list(known.by_name(known.vectors).values()))
    rows = torch.nn.functional.normalize(means - means.mean(0), dim=-1)
    sae = Dictionary(rows.T.clone(), -(means.mean(0) @ rows.T), torch.zeros(2), rows, means.mean(0))
    own = words.own(known, sae).set_index("name")
    assert own.leading.tolist() == [0, 1] and own.alone.all()


# --- edits ---


@pytest.fixture
def opened(tiny):
    site = tiny.site("resid_post", 0)
    t = Dictionary.initialised((), tiny.d_model, 24, 3)
    return tiny, site, t.changed(W_dec=4 * t.W_dec.detach())


def test_with_the_error_kept_an_edit_of_nothing_changes_nothing(opened):
    model, site, sae = opened
    batch = encoding.encode(model.tokenizer, ["Room 12 is 3", "Which"])
    plain = model.hf(input_ids=batch.ids, attention_mask=batch.attention).logits
    for change in (steer.unchanged, steer.activated, steer.suppressed):
        edit = steer.Edited(sae, steer.Acting(torch.zeros(2, 24)), change)
        with replaced(model, {site: edit}):
            assert torch.equal(model.hf(input_ids=batch.ids, attention_mask=batch.attention).logits, plain)
    dropped = steer.Edited(sae, steer.Acting(torch.zeros(2, 24)), steer.unchanged, keep_error=False)
    with replaced(model, {site: dropped}):
        assert not torch.equal(model.hf(input_ids=batch.ids, attention_mask=batch.attention).logits, plain)


def test_where_an_edit_acts_by_hand(opened):
    model, _, sae = opened
    batch = encoding.encode(model.tokenizer, [Prompt("ab", "c", "negative"), Prompt("a", "c", "negative")])
    q = [len(asked(model.tokenizer, text)) for text in ("ab", "a")]
    n = batch.attention.sum(1).tolist()
    width = batch.ids.shape[1]
    wanted = {
        "all": [[i < n[r] for i in range(width)] for r in range(2)],
        "prompt": [[i < q[r] for i in range(width)] for r in range(2)],
        "last": [[q[r] - 1 <= i < n[r] for i in range(width)] for r in range(2)],
    }
    for where, rows in wanted.items():
        mask = steer.mask_of(batch, where)
        assert mask.tolist() == rows
        x, v = torch.randn(2, width, model.d_model), torch.rand(2, 24)
        edit = steer.Edited(sae, steer.Acting(v, mask), steer.activated, 2.0, where=where)
        y = edit(x)
        moved = (2 * v) @ sae.W_dec
        torch.testing.assert_close(y, torch.where(mask[..., None], x + moved[:, None], x))


def test_what_is_written_is_written_without_a_cache_too(opened):
    model, site, sae = opened
    questions, tables = ["Room 1", "Which is it?", "A"], [torch.rand(24) * (i + 1) for i in range(3)]
    edit = steer.Edited(sae, steer.Acting(), steer.activated, 2.0)
    both = [
        steer.written(model, site, questions, tables, edit, 6, use_cache=use_cache, form="training")
        for use_cache in (True, False)
    ]
    assert both[0] == both[1]
    alone = [steer.written(model, site, [q], [v], edit, 6, form="training")[0] for q, v in zip(questions, tables, strict=True)]
    assert alone == both[0], "each text has the edit of its own table"
    assert both[0] != steer.written(model, site, questions, tables, None, 6, form="training")


def test_both_answers_are_those_with_and_without_the_edit(opened):
    model, site, sae = opened
    v = torch.rand(24)
    for dose, change in ((3.0, steer.activated), (-3.0, steer.suppressed)):
        plain, edited = steer.both(model, site, sae, v, dose, "all", "Room 1", 6)
        edit = steer.Edited(sae, steer.Acting(), change, 3.0)
        assert plain == steer.written(model, site, ["Room 1"], [v], None, 6)[0]
        assert edited == steer.written(model, site, ["Room 1"], [v], edit, 6)[0]


def test_the_names_are_as_probable_as_plain_logits_say(opened):
    model, site, _ = opened
    table = pd.DataFrame([{"one": "car", "two": "tram", "question": "Which is bigger, a car or a tram?"}])
    found = steer.named(model, site, table, [steer.Trial(RAW)])
    nats = []
    for name in ("car", "tram"):
        q = asked(model.tokenizer, table.question[0], "chat")
        a = [
            *model.tokenizer(material.reply(name), add_special_tokens=False).input_ids,
            encoding.end_id(model.tokenizer, "chat"),
        ]
        log_p = model.hf(torch.tensor([q + a])).logits[0].float().log_softmax(-1)
        nats.append(-sum(float(log_p[len(q) + i - 1, token]) for i, token in enumerate(a)))
    assert found.p_one[0] == pytest.approx(1 / (1 + np.exp(nats[0] - nats[1])), rel=1e-4)
    assert found.nats[0] == pytest.approx(sum(nats), rel=1e-4)


@torch.no_grad()
def test_the_surprise_of_a_text_is_its_own_however_often_it_was_written(opened):
    model, *_ = opened
    asked, texts = ["Which is it?", "Name one.", "Which is it?", "Which is it?"], ["The tram.", "A car", "", "The tram."]
    found = steer.surprise(model, asked, texts)
    assert found[0] == found[3]
    for question, text, nats in zip(asked, texts, found, strict=True):
        batch = encoding.encode(model.tokenizer, [Prompt(question, text, "negative")], "chat")
        alone = metrics.nats(metrics.log_probs(model.hf(batch.ids).logits), batch.ids) * batch.answer
        assert nats == pytest.approx(float(alone.sum() / batch.answer.sum()), rel=1e-4)


def test_doses_are_chosen_on_some_pairs_and_told_on_others():
    rows = []
    for pair in range(20):
        for dose in (1.0, 2.0):
            good = 0.4 if (dose == 1) == (pair < 10) else 0.1
            for method in (ACTIVATE, OTHER, RANDOM):
                p = 0.5 + (good if method == ACTIVATE else 0.05)
                rows.append({"method": method, "who": "one", "where": "all", "dose": dose, "question": pair, "p_one": p, "p": p,
                             "p_before": 0.5, "p_through": 0.5, "pair": str(pair), "judged": pair >= 10,
                             "target": "car"})  # fmt: skip
    table = pd.DataFrame(rows)
    assert effects.best_doses(table).set_index("method").dose[ACTIVATE] == 1.0
    told = effects.moved(table).set_index("method")
    assert told.moved[ACTIVATE] == pytest.approx(0.1) and told.n_pairs[ACTIVATE] == 10
    assert told.over_other[ACTIVATE] == pytest.approx(0.05) and told.of_whole[ACTIVATE] == pytest.approx(1)


def test_an_answer_names_whom_it_names_first():
    assert (
        effects.names("The bus, not the car.", "car", "bus") == "two" and effects.names("Neither.", "car", "bus") == "neither"
    )


def test_questions_ask_both_ways_and_about_car_and_bus(smoke):
    table = material.questions(smoke)
    per_pair = table.groupby("pair").size()
    assert (per_pair == 4).all() and {"car", "bus"} <= {*table.one}
    assert ((table.answer == table.one) | (table.answer == table.two)).all()


# --- rules ---


def tables(holds: bool) -> ledger.Tables:
    """Tables of three seeds and many pairs in which every claim is true, or none is."""
    rows = []
    better = -0.05 if holds else 0.05
    for seed in range(3):
        shake = (seed - 1) / 1000
        row = {"seed": seed, "l0": 8.0, "penalty": np.nan, "tokens": 0, "fvu_vehicle": 0.1, "recovered": 0.95 + shake,
               "to_twice": 100 + seed}  # fmt: skip
        for kind in KINDS:
            for l0 in (4.0, 8.0, 16.0):
                fvu = 0.2 + (0 if kind == "ReLU" else better) - l0 / 1000 + shake * (1 if kind == "ReLU" else 2)
                rows.append(row | {"group": "frontier", "kind": kind, "l0": l0, "l0_held": l0, "fvu": fvu})
        rows.append(row | {"group": "tied", "kind": "ReLU", "l0_held": 8.0, "fvu": 0.192 + (0 if holds else 0.1) + 2 * shake,
                           "to_twice": (50 if holds else 200) + 2 * seed})  # fmt: skip
        for n, fvu in ((2000, 0.5), (20_000, 0.3 if holds else 0.9)):
            rows.append(row | {"group": "less text", "kind": "ReLU", "l0_held": 8.0, "tokens": n, "fvu": fvu + 3 * shake})
        rows.append(row | {"group": "published recipe", "kind": "ReLU", "l0": 0.0, "l0_held": 90.0, "penalty": 0.04,
                           "fvu": (0.02 if holds else 0.2) + shake,
                           "fvu_vehicle": (0.05 if holds else 0.2) + shake})  # fmt: skip
    curves = [
        {"penalty": 0.04, "seed": seed, "step": step, "mse": 1 / step, "l1": (1 / step if holds else step) + seed / 1e6}
        for seed in range(3) for step in (4, 40, 100, 200, 400)
    ]  # fmt: skip
    own = [
        {"name": name, "vehicle": i < 30, "where": "at", "alone": (i % 5 > 0) == holds,
         "in_three": (0.6 if (i < 30) == holds else 0.4) + i % 7 / 100}
        for i, name in enumerate([*VEHICLES, *material.NOUNS])
    ]  # fmt: skip
    texts = [
        {"method": method, "best": True, "question": 2 * pair, "pair": str(pair), "one": "bus" if pair % 2 else "car",
         "text": f"{pair} {method if holds and method != RAW else ''}",
         "surprise": 1 + pair / 100 + (0.5 * (1 if holds else -1) + pair % 3 / 50) * (method == ACTIVATE)}
        for method in (RAW, THROUGH, ACTIVATE) for pair in range(40)
    ]  # fmt: skip
    moved = []
    for target in ("", "car", "bus"):
        for method, value in ((ACTIVATE, 0.5), (SUPPRESS, -0.5), (LARGEST, 0.45)):
            at = value if holds else value / 10
            moved.append({"target": target, "method": method, "where": "all", "n": 80, "n_pairs": 20})
            for name, what in {"moved": at, "over_other": at, "of_whole": 0.95 if holds else 0.3}.items():
                moved[-1] |= {name: what, f"{name}_low": what - 0.02, f"{name}_high": what + 0.02}
    if not holds:  # so that one feature can fail at all
        moved[0] |= {"moved": 0.15, "moved_low": 0.1, "moved_high": 0.19}
    wrote = [
        {"method": method, "dose": dose, "vehicle": list(VEHICLES)[i % 30],
         "holds": (i % 3 > 0) and method == (ACTIVATE if holds else RANDOM)}
        for method in (ACTIVATE, RANDOM) for dose in (1.0, 2.0) for i in range(60)
    ]  # fmt: skip
    draw = np.random.default_rng(0)
    noise, effect = draw.normal(size=60), np.linspace(0, 1, 60)
    guide = {"ce_added": effect if holds else noise, "fvu": noise if holds else effect, "moved": effect}
    made = {"saes": rows, "curves": curves, "own": own, "texts": texts, "moved": moved, "wrote": wrote, "guide": guide}
    return {name: pd.DataFrame(part) for name, part in made.items()}


@pytest.mark.parametrize("rule", [rule for rule in claims.RULES if rule.id != "T13"], ids=lambda rule: rule.id)
def test_every_rule_can_hold_and_can_fail(rule):
    yes, no = rule.test(tables(True)), rule.test(tables(False))
    assert yes.holds and yes.testable and not no.holds and no.testable, (yes, no)


def test_the_ledger_has_a_row_for_each_claim():
    table = claims.ledger(tables(True))
    assert table.id.tolist() == [f"T{i}" for i in range(1, 15)] and table.study.eq("transport").all()
    assert table.set_index("id").verdict["T13"] == ledger.UNTESTABLE
    assert table.set_index("id").holds_on_artefacts["T2"]
