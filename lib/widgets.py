"""Things to turn and press in JupyterLab. Nothing is loaded or computed until a reader does."""

import functools
import html
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence

import ipywidgets as w

from lib.dictionary.dictionaries import BaseDelta
from lib.model.encoding import asked
from lib.model.generation import generate
from lib.model.hooks import replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site


class Dial(w.VBox):
    """Controls, and a picture of them for where there is no kernel to turn them: a page, or paper."""

    def _repr_mimebundle_(self, **kwargs) -> dict[str, str]:
        rows = "".join(f"<p><label>{_picture(control)}</label></p>" for control in self.children)
        return super()._repr_mimebundle_(**kwargs) | {"text/html": f"<fieldset disabled>{rows}</fieldset>"}


def _picture(control: w.DOMWidget) -> str:
    """One of the controls below, as a form's field."""
    name, said = html.escape(control.description), html.escape(str(getattr(control, "value", "")))
    match control:
        case w.FloatSlider():
            ends = f'min="{control.min}" max="{control.max}" step="{control.step}"'
            return f'{name} <input type="range" {ends} value="{said}"> {said}'
        case w.ToggleButtons():
            return " ".join([name, *(f"<button>{html.escape(str(option))}</button>" for option in control.options)])
        case w.Text():
            return f'{name} <input type="text" value="{said}" style="width: min(40em, 70%)">'
        case w.Textarea():
            return f'{name} <textarea rows="2" style="width: min(40em, 70%)">{said}</textarea>'
    return f"<button>{name}</button>"


def dial(
    load: Callable[[], LanguageModel],
    replacement: Callable[[LanguageModel, Hashable], Mapping[Site, BaseDelta]],
    places: Sequence[Hashable],
    example: str,
    max_new_tokens: int = 40,
) -> Dial:
    """A dial for alpha at one of several places, a question, and the model's answer with `base + alpha * delta` there.

    `load` gives the model and `replacement(model, place)` what stands in for which layers' MLPs; both are called when
    first needed. The answer is shown as plain text, whatever the model wrote. JupyterLab may run several updates at once,
    in threads: they take turns, and only the newest is answered. No text, nothing asked; a text that is too long for the
    model, or an error, is answered by one line.
    """
    alpha = w.FloatSlider(1.0, min=0.0, max=2.0, step=0.05, description="alpha", continuous_update=False)
    place = w.ToggleButtons(options=places, description="layer", style={"button_width": "auto"})
    text = w.Text(example, description="it reads", continuous_update=False, layout=w.Layout(width="40em"))
    answer = w.Textarea(description="it writes", disabled=True, layout=w.Layout(width="40em", height="5em"))
    ask = w.Button(description="Ask", button_style="primary")
    model = functools.cache(load)
    at = functools.cache(lambda where: replacement(model(), where))
    turn, newest, answered = threading.Lock(), [], []

    def written(dose: float, where: Hashable, said: str) -> str:
        hf, tokenizer = model().hf, model().tokenizer
        ids = asked(tokenizer, said)
        n, limit = len(ids), hf.config.max_position_embeddings - max_new_tokens
        if n > limit:
            return f"This text has {n} tokens, and the model reads {limit} at most here: shorten it."
        turned = {site: pair.at(dose) for site, pair in at(where).items()}
        with replaced(model(), turned):
            return generate(hf, tokenizer, [ids], max_new_tokens)[0]

    def update(_=None) -> None:
        wanted = alpha.value, place.value, text.value
        newest[:] = [wanted]
        with turn:
            if newest != [wanted] or answered == [wanted]:  # another has come since, or this one is answered already
                return
            answered.clear()
            answer.value = "..." if wanted[-1].strip() else ""
            if wanted[-1].strip():
                try:
                    answer.value = written(*wanted)
                    answered[:] = [wanted]
                except Exception as error:  # a reader must see it, and a widget's thread shows none
                    answer.value = f"{type(error).__name__}: {error}".splitlines()[0]

    ask.on_click(update)
    for control in (alpha, place, text):
        control.observe(update, "value")
    return Dial([alpha, place, text, ask, answer])
