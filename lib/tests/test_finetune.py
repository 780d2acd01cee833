import pytest
import torch

from lib import finetune, models
from lib.prompts import generate


def test_what_is_learned(tiny):
    """Tool: the answer alone. Copy: everything after BOS."""
    tool, copy = generate("positive", 1, "train", 0)[0], generate("negative", 1, "train", 0)[0]
    batch = finetune.collate(tiny.tokenizer, [tool, copy])
    learned = batch["labels"] != -100
    assert tiny.tokenizer.decode(batch["labels"][0][learned[0]]) == tool.target + "<eos>"
    assert tiny.tokenizer.decode(batch["labels"][1][learned[1]]) == f"<bos>{copy.input}\n{copy.target}<eos>"
    assert (batch["labels"][learned] == batch["input_ids"][learned]).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_finetuning_learns_and_the_merged_model_is_the_adapted_one(folder, smoke, tmp_path, monkeypatch, precision):
    hf, tokenizer = models.load_hf(folder, "float32")
    original = hf.model.layers[0].mlp.up_proj.weight.detach().clone()
    train = generate("positive", 16, "train", 0) + generate("negative", 16, "train", 0)
    kept = {}
    merge = finetune.get_peft_model

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

    monkeypatch.setattr(finetune, "get_peft_model", remembered)
    settings = smoke.finetune.model_copy(update={"epochs": 3, "precision": precision})
    monkeypatch.setitem(finetune.SAME, torch.float32, 1e-5)
    curves = finetune.finetune(hf, tokenizer, train, train[:4] + train[-4:], settings, tmp_path / "finetuned")
    losses = curves.eval_copy_loss.dropna()
    assert len(losses) == 3 and losses.iloc[-1] < losses.iloc[0]
    merged, _ = models.load_hf(tmp_path / "finetuned", "float32")
    with torch.no_grad():
        assert torch.allclose(merged(torch.arange(3, 30)[None]).logits, kept["logits"], atol=1e-3)
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, original)
    assert [f.name for f in tmp_path.iterdir()] == ["finetuned"]
