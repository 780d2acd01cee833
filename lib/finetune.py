"""LoRA finetuning by peft under transformers' Trainer, and the merge.

Tool prompts are learned on the answer alone, copies on all tokens (the published recipe).
"""

import shutil
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from lib.encoding import encode
from lib.paths import replacing
from lib.profiles import Finetune
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
    its last whole epoch.
    """
    torch.manual_seed(seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
            target_modules=settings.targets, task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
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
            gradient_accumulation_steps=max(1, settings.batch // settings.micro_batch),
            logging_steps=max(1, steps_an_epoch // 10),
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            label_names=["labels"],
            report_to="none",
            disable_tqdm=False,
            bf16=settings.precision == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
        ),
        data_collator=lambda prompts: collate(tokenizer, prompts),
        train_dataset=train,
        eval_dataset={s: [p for p in validation if p.subset == s] for s in ("tool", "copy")},
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)
    merged = adapted.merge_and_unload()
    with replacing(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(checkpoints)
    return pd.DataFrame(trainer.state.log_history).reindex(columns=CURVES).dropna(subset=CURVES[2:], how="all")
