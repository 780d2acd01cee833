"""Training on what bases leave: the same whatever holds it and however often it is interrupted."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from lib.book.paths import Paths
from lib.dictionary import bases, deltas
from lib.dictionary.checkpoint import Checkpoint
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import load_npz, save_npz
from lib.model import activations, precision
from lib.model.encoding import batches
from lib.tests.at import other, sites
from lib.texts.prompts import written

LAYERS = [0, 1]


@pytest.fixture
def profile(smoke, tmp_path, monkeypatch):
    """`smoke` with random bases, its data in a folder of its own."""
    monkeypatch.setattr(Paths, "data", tmp_path / "data")
    for layer in LAYERS:
        for seed, l0 in enumerate((4, 8, 16)):
            base = Dictionary.initialised((), 32, 48, seed, 0.5)
            save_npz(base, tmp_path / f"bases/layer_{layer}/width_64/average_l0_{l0}/params.npz")
    source = smoke.transcoders.model_copy(update={"source": str(tmp_path / "bases")})
    return smoke.model_copy(update={"transcoders": source})


@pytest.fixture(scope="module")
def encoded(tiny):
    def of(split, n):
        asked = written("positive", n, split, 0) + written("negative", n, split, 0)
        return batches(tiny.tokenizer, asked, 8)

    return of("train", 20), of("validation", 6)


def with_memory(profile, **memory):
    return other(profile, memory=profile.tool.memory.model_copy(update=memory))


def trained(profile, model, encoded):
    """Learning curves, and all parameters by file."""
    curves = deltas.train_deltas(profile, model, sites(model, LAYERS), *encoded)
    files = sorted(profile.paths.deltas.rglob("*.npz"))
    members = {str(f.relative_to(profile.paths.deltas)): load_npz(f, 32).state_dict() for f in files}
    for file in files:
        file.unlink()
    return curves, members


def same(one, two):
    return (
        one[0].equals(two[0])
        and one[1].keys() == two[1].keys()
        and all(torch.equal(one[1][f][name], two[1][f][name]) for f in one[1] for name in one[1][f])
    )


def test_what_a_base_leaves_by_hand(tiny, profile, encoded):
    held = activations.collect(tiny, sites(tiny, LAYERS), encoded[1])
    (x, target), (_, again) = deltas.targets(profile, tiny, sites(tiny, LAYERS), [0.0, 1.0], [encoded[1], encoded[1]])
    everything = slice(None)
    assert x.shape == (2, 1, *held.x.shape[1:]) and target.shape == (2, 2, *held.x.shape[1:])
    assert torch.equal(x[..., everything, :][:, 0], held.x)
    for i, site in enumerate(sites(tiny, LAYERS)):
        for j, base in enumerate(bases.load(profile, tiny, site, [0.0, 1.0])):
            for token in (0, 57):
                y_hat = base(held.x[i, token][None])[0]
                assert torch.allclose(target[..., token : token + 1, :][i, j, 0], held.y[i, token] - y_hat, atol=1e-5)
    assert torch.equal(again[..., everything, :], target[..., everything, :])


def with_training(profile, **changes):
    training = profile.tool.deltas.training.model_copy(update=changes)
    return other(profile, deltas=profile.tool.deltas.model_copy(update={"training": training}))


@pytest.mark.parametrize(
    ("dtype", "learnt_in", "instructions"),
    [
        ("float32", "float32", True),
        ("bfloat16", "float32", True),
        ("bfloat16", "bfloat16", True),
        ("bfloat16", "bfloat16", False),
    ],
)
def test_files_give_the_same_deltas_and_are_gone(tiny, profile, encoded, dtype, learnt_in, instructions, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: instructions)
    profile = with_training(with_memory(profile, dtype=dtype), precision=learnt_in)
    in_memory = trained(profile, tiny, encoded)
    in_files = trained(with_memory(profile, data_gb=0.0), tiny, encoded)
    assert same(in_memory, in_files)
    assert len(in_memory[1]) == 8 and not (in_memory[0].fvu == 1).all()
    assert {path.name for path in profile.paths.data.iterdir()} == {"deltas"}


@pytest.mark.parametrize("instructions", [True, False])
def test_half_precision_is_for_training_alone_and_learns_as_much(tiny, profile, encoded, instructions, monkeypatch):
    """Within rounding: targets, the size of what is held, and the validation loss, which is always on exact targets."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: instructions)
    percentiles, counts = [0.0, 1.0], [activations.count(tiny, split) for split in encoded]
    found, sizes = {}, {}
    for asked in ("float32", "bfloat16"):
        this = with_memory(profile, dtype=asked)
        this = with_training(this, precision=asked, steps=150, check_every=150, lr=2e-2)
        (x, target), check = deltas.targets(this, tiny, sites(tiny, LAYERS), percentiles, encoded)
        assert (x.dtype, target.dtype) == (getattr(torch, asked),) * 2 and check[1].dtype == torch.float32
        [(stack, curves)] = deltas.fit(this.tool.deltas.training, (x, target), check, [4], 0)
        found[asked] = target[..., : counts[0], :].float(), check[1][..., : counts[1], :], curves.fvu
        sizes[asked], _ = deltas.held_size(this, counts, len(LAYERS), len(percentiles), tiny.d_model)
        assert stack.W_dec.dtype == torch.float32
    (whole, check, fvu), (half, same_check, half_fvu) = found.values()
    assert torch.equal(check, same_check) and not torch.equal(whole, half)
    # without instructions the base runs in float32, and only what is held is rounded
    assert torch.equal(half, whole.bfloat16().float()) is not instructions
    assert (half - whole).square().mean() < 1e-3 * whole.var()
    assert sizes["float32"] - sizes["bfloat16"] == 2 * counts[0] * len(LAYERS) * 3 * tiny.d_model
    assert (half_fvu - fvu).abs().max() < 0.05 < (1 - fvu).min()


