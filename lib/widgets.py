"""Things to turn and press in JupyterLab. Nothing is loaded or computed until a reader does."""

from collections.abc import Callable

import ipywidgets as w

from lib.encoding import question
from lib.generation import generate
from lib.hooks import replaced
from lib.models import LanguageModel
from lib.transcoders import BaseDelta


def dial(
    load: Callable[[], LanguageModel],
    pair: Callable[[LanguageModel, int], BaseDelta],
    layers: list[int],
    example: str,
    max_new_tokens: int = 40,
) -> w.VBox:
    """A dial for alpha at one layer, a question, and the model's answer with `base + alpha * delta` in place.

    `load` gives the model and `pair(model, layer)` the replacement; both are called when first needed.
    The answer is shown as plain text, whatever the model wrote.
    """
    alpha = w.FloatSlider(1.0, min=0.0, max=2.0, step=0.05, description="alpha", continuous_update=False)
    layer = w.SelectionSlider(options=layers, description="layer", continuous_update=False)
    text = w.Text(example, description="it reads", continuous_update=False, layout=w.Layout(width="40em"))
    answer = w.Textarea(description="it writes", disabled=True, layout=w.Layout(width="40em", height="5em"))
    ask = w.Button(description="Ask", button_style="primary")
    models, pairs = [], {}

    def update(_=None) -> None:
        answer.value = "..."
        if not models:
            models.append(load())
        if layer.value not in pairs:
            pairs[layer.value] = pair(models[0], layer.value)
        chosen = pairs[layer.value]
        with replaced(models[0], {layer.value: BaseDelta(chosen.base, chosen.delta, alpha.value)}):
            [answer.value] = generate(models[0].hf, models[0].tokenizer, [question(text.value)], max_new_tokens)

    ask.on_click(update)
    for control in (alpha, layer, text):
        control.observe(update, "value")
    return w.VBox([alpha, layer, text, ask, answer])
