"""Damaged and hostile files of every kind that the book reads: read, or refused in one line that names the file.

`FUZZ=10000 pytest lib/tests/test_fuzz.py` tries so many of each kind; without it, few.
"""

import copy
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from lib import profiles
from lib.dictionary import elsewhere, sae_lens
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import LAYOUTS, read
from lib.model import adapters, models
from lib.score import score
from lib.tests.test_imports import saved_by_sae_lens
from lib.texts import jsonl, prompts

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ", "25")), deadline=None, database=None,
    derandomize="FUZZ" not in os.environ, suppress_health_check=list(HealthCheck),
)  # fmt: skip
ODD = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b" ", b"{", b"}", b"[", b"]" * 9, b'"', b"'", b",", b":", b"-",
    b"null", b"true", b"NaN", b"inf", b"-Infinity", b"1e999", b"1e23", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\\ud800",
    b"../../", b"$(touch X)", b"<img src=q>", b"<tool_call>calculator(", b")</tool_call>", b"(" * 300, b"9**9**9",
    b"version https://git-lfs", (2**63).to_bytes(8, "little"), (2**31).to_bytes(4, "little"), b"PK\x03\x04", b"pickle",
    b"\x80\x04c", b"F8_E4M3", b"<V2", b"|O",
]  # fmt: skip


@st.composite
def damaged(draw, original: bytes) -> bytes:
    """The bytes with a few changes: flipped, cut, doubled, swapped, or something odd put in."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):  # most of what decides stands at the beginning
            at %= 400
        to = min(len(data), at + draw(st.integers(1, 40)))
        match draw(st.sampled_from(["flip", "cut", "end", "odd", "odd", "double", "digit", "random"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:to]
            case "end":
                del data[at:]
            case "odd":
                data[at : at + draw(st.sampled_from([0, 1, 8]))] = draw(st.sampled_from(ODD))
            case "double":
                data[at:at] = data[at:to]
            case "digit":
                digits = [i for i in range(at, min(len(data), at + 200)) if 48 <= data[i] < 58]
                if digits:
                    data[digits[0]] = 48 + draw(st.integers(0, 9))
            case "random":
                data[at:to] = draw(st.binary(max_size=40))
    return bytes(data)


def one_line(work, file) -> None:
    """Runs it: it ends well, or in one line of a `ValueError` or `OSError` that names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            work()
        except (ValueError, OSError) as error:
            said = str(error)
            assert "\n" not in said and len(said) < 3000, said
            assert str(file) in said, said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# --- scoring, prompts, profiles ---

ROWS = b"".join(
    json.dumps({"input": p.input, "target": p.target, "label": p.label, "generation": f"{p.target}<eos>"}).encode() + b"\n"
    for label in prompts.SUBSETS for p in prompts.written(label, 2, "test", 0)
)  # fmt: skip


@fuzzed
@given(said=damaged(ROWS))
def test_score(place, said):
    file = place / "log.jsonl"
    file.write_bytes(said)
    one_line(lambda: score(file), file)
    one_line(lambda: jsonl.read_jsonl(file), file)


@fuzzed
@given(said=damaged((profiles.FOLDER / "nano.toml").read_bytes()))
def test_profiles(place, said):
    file = place / "mine.toml"
    file.write_bytes(said)
    one_line(lambda: profiles.load(str(file)), file)


# --- what others made: transcoders, checkpoints, adapters, models ---

SHAPES = dict(W_enc=(32, 10), b_enc=(10,), threshold=(10,), W_dec=(10, 32), b_dec=(32,))


@pytest.fixture(scope="module")
def good(tmp_path_factory, folder):
    """A good folder of each kind."""
    place = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    one = Dictionary(**{name: torch.rand(shape) for name, shape in SHAPES.items()}).requires_grad_(False)
    named = {name: getattr(one, name).contiguous() for name in SHAPES}
    for kind in ("npz", "safetensors", "checkpoint"):
        (place / kind).mkdir()
    np.savez(place / "npz/params.npz", **{name: tensor.numpy() for name, tensor in named.items()})
    save_file(named, place / "safetensors/params.safetensors")
    both = {f"{part}.{name}": tensor for part in ("base_transcoder", "delta_features") for name, tensor in named.items()}
    torch.save(both, place / "checkpoint/best_model.pt")
    saved_by_sae_lens(place / "sae-lens")
    adapted = get_peft_model(models.load_hf(folder, "float32")[0], LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(place / "adapter")
    shutil.copytree(folder, place / "model")
    return place, one


@pytest.fixture(scope="module")
def hf(folder):
    return models.load_hf(folder, "float32")


READS = {  # kind: its files, and what reads a folder of them
    "npz": (["params.npz"], lambda at, one, _: read(at / "params.npz", LAYOUTS["gemma-scope"], 32)),
    "safetensors": (["params.safetensors"], lambda at, one, _: read(at / "params.safetensors", LAYOUTS["gemma-scope"], 32)),
    "checkpoint": (["best_model.pt"], lambda at, one, _: elsewhere._checkpoint(at / "best_model.pt", one)),
    "sae-lens": (["cfg.json", "sae_weights.safetensors"], lambda at, one, _: sae_lens.load_sae_lens(at, 32)),
    "adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        lambda at, one, hf: adapters.finetuned_elsewhere(copy.deepcopy(hf[0]), hf[1], str(at)),
    ),
    "model": (
        ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"],
        lambda at, one, _: models.load_hf(at, "float32"),
    ),
}


@pytest.mark.parametrize("kind", READS)
@fuzzed
@given(data=st.data())
def test_folders(place, good, hf, kind, data):
    (root, one), (names, work) = good, READS[kind]
    at = place / kind
    if not at.exists():
        shutil.copytree(root / kind, at)
        work(at, one, hf)  # as it is it can be read
    name = data.draw(st.sampled_from(names))
    (at / name).write_bytes(data.draw(damaged((root / kind / name).read_bytes())))
    try:
        one_line(lambda: work(at, one, hf), at)
    finally:
        shutil.copy(root / kind / name, at / name)
