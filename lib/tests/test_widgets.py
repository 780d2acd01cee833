import threading
import time

import pytest
import torch

from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.model.conditions import resumed
from lib.model.encoding import asked
from lib.model.generation import generate
from lib.model.hooks import edited, recorded, replaced
from lib.tests.at import at
from lib.widgets import dial, explorer, steering


def loud(d_sae: int, seed: int) -> Dictionary:
    """A transcoder whose output matters to what the model writes."""
    t = Dictionary.initialised((), 32, d_sae, seed)
    return Dictionary(t.W_enc, t.b_enc, t.threshold, 8 * t.W_dec, t.b_dec).requires_grad_(False)


PAIRS = {i: BaseDelta(loud(24, i), loud(8, 9 + i)) for i in (0, 1)}


def replacement(model, where):
    return at(model, PAIRS if where == "all" else {where: PAIRS[where]})


def wanted(model, alpha, layer, text):
    """What the model writes, asked alone."""
    turned = {i: BaseDelta(pair.base, pair.delta, alpha) for i, pair in PAIRS.items() if layer in (i, "all")}
    with replaced(model, at(model, turned)):
        return generate(model.hf, model.tokenizer, model.tokenizer([f"{text}\n"]).input_ids, 8)[0]


def test_the_dial_shows_what_the_replaced_model_writes(tiny):
    loaded = []

    def load():
        loaded.append(1)
        return tiny

    box = dial(load, replacement, ["all", 0, 1], "What is 1 + 2?", 8)
    alpha, layer, text, ask, answer = box.children
    assert not loaded and answer.value == ""
    seen = set()
    for act in (
        ask.click,
        lambda: setattr(alpha, "value", 0.0),
        lambda: setattr(layer, "value", 1),
        lambda: setattr(text, "value", "a"),
    ):
        act()
        assert answer.value == wanted(tiny, alpha.value, layer.value, text.value)
        seen.add(answer.value)
    assert len(seen) > 1 and len(loaded) == 1


def test_a_text_that_is_too_long_and_no_text_run_nothing(tiny, monkeypatch):
    box = dial(lambda: tiny, replacement, ["all"], "What is 1 + 2?", 8)
    *_, text, ask, answer = box.children
    monkeypatch.setattr("lib.widgets.generate", lambda *_: pytest.fail("the model was run"))
    text.value = "word " * 4000
    limit = tiny.hf.config.max_position_embeddings - 8
    n = len(tiny.tokenizer(f"{text.value}\n").input_ids)
    assert answer.value == f"This text has {n} tokens, and the model reads {limit} at most here: shorten it."
    for nothing in ("", "   "):
        text.value = nothing
        ask.click()
        assert answer.value == ""


def test_an_error_is_shown_in_one_line(tiny):
    def broken(model, where):
        raise ValueError("no deltas here\nmore")

    box = dial(lambda: tiny, broken, ["all"], "a", 8)
    box.children[3].click()
    assert box.children[4].value == "ValueError: no deltas here"


def together(*work):
    """Runs things in threads at once; raises what any of them raised."""
    errors, ready = [], threading.Barrier(len(work))

    def guarded(do):
        try:
            ready.wait()
            do()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(do,)) for do in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "threads wait for one another"
    if errors:
        raise errors[0]


def test_typing_and_pressing_at_once_is_one_question(tiny, monkeypatch):
    asked = []

    def counted(*arguments):
        asked.append(arguments[2])
        return generate(*arguments)

    monkeypatch.setattr("lib.widgets.generate", counted)
    box = dial(lambda: tiny, replacement, ["all", 0, 1], "", 8)
    *_, text, ask, answer = box.children
    for i in range(30):
        question_now = f"What is {i} + {i}?"
        together(lambda q=question_now: setattr(text, "value", q), lambda: (time.sleep(0.002), ask.click()))
        assert answer.value == wanted(tiny, 1.0, "all", question_now), question_now
    assert len(asked) == 30


def test_two_dials_on_one_model_in_two_threads_answer_rightly(tiny):
    boxes = [dial(lambda: tiny, replacement, ["all", 0, 1], "", 8) for _ in range(2)]
    right = {(where, i): wanted(tiny, 1.0, where, f"Room {i}") for where in ("all", 1) for i in range(15)}

    def fifteen(box, where):
        box.children[1].value = where
        for i in range(15):
            box.children[2].value = f"Room {i}"
            assert box.children[4].value == right[where, i]

    together(lambda: fifteen(boxes[0], "all"), lambda: fifteen(boxes[1], 1))
    assert len(set(right.values())) > 5, "the answers tell the questions apart"


