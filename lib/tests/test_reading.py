"""Delta features read: units' values stand beside the tokens that rules speak of; what counts as firing; the summary."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.book import stats
from lib.measure.browser import tokens_of
from lib.measure.describe import looked_at
from lib.model.encoding import batches
from lib.studies.tool import reading

TEXTS = ["A 12 + 3", "Tom has 5.\nThen 7", "x", "Room 250 and 3 more rooms"]


def test_values_stand_beside_the_tokens_that_rules_speak_of(tiny):
    split = batches(tiny.tokenizer, TEXTS, 3)
    rows = [row for batch in split for row in tokens_of(batch.ids, batch.attention)]
    tokens = looked_at(tiny.tokenizer, rows, {}, skipped=1)
    sites = [tiny.site("resid_post", layer) for layer in (0, 1)]
    units = {site: (site.read, reading._picked(torch.tensor([3, 7]))) for site in sites}
    found = reading.values_of(tiny, units, split)
    for layer, site in enumerate(sites):
        assert found[site].shape == (len(tokens.ids), 2)
        for text in range(len(TEXTS)):
            with torch.no_grad():
                x = tiny.hf(torch.tensor([rows[text]]), output_hidden_states=True).hidden_states
            if layer + 1 < len(x) - 1:  # the last one has been through the final norm
                torch.testing.assert_close(found[site][tokens.text == text], x[layer + 1][0, 1:, [3, 7]], rtol=1e-3, atol=1e-4)
    along = reading._along(torch.eye(32)[:, :2], torch.ones(32))
    assert torch.equal(along(torch.zeros(4, 32)), -torch.ones(4, 2))


def test_every_unit_fires_at_the_same_share_of_tokens_at_its_strongest():
    values = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    values[:, 1] = values[:, 1].clamp(min=2.5)  # seldom above its floor
    values[:, 2] -= 100
    found = reading.fires(values)
    shares = found["strongest"].float().mean(0)
    assert shares[0] == pytest.approx(reading.STRONGEST, abs=0.001) == shares[3]
    assert (
        shares[1] <= reading.STRONGEST and shares[2] == 0 and found["active"].float().mean(0)[0] == pytest.approx(0.5, abs=0.03)
    )
    assert (found["active"] | ~found["strongest"]).all()


def test_simplicity_is_the_mean_over_units():
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"kind": ["delta"] * 6 + ["neuron"] * 4, "density": draw.random(10)})
    table["auroc"], table["auroc_strongest"] = draw.random(10), draw.random(10)
    table.loc[2, "auroc"] = np.nan  # active too seldom to be described
    found = reading.simplicity(table).set_index("kind")
    assert found.n["delta"] == 5 and found.n_strongest["delta"] == 6 and found.units["neuron"] == 4
    e = stats.mean(table.auroc[:6].dropna())
    assert (found.auroc["delta"], found.auroc_low["delta"]) == pytest.approx((e.value, e.low))


def test_ordinary_texts_ask_for_nothing():
    texts = reading.ordinary(40)
    assert len(set(texts)) > 35 and texts[:10] == reading.ordinary(10) and not any("<tool_call>" in text for text in texts)
