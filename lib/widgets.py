"""Things to turn and press in JupyterLab. Nothing is loaded or computed until a reader does."""

import functools
import html
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence

import ipywidgets as w
import torch

from lib.book.controls import Dial
from lib.dictionary.dictionaries import BaseDelta, Dictionary
from lib.model.encoding import acted_on, asked, readable
from lib.model.generation import generate
from lib.model.hooks import edited, recorded, replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site


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


def explorer(
    load: Callable[[], LanguageModel],
    dictionary: Callable[[LanguageModel], tuple[Site, Dictionary]],
    example: str,
    labels: Mapping[int, str] | None = None,
    page: Callable[[int], str] | None = None,
    max_new_tokens: int = 30,
) -> Dial:
    """A text, the features of a dictionary that fire in it token by token, and what the model writes with one of them changed.

    `load` gives the model and `dictionary(model)` a site and the dictionary there; both are called when first needed.
    `labels`: of features, made by rule. `page(feature)`: HTML to show of a chosen one (`lib.measure.browser`). The chosen
    feature is multiplied by the factor wherever it is active, at 0 it is off; what the dictionary cannot express stays.
    Whatever the model reads or writes is shown as text, and an error as one line.
    """
    text = w.Text(example, description="it reads", continuous_update=False, layout=w.Layout(width="40em"))
    look = w.Button(description="Look", button_style="primary")
    token = w.Select(description="token", rows=6, layout=w.Layout(width="40em"))
    feature = w.Select(description="feature", rows=8, layout=w.Layout(width="40em"))
    lines = w.HTML()
    factor = w.FloatSlider(0.0, min=0.0, max=5.0, step=0.25, description="factor", continuous_update=False)
    write = w.Button(description="Write", button_style="primary")
    plain, changed = (
        w.Textarea(description=name, disabled=True, layout=w.Layout(width="40em", height="4em"))
        for name in ("as it is", "changed")
    )
    model = functools.cache(load)
    place = functools.cache(lambda: dictionary(model()))
    seen: dict = {"pieces": [], "f": None}
    turn = threading.RLock()  # to set one control from here is to be told of it here

    def guarded(work: Callable[[], None]) -> Callable:
        def act(_=None) -> None:
            with turn:
                try:
                    work()
                except Exception as error:  # a reader must see it, and a widget's thread shows none
                    said = f"{type(error).__name__}: {error}".splitlines()[0]
                    lines.value = f"<p>{html.escape(said)}</p>"

        return act

    def read_text() -> None:
        hf, tokenizer = model().hf, model().tokenizer
        site, found = place()
        if not text.value.strip():
            raise ValueError("no text; write some")
        ids = torch.tensor([asked(tokenizer, text.value)], device=hf.device)
        if ids.shape[1] > hf.config.max_position_embeddings - max_new_tokens:
            raise ValueError(f"this text has {ids.shape[1]} tokens, too many for the model; shorten it")
        with recorded(model(), [], {site: found}, stop=True) as record:
            hf(input_ids=ids, attention_mask=ids.new_ones(ids.shape), use_cache=False)
        f = record.features[site][0] * acted_on(tokenizer, ids, ids.new_ones(ids.shape))[0][:, None]
        seen.update(pieces=[readable(tokenizer, i) for i in ids[0].tolist()], f=f.cpu())
        counts = (seen["f"] > 0).sum(1).tolist()
        options = [
            (f"{i}: {piece!r}, {n} features", i) for i, (piece, n) in enumerate(zip(seen["pieces"], counts, strict=True))
        ]
        token.options = [("anywhere", -1), *options]
        token.value = -1
        firing()

    def firing() -> None:
        if seen["f"] is None or token.value is None:
            return
        f = seen["f"].max(0) if token.value < 0 else seen["f"][token.value]
        values = f.values if token.value < 0 else f
        order = [int(i) for i in values.argsort(descending=True)[: int((values > 0).sum())]]
        feature.options = [(" ".join(filter(None, [f"#{i}: {values[i]:.3g}", (labels or {}).get(i)])), i) for i in order]
        feature.value = order[0] if order else None

    def tell() -> None:
        if feature.value is None or seen["f"] is None:
            lines.value = "<p>No feature fires there.</p>"
            return
        values = seen["f"][:, feature.value].tolist()
        most = max([*values, 1e-9])
        shades = [f"rgba(213, 94, 0, {0.8 * value / most:.2f})" for value in values]
        spans = "".join(
            f'<span title="{value:.3g}" style="background: {shade}">{html.escape(piece)}</span>'
            for piece, value, shade in zip(seen["pieces"], values, shades, strict=True)
        )
        about = page(feature.value) if page else ""
        lines.value = f'<p style="white-space: pre-wrap; font-family: monospace">{spans}</p>{about}'

    def written() -> None:
        hf, tokenizer = model().hf, model().tokenizer
        site, found = place()
        ids = asked(tokenizer, text.value)
        plain.value = generate(hf, tokenizer, [ids], max_new_tokens)[0]
        if feature.value is None:
            changed.value = plain.value
            return
        chosen, times = feature.value, factor.value

        def edit(_, f):
            new = f.clone()
            new[..., chosen] *= times
            return new

        with edited(model(), {site: found}, edit):
            changed.value = generate(hf, tokenizer, [ids], max_new_tokens)[0]

    look.on_click(guarded(read_text))
    write.on_click(guarded(written))
    token.observe(guarded(firing), "value")
    feature.observe(guarded(tell), "value")
    return Dial([text, look, token, feature, lines, factor, write, plain, changed])


def steering(
    answers: Callable[[str, float, str, str], tuple[str, str]], names: Sequence[str], doses: Sequence[float],
    places: Sequence[str], example: str,
) -> Dial:  # fmt: skip
    """A question, and the answer with the features of a chosen word added or taken off, beside the model's own.

    `answers(word, dose, where, question)` gives both. They are shown as text, and an error as one line.
    """
    word = w.Select(options=list(names), description="word", rows=5)
    dose = w.FloatSlider(1.0, min=-max(doses), max=max(doses), step=0.25, description="dose", continuous_update=False)
    where = w.ToggleButtons(options=list(places), description="where")
    text = w.Text(example, description="it reads", continuous_update=False, layout=w.Layout(width="40em"))
    ask = w.Button(description="Ask", button_style="primary")
    plain, edited = (
        w.Textarea(description=name, disabled=True, layout=w.Layout(width="40em", height="4em"))
        for name in ("as it is", "edited")
    )
    turn = threading.Lock()

    def update(_=None) -> None:
        with turn:
            try:
                plain.value, edited.value = answers(word.value, dose.value, where.value, text.value)
            except Exception as error:  # a reader must see it, and a widget's thread shows none
                edited.value = f"{type(error).__name__}: {error}".splitlines()[0]

    ask.on_click(update)
    return Dial([word, dose, where, text, ask, plain, edited])
