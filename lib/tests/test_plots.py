"""Figures without a browser, with a broken one, with hostile text in them, and shown again."""

import time

import pandas as pd
import plotly.graph_objects as go
import pytest

from lib.book import plots

PAYLOAD = '<img src=q onerror="document.title=1"> & <b>bold</b>\nnext'


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.setattr(plots, "_given_up", [])
    monkeypatch.setattr(plots, "_with_library", [])
    real = plots.has_chrome
    real.cache_clear()
    yield
    real.cache_clear()


def save(folder, name="one", text="a"):
    fig = go.Figure(go.Bar(x=[text, "b"], y=[1, 2], name=text, hovertext=[text, text]))
    fig.update_layout(title=text, xaxis=dict(title=text, tickvals=[0], ticktext=[text])).add_annotation(text=text)
    return plots.save_figure(fig, folder / name, pd.DataFrame({"a": [text]}), text).data


def browser(tmp_path, script):
    file = tmp_path / "browser"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("script", [None, "exit 0", "exit 3", "sleep 600", "echo no"])
def test_without_a_browser_that_works_there_is_a_note_and_no_picture(tmp_path, monkeypatch, capsys, script):
    path = "/nonexistent/chrome" if script is None else browser(tmp_path, script)
    monkeypatch.setenv("BROWSER_PATH", path)
    monkeypatch.setattr(plots, "PATIENCE", 2)
    began = time.time()
    save(tmp_path)
    save(tmp_path, "two")
    assert time.time() - began < 30
    said = capsys.readouterr().out
    assert (said.count("\n") == 1 and path in said and "without pictures" in said) or "gave no picture" in said
    assert {f.name for f in tmp_path.glob("*.*")} == {
        "one.html", "one.csv", "two.html", "two.csv", "plotly.min.js"
    }  # fmt: skip


def test_a_browser_that_dies_later_leaves_a_note_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "has_chrome", lambda: True)
    monkeypatch.setattr(plots, "PATIENCE", 1)
    (tmp_path / "one.png").write_text("of an earlier run")
    monkeypatch.setattr(plots, "_kaleido", lambda: time.sleep(600))
    began = time.time()
    save(tmp_path)
    save(tmp_path, "two")
    assert (
        time.time() - began < 20 and "one.png: the browser gave no picture (nothing for 1 seconds)" in capsys.readouterr().out
    )
    assert not list(tmp_path.glob("*.png")) and (tmp_path / "two.html").exists()


def test_a_figure_that_is_shown_again_first_still_brings_plotly(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "has_chrome", lambda: False)
    library = "<script>/**"
    assert save(tmp_path, "one").startswith(library) and not save(tmp_path, "two").startswith(library)
    assert save(tmp_path, "one").startswith(library) and not save(tmp_path, "two").startswith(library)


def test_text_in_a_figure_is_text(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "has_chrome", lambda: False)
    assert "<img" not in save(tmp_path, text=PAYLOAD)[-20_000:]
    drawn = go.Figure(plots._plain(go.Figure(go.Bar(x=[PAYLOAD], y=[1], name=PAYLOAD)).to_plotly_json()))
    assert drawn.data[0].name == '&lt;img src=q onerror="document.title=1"&gt; &amp; &lt;b&gt;bold&lt;/b&gt;<br>next'
    page = (tmp_path / "one.html").read_text()
    assert "<img" not in page and "https://" not in page.replace(plots.html.escape(PAYLOAD), "")


def test_a_page_with_hostile_text_runs_none_of_it(tmp_path, chromium, monkeypatch):
    monkeypatch.setattr(plots, "has_chrome", lambda: False)  # pictures are drawn by another browser, elsewhere
    save(tmp_path, text=PAYLOAD)
    page = chromium.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{tmp_path}/one.html")
    page.wait_for_selector(".main-svg")
    assert page.title() == "one" and page.locator("img").count() == 0
    assert "<img src=q" in page.locator(".main-svg").first.text_content()
    assert all(url.startswith("file://") for url in asked)
    assert page.locator("[data-title*='Share']").count() == 0
