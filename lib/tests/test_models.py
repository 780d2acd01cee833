import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib import profiles
from lib.book import hub
from lib.model import models
from lib.tests.at import other


def test_the_bridge_is_the_model_bit_for_bit(plain, tiny):
    ids = tiny.tokenizer("What is 12 plus 30?\n", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(tiny.bridge(ids), plain(ids).logits)
        assert torch.equal(tiny.hf(ids).logits, plain(ids).logits)


def test_layers_of(smoke):
    assert models.layers_of(smoke, 2) == [0, 1]
    chosen = smoke.model_copy(update={"transcoders": smoke.transcoders.model_copy(update={"layers": [1, 5]})})
    with pytest.raises(
        ValueError, match=r"profile smoke: transcoders.layers has 5, but data/smoke/model has layers 0 to 1; name one"
    ):
        models.layers_of(chosen, 2)


def test_controls_are_of_layers_that_are_studied(smoke):
    def at(layers):
        return other(smoke, controls=smoke.tool.controls.model_copy(update={"layers": layers}))

    assert models.control_layers(at(None), 2) == [0, 1] and models.control_layers(at([1]), 2) == [1]
    with pytest.raises(ValueError, match=r"profile smoke: tool.controls.layers has 7, but the layers studied are \[0, 1\]"):
        models.control_layers(at([1, 7]), 2)


def test_truncated_weights_are_named(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or truncated") as error:
        models.load_hf(copy, "float32")
    assert str(weights) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        models.load_hf(tmp_path, "float32")


def test_an_unknown_architecture_has_no_site():
    from lib.model.sites import site

    with pytest.raises(ValueError, match=r"no site is known for models of type 'bert', only for gemma2, .*; add it"):
        site("bert", "trained", 0, 32)
    with pytest.raises(ValueError, match="no site 'mlp'; known: trained, published, resid_pre"):
        site("gemma2", "mlp", 0, 32)


def test_the_organism_in_git_is_a_gemma2():
    folder = hub.local_or_hub(profiles.load("nano").model.source)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Gemma2ForCausalLM"]
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}


# --- a folder that is not whole ---


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def refused(copy, *words):
    with pytest.raises(ValueError) as error:
        models.load_hf(copy, "float32")
    said = str(error.value)
    assert "\n" not in said and all(word in said for word in (str(copy), *words)), said


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight",
             "model.layers.0.self_attn.q_proj.weight"],
)  # fmt: skip
def test_a_tensor_that_is_missing_misshapen_or_not_finite_is_named(copy, name):
    held = tensors(copy)
    save_file({key: tensor for key, tensor in held.items() if key != name}, copy / "model.safetensors", {"format": "pt"})
    refused(copy, "no weights for", name)
    save_file(held | {name: torch.ones(3)}, copy / "model.safetensors", {"format": "pt"})
    refused(copy, name, "another shape")
    for value in (torch.nan, torch.inf):
        held[name].view(-1)[-1] = value
        save_file(held, copy / "model.safetensors", {"format": "pt"})
        refused(copy, name, "1 values of", "NaN or infinite")


def test_a_tied_model_needs_no_head_of_its_own(copy, plain):
    assert "lm_head.weight" not in tensors(copy)
    again, _ = models.load_hf(copy, "float32")
    ids = torch.tensor([[1, 9, 30]])
    assert torch.equal(again(ids).logits, plain(ids).logits)


def test_a_missing_shard_is_named(copy):
    held = tensors(copy)
    half = len(held) // 2
    parts = [dict(list(held.items())[:half]), dict(list(held.items())[half:])]
    (copy / "model.safetensors").unlink()
    where = {}
    for i, part in enumerate(parts, 1):
        save_file(part, copy / f"model-{i:05}-of-00002.safetensors", {"format": "pt"})
        where |= dict.fromkeys(part, f"model-{i:05}-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    models.load_hf(copy, "float32")
    (copy / "model-00002-of-00002.safetensors").unlink()
    refused(copy, "model-00002-of-00002.safetensors: no such file")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_cut_file_and_a_pointer_are_named(copy, file):
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2])
    refused(copy, file, "not JSON")
    (copy / file).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    refused(copy, file, "git lfs pull")
    (copy / file).write_text("[]")
    refused(copy, file, "no object")


def test_the_shared_pointer_in_place_of_a_tokenizer_is_called_one(copy, shared):
    shutil.copy(shared.parent / "cases/tokenizer.json_as_lfs_pointer", copy / "tokenizer.json")
    refused(copy, "tokenizer.json", "git lfs pull")


def test_a_folder_without_the_tokenizers_settings_or_an_end_of_texts_is_refused(copy):
    said = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").unlink()
    refused(copy, "no tokenizer_config.json")
    (copy / "tokenizer_config.json").write_text(json.dumps({key: v for key, v in said.items() if key != "eos_token"}))
    refused(copy, "no eos_token")
