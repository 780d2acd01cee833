"""Controls of JupyterLab that are a picture of themselves where there is no kernel."""

import html

import ipywidgets as w


class Dial(w.VBox):
    """Controls, and a picture of them for where there is no kernel to turn them: a page, or paper."""

    def _repr_mimebundle_(self, **kwargs) -> dict[str, str]:
        rows = "".join(f"<p><label>{_picture(control)}</label></p>" for control in self.children)
        return super()._repr_mimebundle_(**kwargs) | {"text/html": f"<fieldset disabled>{rows}</fieldset>"}


def _picture(control: w.DOMWidget) -> str:
    """One of the controls below, as a form's field."""
    name, said = html.escape(control.description), html.escape(str(getattr(control, "value", "")))
    match control:
        case w.HTML():
            return control.value
        case w.Select():
            options = "".join(f"<option>{html.escape(str(option[0]))}</option>" for option in control.options)
            return f'{name} <select size="6" style="width: min(40em, 70%)">{options}</select>'
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
