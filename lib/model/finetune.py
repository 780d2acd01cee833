"""LoRA finetuning by peft under transformers' Trainer, and the merge; or a finetuned model made elsewhere.

Tool prompts are learned on the answer alone, copies on all tokens (the published recipe).
"""

import json
import math
import warnings
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lib.book import arrays
from lib.book.fingerprint import code, fingerprint
from lib.book.paths import alone, discard, replacing
from lib.model import precision
from lib.model.adapters import finetuned_elsewhere, with_lora
from lib.model.encoding import encode
from lib.model.models import load_hf
from lib.profiles.tool import Finetune
from lib.texts.prompts import Prompt

CURVES = ("step", "epoch", "loss", "eval_tool_loss", "eval_copy_loss")


def collate(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    """A batch for the Trainer; labels are -100 where nothing is learned, and BOS is never predicted."""
    batch = encode(tokenizer, prompts)
    is_copy = torch.tensor([prompt.subset == "copy" for prompt in prompts])[:, None]
    learned = batch.answer | (is_copy & batch.attention.bool())
    return {
        "input_ids": batch.ids,
        "attention_mask": batch.attention,
        "labels": batch.ids.masked_fill(~learned, -100),
    }


class Whole(TrainerCallback):
    """Marks each checkpoint once it is whole, and only then lets go of the one before; stops where a loss is not finite."""

    MARK = "whole"

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir)
        new = folder / f"checkpoint-{state.global_step}"
        (new / self.MARK).touch()
        for old in folder.glob("checkpoint-*"):
            if old != new:
                discard(old)

    def on_log(self, args, state, control, logs=None, **_):
        for name, value in (logs or {}).items():
            if "loss" in name and not math.isfinite(value):
                raise ValueError(
                    f"finetuning came apart at step {state.global_step} ({name} is {value}); lower tool.finetune.lr"
                )


def last_whole(folder: Path, of: str) -> str | None:
    """The newest whole checkpoint of the run `of` in its folder; what another run, or a death, left there is passed over."""
    mark = folder / "of"
    if folder.exists() and not (mark.exists() and mark.read_text() == of):
        warnings.warn(f"{folder}: of another run (other settings, prompts or weights); begun anew", stacklevel=3)
        discard(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(mark) as temporary:
        temporary.write_text(of)
    found = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*") if (path / Whole.MARK).exists()}
    for torn in set(folder.glob("checkpoint-*")) - set(found.values()):
        discard(torn)
    return str(found[max(found)]) if found else None


@torch.no_grad()
def says(model: PreTrainedModel | PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a batch, in float32."""
    training = model.training
    ids, attention = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
    found = model.eval()(input_ids=ids, attention_mask=attention, use_cache=False).logits.float().cpu()
    model.train(training)
    return found


SAME = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far logits may be from those before merging and saving (root mean square, as a share of their spread); rounding alone."""


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Prompt],
    validation: list[Prompt],
    settings: Finetune,
    folder: Path,
    seed: int = 0,
) -> pd.DataFrame:
    """Finetune, merge, save the merged model and its tokenizer in `folder`; returns the learning curves.

    Curves hold `CURVES`: losses in nats per learned token. A run that was interrupted goes on from
    its last whole epoch; one that is done is not done again. Where the settings name a source, its model is taken and only
    scored. `ValueError` where training comes apart, and where what would be saved is not what was trained.
    """
    of = fingerprint(
        settings, seed, [[p.input, p.target, p.label] for p in (*train, *validation)], tokenizer.get_vocab(),
        dict(model.state_dict()), code(__file__),
    )  # fmt: skip
    done = folder / "finetuned.json"
    with alone(folder):
        if done.exists() and (made := json.loads(done.read_text()))["of"] == of and not settings.source:
            discard(_checkpoints(folder))
            return pd.DataFrame(made["curves"], columns=CURVES).astype(float)
        curves, adapted, tokenizer = _trained(model, tokenizer, train, validation, settings, folder, seed, of)
        probe = collate(tokenizer, validation[:16])
        wanted = says(adapted, probe)
        if isinstance(adapted, PeftModel):
            adapted = adapted.merge_and_unload()
        arrays.finite(folder, dict(adapted.named_parameters()), "training came apart: lower tool.finetune.lr")
        with replacing(folder) as temporary:
            adapted.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            saved, _ = load_hf(temporary, str(adapted.dtype).removeprefix("torch."))
            off = ((says(saved, probe) - wanted).square().mean().sqrt() / wanted.std()).item()
            if not off <= SAME[adapted.dtype]:
                raise ValueError(
                    f"{folder}: what would be saved is not the model that was trained (logits differ by {off:.2g} of their "
                    "spread); leave embeddings and head out of the adapter's targets (tool.finetune.targets, or .source)"
                )
            (temporary / done.name).write_text(json.dumps({"of": of, "curves": curves.values.tolist()}))
        discard(_checkpoints(folder))
    return curves


def _checkpoints(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.checkpoints")


def _trained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: list[Prompt], validation: list[Prompt],
    settings: Finetune, folder: Path, seed: int, of: str,
) -> tuple[pd.DataFrame, PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:  # fmt: skip
    """The learning curves, and the trained model, not yet merged, with its tokenizer."""
    torch.manual_seed(seed)
    if settings.source:
        adapted, tokenizer = finetuned_elsewhere(model, tokenizer, settings.source, settings.revision)
    else:
        adapted = with_lora(model, settings)
    steps_an_epoch = -(-len(train) // settings.batch)
    trainer = Trainer(
        adapted,
        TrainingArguments(
            output_dir=str(_checkpoints(folder)),
            learning_rate=settings.lr,
            lr_scheduler_type="cosine",
            warmup_steps=int(settings.warmup * steps_an_epoch * settings.epochs),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.micro_batch,
            per_device_eval_batch_size=settings.micro_batch,
            gradient_accumulation_steps=settings.batch // settings.micro_batch,
            logging_steps=max(1, steps_an_epoch // 10),
            logging_nan_inf_filter=False,
            eval_strategy="epoch",
            save_strategy="epoch",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            label_names=["labels"],
            report_to="none",
            disable_tqdm=False,
            bf16=precision.of_products(getattr(torch, settings.precision), model.device) == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
        ),
        data_collator=lambda prompts: collate(tokenizer, prompts),
        train_dataset=train,
        eval_dataset={s: [p for p in validation if p.subset == s] for s in ("tool", "copy")},
        callbacks=[Whole()],
    )
    if settings.source:
        trainer.evaluate()
    else:
        trainer.train(resume_from_checkpoint=last_whole(_checkpoints(folder), of))
    curves = pd.DataFrame(trainer.state.log_history).reindex(columns=CURVES).dropna(subset=CURVES[2:], how="all")
    adapted = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # computes in its own precision again
    return curves.astype(float), adapted, tokenizer
