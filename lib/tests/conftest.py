"""A tiny random Gemma-2 with random norm gains, so that a forgotten gain or a wrong hook point shows."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from lib import profiles
from lib.book.paths import ROOT
from lib.model import models
from lib.nano.pretrain import build_model, train_tokenizer
from lib.profiles import tables

LONG = ("real_profiles", "notebooks", "killed", "plan", "deltas", "bench", "hub", "my_tool")
SHARED = Path(os.environ.get("SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(items):
    """Long files are begun first, so that none is left alone at the end."""
    first = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the published tables and prompts; tests that use it skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"the published data are not at {SHARED}")
    return SHARED / "data"


@pytest.fixture(scope="session")
def smoke() -> tables.Profile:
    return profiles.load("smoke")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, smoke) -> Path:
    """The tiny model on disk."""
    path = tmp_path_factory.mktemp("tiny")
    model = build_model(smoke.organism.model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)  # large enough for attention to matter
    model.save_pretrained(path)
    train_tokenizer(smoke.organism.model, 500).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def plain(folder):
    """The model as transformers has it, never bridged: the oracle."""
    return models.load_hf(folder, "float32")[0]


@pytest.fixture(scope="session")
def tiny(folder) -> models.LanguageModel:
    return models.bridged(*models.load_hf(folder, "float32"))


@pytest.fixture(scope="session")
def chromium():
    """A browser to look at pages with; tests that use it skip where none is found."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium was found; install one to look at pages")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=quiet)
        yield browser
        browser.close()
