"""Executed chapters as pages that ask nothing of the network, with links to their neighbours; and the index of a book."""

import copy
import html
import re
from pathlib import Path

import nbformat
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from lib.book.paths import NOTEBOOKS, replacing

WIDGET = "application/vnd.jupyter.widget-view+json"


def markdown(source: str) -> str:
    """Markdown as HTML; tags in it are text, for a chapter's answer may quote a model, a prompt or a profile."""
    return MarkdownWithMath(renderer=IPythonRenderer(escape=True, allow_harmful_protocols=False)).render(source)


class Exporter(HTMLExporter):
    """nbconvert's, with `markdown` for its Markdown."""

    @pass_context
    def markdown2html(self, context, source):
        return markdown(source)


def title(notebook: Path) -> str:
    """What a chapter's first line calls it."""
    return nbformat.read(notebook, as_version=4).cells[0].source.split("\n")[0].lstrip("# ").replace("`", "")


def page(executed: nbformat.NotebookNode, notebook: Path) -> str:
    """The page of an executed chapter; a widget is shown as the picture that it gives, and one without, as is a bar of
    progress, not at all.
    """
    shown = copy.deepcopy(executed)
    shown.metadata.pop("widgets", None)
    shown.metadata["title"] = title(notebook)
    for cell in shown.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if set(output.get("data", ())) != {WIDGET, "text/plain"}]
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    chapters = sorted(NOTEBOOKS.glob("*.ipynb"))
    around = [None, *chapters, None]
    i = chapters.index(notebook) + 1 if notebook in chapters else 0
    links = {
        name: (f"{other.stem}.html", title(other)) if i and other else None
        for name, other in (("before", around[i - 1]), ("after", around[(i + 1) % len(around)]))
    }
    exporter = Exporter(
        embed_images=True, template_name="page", extra_template_basedirs=[str(Path(__file__).parent)], sanitize_html=False
    )
    return exporter.from_notebook_node(shown, resources=links)[0]


def index(build: Path, name: str) -> None:
    """`index.html` of the chapters that are built: of each its title, question and answer."""
    rows = []
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        executed = build / notebook.name
        if executed.exists() and executed.with_suffix(".html").exists():
            top = nbformat.read(executed, as_version=4).cells[0].source.split("\n\n")[1:]
            said = "\n\n".join(text for text in top if re.match(r"\*\*(Question|Answer)\.\*\*", text))
            head = f'<h2><a href="{executed.stem}.html">{html.escape(title(notebook))}</a></h2>'
            rows.append(head + markdown(said))
    style = "body { font-family: sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; }"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style>'
    heading = f"The book on {html.escape(name)}"
    text = f'<!doctype html><html lang="en"><head>{head}<title>{heading}</title></head><body><h1>{heading}</h1>{"".join(rows)}'
    with replacing(build / "index.html") as temporary:
        temporary.write_text(f"{text}</body></html>\n", encoding="utf-8")
