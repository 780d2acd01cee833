"""A model in a GGUF file, as llama.cpp has them, to a folder as transformers has them."""

import logging
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.book import files

ORIGIN = "origin.json"
"""Beside a model that was converted: where it is from."""


def convert(file: Path, folder: Path) -> None:
    """Write model and tokenizer; quantized weights become the float32 numbers that they stand for.

    `ValueError`, one line, for a file that cannot be read.
    """
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    where = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name)
    try:
        hf = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # a damaged file may end in any of them
        raise ValueError(f"{file}: cannot be read as GGUF ({files.first_line(error)}); fetch it again") from None
    hf.hf_quantizer = None
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config  # the weights are plain numbers now
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stored_as(file: Path) -> dict[str, int]:
    """How many numbers of the model are stored in each of GGUF's types, the most used first."""
    from gguf import GGUFReader

    found: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        found[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(found.most_common())
