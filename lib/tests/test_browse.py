"""The browser's numbers against a naive computation, planted features, rules by hand, and the page in a browser."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.dictionary.dictionaries import Dictionary
from lib.measure import browse as browse_module
from lib.measure import browser
from lib.measure.browse import AFTER, BEFORE, BINS, browse, nearest, promoted
from lib.measure.browser import data, most_active, tokens_of
from lib.measure.describe import LEAST, described, looked_at
from lib.model.encoding import batches, token_mask
from lib.model.hooks import recorded

TEXTS = [
    f"{word} {n} and {m}.\nThen {word} {n + m}" for word in ("Tom has", "The sum", "Room", "x = y +") for n, m in
    [(3, 5), (17, 29), (4, 90), (61, 8), (7, 7), (250, 3)]
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tiny):
    return tiny.site("resid_post", 0)


@pytest.fixture(scope="module")
def sae():
    d = Dictionary.initialised((), 32, 50, 3)
    return d.changed(b_enc=torch.full((50,), -0.3))


@pytest.fixture(scope="module")
def texts(tiny):
    return batches(tiny.tokenizer, TEXTS, 5)


@pytest.fixture(scope="module")
def browsed(tiny, site, sae, texts):
    return browse(tiny, site, sae, texts, k=3, sampled=6)


@pytest.fixture(scope="module")
def naive(tiny, site, sae):
    """(text, token, feature) -> activation, text by text and token by token."""
    found = []
    for text in TEXTS:
        ids = tiny.tokenizer(text, return_tensors="pt").input_ids
        x = tiny.hf(ids, output_hidden_states=True).hidden_states[1][0]
        p = torch.stack([row @ sae.W_enc + sae.b_enc for row in x])
        f = p.relu()
        f[0] = 0  # <bos>
        found.append(f.detach())
    return found


def test_counts_are_those_of_a_naive_computation(browsed, naive):
    table = browsed.table()
    every = torch.cat([f[1:] for f in naive])
    assert browsed.n_texts == len(TEXTS) and browsed.n_tokens == len(every)
    np.testing.assert_allclose(table.density, (every > 0).float().mean(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        table.in_texts, [np.mean([bool((f[:, i] > 0).any()) for f in naive]) for i in range(50)], rtol=1e-6
    )
    np.testing.assert_allclose(table.maximum, every.max(0).values.numpy(), rtol=1e-4, atol=1e-6)
    for i in range(50):
        active = every[:, i][every[:, i] > 0]
        if len(active):
            assert table["mean"][i] == pytest.approx(float(active.mean()), rel=1e-4)
        counts = [0] * BINS
        for value in active.tolist():
            counts[min(BINS - 1, max(0, math.floor(2 * math.log2(value)) + BINS // 2))] += 1
        assert abs(browsed.histogram[i] - torch.tensor(counts)).sum() <= 2  # a value at an edge may be rounded
        for j in range(50):
            assert browsed.together[i, j] == sum(bool((f[:, i] > 0).any() and (f[:, j] > 0).any()) for f in naive)


def test_examples_are_the_strongest_texts_with_their_windows(browsed, naive):
    for i in range(50):
        strongest = sorted((float(f[:, i].max()) for f in naive), reverse=True)[:3]
        assert browsed.top.value[i].tolist() == pytest.approx([max(v, 0) for v in strongest], rel=1e-3, abs=1e-5)
        for kept in (browsed.top, browsed.sample):
            for n in (kept.text[i] >= 0).nonzero()[:, 0].tolist():
                text, at = int(kept.text[i, n]), int(kept.at[i, n])
                assert float(naive[text][at, i]) == pytest.approx(float(kept.value[i, n]), rel=1e-3) != 0
                for place in range(BEFORE + 1 + AFTER):
                    there = at - BEFORE + place
                    wanted = float(naive[text][there, i]) if 0 <= there < len(naive[text]) else 0.0
                    assert float(kept.window[i, n, place]) == pytest.approx(wanted, rel=2e-3, abs=1e-3)
        here = {(int(t), int(a)) for t, a in zip(browsed.sample.text[i], browsed.sample.at[i], strict=True) if t >= 0}
        active = int(browsed.active[i])
        assert len(here) == min(6, active)  # each token once, and all where they are few
        parts = browsed.quantiles(i)
        values = [float(browsed.sample.value[i, n]) for part in parts for n in part]
        assert values == sorted(values, reverse=True) and sum(map(len, parts)) == len(here)


def test_however_batches_are_cut_the_result_is_the_same(tiny, site, sae, browsed, monkeypatch):
    monkeypatch.setattr("lib.measure.browse.AT_ONCE", 50 * 40)
    other = browse(tiny, site, sae, batches(tiny.tokenizer, TEXTS, 24), k=3, sampled=6)
    for name in ("active", "texts", "together"):
        assert torch.equal(getattr(other, name), getattr(browsed, name))
    torch.testing.assert_close(other.top.value, browsed.top.value, rtol=1e-4, atol=1e-5)


def test_random_examples_are_drawn_from_all_active_tokens_alike(tiny, site, sae, texts):
    """Of a feature with many active tokens each is as likely as any other: the mean place is in the middle."""
    counts = browse(tiny, site, sae, texts, sampled=1).active
    feature, places = int(counts.argmax()), []
    for seed in range(60):
        kept = browse(tiny, site, sae, texts, sampled=1, chosen=[0], seed=seed).sample
        places.append(int(kept.text[feature, 0]))
    assert 0.35 * len(TEXTS) < np.mean(places) < 0.65 * len(TEXTS)


def test_memory_is_that_of_the_examples_kept_whatever_the_number_of_tokens(tiny, site, sae, monkeypatch):
    sizes, at_once = [], []
    add = browse_module._add
    monkeypatch.setattr(browse_module, "AT_ONCE", 2000)
    monkeypatch.setattr(browse_module, "_add", lambda found, f, *more: (at_once.append(f.numel()), add(found, f, *more)))
    for times in (1, 4):
        found = browse(tiny, site, sae, batches(tiny.tokenizer, TEXTS * times, 5), k=3, sampled=4)
        parts = [*vars(found).values(), *vars(found.top).values(), *vars(found.sample).values()]
        sizes.append(sum(part.numel() for part in parts if isinstance(part, torch.Tensor)))
    assert found.n_texts == 4 * len(TEXTS) and sizes[0] == sizes[1]
    longest = max(len(tiny.tokenizer(text).input_ids) for text in TEXTS)
    assert max(at_once) <= max(2000, longest * sae.d_sae), "one text at a time, where not even two fit"


def test_companions_are_those_that_share_more_texts_than_shuffled_ones(browsed, naive):
    feature = int(((browsed.texts > 4) & (browsed.texts < 20)).nonzero()[0])
    here = np.array([bool((f[:, feature] > 0).any()) for f in naive])
    company = browsed.companions(feature)
    draw = np.random.default_rng(0)
    for row in company[(company.together > 0)].head(5).itertuples():
        there = np.array([bool((f[:, row.feature] > 0).any()) for f in naive])
        shuffled = np.array([(here & draw.permutation(there)).sum() for _ in range(2000)])
        assert row.together == (here & there).sum()
        assert row.expected == pytest.approx(shuffled.mean(), abs=0.3)
        assert row.p == pytest.approx((shuffled >= row.together).mean(), abs=0.05)
    assert (company.q >= company.p).all() and feature not in set(company.feature)


def test_nearest_and_promoted_by_hand(tiny, site, sae, texts):
    near, cosine = nearest(sae, [4, 9], 3)
    W = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=1, keepdim=True)
    for n, feature in enumerate((4, 9)):
        by_hand = sorted(((float(W[feature] @ W[j]), j) for j in range(50) if j != feature), reverse=True)[:3]
        assert near[n].tolist() == [j for _, j in by_hand]
        assert cosine[n].tolist() == pytest.approx([c for c, _ in by_hand], abs=1e-5)
    last = tiny.site("resid_post", tiny.n_layers - 1)
    got = promoted(tiny, last, sae, [4], texts[0])
    # what the model itself says with a little of the feature added to its last residual stream
    batch, small = texts[0], 1e-2
    keep = token_mask(tiny.tokenizer, batch)

    def logits(change):
        with tiny.hooks([(last.write, lambda tensor, hook: tensor + change)]), torch.no_grad():
            out = tiny.hf(input_ids=batch.ids, attention_mask=batch.attention).logits[keep]
        cap = tiny.hf.config.final_logit_softcapping
        return cap * torch.atanh((out / cap).clamp(-0.999999, 0.999999)) if cap else out

    more = (logits(small * sae.W_dec[4].detach()) - logits(-small * sae.W_dec[4].detach())).mean(0) / (2 * small)
    assert np.corrcoef(got[0], more)[0, 1] > 0.999 and float(got[0].std() / more.std()) == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="output projection"):
        promoted(tiny, tiny.site("z", 0), sae, [4], texts[0])


# --- planted: feature 7 fires on digits only ---


@pytest.fixture(scope="module")
def planted(tiny, site, texts):
    """A dictionary whose feature 7 fires on tokens with a digit, by a linear probe; the rest is random."""
    rows, labels = [], []
    for batch in texts:
        with recorded(tiny, [site.read]) as seen, torch.no_grad():
            tiny.hf(input_ids=batch.ids, attention_mask=batch.attention)
        keep = token_mask(tiny.tokenizer, batch)
        rows.append(seen[site.read][keep])
        labels += [any(c.isdigit() for c in tiny.tokenizer.decode([i])) for i in batch.ids[keep].tolist()]
    x, y = torch.cat(rows), torch.tensor(labels)
    probe = torch.nn.Linear(32, 1)
    optimizer = torch.optim.LBFGS(probe.parameters(), lr=1, max_iter=300)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-(2 * y.float() - 1) * probe(x)[:, 0]).mean() + 1e-5 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    d = Dictionary.initialised((), 32, 12, 5)
    W_enc, b_enc = d.W_enc.detach().clone(), d.b_enc.detach().clone() - 0.3
    W_enc[:, 7], b_enc[7] = probe.weight[0].detach(), probe.bias[0].detach()
    found = d.changed(W_enc=W_enc, b_enc=b_enc)
    assert ((found.encode(x)[:, 7] > 0) == y).float().mean() == 1
    return found


def read_features(tiny, site, dictionary, texts):
    """Tokens with what the rules say of them, and the activations of the features there."""
    rows = [row for batch in texts for row in tokens_of(batch.ids, batch.attention)]
    found = []
    for batch in texts:
        with recorded(tiny, [], {site: dictionary}) as seen, torch.no_grad():
            tiny.hf(input_ids=batch.ids, attention_mask=batch.attention)
        found.append(seen.features[site][token_mask(tiny.tokenizer, batch)])
    return looked_at(tiny.tokenizer, rows, {"the second half": r"Then .*"}, skipped=1), torch.cat(found)


def test_a_planted_feature_is_found_described_and_ranked_first(tiny, site, planted, texts):
    tokens, f = read_features(tiny, site, planted, texts)
    fitting = torch.arange(len(TEXTS)) % 2 == 0
    table = described(tiny.tokenizer, tokens, f > 0, fitting).set_index("feature")
    assert table.auroc.idxmax() == 7 and table.auroc[7] == 1 and table.hits[7] == 1 and table.false_alarms[7] == 0
    assert "digits" in table.rule[7]
    shuffled = (f > 0)[torch.randperm(len(f), generator=torch.Generator().manual_seed(0))]
    null = described(tiny.tokenizer, tokens, shuffled, fitting)
    assert null.auroc.mean() == pytest.approx(0.5, abs=0.08)
    assert null.auroc_fit.mean() > 0.6  # the best of many rules looks good where it was chosen


def test_rules_by_hand(tiny):
    tokenizer = tiny.tokenizer
    row = tokenizer("A 12 + A\n12").input_ids
    tokens = looked_at(tokenizer, [row], {"the sum": r"12 \+"}, skipped=1)
    said = [tokenizer.decode([i]) for i in row[1:]]
    holds = dict(zip(tokens.names, tokens.holds.T.tolist(), strict=True))
    assert holds["it is digits"] == [piece.strip().isdigit() for piece in said]
    assert holds["the one before is digits"] == [False, *(piece.strip().isdigit() for piece in said[:-1])]
    breaks = [i for i, piece in enumerate(said) if "\n" in piece]
    assert holds["after the first line"] == [i > breaks[0] for i in range(len(said))]
    assert holds["first in its line"][breaks[0] + 1] and sum(holds["first in its line"]) == 1  # <bos> begins the first
    assert holds["it stood before in the text"] == [i in row[1 : n + 1] for n, i in enumerate(row[1:])]
    assert any(holds["inside the sum"]) and not holds["inside the sum"][-1]
    assert tokens.before.tolist() == row[:-1]


def test_the_best_set_of_tokens_is_the_best_of_all_sets(tiny):
    """Against every set of two of six tokens, on made-up activations."""
    from itertools import combinations

    from lib.measure.describe import _sets

    draw = torch.Generator().manual_seed(2)
    ids, labels = torch.randint(6, (300,), generator=draw), (torch.rand(300, 4, generator=draw) < 0.2).float()
    labels[:, 0] = ((ids == 1) | (ids == 4)).float()
    sets, scores = _sets(ids, labels, 2)
    for feature in range(4):
        y = labels[:, feature] > 0
        every = {}
        for n in (0, 1, 2):
            for chosen in combinations(range(6), n):
                holds = torch.isin(ids, torch.tensor(chosen, dtype=torch.long))
                every[chosen] = float(1 + holds[y].float().mean() - holds[~y].float().mean()) / 2
        assert float(scores[feature]) == pytest.approx(max(every.values()), abs=1e-5)
        assert every[tuple(sorted(sets[feature]))] == pytest.approx(max(every.values()), abs=1e-5)
    assert sorted(sets[0]) == [1, 4] and float(scores[0]) == pytest.approx(1)


def test_features_that_hardly_fire_are_not_described(tiny):
    rows = [tiny.tokenizer(text).input_ids for text in TEXTS]
    tokens = looked_at(tiny.tokenizer, rows, {}, skipped=1)
    active = torch.zeros(len(tokens.ids), 3, dtype=torch.bool)
    active[: LEAST - 1, 0] = True
    active[:, 1] = True
    active[::3, 2] = True
    table = described(tiny.tokenizer, tokens, active, torch.arange(len(TEXTS)) % 2 == 0)
    assert table.feature.tolist() == [2]


# --- the page ---

HOSTILE = '</script><script>self.owned=1</script><img src=q onerror="self.owned=1">'


@pytest.fixture(scope="module")
def listed(browsed):
    return most_active(browsed, 20)


@pytest.fixture(scope="module")
def opened(chromium, tiny, site, sae, texts, browsed, listed, tmp_path_factory):
    rows = [row for batch in texts for row in tokens_of(batch.ids, batch.attention)]
    logits = promoted(tiny, site, sae, listed, texts[0])
    labels = {listed[0]: HOSTILE, listed[1]: "it is digits"}
    found = data(browsed, sae, tiny.tokenizer, rows, listed, {"model": HOSTILE, "texts": "24"}, labels, logits,
                 neuronpedia="gpt2-small/6-res-jb")  # fmt: skip
    found["texts"][0][-1] = HOSTILE
    path = tmp_path_factory.mktemp("browser") / "features.html"
    browser.save(browser.page(found, HOSTILE), path)
    tab = chromium.new_page(viewport={"width": 1300, "height": 900})
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: request.url.startswith("file:") or errors.append(request.url))
    tab.goto(path.as_uri())
    yield tab, found, path
    assert not errors and tab.evaluate("self.owned") is None
    tab.close()


def test_the_page_sorts_by_any_column(opened):
    tab, found, _ = opened
    for column, key in (("density", "density"), ("maximum", "maximum"), ("feature", "id"), ("in texts", "in_texts")):
        for _ in range(2):
            tab.get_by_role("button", name=column, exact=False).first.click()
            sign = 1 if "▲" in tab.locator("thead").inner_text() else -1
            shown = [int(text) for text in tab.locator("tbody tr td:first-child").all_inner_texts()]
            wanted = sorted(found["features"], key=lambda f: (sign * f[key], f["id"]))
            assert shown == [f["id"] for f in wanted]


def test_the_page_searches_tokens_and_labels(opened):
    tab, found, _ = opened
    tab.locator("#search").fill("it is digits")
    assert tab.locator("tbody tr").count() == 1 and "1 of 20" in tab.locator("#number").inner_text()
    f = found["features"][3]
    _, text, start, _, values = f["examples"][0]
    token = found["texts"][text][start + int(np.argmax(values))].strip()
    tab.locator("#search").fill(token)
    shown = {int(t) for t in tab.locator("tbody tr td:first-child").all_inner_texts()}
    assert f["id"] in shown
    tab.locator("#search").fill("no such thing at all")
    assert tab.locator("tbody tr").count() == 0
    tab.locator("#search").fill("")
    assert tab.locator("tbody tr").count() == 20


def test_the_page_highlights_tokens_with_their_activations(opened):
    tab, found, _ = opened
    f = found["features"][2]
    tab.locator(f"tbody tr[data-feature='{f['id']}']").click()
    assert f"Feature {f['id']}" in tab.locator("#one h2").inner_text()
    line = tab.locator("#one .text").first
    values = f["examples"][0][4]
    told = [span.get_attribute("title") for span in line.locator("span.on").all()]
    assert [float(t) for t in told] == [v for v in values if v > 0]
    assert line.locator(".at").count() == 1
    strongest = line.locator(f"span[title='{max(values):g}']").first
    assert "0.8" in strongest.evaluate("one => one.style.backgroundColor")
    assert tab.locator("#one a").get_attribute("href") == f"https://www.neuronpedia.org/gpt2-small/6-res-jb/{f['id']}"
    tab.locator("#one .go").first.click()  # to a neighbour that is listed, and back by the list
    assert tab.locator("#one h2").inner_text()


def test_hostile_text_is_shown_as_text(opened):
    tab, found, path = opened
    tab.locator(f"tbody tr[data-feature='{found['features'][0]['id']}']").click()
    assert HOSTILE in tab.locator("#one h2").inner_text() and HOSTILE in tab.locator("#about").inner_text()
    assert tab.locator("main img").count() == 0 and tab.locator("script").count() == 2
    assert "</script><script>" not in path.read_text().replace("</script>\n<script>", "")


def test_parts_of_a_character_are_shown_as_bytes(tiny, site, chromium, tmp_path):
    said = ["Tom has 3 “€”", "x 5 “€”"]
    texts = batches(tiny.tokenizer, said, 2)
    sae = Dictionary.initialised((), 32, 4, 3).changed(b_enc=torch.full((4,), 50.0))  # active everywhere
    rows = tokens_of(texts[0].ids, texts[0].attention)
    found = data(browse(tiny, site, sae, texts, k=2, sampled=2), sae, tiny.tokenizer, rows, [0], {})
    source = browser.page(found, "bytes")
    assert "<0xE2>" in found["texts"][0] and "<0xE2>" not in source and "\N{REPLACEMENT CHARACTER}" not in source
    browser.save(source, tmp_path / "bytes.html")
    tab = chromium.new_page()
    tab.goto((tmp_path / "bytes.html").as_uri())
    assert "<0xE2><0x82><0xAC>" in tab.locator("#one .text").first.inner_text()
    tab.close()


def test_in_a_notebook_it_is_a_frame_of_its_own(opened, chromium, tmp_path):
    _, found, _ = opened
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><body>{browser.shown(browser.page(found, 'Features')).data}</body>")
    tab = chromium.new_page()
    tab.goto(file.as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("tbody tr").first.wait_for()
    assert frame.locator("tbody tr").count() == 20 and tab.evaluate("self.owned") is None
    tab.close()


def test_three_hundred_features_are_at_most_five_megabytes(tiny, site, texts):
    d = Dictionary.initialised((), 32, 500, 3).changed(b_enc=torch.full((500,), -1.0))
    many = batches(tiny.tokenizer, [text * 6 for text in TEXTS], 6)
    found = browse(tiny, site, d, many, k=10, sampled=20, chosen=range(500))
    rows = [row for batch in many for row in tokens_of(batch.ids, batch.attention)]
    listed = most_active(found, 300)
    text = browser.page(data(found, d, tiny.tokenizer, rows, listed, {}, logits=promoted(tiny, site, d, listed, many[0])), "x")
    assert len(listed) == 300 and len(text.encode()) < 5e6
    assert json.loads(text.split('id="data">')[1].split("</script>")[0])["features"][0]["examples"]
    silent = int((found.active == 0).nonzero()[0]) if (found.active == 0).any() else None
    if silent is not None:
        with pytest.raises(ValueError, match="active nowhere"):
            data(found, d, tiny.tokenizer, rows, [silent], {})


def test_the_template_asks_nothing_of_the_network():
    source = Path(browser.TEMPLATE).read_text()
    assert "default-src 'none'" in source and "src=" not in source.replace("default-src", "").replace("-src", "")
