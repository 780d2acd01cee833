"""LoRA adapters: put on a model, or trained elsewhere."""

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lib.book import arrays, files, hub
from lib.book.hub import local_or_hub
from lib.model.models import load_hf
from lib.profiles.tables import Profile
from lib.profiles.tool import Finetune


def finetuned_elsewhere(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, revision: str | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The model finetuned elsewhere and its tokenizer: `model` with a PEFT adapter on it, or a whole model of its shape.

    An adapter that fits `model` only in part would silently do less than it should; it is a `ValueError`, as is one that
    is not finite.
    """
    place = hub.folder(local_or_hub(source), revision)
    if (place / "adapter_config.json").exists():
        files.json_object(place / "adapter_config.json")
        for file in place.glob("adapter_model*"):
            files.present(file)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                adapted, theirs = PeftModel.from_pretrained(model, place), load_peft_weights(str(place), device="cpu")
        except Exception as error:  # a damaged file may end in any of them
            raise ValueError(
                f"{source}: not an adapter of {model.name_or_path} ({files.first_line(error)}); check tool.finetune.source"
            ) from None
        if unknown := sorted(set(theirs) - set(get_peft_model_state_dict(adapted))):
            raise ValueError(f"{source}: {model.name_or_path} has no place for its {unknown[0]}; check tool.finetune.source")
        arrays.finite(source, theirs, "train or download the adapter again")
        return adapted, tokenizer
    if not (place / "tokenizer_config.json").exists():
        raise ValueError(f"{source}: no tokenizer there; save the tokenizer beside the model")
    merged, tokenizer = load_hf(place, str(model.dtype).removeprefix("torch."))
    for key in ("model_type", "hidden_size", "num_hidden_layers"):
        was, now = getattr(model.config, key), getattr(merged.config, key)
        if was != now:
            raise ValueError(f"{source}: its {key} is {now}, that of {model.name_or_path} {was}; check tool.finetune.source")
    return merged, tokenizer


def check_targets(model: PreTrainedModel, settings: Finetune) -> None:
    """Raise a one-line `ValueError` for targets that a model lacks, or on which an adapter would be lost.

    Where the embedding and the head are one tensor, an adapter on either cannot be merged into it without changing both.
    """
    modules = dict(model.named_modules())

    def named(target: str) -> list[str]:
        return [name for name in modules if name == target or name.endswith(f".{target}")]

    for target in settings.targets:
        if not named(target):
            known = sorted({name.rpartition(".")[2] for name, m in modules.items() if isinstance(m, nn.Linear)})
            raise ValueError(f"tool.finetune.targets: {target} is no module of {model.name_or_path}; it has {', '.join(known)}")
        ends = model.get_input_embeddings(), model.get_output_embeddings()
        if model.config.tie_word_embeddings and any(modules[name] in ends for name in named(target)):
            raise ValueError(
                f"tool.finetune.targets: {target} is tied in {model.name_or_path} (embedding and head are one tensor): what is "
                "saved would not be what was trained; leave it out"
            )


def check(profile: Profile) -> None:
    """`check_targets` before anything is computed, from the model's configuration alone."""
    if profile.tool.finetune.source:
        return
    source = local_or_hub(profile.model.source)
    hub.file(source, "config.json", profile.model.revision)
    config = AutoConfig.from_pretrained(source, revision=profile.model.revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.name_or_path = profile.model.source
    check_targets(model, profile.tool.finetune)


def with_lora(model: PreTrainedModel, settings: Finetune) -> PeftModel:
    """The model with an untrained adapter, to be trained; see `check_targets`."""
    check_targets(model, settings)
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
        target_modules=settings.targets, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, lora).train()
