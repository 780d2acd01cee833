"""Outliers and the length of vectors: by hand, there and back, and an L0 that is held where it was not."""

import pytest
import torch

from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.lengths import OUTLIER, Lengths, told
from lib.dictionary.training import train
from lib.model.activations import repeated
from lib.profiles.organism import Training

SETTINGS = Training(lr=1e-2, batch=256, steps=300, check_every=100)
AIM = 4.0


@pytest.fixture(scope="module")
def x():
    """Two sites of sparse sums of 24 directions, (2, 4000, 16): the second's vectors are 100 times as long, and at every 500th
    token 10,000 times."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=draw), dim=-1)
    active = (torch.rand(4000, 24, generator=draw) < 3 / 24) * (1 + torch.rand(4000, 24, generator=draw))
    one = active @ directions + 0.5
    long = 100 * one
    long[::500] *= 100
    return torch.stack([one, long])


def test_outliers_by_hand(x):
    found = Lengths.of(x)
    outliers = found.outliers(x)
    assert outliers[1].nonzero()[:, 0].tolist() == list(range(0, 4000, 500)) and not outliers[0].any()
    length = x.norm(dim=-1)
    assert (outliers == (length > OUTLIER * length.median(-1, keepdim=True).values)).all()
    ready = found.learned_from(x)
    assert ready.shape == (2, 1, 4000 - 8, 16)  # what is an outlier at one site is learned from at none
    usual = length[1][~outliers[1]].mean()
    assert float(found.scale[1] * usual) == pytest.approx(4) and float(ready[1].norm(dim=-1).mean()) == pytest.approx(
        4, rel=0.01
    )
    for given, target in found.batches(iter([(x[:, None].bfloat16(), x[:, None].bfloat16())])):
        assert given is target and given.dtype == torch.bfloat16 and given.shape == ready.shape


def test_an_sae_for_scaled_activations_is_one_for_activations_as_they_are(x):
    found = Lengths.of(x)
    stack = Dictionary.initialised((2, 1), 16, 40, 0, threshold=0.3)
    stack = stack.changed(b_enc=torch.randn(2, 1, 40) / 10, b_dec=torch.randn(2, 1, 16))
    raw = found.unscaled(stack)
    scale = found.scale[:, None, None, None]
    f = stack.encode(x[:, None] * scale)
    assert 0.05 < (f > 0).float().mean() < 0.95
    torch.testing.assert_close(raw.encode(x[:, None]), f / scale, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(raw(x[:, None]), stack(x[:, None] * scale) / scale, rtol=1e-3, atol=1e-2)
    assert torch.equal(raw.W_dec, stack.W_dec)


def test_an_l0_is_held_whatever_the_length_and_outliers(x):
    found = Lengths.of(x)
    outliers = found.outliers(x)

    def trained(x, prepare, check):
        stack = Dictionary.initialised((2, 1), 16, 32, 0)
        raw = ((x[:, None, pick], x[:, None, pick]) for pick in repeated(x.shape[1], 256, 0))
        train([stack], prepare(raw), (check, check), SETTINGS, torch.full((2, 1), AIM))
        return stack

    stack = found.unscaled(trained(x, found.batches, found.learned_from(x)))
    rows = [told(stack[i, 0], x[i], outlier) for i, outlier in enumerate(outliers)]
    for row in rows:
        assert row["l0"] == pytest.approx(AIM, rel=0.1) and row["fvu"] < 0.3 and 0 <= row["dead"] < 0.5
    assert [row["n_outliers"] for row in rows] == [0, 8] and rows[1]["n_tokens"] == 4000
    assert rows[0]["fvu"] == rows[0]["fvu_with_outliers"] and rows[1]["fvu"] != rows[1]["fvu_with_outliers"]
    assert rows[0]["fvu"] == pytest.approx(rows[1]["fvu"], abs=0.05)  # the two differ in length alone
    # with outliers nothing is learned of the others; and without them, as long as they are, no L0 is held
    as_they_are = trained(x, lambda raw: raw, x[:, None])[1, 0]
    assert told(as_they_are, x[1], outliers[1])["fvu"] > 1
    usual = x[:, ~outliers[1]]
    assert told(trained(usual, lambda raw: raw, usual[:, None])[1, 0], x[1], outliers[1])["l0"] < AIM / 4
