import json
import shutil

import pytest
import torch

from lib import models, profiles


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
        return smoke.model_copy(update={"controls": smoke.controls.model_copy(update={"layers": layers})})

    assert models.control_layers(at(None), 2) == [0, 1] and models.control_layers(at([1]), 2) == [1]
    with pytest.raises(ValueError, match=r"profile smoke: controls.layers has 7, but the layers studied are \[0, 1\]"):
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
    from lib.sites import site_for

    with pytest.raises(ValueError, match=r"no site is known for models of type 'bert', only for gemma2, .*; add it"):
        site_for("bert", "gemma-scope")
    with pytest.raises(ValueError, match="no site 'mlp'; known: gemma-scope, published"):
        site_for("gemma2", "mlp")


def test_the_organism_in_git_is_a_gemma2():
    folder = profiles.local_or_hub(profiles.load("nano").model.source)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Gemma2ForCausalLM"]
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
