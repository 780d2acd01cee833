"""The whole book on every real profile: repositories of small random weights in a hub cache, no network, sizes overridden."""

import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest

from lib import profiles
from lib.paths import NOTEBOOKS, ROOT
from lib.tests import real

REAL = {  # profile: what it is a model of, how its transcoders are released, and the average L0 they say for layer 0
    "gemma-2-2b": ("gemma2", real.gemma_scope, [13.0, 25.0, 49.0]),
    "gemma-3-270m": ("gemma3_text", real.gemma_scope_2, [10.0, 60.0]),
    "qwen3-0.6b": ("qwen3", real.circuit_tracer, [float("nan")]),
}
SIZES = ("prompts", "finetune", "deltas", "evaluation")  # tables whose numbers, and lists of them, are the smoke profile's
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


@pytest.fixture(scope="module", params=list(REAL))
def book(request, tmp_path_factory):
    """A cache with the profile's repositories, the profile with small sizes, and every chapter run on it."""
    model_type, release, _ = REAL[request.param]
    table = tomllib.loads((profiles.FOLDER / f"{request.param}.toml").read_text())
    small = tomllib.loads((profiles.FOLDER / "smoke.toml").read_text())
    folder = tmp_path_factory.mktemp(request.param)
    cache = folder / "hub"
    for key, write in (("model", lambda path: real.save(model_type, path)), ("transcoders", release)):
        real.repository(cache, table[key]["source"], write, table[key]["revision"])
    real.repository(cache, "allenai/c4", real.c4, C4, "datasets")
    table["transcoders"].pop("layers", None)
    sized = {key: smaller(value, small[key]) if key in SIZES else value for key, value in table.items()}
    file = folder / f"test-{request.param}.toml"
    file.write_text(toml(sized))
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    paths = profiles.load(str(file)).paths
    result = subprocess.run(
        [sys.executable, "-m", "lib.tests.book", str(file)], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    yield request.param, paths, result
    for made in (paths.data, paths.figures, paths.build):
        shutil.rmtree(made, ignore_errors=True)


def test_every_chapter_runs(book):
    _, paths, result = book
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    for chapter in sorted(NOTEBOOKS.glob("*.ipynb")):
        assert f"{chapter.stem} done in" in result.stdout
    assert len(list(paths.figures.glob("*.html"))) >= 15