def test_layers_in_groups_learn_what_they_learn_together(tiny, profile, encoded):
    """So groups, and jobs on several machines, change nothing."""
    together, apart = trained(profile, tiny, encoded), trained(with_memory(profile, layers=1), tiny, encoded)
    keys = ["layer", "d_new", "percentile", "step"]
    pd.testing.assert_frame_equal(
        together[0].sort_values(keys, ignore_index=True), apart[0].sort_values(keys, ignore_index=True), rtol=1e-4
    )
    assert together[1].keys() == apart[1].keys()
    for name, parameters in together[1].items():
        assert all(torch.allclose(parameters[key], apart[1][name][key], atol=1e-5) for key in parameters)


@pytest.mark.parametrize("dies_at", [3, 12])
def test_interrupted_training_ends_as_if_it_had_not_been(tiny, profile, encoded, monkeypatch, dies_at):
    """It dies while a batch is drawn: before the first check, and after the second."""
    whole = trained(profile, tiny, encoded)
    repeated, drawn = activations.repeated, iter(range(10**6))

    def dying(*arguments):
        for pick in repeated(*arguments):
            if next(drawn) == dies_at:
                raise KeyboardInterrupt
            yield pick

    monkeypatch.setattr(activations, "repeated", dying)
    with pytest.raises(KeyboardInterrupt):
        deltas.train_deltas(profile, tiny, sites(tiny, LAYERS), *encoded)
    left = list(profile.paths.deltas.glob("*.checkpoint"))
    assert len(left) == (dies_at > 5)  # a check every 5 steps, of 20
    monkeypatch.setattr(activations, "repeated", repeated)
    assert same(whole, trained(profile, tiny, encoded))
    assert not list(profile.paths.deltas.glob("*.checkpoint"))


def data(n=600, d=16):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, n, d, generator=draw), torch.randn(2, n, d, generator=draw)


def test_a_finished_training_is_not_done_again_and_another_is(smoke, tmp_path, monkeypatch):
    settings, file = smoke.tool.deltas.training, tmp_path / "c.pt"
    [(first, curves)] = deltas.fit(settings, data(), data(), [4], 0, checkpoint=file)
    with monkeypatch.context() as patch:
        patch.setattr(activations, "repeated", lambda *_: (pytest.fail("it learns again") for _ in [0]))
        [(again, same_curves)] = deltas.fit(settings, data(), data(), [4], 0, checkpoint=file)
    assert torch.equal(first.W_enc, again.W_enc) and curves.equals(same_curves)
    (x, target), (x_held, held) = data(), data()
    target[-1, -1, -1] += 9
    others = [
        (settings, data(), data(), [4], 1), (settings, (x, target), data(), [4], 0),
        (settings, data(), (x_held, held.flip(0)), [4], 0), (settings.model_copy(update={"lr": 1e-4}), data(), data(), [4], 0),
    ]  # fmt: skip
    for another in others:
        with pytest.warns(UserWarning, match="of another training"):
            [(anew, _)] = deltas.fit(*another, checkpoint=file)
        [(alone, _)] = deltas.fit(*another)
        assert all(torch.equal(a, b) for a, b in zip(anew.tensors.values(), alone.tensors.values(), strict=True))


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    file = tmp_path / "c.pt"
    Checkpoint(file, "this").save(step=3)
    assert Checkpoint(file, "this").step == 3 and Checkpoint(file, "another").step == 0
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged or not a checkpoint; delete it") as error:
        Checkpoint(file, "this")
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000_000))
    part = (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match=r"activations need 128.0 GB of disk, 1.0 GB are free; .*tool.memory.layers") as error:
        activations.stored(iter([part]), 10**9, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("folder", [False, True])
def test_rows_are_the_tensor(tmp_path, folder, dtype):
    whole = torch.arange(2 * 3 * 50 * 4).view(2, 3, 50, 4).to(dtype)
    (rows,) = activations.stored(((part,) for part in whole.split(7, 2)), 50, tmp_path if folder else None)
    pick = torch.tensor([49, 3, 3, 0])
    assert rows.shape == whole.shape and rows.dtype == rows[..., :2, :].dtype == dtype
    assert torch.equal(rows.index_select(-2, pick), whole[..., pick, :]) and torch.equal(rows[..., 4:9, :], whole[..., 4:9, :])
    assert rows.index_select(-2, pick).is_contiguous() and not list(tmp_path.iterdir())


GROWS = """
import resource, sys, torch
from pathlib import Path
from lib.dictionary import deltas
from lib.model import activations
from lib.profiles import load
n, folder = int(sys.argv[1]), Path(sys.argv[2])
part = torch.randn(4, 1, 1000, 32), torch.randn(4, 3, 1000, 32)
held = [activations.stored((part for _ in range(m)), 1000 * m, folder if folder.name else None) for m in (n, n // 2)]
deltas.fit(load("smoke").tool.deltas.training, *held, [4], 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(*arguments):
    """Peak memory of training, in kilobytes, in a process of its own."""
    # without make's settings of the allocator, which keeps what was freed
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    # by way of a shell: a process's peak counts from what the one that it was forked from had
    command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", GROWS, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    return int(found.stdout)


def test_memory_does_not_grow_with_the_data(tmp_path):
    one, eight, in_memory = (peak(n, place) for n, place in (("12", str(tmp_path)), ("96", str(tmp_path)), ("96", "")))
    assert eight < 1.1 * one
    assert in_memory > 1.3 * one
