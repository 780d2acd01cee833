"""Rendered pages: titles, links, pictures of widgets, text that stays text; looked at in a browser at the end."""

import json

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from tqdm.notebook import tqdm_notebook

from lib.book import pages, results
from lib.book.paths import NOTEBOOKS
from lib.widgets import dial

PAYLOADS = [
    '<img src=q onerror="self.owned=1">',
    "<script>self.owned=1</script>",
    "</script><script>self.owned=1</script>",
    r"\`<img src=q onerror=self.owned=1>\`",
    "[look](javascript:self.owned=1)",
    "<svg onload=self.owned=1>",
    "&lt;b&gt;",
]


def mime(shown) -> dict:
    """What a notebook keeps of a thing shown."""
    for name in ("_repr_mimebundle_", "_repr_html_"):
        if found := getattr(shown, name, None):
            return found() if "bundle" in name else {"text/html": found(), "text/plain": "..."}
    return {"text/markdown": shown}


def page(*outputs, answer="") -> str:
    """A chapter with these outputs, and an answer at its top, as a page."""
    said = [new_output("display_data", data={k: v for k, v in mime(o).items() if isinstance(v, str | dict)}) for o in outputs]
    opening = new_markdown_cell(f"# 0. Title\n\n**Question.** What?\n\n**Answer.** {answer}")
    return pages.page(new_notebook(cells=[opening, new_code_cell("1", outputs=said)]), sorted(NOTEBOOKS.glob("*.ipynb"))[1])


@pytest.fixture
def tab(chromium, tmp_path):
    """Opens HTML in a tab of some size; what it asks of the network is an error."""
    opened = []

    def show(text: str, width: int = 1200):
        file = tmp_path / f"{len(opened)}.html"
        file.write_text(text)
        found = chromium.new_page(viewport={"width": width, "height": 800})
        found.on("request", lambda request: request.url.startswith(("file:", "data:")) or pytest.fail(request.url))
        found.goto(file.as_uri())
        opened.append(found)
        return found

    yield show
    for found in opened:
        found.close()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_tables_answers_and_forms_show_is_text(tab, payload):
    frame = pd.DataFrame({"it reads": [payload, "b"], "it writes": ["c", payload]})
    asks = dial(lambda: None, lambda *_: {}, [payload, "all"], payload)
    asks.children[-1].value = payload
    shown = tab(page(frame, frame.style.hide(), results.texts(frame), asks, f"Of {payload} it says {payload}.", answer=payload))
    assert shown.evaluate("typeof self.owned") == "undefined"
    assert shown.locator("a[href^='javascript']").count() == 0 and shown.locator("td img, td svg, td script").count() == 0
    assert payload in shown.locator("td").all_inner_texts()
    assert payload in [field.input_value() for field in shown.locator("fieldset input[type=text], fieldset textarea").all()]


def test_the_index_shows_text_too(tab, tmp_path):
    for i, notebook in enumerate(sorted(NOTEBOOKS.glob("*.ipynb"))[:2]):
        opening = new_markdown_cell(f"# {i}. Title\n\n**Question.** What?\n\n**Answer.** {PAYLOADS[0]}")
        nbformat.write(new_notebook(cells=[opening]), tmp_path / notebook.name)
        (tmp_path / notebook.with_suffix(".html").name).touch()
    pages.index(tmp_path, PAYLOADS[0])
    shown = tab((tmp_path / "index.html").read_text())
    assert shown.evaluate("typeof self.owned") == "undefined"
    assert shown.inner_text("body").count(PAYLOADS[0]) == 3 and shown.locator("h2 a").count() == 2


def test_a_page_has_its_chapters_title_and_links_to_its_neighbours(tab):
    shown, chapters = tab(page("said")), sorted(NOTEBOOKS.glob("*.ipynb"))
    assert shown.title() == pages.title(chapters[1])
    links = [a.get_attribute("href") for a in shown.locator("nav.book").first.locator("a").all()]
    assert links == [f"{chapters[0].stem}.html", "index.html", f"{chapters[2].stem}.html"]


def test_the_dial_is_there_as_a_picture_and_can_be_read_on_a_phone(tab):
    shown = tab(page(dial(lambda: None, lambda *_: {}, ["all", 0, 1], "Tell me the result of 12 + 30.")), width=360)
    field = shown.locator("fieldset")
    assert field.is_visible() and not field.locator("button").first.is_enabled()
    assert field.locator("input[type=range]").input_value() == "1"
    assert field.locator("input[type=text]").input_value() == "Tell me the result of 12 + 30."
    assert field.locator("button").all_inner_texts() == ["all", "0", "1", "Ask"]
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    assert "VBox(" not in shown.inner_text("body")


def test_bars_of_progress_are_no_part_of_a_page(tab):
    bar = tqdm_notebook(total=3, desc="half-way", display=False)
    shown = tab(page(bar.container, "said")).inner_text("body")
    assert "said" in shown and "half-way" not in shown and "0/3" not in shown


def test_widgets_that_are_live_in_a_notebook_are_left_to_it():
    found = mime(dial(lambda: None, lambda *_: {}, ["all"], "x"))
    assert "application/vnd.jupyter.widget-view+json" in found and json.dumps(found)
