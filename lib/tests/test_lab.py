"""The dial in a real JupyterLab, in a real browser; its own `make lab-test`, and skipped without a Chromium."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

from lib.book.paths import ROOT

TOKEN, MINUTE = "test", 60_000
CELL = """
import tempfile
from pathlib import Path

import torch
from lib import profiles
from lib.model import models
from lib.nano.pretrain import build_model, train_tokenizer
from lib.tests.test_widgets import PAIRS, replacement, wanted
from lib.widgets import dial

organism = profiles.load("smoke").organism.model
hf = build_model(organism)
torch.manual_seed(1)
for name, parameter in hf.named_parameters():
    torch.nn.init.normal_(parameter, std=0.5 if "norm" in name else 0.15)
folder = Path(tempfile.mkdtemp())
hf.save_pretrained(folder)
train_tokenizer(organism, 500).save_pretrained(folder)
model = models.bridged(*models.load_hf(folder, "float32"))
dial(lambda: model, replacement, ["all", 0, 1], "", 8)
"""
EXPLORER = (
    CELL[: CELL.index("dial(lambda")]
    + """
from lib.tests.test_widgets import loud
from lib.widgets import explorer

print("RIGHT")  # in one cell, for of others Jupyter shows only what is in view
sae = loud(24, 3).changed(b_enc=torch.full((24,), -0.5))
explorer(lambda: model, lambda m: (m.site("resid_post", 0), sae), "Room 12 & 3", {4: "<b>digits</b>"}, None, 8)
"""
)
TELL = """
import json
print("RIGHT", json.dumps([wanted(model, 1.0, "all", f"Room {i}") for i in range(80)]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The addresses of the notebooks that a JupyterLab serves, each in a workspace of its own: else all of them open."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell(TELL)]
    kernel = {"kernelspec": {"name": "delta-transcoders", "display_name": "Delta transcoders", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "dial.ipynb")
    cells = [nbformat.v4.new_code_cell(EXPLORER)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "explorer.ipynb")
    port = 18_000 + os.getpid() % 10_000
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    environment = os.environ | {"HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    environment["PATH"] = f"{ROOT / '.venv/bin'}:{environment['PATH']}"
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2)
            break
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, (folder / "lab.log").read_text()
            time.sleep(0.5)
    yield lambda name: f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}"
    server.terminate()
    server.wait(20)


def opened(chromium, address: str):
    """A notebook, run from top to bottom."""
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    page.goto(address, timeout=MINUTE)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=2 * MINUTE)
    page.wait_for_selector("text=Delta transcoders | Idle", timeout=2 * MINUTE)  # what runs before that is lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(".jp-OutputArea-output:has-text('RIGHT')", state="attached", timeout=3 * MINUTE)
    page.wait_for_selector(".widget-textarea textarea", timeout=MINUTE)
    return page


@pytest.fixture(scope="module")
def page(chromium, lab):
    return opened(chromium, lab("dial"))


def answered(page, text: str) -> None:
    """Waits until the answer field says just this."""
    page.wait_for_function(
        "wanted => document.querySelector('.widget-textarea textarea').value === wanted", arg=text, timeout=MINUTE
    )


def test_typing_and_asking_shows_the_answer_to_what_was_typed(page):
    """Typing and pressing Ask starts two updates in two threads; of 30 questions three showed the one before."""
    told = page.locator(".jp-OutputArea-output", has_text="RIGHT").inner_text()
    right = json.loads(told.strip().removeprefix("RIGHT"))
    asked = [0]
    for i in range(len(right)):  # each answer another than the one before, so that a late one shows
        asked += [i] if right[i] != right[asked[-1]] else []
    assert len(asked) >= 12
    field, ask = page.locator(".widget-text input"), page.get_by_role("button", name="Ask", exact=True)
    for i in asked[:12]:
        field.fill(f"Room {i}")
        ask.click()
        answered(page, right[i])
    for i in asked[:12]:  # in haste: the newest wins
        field.fill(f"Room {i}")
        ask.click()
    answered(page, right[asked[11]])
    time.sleep(1)
    answered(page, right[asked[11]])


def test_long_and_empty_texts_are_one_line_and_the_kernel_lives(page):
    field, ask = page.locator(".widget-text input"), page.get_by_role("button", name="Ask", exact=True)
    field.fill("x" * 20_000)
    ask.click()
    page.wait_for_function(
        "document.querySelector('.widget-textarea textarea').value.startsWith('This text has ')", timeout=MINUTE
    )
    field.fill("")
    ask.click()
    answered(page, "")
    field.fill("Room 1")
    ask.click()
    page.wait_for_function("document.querySelector('.widget-textarea textarea').value.length > 3", timeout=MINUTE)


def test_the_explorer_shows_features_and_writes_with_one_switched_off(chromium, lab):
    page = opened(chromium, lab("explorer"))
    page.get_by_role("button", name="Look", exact=True).click()
    features = page.locator(".widget-select select").nth(1)
    page.wait_for_function("document.querySelectorAll('.widget-select select')[1].options.length > 1", timeout=MINUTE)
    tokens = page.locator(".widget-select select").nth(0)
    assert "anywhere" in tokens.inner_text() and "features" in tokens.inner_text()
    shown = page.locator(".widget-html-content span[title]")
    assert shown.count() > 3 and "&" in page.locator(".widget-html-content").inner_text()
    before = [span.get_attribute("title") for span in shown.all()]
    features.select_option(index=1)
    titles = "[...document.querySelectorAll('.widget-html-content span[title]')].map(s => s.title).join()"
    page.wait_for_function(
        f"before => {titles} !== before.join()",
        arg=before, timeout=MINUTE,
    )  # fmt: skip
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.widget-textarea textarea')[1].value.length > 0", timeout=MINUTE)
    assert page.locator(".widget-textarea textarea").nth(0).input_value()
    page.close()
