"""LoRA finetuning by peft under transformers' Trainer, and the merge; or a finetuned model made elsewhere.

Tool prompts are learned on the answer alone, copies on all tokens (the published recipe).
"""

import shutil
import warnings
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from lib import hub, precision
from lib.encoding import encode
from lib.models import load_hf
from lib.paths import replacing
from lib.profiles import Finetune, local_or_hub
from lib.prompts import Prompt

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


def brought(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model finetuned elsewhere, merged, and its tokenizer: a PEFT adapter for `model`, or a whole model of its shape.

    An adapter that fits `model` only in part would silently do less than it should; it is a `ValueError`.
    """
    place = hub.folder(local_or_hub(source), revision)
    if (place / "adapter_config.json").exists():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                return PeftModel.from_pretrained(model, place).merge_and_unload(), tokenizer
        except (UserWarning, RuntimeError, ValueError) as error:
            first = str(error).split("\n")[0]
            raise ValueError(
                f"{source}: not an adapter of {model.name_or_path} ({first:.300}); check finetune.source"
            ) from None
    if not (place / "tokenizer_config.json").exists():
        raise ValueError(f"{source}: no tokenizer there; save the tokenizer beside the model")
    merged, tokenizer = load_hf(place, str(model.dtype).removeprefix("torch."))
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        was, now = getattr(model.config, key), getattr(merged.config, key)
        if was != now:
            raise ValueError(f"{source}: its {key} is {now}, that of {model.name_or_path} {was}; check finetune.source")
    return merged, tokenizer


def with_lora(model: PreTrainedModel, settings: Finetune) -> PeftModel:
    """The model with an untrained adapter, to be trained."""
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
        target_modules=settings.targets, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, lora).train()


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
    its last whole epoch. Where the settings name a source, its model is taken and only scored.
    """
    torch.manual_seed(seed)
    if settings.source:
        adapted, tokenizer = brought(model, tokenizer, settings.source, settings.revision)
    else:
        adapted = with_lora(model, settings)
    checkpoints = folder.with_name(f"{folder.name}.checkpoints")
    steps_an_epoch = -(-len(train) // settings.batch)
    trainer = Trainer(
        adapted,
        TrainingArguments(
            output_dir=str(checkpoints),
            learning_rate=settings.lr,
            lr_scheduler_type="cosine",
            warmup_steps=int(settings.warmup * steps_an_epoch * settings.epochs),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.micro_batch,
            per_device_eval_batch_size=settings.micro_batch,
            gradient_accumulation_steps=settings.batch // settings.micro_batch,
            logging_steps=max(1, steps_an_epoch // 10),
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
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
    )
    if settings.source:
        trainer.evaluate()
    else:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)
        adapted = adapted.merge_and_unload()
    with replacing(folder) as temporary:
        adapted.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return pd.DataFrame(trainer.state.log_history).reindex(columns=CURVES).dropna(subset=CURVES[2:], how="all")
