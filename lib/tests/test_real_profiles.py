"""The whole book on every real profile: repositories of small random weights in a hub cache, no network, sizes overridden."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from lib import profiles
from lib.book.paths import ROOT
from lib.model import models
from lib.model.encoding import bos_id
from lib.profiles import tables
from lib.tests import packed, real
from lib.tests.book import chapters
from lib.texts.jsonl import read_jsonl
from lib.texts.prompts import SPLITS, split_of

REAL = {  # profile: what it is a model of, how its transcoders are released, and the average L0 they say for layer 0
    "gemma-2-2b": ("gemma2", real.gemma_scope, [13.0, 25.0, 49.0]),
    "gemma-3-270m": ("gemma3_text", real.gemma_scope_2, [10.0, 60.0]),
    "qwen3-0.6b": ("qwen3", real.circuit_tracer, [float("nan")]),
    "smollm2-135m": ("llama", None, None),  # its model comes out of a package, and its transcoders are made here
}
ON_HUB = [name for name, (_, release, _) in REAL.items() if release]
MADE = {  # here, of natural text
    "d_sae": 48, "l0": [4.0, 8.0, 16.0], "probe_tokens": 1500,
    "training": {"lr": 2e-3, "batch": 128, "steps": 10, "check_every": 5},
    "text": {"docstring": 60_000, "written": 4, "written_tokens": 12, "corpus": 40, "context": 32, "rows": 8, "round": 64},
}  # fmt: skip
LESS = {"train": 12, "validation": 4, "test": 4, "alphas": [0.0, 1.0], "steps": 8, "patience": 1}
C4 = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"


def toml(table: dict, name: str = "") -> str:
    """TOML of nested tables; what is not a table is written as JSON writes it."""
    lines = [f"[{name}]"] if name else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    lines += [toml(value, f"{name}.{key}".lstrip(".")) for key, value in table.items() if isinstance(value, dict)]
    return "\n".join(lines) + "\n"


def smaller(table: dict, small: dict) -> dict:
    """The table with the numbers of another one in their places."""
    sized = {}
    for key, value in table.items():
        if isinstance(value, dict):
            sized[key] = smaller(value, small.get(key, {}))
        else:
            sized[key] = LESS.get(key, small.get(key, value)) if not isinstance(value, str) else value
    return sized


def begun(file: Path, cache: Path, folder: Path) -> subprocess.Popen:
    """A process that makes what a profile starts from and runs every chapter on it, with nothing but that cache."""
    environment = os.environ | {
        "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder),
    }  # fmt: skip
    command = f'"{sys.executable}" -m lib.base.make --profile "{file}" && exec "{sys.executable}" -m lib.tests.book "{file}"'
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(["sh", "-c", command], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, env=environment)
    return process


def start(name: str, folder: Path) -> tuple[tables.Profile, subprocess.Popen]:
    """A cache with the profile's repositories, the profile with small sizes, and a process that runs every chapter on it."""
    model_type, release, _ = REAL[name]
    table = tomllib.loads((profiles.FOLDER / f"{name}.toml").read_text())
    small = tomllib.loads((profiles.FOLDER / "smoke.toml").read_text())
    cache = folder / "hub"
    if release:
        for key, write in (("model", functools.partial(real.save, model_type, ends=3.0)), ("transcoders", release)):
            real.repository(cache, table[key]["source"], write, table[key]["revision"])
        real.repository(cache, "allenai/c4", real.c4, C4, "datasets")
    else:
        table["model"]["package"] |= dict(name=packed.NAME, version=packed.VERSION, file=packed.FILE)
        table["model"]["package"]["sha256"] = packed.wheel(folder)
        for key in ("model", "transcoders"):
            table[key]["source"] = f"data/test-{name}/{key}"
        table["transcoders"]["made"] = MADE
    for layered in (table["transcoders"], table["tool"].get("controls", {})):
        layered.pop("layers", None)  # all of a small model
    of_tool = smaller(table["tool"], small["tool"])  # numbers, and lists of them, are the smoke profile's
    sized = table | {"tool": {"seeds": 2} | of_tool}
    sized |= {study: small[study] for study in ("features", "transport", "lists") if study in table}
    file = folder / f"test-{name}.toml"
    file.write_text(toml(sized))
    return profiles.load(str(file)), begun(file, cache, folder)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The books of all profiles, side by side."""
    folders = {name: tmp_path_factory.mktemp(name) for name in REAL}
    running = {name: start(name, folder) for name, folder in folders.items()}
    yield {name: (profile, process, folders[name] / "said.txt") for name, (profile, process) in running.items()}
    for profile, process in running.values():
        process.kill()
        for made in (profile.paths.data, profile.paths.figures, profile.paths.build):
            shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def book(request, started):
    """A profile's name, its paths, and what its process returned and said."""
    profile, process, said = started[request.param]
    return request.param, profile.paths, process.wait(), said.read_text()


