"""Products in bfloat16 only where the processor is made for them."""

import warnings

import pytest
import torch

from lib.model import precision
from lib.model.models import load_hf


@pytest.mark.parametrize(
    ("capabilities", "device", "chosen"),
    [
        ({"avx2": True, "avx512_bf16": False}, "cpu", torch.float32),
        ({"architecture": "aarch64"}, "cpu", torch.float32),
        ({"avx512_bf16": True}, "cpu", torch.bfloat16),
        ({}, "cuda", torch.bfloat16),
    ],
)
def test_what_is_asked_for_is_done_where_it_is_fast(monkeypatch, capabilities, device, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.of_products(torch.bfloat16, device) == chosen
    assert precision.of_products(torch.float32, device) == torch.float32


def test_a_model_in_a_dtype_that_is_slow_here_is_told_of(monkeypatch, folder):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match='model.dtype = "float32"'):
        load_hf(folder, "bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_hf(folder, "float32")
