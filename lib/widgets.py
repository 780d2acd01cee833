"""Things to turn and press in JupyterLab. Nothing is loaded or computed until a reader does."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence

import ipywidgets as w

from lib.encoding import question
from lib.generation import generate
from lib.hooks import replaced
from lib.models import LanguageModel
from lib.transcoders import BaseDelta


def dial(
    load: Callable[[], LanguageModel],
    replacement: Callable[[LanguageModel, Hashable], Mapping[int, BaseDelta]],
    places: Sequence[Hashable],
    example: str,
    max_new_tokens: int = 40,
) -> w.VBox:
    """A dial for alpha at one of several places, a question, and the model's answer with `base + alpha * delta` there.

    `load` gives the model and `replacement(model, place)` what stands in for which layers' MLPs; both are
    called when first needed. The answer is shown as plain text, whatever the model wrote.
    """
    alpha = w.FloatSlider(1.0, min=0.0, max=2.0, step=0.05, description="alpha", continuous_update=False)
    place = w.ToggleButtons(options=places, description="layer", style={"button_width": "auto"})
    text = w.Text(example, description="it reads", continuous_update=False, layout=w.Layout(width="40em"))
    answer = w.Textarea(description="it writes", disabled=True, layout=w.Layout(width="40em", height="5em"))
    ask = w.Button(description="Ask", button_style="primary")
    model = functools.cache(load)
    at = functools.cache(lambda where: replacement(model(), where))

    def update(_=None) -> None:
        answer.value = "..."
        turned = {layer: dataclasses.replace(mlp, alpha=alpha.value) for layer, mlp in at(place.value).items()}
        with replaced(model(), turned):
            [answer.value] = generate(model().hf, model().tokenizer, [question(text.value)], max_new_tokens)

    ask.on_click(update)
    for control in (alpha, place, text):
        control.observe(update, "value")
    return w.VBox([alpha, place, text, ask, answer])
