import tomllib

import pytest
import torch
from peft import LoraModel

from lib.model import adapters, finetune, models
from lib.tests.at import other
from lib.texts.prompts import written


def test_what_is_learned(tiny):
    """Tool: the answer alone. Copy: everything after BOS."""
    tool, copy = written("positive", 1, "train", 0)[0], written("negative", 1, "train", 0)[0]
    batch = finetune.collate(tiny.tokenizer, [tool, copy])
    learned = batch["labels"] != -100
    assert tiny.tokenizer.decode(batch["labels"][0][learned[0]]) == tool.target + "<eos>"
    assert tiny.tokenizer.decode(batch["labels"][1][learned[1]]) == f"<bos>{copy.input}\n{copy.target}<eos>"
    assert (batch["labels"][learned] == batch["input_ids"][learned]).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_finetuning_learns_and_the_merged_model_is_the_adapted_one(folder, smoke, tmp_path, monkeypatch, precision):
    hf, tokenizer = models.load_hf(folder, "float32")
    original = hf.model.layers[0].mlp.up_proj.weight.detach().clone()
    train = written("positive", 16, "train", 0) + written("negative", 16, "train", 0)
    kept = {}
    merge = adapters.get_peft_model

    def remembered(*args, **kwargs):
        kept["model"] = merge(*args, **kwargs)
        unload = kept["model"].merge_and_unload

        def measured():
            kept["model"].eval()
            with torch.no_grad():
                kept["logits"] = kept["model"](torch.arange(3, 30)[None]).logits
            return unload()

        kept["model"].merge_and_unload = measured
        return kept["model"]

    monkeypatch.setattr(adapters, "get_peft_model", remembered)
    settings = smoke.tool.finetune.model_copy(update={"epochs": 3, "precision": precision})
    monkeypatch.setitem(finetune.SAME, torch.float32, 1e-5)
    curves = finetune.finetune(hf, tokenizer, train, train[:4] + train[-4:], settings, tmp_path / "finetuned")
    losses = curves.eval_copy_loss.dropna()
    assert len(losses) == 3 and losses.iloc[-1] < losses.iloc[0]
    merged, _ = models.load_hf(tmp_path / "finetuned", "float32")
    with torch.no_grad():
        assert torch.allclose(merged(torch.arange(3, 30)[None]).logits, kept["logits"], atol=1e-3)
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, original)
    assert [f.name for f in tmp_path.iterdir()] == ["finetuned"]


# --- what is refused, and what another run has left ---


@pytest.fixture
def few():
    return written("positive", 8, "train", 0) + written("negative", 8, "train", 0)


@pytest.fixture
def run(folder, smoke, few, tmp_path):
    """Finetunes the tiny model under changed settings; returns the folder and the curves."""

    def work(name="finetuned", **changes):
        settings = smoke.tool.finetune.model_copy(update={"epochs": 2, **changes})
        hf, tokenizer = models.load_hf(folder, "float32")
        return tmp_path / name, finetune.finetune(hf, tokenizer, few, few[:4] + few[-4:], settings, tmp_path / name)

    return work


def weights(folder):
    return dict(models.load_hf(folder, "float32")[0].named_parameters())


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_a_tied_embedding_is_refused_before_work(folder, smoke, target):
    settings = smoke.tool.finetune.model_copy(update={"targets": ["q_proj", target]})
    with pytest.raises(ValueError, match=rf"tool.finetune.targets: {target} is tied .* leave it out"):
        adapters.with_lora(models.load_hf(folder, "float32")[0], settings)
    model = smoke.model.model_copy(update={"source": str(folder)})
    profile = other(smoke.model_copy(update={"model": model}), finetune=settings)
    with pytest.raises(ValueError, match=rf"tool.finetune.targets: {target} is tied"):
        adapters.check(profile)


def test_the_shared_profile_with_a_tied_target_is_refused(folder, smoke, shared):
    asked = tomllib.loads((shared.parent / "cases/lora_targets_embed_tokens.toml").read_text())
    with pytest.raises(ValueError, match="embed_tokens is tied"):
        adapters.with_lora(models.load_hf(folder, "float32")[0], smoke.tool.finetune.model_copy(update=asked))


def test_an_unknown_target_is_refused_and_the_known_ones_are_named(folder, smoke):
    settings = smoke.tool.finetune.model_copy(update={"targets": ["q_proj", "c_attn"]})
    with pytest.raises(
        ValueError, match=r"tool.finetune.targets: c_attn is no module of .*; it has down_proj, gate_proj, k_proj"
    ):
        adapters.with_lora(models.load_hf(folder, "float32")[0], settings)


def test_training_that_comes_apart_saves_nothing(run, tmp_path):
    with pytest.raises(ValueError, match=r"finetuning came apart at step \d+ \(.*loss is (nan|inf)\); lower tool.finetune.lr"):
        run(lr=1e6)
    assert not (tmp_path / "finetuned").exists()


def test_a_checkpoint_of_other_settings_is_passed_over_and_said_so(run, monkeypatch):
    def stopped(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(finetune.arrays, "finite", stopped)
        with pytest.raises(RuntimeError, match="killed"):
            run(lr=5e-3)  # trained to its last epoch, not yet saved
    with pytest.warns(UserWarning, match="of another run .*; begun anew"):
        there, curves = run(lr=1e-6)
    fresh, wanted = run("fresh", lr=1e-6)
    assert curves.equals(wanted)
    assert all(torch.equal(a, weights(fresh)[name]) for name, a in weights(there).items())


def test_a_torn_checkpoint_is_passed_over_for_the_newest_whole_one(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
    for step in (2, 4):
        (tmp_path / f"run/checkpoint-{step}" / finetune.Whole.MARK).touch()
    (tmp_path / "run/of").write_text("this")
    assert finetune.last_whole(tmp_path / "run", "this") == str(tmp_path / "run/checkpoint-4")
    assert not (tmp_path / "run/checkpoint-6").exists()
    with pytest.warns(UserWarning, match="of another run"):
        assert finetune.last_whole(tmp_path / "run", "that") is None


def test_what_is_done_is_not_done_again(run, monkeypatch):
    _, curves = run()
    monkeypatch.setattr(finetune.Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run()[1].equals(curves)


def test_a_model_that_is_not_the_trained_one_is_not_saved(run, monkeypatch, tmp_path):
    merge = LoraModel.merge_and_unload

    def wrong(self):
        merged = merge(self)
        merged.model.layers[0].mlp.up_proj.weight.data += 0.05
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(ValueError, match="what would be saved is not the model that was trained"):
        run()
    assert not (tmp_path / "finetuned").exists()