every = pytest.mark.parametrize("book", list(REAL), indirect=True)
on_hub = pytest.mark.parametrize("book", ON_HUB, indirect=True)


@every
def test_every_chapter_runs(book, started):
    name, paths, code, said = book
    profile = started[name][0]
    assert code == 0, said[-3000:]
    for chapter in chapters(profile):
        assert f"{chapter.stem} done in" in said
    assert len(list(paths.figures.glob("*.html"))) >= 15


@on_hub
def test_the_level_of_each_percentile_is_chosen_from_the_release_and_reported_by_layer(book):
    name, paths, *_ = book
    chosen = pd.read_csv(paths.results / "deltas.csv").drop_duplicates(["layer", "percentile"])
    assert list(chosen.groupby("layer").size()) == [len(REAL[name][2])] * 2
    assert [str(l0) for l0 in chosen[chosen.layer == 0].base_l0] == [str(l0) for l0 in REAL[name][2]]


@on_hub
def test_copies_are_sentences_of_c4_each_in_one_split(book):
    _, paths, *_ = book
    found = {split: read_jsonl(paths.prompts / f"{split}.jsonl") for split in SPLITS}
    for split, prompts in found.items():
        copies = [p.input for p in prompts if p.subset == "copy"]
        assert len(set(copies)) == len(copies) == LESS[split]
        assert all(re.fullmatch(r"The \w+ has \d+ \w+ in it\.", text) and split_of(text) == split for text in copies)


@every
def test_what_was_finetuned_is_a_model_of_its_class_with_its_tokenizer(book):
    name, paths, *_ = book
    model_type, *_ = REAL[name]
    hf, tokenizer = models.load_hf(paths.finetuned, "float32")
    before = real.tokenizer(model_type)
    assert hf.config.model_type == model_type and (name not in ON_HUB or type(tokenizer) is type(before))
    assert bos_id(tokenizer) == bos_id(before) and tokenizer("a 12\n").input_ids == before("a 12\n").input_ids


# --- GPT-2, for the study of features alone ---


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The chapters of that study on a small GPT-2 and releases of SAEs in a hub cache, each in its own files."""
    folder = tmp_path_factory.mktemp("gpt2")
    table, small = (tomllib.loads((profiles.FOLDER / f"{name}.toml").read_text()) for name in ("gpt2", "smoke"))
    cache, asked = folder / "hub", table["features"]
    real.repository(cache, table["model"]["source"], functools.partial(real.save, "gpt2"), table["model"]["revision"])
    for point, release in asked["releases"].items():
        name = get_pretrained_saes_directory()[release].repo_id
        real.repository(cache, name, real.sae_lens_release(release, [0, 1]))
        asked["sites"][point] = [0, 1]
    asked |= {name: small["features"][name] for name in ("texts", "scratch")}
    asked["text"] = {"docstring": 60_000, "context": 32, "rows": 8, "round": 64}
    file = folder / "test-gpt2.toml"
    file.write_text(toml(table))
    profile = profiles.load(str(file))
    yield profile, *ran(file, cache, folder)
    for made in (profile.paths.data, profile.paths.figures, profile.paths.build):
        shutil.rmtree(made, ignore_errors=True)


def ran(file: Path, cache: Path, folder: Path) -> tuple[int, str]:
    process = begun(file, cache, folder)
    return process.wait(), (folder / "said.txt").read_text()


def test_the_study_of_features_runs_on_gpt2_alone(gpt2):
    profile, code, said = gpt2
    assert code == 0, said[-3000:]
    here = [chapter.stem for chapter in chapters(profile)]
    assert here == ["11_an_sae_from_scratch", "12_features", "13_specialists", "21_ledger"]
    assert all(f"{name} done in" in said for name in here)
    ledger = pd.read_csv(profile.paths.results / "claims.csv")
    assert ledger.id.tolist() == [f"F{i}" for i in range(1, 19)]
    points = pd.read_csv(profile.paths.results / "features_sites.csv").point.unique()
    assert set(points) == {"resid_pre", "z", "mlp_out"}
    assert '"neuronpedia":"gpt2-small/1-res-jb"' in (profile.paths.build / "browsers/sae.html").read_text()
