import math

import pandas as pd
import pytest
import torch

from lib.measure import metrics
from lib.studies.tool import answers
from lib.texts.tool import CALCULATOR


def test_reconstruction_by_hand():
    y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    y_hat = torch.tensor([[2.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    found = metrics.reconstruction(y_hat, y, torch.tensor([0, 0, 1]))
    assert found["cos"].value == pytest.approx((1 + 0 + 1) / 3)
    assert found["length"].value == pytest.approx((2 + 1 + 1) / 3)
    assert found["l2"].value == pytest.approx((1 / 1 + 8**0.5 / 2 + 0) / 3), "the published ratio: |y_hat - y| / |y|"
    # squared error 1 + 8 + 0; variance about the mean (4/3, 2/3) is 14 - 3 * (16/9 + 4/9)
    assert found["fvu"].value == pytest.approx(9 / (14 - 3 * 20 / 9))
    assert found["fvu"].n == 2


def test_the_mean_has_fvu_one_and_the_truth_none():
    torch.manual_seed(0)
    y = torch.randn(50, 4) + 3
    prompt = torch.arange(50) // 5
    assert metrics.reconstruction(y.mean(0).expand_as(y), y, prompt)["fvu"].value == pytest.approx(1, abs=1e-5)
    assert metrics.reconstruction(y, y, prompt)["fvu"].value == 0


def test_nats_are_those_of_transformers(plain, tiny):
    ids = tiny.tokenizer(["the red bus", "a 12"], return_tensors="pt", padding=True, padding_side="right")
    labels = ids.input_ids.masked_fill(ids.attention_mask == 0, -100)
    with torch.no_grad():
        out = plain(**ids, labels=labels)
    nats = metrics.nats(metrics.log_probs(out.logits), ids.input_ids) * ids.attention_mask
    assert (nats.sum() / (ids.attention_mask.sum(1) - 1).sum()).item() == pytest.approx(out.loss.item(), rel=1e-5)


def test_kl_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln(2)/2 + ln(2/3)/2."""
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert metrics.kl_from(p)(q)[0].tolist() == pytest.approx([0, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    assert metrics.kl_from(p)(p)[0].tolist() == [0, 0]


def test_outcomes():
    right = CALCULATOR.call("1+2")
    found = answers.outcomes(
        CALCULATOR,
        [right] * 5 + ["a 1"] * 2,
        [right, CALCULATOR.call("2+1"), "<tool_call>x</tool_call>", right[:-2], "3", "a 1", right],
    )
    assert found.tool_call_rate.tolist() == [True, True, True, True, False, False, True]
    assert found.valid_tool_format_rate.tolist() == [True, True, True, False, False, False, True]
    assert found.parsed_rate.tolist() == [True, True, False, False, False, False, True]
    assert found.math_correct_rate.dropna().tolist() == [True, True, False, False, False]
    assert found.exact_match_rate.tolist() == [True, False, False, False, False, True, False]
    rates = answers.rates(found)
    assert rates["math_correct_rate"].n == 5 and rates["math_correct_rate"].value == 0.4


def test_rates_of_nothing_are_missing():
    assert pd.isna(answers.rates(answers.outcomes(CALCULATOR, ["copy"], ["copy"]))["math_correct_rate"].value)
