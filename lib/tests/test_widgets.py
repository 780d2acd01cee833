from lib.encoding import question
from lib.generation import generate
from lib.hooks import replaced
from lib.transcoders import BaseDelta, Transcoder
from lib.widgets import dial


def test_the_dial_shows_what_the_replaced_model_writes(tiny):
    loaded = []
    pairs = {i: BaseDelta(Transcoder.initialised((), 32, 24, i), Transcoder.initialised((), 32, 4, 9 + i)) for i in (0, 1)}

    def load():
        loaded.append(1)
        return tiny

    def replacement(model, where):
        return pairs if where == "all" else {where: pairs[where]}

    box = dial(load, replacement, ["all", 0, 1], "What is 1 + 2?", 8)
    alpha, layer, text, ask, answer = box.children
    assert not loaded and answer.value == ""

    def wanted():
        turned = {i: BaseDelta(pair.base, pair.delta, alpha.value) for i, pair in pairs.items() if layer.value in (i, "all")}
        with replaced(tiny, turned):
            return generate(tiny.hf, tiny.tokenizer, [question(text.value)], 8)[0]

    seen = set()
    for act in (
        ask.click,
        lambda: setattr(alpha, "value", 0.0),
        lambda: setattr(layer, "value", 1),
        lambda: setattr(text, "value", "a"),
    ):
        act()
        assert answer.value == wanted()
        seen.add(answer.value)
    assert len(seen) > 1 and len(loaded) == 1