def test_no_two_threads_have_hooks_on_one_model(tiny):
    """Each thread counts its own hooks; with two at once both would fire in one forward pass."""
    ids = tiny.tokenizer("Room 4", return_tensors="pt").input_ids
    name, inside = tiny.site("trained", 0).read, []

    def hooked():
        for _ in range(20):
            with recorded(tiny, [name]) as seen, resumed(tiny, 1, torch.zeros(1, ids.shape[1], 32)), tiny.hooks([]):
                inside.append(1)
                assert len(inside) == 1 and not seen
                tiny.hf(ids)
                inside.pop()

    together(hooked, hooked, hooked)
    assert not any(point.fwd_hooks for point in tiny.points.values())


# --- the explorer ---


@pytest.fixture
def explored(tiny):
    sae = loud(24, 3).changed(b_enc=torch.full((24,), -0.5))
    site = tiny.site("resid_post", 0)
    return (
        explorer(lambda: tiny, lambda model: (site, sae), "Room 12 & 3", {4: "<b>digits</b>"}, lambda i: f"<p>page {i}</p>", 8),
        site,
        sae,
    )


def test_the_explorer_shows_every_feature_that_fires_token_by_token(tiny, explored):
    box, _, sae = explored
    text, look, token, feature, lines, *_ = box.children
    assert token.options == () and "Room" in box._repr_mimebundle_()["text/html"]
    look.click()
    ids = asked(tiny.tokenizer, text.value)
    with torch.no_grad():
        f = sae.encode(tiny.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0])
    f[0] = 0  # <bos>
    for place in (-1, 2, 3):
        token.value = place
        values = f.max(0).values if place < 0 else f[place]
        assert {i for _, i in feature.options} == set(values.nonzero()[:, 0].tolist())
        shown = [values[i].item() for _, i in feature.options]
        assert shown == sorted(shown, reverse=True)
    assert len(token.options) == len(ids) + 1
    token.value = -1
    feature.value = feature.options[1][1]
    told = [float(part.split('"')[0]) for part in lines.value.split('title="')[1:]]
    assert told == pytest.approx(f[:, feature.value].tolist(), rel=1e-2, abs=1e-3)
    assert "&amp;" in lines.value and f"page {feature.value}" in lines.value


def test_the_explorer_writes_with_the_feature_changed(tiny, explored):
    box, site, sae = explored
    text, look, _, feature, _, factor, write, plain, changed = box.children
    look.click()
    seen, chosen, ids = set(), feature.value, [asked(tiny.tokenizer, text.value)]
    for times in (0.0, 1.0, 5.0):
        factor.value = times
        write.click()

        def edit(_, f, times=times):
            return torch.cat([f[..., :chosen], times * f[..., [chosen]], f[..., chosen + 1 :]], -1)

        assert plain.value == generate(tiny.hf, tiny.tokenizer, ids, 8)[0]
        with edited(tiny, {site: sae}, edit):
            assert changed.value == generate(tiny.hf, tiny.tokenizer, ids, 8)[0]
        seen.add(changed.value)
        if times == 1:
            assert changed.value == plain.value
    assert len(seen) > 1


def test_the_explorer_answers_what_it_cannot_do_in_one_line(tiny, explored):
    box, *_ = explored
    text, look, _, _, lines, *_ = box.children
    for value, said in (("  ", "no text"), ("word " * 4000, "too many for the model")):
        text.value = value
        look.click()
        assert said in lines.value
    text.value = "Room 1"
    look.click()
    assert "title=" in lines.value


# --- steering ---


def test_steering_shows_both_answers_as_text_and_an_error_as_one_line():
    asked = []

    def answers(*wanted):
        asked.append(wanted)
        if wanted[-1] == "no":
            raise ValueError("too long\nby far")
        return "The bus.", "<b>The car.</b>"

    box = steering(answers, ["car", "bus"], [0.5, 4.0], ["all", "last"], "Which?")
    word, dose, where, text, ask, plain, edited = box.children
    assert (dose.min, dose.max) == (-4, 4) and not asked and "Which?" in box._repr_mimebundle_()["text/html"]
    word.value, dose.value, where.value = "bus", -2.0, "last"
    ask.click()
    assert asked == [("bus", -2.0, "last", "Which?")] and (plain.value, edited.value) == ("The bus.", "<b>The car.</b>")
    text.value = "no"
    ask.click()
    assert edited.value == "ValueError: too long"
