"""The same jobs on two local workers of ray, started for real (`make cluster-test`)."""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from lib import profiles
from lib.book import compute
from lib.dictionary import deltas
from lib.dictionary.layouts import load_npz
from lib.model import encoding, finetuned
from lib.studies.tool import experiments, seeds
from lib.texts import jsonl

ray = pytest.importorskip("ray", reason="ray is installed only when asked for: make cluster-test")


@pytest.fixture(scope="module")
def profile():
    """`smoke` as its book left it, under a name of its own."""
    made = profiles.load("smoke")
    if not made.paths.deltas.is_dir():
        pytest.skip("the chapters of smoke up to the third have not been made: make cluster-test")
    own = made.model_copy(update={"name": "cluster-test"})
    for name in ("finetuned", "deltas", "prompts"):
        shutil.copytree(made.paths.data / name, own.paths.data / name, dirs_exist_ok=True)
    yield own
    shutil.rmtree(own.paths.data)


@pytest.fixture(scope="module")
def workers():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def both(workers, monkeypatch):
    """A function's result here, and on the workers."""

    def run(function):
        monkeypatch.setenv("ENGINE", "local")
        here = function()
        monkeypatch.setenv("ENGINE", "ray")
        monkeypatch.setenv("RAY_ADDRESS", workers)
        assert compute.slots() == 2
        return here, function()

    return run


def test_experiments_give_the_same_tables(both, profile):
    asked = jsonl.by_subset(jsonl.read_jsonl(profile.paths.prompts / "test.jsonl"), 8)
    for found in (
        both(lambda: finetuned.over_layers(experiments.exp1, profile, prompts=asked["tool"])),
        both(lambda: finetuned.over_layers(experiments.exp2_by_layer, profile, prompts=asked, doses=experiments.AT_ENDS)),
    ):
        here, there = (table.sort_values([*table.columns[:4]], ignore_index=True) for table in found)
        assert here.layer.nunique() > 1
        pd.testing.assert_frame_equal(here, there, rtol=1e-4, atol=1e-6)


def test_deltas_learn_the_same(both, profile):
    tokenizer = finetuned.finetuned(profile).tokenizer
    splits = [jsonl.read_jsonl(profile.paths.prompts / f"{split}.jsonl") for split in ("train", "validation")]
    train_on, validate_on = (encoding.batches(tokenizer, split, 8) for split in splits)

    def learn():
        shutil.rmtree(profile.paths.deltas)
        curves = finetuned.over_layers(deltas.train_deltas, profile, train_on=train_on, validate_on=validate_on)
        files = sorted(profile.paths.deltas.rglob("*.npz"))
        return curves, {f: load_npz(f).W_dec for f in files}

    (curves, here), (curves_there, there) = both(learn)
    keys = ["layer", "d_new", "percentile", "step"]
    curves, curves_there = (c.sort_values(keys, ignore_index=True) for c in (curves, curves_there))
    pd.testing.assert_frame_equal(curves, curves_there, rtol=1e-3, atol=1e-6)
    assert here.keys() == there.keys() and all((here[f] - there[f]).abs().max() < 1e-4 for f in here)
    assert not list(profile.paths.deltas.glob("*.checkpoint"))


def test_seeds_give_the_same_headlines(both, profile):
    jobs = [(profile, seed, 4) for seed in range(2)]
    here, there = both(lambda: compute.each(seeds.headline, jobs))
    for a, b in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b), rtol=1e-2, atol=1e-3)


def job(folder: Path, i: int) -> int:
    """Squares; job 2 dies the first time, in the middle."""
    with (folder / "began").open("a") as file:
        file.write(f"{i}\n")
    if i == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def test_a_killed_worker_costs_its_job_a_retry_and_nothing_else(workers, monkeypatch, tmp_path):
    monkeypatch.setenv("ENGINE", "ray")
    monkeypatch.setenv("RAY_ADDRESS", workers)
    assert compute.each(job, [(tmp_path, i) for i in range(6)]) == [0, 1, 4, 9, 16, 25]
    assert Counter((tmp_path / "began").read_text().split()) == {str(i): 1 + (i == 2) for i in range(6)}


def test_an_error_in_a_job_is_raised_here_and_not_tried_again(workers, monkeypatch):
    monkeypatch.setenv("ENGINE", "ray")
    monkeypatch.setenv("RAY_ADDRESS", workers)
    with pytest.raises(ValueError, match="there is no layer 3"):
        compute.each(_fails, [(3,)])


def _fails(layer: int):
    raise ValueError(f"there is no layer {layer}; the model has layers 0 to 1")
