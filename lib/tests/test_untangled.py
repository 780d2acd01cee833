"""The toy: what it may look at, how it learns, and ablation against hooks, by hand, and on planted models."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import profiles
from lib.book import stats
from lib.dictionary.checkpoint import Checkpoint
from lib.model import precision
from lib.profiles.untangle import Toy
from lib.studies.untangle import ablate, data, inside, learn, toys, trade
from lib.studies.untangle.ablate import Tokens
from lib.studies.untangle.learn import TEST, VALIDATION, Task

SMALL = Toy(d_model=16, heads=2, d_ff=32, d_sae=24, batch=64, epochs=12, lr=1e-2, weight_decay=0.1, check_every=4, l1=1e-3)
OPERANDS = 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def toy(folder):
    return learn.learned(folder, OPERANDS, SMALL, seed=0)


# --- what it may look at ---


@pytest.mark.parametrize("changes", [{}, {"tokenizer": "characters"}, {"decoder_alone": True, "tokenizer": "characters"}])
def test_no_token_looks_at_padding_or_ahead(changes):
    settings = SMALL.model_copy(update=changes)
    task = Task.of(OPERANDS, settings, 0)
    torch.manual_seed(0)
    model = task.model(settings).eval()
    rows, real = torch.arange(0, len(task.table), 7), task.target != data.PAD
    before = model(task.question[rows], task.answer[rows, :-1])
    with torch.no_grad():
        model.embed.weight[data.PAD] += 10
    after = model(task.question[rows], task.answer[rows, :-1])
    torch.testing.assert_close(after[real[rows]], before[real[rows]])
    ahead = task.answer[rows, :-1].clone()
    ahead[:, 1:] = 5
    torch.testing.assert_close(model(task.question[rows], ahead)[:, 0], after[:, 0])
    other = task.question[rows].roll(1, 0)
    assert not torch.allclose(model(other, task.answer[rows, :-1])[:, 0], after[:, 0], atol=1e-3), "it reads the question"


def test_answers_alone_equal_answers_in_a_batch():
    """Padding to the longest changes nothing: one row at a time, cut to its own length."""
    settings = SMALL.model_copy(update={"tokenizer": "characters"})
    task = Task.of(OPERANDS, settings, 0)
    model = task.model(settings).eval()
    together = model(task.question, task.answer[:, :-1])
    for i in (0, 40, 300):
        q, a = (ids[i][ids[i] != data.PAD][None] for ids in (task.question, task.answer))
        torch.testing.assert_close(model(q, a[:, :-1])[0], together[i, : a.shape[1] - 1], atol=1e-5, rtol=1e-4)


# --- learning ---


def test_it_learns_and_keeps_its_best(toy):
    first, best = toy.history.iloc[0], toy.history.loc[toy.history.ce.idxmin()]
    assert best.ce < first.ce and toy.history.best.iloc[0]
    again = learn._validation(toy.model, toy.task)
    assert again["ce"] == pytest.approx(best.ce, rel=1e-5)
    rows, nats = toy.task.rows(VALIDATION), 0.0
    for i in rows.tolist():  # by hand, one example after another
        q, a = toy.task.question[[i]], toy.task.answer[i][toy.task.answer[i] != data.PAD][None]
        nats -= torch.log_softmax(toy.model(q, a[:, :-1])[0], -1).gather(1, a[0, 1:, None]).sum().item()
    n = (toy.task.target[rows] != data.PAD).sum().item()
    assert again["ce"] == pytest.approx(nats / n, rel=1e-4)
    assert again["ce_published"] == pytest.approx(nats / (len(rows) * 7), rel=1e-4)


def test_a_training_that_was_stopped_goes_on_bit_for_bit(toy, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(learn, "SAVED_EVERY", -1)
    validation, looks = learn._validation, []

    def until(*arguments):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return validation(*arguments)

    monkeypatch.setattr(learn, "_validation", until)
    with pytest.raises(KeyboardInterrupt):
        learn.learned(tmp_path, OPERANDS, SMALL, seed=0)
    [left] = tmp_path.glob("*.pt")
    assert Checkpoint(left, left.stem).step == 8
    monkeypatch.setattr(learn, "_validation", validation)
    again = learn.learned(tmp_path, OPERANDS, SMALL, seed=0)
    assert not list(tmp_path.glob("*.pt")), "what was left is gone"
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, toy.model.state_dict()[name], rtol=0, atol=0)
    assert again.history.drop(columns="seconds").equals(toy.history.drop(columns="seconds"))


def test_a_toy_is_trained_once_and_each_setting_and_seed_is_its_own(toy, folder, monkeypatch):
    monkeypatch.setattr(learn, "_train", None)
    assert learn.learned(folder, OPERANDS, SMALL, seed=0).history.equals(toy.history)
    for other in (dict(toy=SMALL.model_copy(update={"lr": 2e-2}), seed=0), dict(toy=SMALL, seed=1)):
        with pytest.raises(TypeError):
            learn.learned(folder, OPERANDS, **other)


def test_products_in_bfloat16_learn_the_same_where_the_processor_has_them(toy, folder, monkeypatch):
    settings = SMALL.model_copy(update={"precision": "bfloat16"})
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    without = learn.learned(folder / "without", OPERANDS, settings, seed=0)
    assert without.history.ce.tolist() == toy.history.ce.tolist(), "in float32, then"
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    has = learn.learned(folder / "with", OPERANDS, settings, seed=0)
    assert has.history.ce.tolist() != toy.history.ce.tolist()
    assert has.history.ce.to_numpy() == pytest.approx(toy.history.ce.to_numpy(), rel=0.1)
    assert all(value.dtype == torch.float32 for value in has.model.state_dict().values())


def test_an_sae_post_hoc_leaves_the_model_as_it_is(folder):
    alone = learn.learned(folder, OPERANDS, SMALL.model_copy(update={"sae": "none"}), 0)
    later = learn.learned(folder, OPERANDS, SMALL.model_copy(update={"sae": "post hoc"}), 0)
    for name, value in later.model.state_dict().items():
        same = torch.equal(value, alone.model.state_dict()[name])
        assert same != name.startswith("sae."), name
    h = learn.hidden(later.model, later.task)[later.task.target != data.PAD]
    before, after = ((one.model.sae(h)[1] - h).square().mean() for one in (alone, later))
    assert after < before / 2


def test_greedy_answers_are_right_where_every_token_is(toy):
    rows = toy.task.rows(TEST)
    said = [text.partition("E")[0] + "E" for text in toys.answers(toy, rows)]
    right = np.array(said) == toy.task.table.answer.iloc[rows].to_numpy()
    tokens = Tokens.of(toy, TEST)
    np.testing.assert_array_equal(right, tokens.right(tokens.logits))
    assert 0 < right.mean() < 1
    assert len(toys.wrong(toy)) == (~right).sum()


@pytest.mark.parametrize(
    ("right", "said", "kind"),
    [("B70E", "B71E", "one digit"), ("B70E", "B01E", "several digits"), ("B70E", "B170E", "another length"),
     ("B70E", "BE", "no number"), ("B70E", "B7CE", "no number"), ("B7E", "B٧E", "no number")],
)  # fmt: skip
def test_kinds_of_errors_by_hand(right, said, kind):
    assert toys.kind_of(right, said) == kind


def test_shares_of_errors_add_up_to_one_in_each_seed():
    wrong = pd.DataFrame({"seed": [0, 0, 0, 2], "kind": ["one digit", "one digit", "no number", "several digits"]})
    found = toys.shares(wrong, 3).set_index(["seed", "kind"]).share
    assert found[0, "one digit"] == pytest.approx(2 / 3) and found[2, "one digit"] == 0
    assert found[1].isna().all(), "a seed without errors has no shares"
    assert found.groupby("seed").sum()[[0, 2]].tolist() == pytest.approx([1, 1])


# --- ablation ---


def by_hook(toy, rows, change):
    """Logits when what the decoder gives out is changed by a hook."""
    handle = toy.model.decoder.register_forward_hook(lambda module, arguments, output: change(output))
    try:
        return toy.model(toy.task.question[rows], toy.task.answer[rows, :-1])
    finally:
        handle.remove()


def test_one_product_equals_hooks(toy):
    tokens, rows = Tokens.of(toy, VALIDATION), toy.task.rows(VALIDATION)
    real, sae = toy.task.target[rows] != data.PAD, toy.model.sae
    before, found = tokens.nats(tokens.logits), ablate.importance(toy, tokens)
    right = tokens.right(tokens.logits)
    assert (found.active > 0).sum() > 5 and found[["ce_sum", "ce_join"]].abs().max().min() > 1e-3
    for j in range(SMALL.d_sae):
        logits = by_hook(toy, rows, lambda h, j=j: h - sae.encode(h)[..., j, None] * sae.decoder.weight[:, j])[real]
        torch.testing.assert_close(ablate.without(toy, tokens, [j]), logits, atol=1e-5, rtol=1e-5)
        rise, lost = tokens.nats(logits) - before, right & ~tokens.right(logits)
        for task, of_tokens, of in (("sum", tokens.of_sum, tokens.is_sum), ("join", ~tokens.of_sum, ~tokens.is_sum)):
            assert found[f"ce_{task}"][j] == pytest.approx(rise[of_tokens].mean().item(), abs=1e-5)
            assert found[f"lost_{task}"][j] == pytest.approx((lost & of).sum().item() / max(1, (right & of).sum().item()))
    some = [3, 1, 8, 17]
    logits = by_hook(toy, rows, lambda h: h - sae.encode(h)[..., some] @ sae.decoder.weight[:, some].T)[real]
    torch.testing.assert_close(ablate.without(toy, tokens, some), logits, atol=1e-5, rtol=1e-5)


def test_chained_hooks_depend_on_their_order_and_one_alone_does_not(toy):
    tokens, rows = Tokens.of(toy, VALIDATION), toy.task.rows(VALIDATION)
    real, sae = toy.task.target[rows] != data.PAD, toy.model.sae
    used = ablate.importance(toy, tokens).nlargest(6, "active").latent.tolist()
    handles = [
        toy.model.decoder.register_forward_hook(
            lambda module, arguments, h, j=j: h - sae.encode(h)[..., j, None] * sae.decoder.weight[:, j]
        )
        for j in used
    ]
    logits = toy.model(toy.task.question[rows], toy.task.answer[rows, :-1])[real]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(ablate.without_chained(toy, tokens, used), logits, atol=1e-5, rtol=1e-5)
    turned = ablate.without_chained(toy, tokens, used[::-1])
    assert not torch.allclose(turned, logits, atol=1e-3)
    torch.testing.assert_close(
        ablate.without_chained(toy, tokens, used[:1]), ablate.without(toy, tokens, used[:1]), atol=1e-5, rtol=1e-5
    )


def test_a_direction_taken_out_is_at_its_level(toy):
    tokens = Tokens.of(toy, VALIDATION)
    v = torch.randn(SMALL.d_model)
    moved = ablate.without_direction(toy, tokens, v, 0.7, 1.0)
    unit = v / v.norm()
    h = tokens.h - ((tokens.h @ unit) - 0.7)[:, None] * unit
    torch.testing.assert_close(h @ unit, torch.full((len(h),), 0.7))
    torch.testing.assert_close(moved, toy.model.output(h))
    torch.testing.assert_close(ablate.without_direction(toy, tokens, v, 0.7, 0.0), tokens.logits)


def planted(shared: bool):
    """Two tokens a task, right by one latent each; `shared`, all right by the same latent."""
    model = SimpleNamespace(output=torch.nn.Linear(4, 4, bias=False), sae=ablate_sae(shared))
    model.output.weight.data = torch.eye(4)
    is_sum = torch.tensor([True, True, False, False])
    h = torch.zeros(4, 4)
    h[is_sum, 0], h[~is_sum, 1] = 2.0, 2.0
    h[:, 3] = 1.0  # what the output falls back to
    target = torch.where(is_sum, 0, 1)
    return SimpleNamespace(model=model), Tokens(h, model.output(h), target, torch.arange(4), is_sum)


def ablate_sae(shared: bool):
    from lib.studies.untangle.model import Sae

    sae = Sae(4, 2)
    for parameter in sae.parameters():
        parameter.data.zero_()
    if shared:
        sae.encoder.weight.data[0, :2] = 1.0
        sae.decoder.weight.data[:2, 0] = 1.0
    else:
        sae.encoder.weight.data[0, 0] = sae.encoder.weight.data[1, 1] = 1.0
        sae.decoder.weight.data[0, 0] = sae.decoder.weight.data[1, 1] = 1.0
    return sae.requires_grad_(False)


@pytest.mark.parametrize(("shared", "area"), [(False, 1.0), (True, 0.0)])
def test_a_planted_model_is_untangled_where_its_latents_are_apart(shared, area):
    toy, tokens = planted(shared)
    toy.model.output.requires_grad_(False)
    of_latents = ablate.importance(toy, tokens)
    strict = {task: ablate.chosen(of_latents, task, 0.0).tolist() for task in ablate.TASKS}
    assert strict == ({"sum": [], "join": []} if shared else {"sum": [0], "join": [1]})
    assert ablate.selective(of_latents)["selective"] == (0.0 if shared else 1.0)
    sets = trade.untangled(toy, of_latents, tokens, tokens).assign(toy="planted", seed=0)
    found = trade.areas(sets).set_index(["task", "method"]).area
    for task in ablate.TASKS:
        assert found[task, "latents"] == area and found[task, "refuse by the sign"] == 1.0
    if not shared:
        by = sets[(sets.method == "latents") & (sets.strength == 0)].set_index("task")
        assert by.lost_sum.to_dict() == {"sum": 1.0, "join": 0.0} and by.lost_join.to_dict() == {"sum": 0.0, "join": 1.0}


def test_areas_by_hand():
    lost, kept = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.8, 0.2])
    assert trade.area(lost, kept) == pytest.approx(0.5 * 0.8 + 0.5 * 0.2)
    assert trade.area(np.array([0.0, 0.4]), np.array([1.0, 1.0])) == pytest.approx(0.4), "nothing beyond what is reached"
    assert trade.area(np.array([1.0, 0.5]), np.array([0.9, 0.1])) == pytest.approx(0.9), "a worse setting is not used"


# --- inside ---


def test_patching_the_last_state_restores_all_and_what_cannot_differ_nothing(toy):
    found = inside.patched(toy).set_index(["site", "position"])
    assert found.restored["last hidden state", "the number"] == pytest.approx(1, abs=1e-5)
    assert found.restored["self-attention", "the number"] == pytest.approx(0, abs=1e-5), "it sees the B alone"
    table = toy.task.table
    one = sum(
        len(toy.task.how.encode(f"{a}{b}")) == 1 and f"{a}{b}" != str(a + b)
        for a, b in table[table.task == "+"][["a", "b"]].values
    )
    assert set(found.n) == {one}


def test_gradients_find_a_planted_neuron(toy):
    """A neuron whose share is of one task alone tells the tasks apart; where the tasks are dealt out anew none does."""
    found = inside.attributed(toy, n=200, steps=8)
    assert found["auroc"] > 0.8, "its tasks are plainly different"
    draw = np.random.default_rng(0)
    table = toy.task.table.assign(task=draw.permutation(toy.task.table.task))
    mixed = Task(table, toy.task.how, toy.task.part)
    mixed.__dict__.update(question=toy.task.question, answer=toy.task.answer)
    other = learn.Learned(toy.toy, toy.seed, mixed, toy.model, toy.history)
    assert inside.attributed(other, n=200, steps=8)["auroc"] == pytest.approx(0.5, abs=0.2)


# --- profiles ---


def test_a_profile_without_a_model_has_the_toy_alone(tmp_path):
    assert profiles.load("untangle").model is None
    file = tmp_path / "mine.toml"
    file.write_text("[untangle]\n[transcoders]\nsource = 'x'\nl0_ranks = [0.5]\n")
    with pytest.raises(profiles.ProfileError, match=r"transcoders: is of a language model; add a table \[model\]"):
        profiles.load(str(file))
    file.write_text("[untangle]\nvariants = ['larger']\n")
    with pytest.raises(profiles.ProfileError, match=re.escape("no variant 'larger'; there are no SAE, post hoc")):
        profiles.load(str(file))
    file.write_text("[untangle.toy]\nd_model = 30\nheads = 4\n")
    with pytest.raises(profiles.ProfileError, match=r"untangle.toy.d_model is 30, not a multiple of heads, 4"):
        profiles.load(str(file))


def test_variants_differ_in_one_thing_and_brief_ones_stand_beside_a_brief_toy():
    settings = profiles.load("nano").untangle
    found = toys.kinds(settings)
    assert found["rate x 3 (brief)"].lr == pytest.approx(3 * settings.toy.lr)
    assert found["half the decay, twice as long (brief)"].epochs == 2 * settings.brief_epochs
    for name, one in found.items():
        base = found["the toy (brief)" if name.endswith("(brief)") else "the toy"]
        changed = {key for key, value in one.model_dump().items() if value != getattr(base, key)}
        assert len(changed) <= (2 if name.startswith(("half", "published")) else 1), name


def test_an_interval_over_seeds_counts_seeds_and_not_their_rows():
    table = pd.DataFrame({"seed": [0, 0, 1, 1, 2, 2], "task": ["sum", "join"] * 3, "area": [0.2, 0.4, 0.5, 0.7, 0.1, 0.9]})
    [row] = stats.over_seeds(table, [], ["area"]).to_dict("records")
    expected = stats.over_units([0.3, 0.6, 0.5])
    assert row["n_seeds"] == 3
    assert [row["area"], row["area_low"], row["area_high"]] == pytest.approx([expected.value, expected.low, expected.high])
