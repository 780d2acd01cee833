"""Files that others made: read where they can be, refused in one line where not, before much is read."""

import json
import resource
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import profiles
from lib.book import files
from lib.dictionary.dictionaries import PARAMETERS, Dictionary
from lib.dictionary.layouts import LAYOUTS, load_npz, read, save_npz
from lib.texts.jsonl import read_rows

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"


@pytest.fixture
def one():
    torch.manual_seed(0)
    return Dictionary.initialised((), 6, 10, 0, 0.1)


def refused(work, *words):
    with pytest.raises(ValueError) as error:
        work()
    said = str(error.value)
    assert "\n" not in said and len(said) < 700 and all(str(word) in said for word in words), said
    assert "allow_pickle" not in said


def test_bfloat16_as_jax_saves_it_is_read(one, tmp_path):
    """Two bytes a number, of numpy's type for what it does not know."""
    half = {name: tensor.bfloat16() for name, tensor in one.tensors.items()}
    stored = {name: tensor.view(torch.int16).numpy().view("V2") for name, tensor in half.items()}
    np.savez(tmp_path / "params.npz", **stored)
    found = load_npz(tmp_path / "params.npz", 6)
    for name in PARAMETERS:
        assert torch.equal(getattr(found, name), half[name].float()), name


def test_the_shared_file_in_bfloat16_is_read(shared):
    found = load_npz(shared.parent / "cases/bfloat16_params.npz")
    assert found.W_enc.isfinite().all() and found.W_enc.abs().max() > 0


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("name", ["log_thresholds", "W_skip", "scale"])
def test_an_array_that_the_layout_does_not_know_is_refused_by_name(one, tmp_path, kind, name):
    layout = LAYOUTS["gemma-scope"]
    path = tmp_path / f"params.{kind}"
    arrays = one.tensors | {name: torch.ones(10)}
    if kind == "npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in arrays.items()})
    else:
        save_file(arrays, path)
    refused(lambda: read(path, layout, 6), path, name, "transcoders.layout")


def test_a_threshold_under_another_name_is_refused(tmp_path, one):
    path = tmp_path / "layer_0.safetensors"
    save_file({name: (t.T.contiguous() if name == "W_enc" else t) for name, t in one.tensors.items()}, path)
    refused(
        lambda: read(path, LAYOUTS["circuit-tracer"], 6), path, "array threshold is not one", "activation_function.threshold"
    )


def test_the_shared_file_with_a_threshold_under_another_name(shared):
    path = shared.parent / "cases/circuit_tracer_threshold_key_layer_0.safetensors"
    refused(lambda: read(path, LAYOUTS["circuit-tracer"]), path, "threshold")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", PARAMETERS)
def test_what_is_not_finite_is_neither_read_nor_written(one, tmp_path, name, value):
    path = tmp_path / "params.npz"
    getattr(one, name).data.view(-1)[3] = value
    refused(lambda: save_npz(one, path), path, name, "1 values of", "lower its lr")
    assert not path.exists()
    np.savez(path, **{key: tensor.numpy() for key, tensor in one.tensors.items()})
    refused(lambda: load_npz(path), path, name, "1 values of", "NaN or infinite")


@pytest.mark.parametrize(
    "file", ["params.npz", "layer_0.safetensors", "tokenizer.json", "rows.jsonl", "my.toml", "config.json"]
)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, file):
    path = tmp_path / file
    path.write_bytes(POINTER)
    work = {
        "npz": lambda: load_npz(path), "safetensors": lambda: read(path, LAYOUTS["circuit-tracer"]),
        "jsonl": lambda: read_rows(path, ["input"]), "toml": lambda: profiles.load(str(path)),
    }.get(path.suffix[1:], lambda: files.json_object(path))  # fmt: skip
    refused(work, path, "git lfs pull")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"input": "a"}).encode())
    assert read_rows(tmp_path / "rows.jsonl", ["input"]) == [(f"{tmp_path}/rows.jsonl:1", {"input": "a"})]
    marked = tmp_path / "marked.toml"
    marked.write_bytes(b"\xef\xbb\xbf" + (profiles.FOLDER / "smoke.toml").read_bytes())
    assert profiles.load(str(marked)).model_copy(update={"name": "smoke"}) == profiles.load("smoke")


HOSTILE = {
    "an integer of 5,000 digits": '{"input": 1' + "0" * 5000 + "}", "nesting of 3,000": '{"input": ' + "[" * 3000 + "}",
    "nesting of 100,000": "[" * 100_000, "half of a character": '{"input": "\\ud800"}', "cut": '{"input": "a', "nothing": "",
    "no object": "[1]",
}  # fmt: skip


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_json_that_python_cannot_hold_is_refused_in_one_line(tmp_path, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(said)
    refused(lambda: read_rows(path, ["input"]), path)
    refused(lambda: files.json_object(path), path)


@pytest.mark.parametrize(
    "said", ["a = 1" + "0" * 5000, "a = " + "[" * 3000, 'a = "\\ud800"', "a = [1", "name = 3", "a.b.c.d = {}"]
)
def test_toml_that_python_cannot_hold_is_refused_in_one_line(tmp_path, said):
    path = tmp_path / "my.toml"
    path.write_text(said)
    refused(lambda: profiles.load(str(path)), path)


def test_a_folder_in_place_of_a_file_is_called_one(tmp_path):
    for name in ("params.npz", "layer_0.safetensors", "rows.jsonl", "my.toml"):
        (tmp_path / name).mkdir()
    refused(lambda: load_npz(tmp_path / "params.npz"), "a folder")
    refused(lambda: read(tmp_path / "layer_0.safetensors", LAYOUTS["circuit-tracer"]), "a folder")
    refused(lambda: read_rows(tmp_path / "rows.jsonl", ["input"]), "a folder")
    refused(lambda: profiles.load(str(tmp_path / "my.toml")), "my.toml")


def test_a_bomb_is_refused_before_it_is_read(tmp_path):
    """An npz of one megabyte whose zeros would take gigabytes, and one whose header promises 128 terabytes."""
    zeros = tmp_path / "params.npz"
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in {
            "W_enc": (6, 10**7),
            "W_dec": (10**7, 6),
            "b_enc": (10**7,),
            "threshold": (10**7,),
            "b_dec": (6,),
        }.items():
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(np.prod(shape) // 10**6 + 1):
                    file.write(bytes(10**6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lambda: load_npz(zeros), zeros, "in memory")
    refused(lambda: load_npz(zeros, 8), zeros, "in memory")
    promise = tmp_path / "promise.npz"
    with zipfile.ZipFile(promise, "w") as archive, archive.open("W_enc.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**22, 2**22)})
    refused(lambda: load_npz(promise), promise)
    header = json.dumps({"W_enc": {"dtype": "F64", "shape": [2**44], "data_offsets": [0, 2**47]}}).encode()
    promised = tmp_path / "layer_0.safetensors"
    promised.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(lambda: read(promised, LAYOUTS["circuit-tracer"]), promised, "download it again")
    promised.write_bytes((2**47).to_bytes(8, "little") + header)
    refused(lambda: read(promised, LAYOUTS["circuit-tracer"]), promised, "download it again")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
