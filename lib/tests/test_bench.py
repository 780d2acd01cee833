"""The published procedure gives our numbers; the bench writes its tables and goes on where it stopped. None looks at a time."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from lib.bench import as_published, browsing, report, timing, trainers, workplace
from lib.book import paths
from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import save_npz
from lib.dictionary.training import train
from lib.model import activations, encoding
from lib.studies.tool import scores, splits
from lib.tests import real
from lib.texts import jsonl

AMOUNT = workplace.Amount(runs=2, capture=6, exp1=3, exp2=3, cut=10, shapes=((12, 48),), d_new=4, batch=32, steps=4, at_once=2)


@contextmanager
def made(root, folder, smoke, tiny):
    """What chapters 1 to 3 leave, in a folder of its own, with the model in `folder`; all but the prompts are random."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", root)
        transcoders = smoke.transcoders.model_copy(update={"source": str(root / "transcoders")})
        profile = smoke.model_copy(update={"transcoders": transcoders})
        shutil.copytree(folder, profile.paths.finetuned)
        for split, asked in splits.splits(profile.tool.prompts).items():
            jsonl.write_jsonl(asked, profile.paths.prompts / f"{split}.jsonl")
        for layer in (0, 1):
            for l0 in (4, 9):
                base = Dictionary.initialised((), 32, 64, layer + l0, threshold=4.0 / l0)
                save_npz(base, root / f"transcoders/layer_{layer}/width_64/average_l0_{l0}/params.npz")
            for d_new in profile.tool.deltas.d_new:
                for rank in profile.transcoders.l0_ranks:
                    delta = Dictionary.initialised((), 32, d_new, d_new + layer, threshold=0.5)
                    save_npz(delta, deltas.delta_file(profile.paths.deltas, tiny.site("trained", layer), d_new, rank))
        yield workplace.Workplace(profile, AMOUNT)


@pytest.fixture(scope="module")
def work(tmp_path_factory, folder, smoke, tiny):
    with made(tmp_path_factory.mktemp("book"), folder, smoke, tiny) as place:
        yield place


@pytest.fixture(params=["gemma2", "llama"])
def either(request, tmp_path, work, smoke, tiny):
    """With a Gemma-2, and with a Llama, whose tokenizer puts no BOS in front."""
    if request.param == "gemma2":
        yield work
    else:
        with made(tmp_path / "book", real.save("llama", tmp_path / "llama", ends=3.0), smoke, tiny) as place:
            yield place


def test_one_line_at_a_time_captures_what_one_stream_does(either):
    work = either
    asked = sorted(work.prompts("train", 9), key=lambda p: encoding.length(work.model.tokenizer, p))  # as ours streams them
    x, y = as_published.capture(work.load, work.layers, asked)
    held = work.captured(work.model, "train", 9)
    assert x.shape == held.x.shape and len(x[0]) > 100
    assert torch.allclose(x, held.x, atol=1e-5) and torch.allclose(y, held.y, atol=1e-4)


def test_a_delta_alone_with_its_base_recomputed_learns_what_the_stack_learns(work):
    """From the same beginning on the same batches: the same parameters and validation loss."""
    held, kept = work.captured(work.model, "train"), work.captured(work.model, "validation")
    [base] = bases.load(work.profile, work.model, work.sites[1], [1.0])
    settings = work.profile.tool.deltas.training.model_copy(update={"batch": 64, "steps": 60, "check_every": 10, "l1": 0.05})
    stack = Dictionary.initialised((2,), 32, 6, 0, settings.threshold)
    start = Dictionary.stacked([stack[1]])[0]
    target, target_kept = (deltas.unexplained([[base]], a.x[1:], a.y[1:])[0] for a in (held, kept))

    def order():
        return activations.repeated(target.shape[1], settings.batch, 3)

    batches = ((held.x[1, pick], target[:, pick].expand(2, -1, -1)) for pick in order())
    [curves] = train([stack], batches, (kept.x[1], target_kept.expand(2, -1, -1)), settings)
    delta, loss = as_published.train_delta(start, base, (held.x[1], held.y[1]), (kept.x[1], kept.y[1]), order(), settings)
    assert loss == pytest.approx(curves[curves.member == 1].fvu.min(), rel=1e-3)
    assert loss < curves[curves.member == 1].fvu.max() - 0.05  # something was learned
    for name in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"):
        assert torch.allclose(getattr(delta, name), getattr(stack[1], name), rtol=1e-2, atol=2e-3), name
    assert torch.equal(start.W_enc, Dictionary.initialised((2,), 32, 6, 0, settings.threshold)[1].W_enc)


def test_the_whole_grid_reaches_the_same_loss(work):
    assert work.grid_ours() == pytest.approx(work.grid_published(), rel=1e-3)


def test_exp1_has_the_same_columns_one_prompt_at_a_time(either):
    work = either
    keys = ["layer", "d_new", "percentile"]
    ours, theirs = (table.set_index(keys).sort_index() for table in (work.exp1_ours(), work.exp1_published()))
    assert len(theirs) == 2 * 2 * 2 and len(theirs.columns) == 9 and list(ours.index) == list(theirs.index)
    for column in theirs:
        assert np.allclose(ours[column], theirs[column], rtol=1e-3, atol=1e-5), column
    assert (theirs.dce_base.abs() > 1e-4).all() and (theirs.full_mean_cos != theirs.base_mean_cos).all()


def test_exp2_writes_the_same_one_prompt_at_a_time(either, tmp_path):
    work = either
    ours, (theirs, wrote) = work.exp2_ours(tmp_path), work.exp2_published()
    keys = ["layer", "subset", "condition"]
    both = ours.merge(theirs, on=keys, suffixes=("", "_theirs"))
    assert len(both) == len(theirs) == len(wrote) == 2 * 3 * 3
    assert np.allclose(both.mean_ce, both.mean_ce_theirs, rtol=1e-4)
    for name in scores.OUTCOMES:
        assert both[name].equals(both[f"{name}_theirs"])
    for (layer, subset, condition), texts in wrote.items():
        file = tmp_path / f"{subset}_layer_{layer}_{condition}.jsonl"
        found = [text for _, (text,) in _texts(file)]
        assert found == texts and len(texts) == 3
    assert len({text for texts in wrote.values() for text in texts}) > 3


def _texts(file):
    return [(place, (row["generation"],)) for place, row in jsonl.read_rows(file, ("generation",))]


def test_a_forward_pass_and_its_products_alone_go_through_as_many_operations(either):
    """Up to what attends: masked scores count in one and not in the other."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = []
    for run in (either.forward_ours, either.forward_products):
        either.asked  # noqa: B018
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    assert counted[0] == pytest.approx(counted[1], rel=0.02)


def test_hooks_are_gone_afterwards(work):
    hf, _ = work.load()
    ids = torch.tensor([[1, 5, 6]])
    before = hf(ids).logits
    with as_published.hooked(hf, 0, lambda x: 0 * x) as seen:
        assert not torch.allclose(hf(ids).logits, before)
    assert seen["x"].shape == seen["y"].shape == (1, 3, 32) and torch.equal(hf(ids).logits, before)


def test_both_tables_are_written_and_a_second_run_goes_on(work, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(report, "code", lambda profile: "12e4567890")  # a mark may read as a number
    monkeypatch.setattr(browsing, "ENVIRONMENT", Path("nowhere"))
    monkeypatch.setattr(report.plots, "save_figure", lambda fig, path, numbers, alt: drawn.append((path.name, len(numbers))))
    amount = replace(AMOUNT, exp1=2, exp2=2)
    table = report.bench(work.profile, amount)
    assert list(table.columns[:9]) == timing.COLUMNS and not table.duplicated(timing.COLUMNS[:3]).any()
    assert {"capture", "training", "exp1", "exp2", "forward", "step", "many", "saes"} == set(table.task)
    assert (table[["ours_seconds", "other_seconds", "ratio"]] > 0).all().all() and (table.n == AMOUNT.runs).all()
    same, theirs = (row for _, row in table[table.task == "training"].iterrows())
    assert same["size"].endswith("one recipe") and same.ours_loss == pytest.approx(same.other_loss, rel=1e-3)
    assert theirs.ours_loss == same.ours_loss != theirs.other_loss
    assert not work.scratch.exists()
    assert drawn == [("bench_ratios", len(table))]

    file = work.profile.paths.results / "bench.csv"
    left = table[table.task != "step"]
    left.to_csv(file, index=False)  # as if it had been interrupted
    ran = []
    monkeypatch.setattr(report, "run", lambda job, runs: ran.append(job.task) or {"ratio": 1.0})
    report.bench(work.profile, amount)
    assert set(ran) == {"step"} and len(ran) == (table.task == "step").sum()
    ran.clear()
    report.bench(work.profile, amount, only=["capture"], again=True)
    assert ran == ["capture"] and len(pd.read_csv(file)) == len(table)
    monkeypatch.setattr(report, "code", lambda profile: "changed")
    ran.clear()
    report.bench(work.profile, amount, only=["exp1"])
    assert ran == ["exp1"]
    with pytest.raises(ValueError, match="--only nothing: no such task; there are capture"):
        report.bench(work.profile, amount, only=["nothing"])


def test_without_sparsify_it_says_so_and_goes_on(work, monkeypatch, capsys):
    monkeypatch.setattr(trainers.importlib.util, "find_spec", lambda name: None)
    assert not any("sparsify" in job.other for job in report.jobs(work))
    monkeypatch.setattr(report, "with_earlier", lambda *_: pd.DataFrame())
    monkeypatch.setattr(report, "figure", lambda *_: None)
    report.bench(work.profile, AMOUNT)
    assert f"pip install {trainers.SPARSIFY}" in capsys.readouterr().out


def test_every_trainer_takes_all_its_steps(work):
    settings = work.profile.tool.deltas.training.model_copy(update={"batch": 32, "steps": 5, "check_every": 5})
    layers = trainers.random_layers(2, 3, 12, 48, 4, 200)
    assert layers.n == 6 and layers.one().n == 1
    sides = {trainers.our_step, trainers.published_step, *trainers.others().values()}
    for side in sides:
        assert 0 < side(layers, settings) < 60
    clock = trainers.Clock()
    assert list(zip(range(5), clock.over(iter("abcdefg")), strict=False))[-1] == (4, "e") and len(clock.ticks) >= 5


def test_the_interval_is_the_smallest_and_the_largest_of_six():
    seconds = iter([1.0, 2.0, 1.0, 5.0, 1.0, 3.0, 1.0, 4.0, 1.0, 7.0, 1.0, 6.0])
    side = lambda: timing.Run(next(seconds))
    row = timing.alternate(side, side, 6)
    assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == (2, 4.5, 7) and row["ours_seconds"] == 1


def test_the_browser_is_timed_on_what_sae_dashboard_reads():
    """The files that the other side is given hold the very model, SAE and tokens that ours is timed on."""
    scene = browsing.Scene(d_model=32, n_layers=2, d_sae=64, rows=4, context=16, features=8)
    assert scene.ours().seconds > 0
    model, dictionary, tokens = scene.made
    place = Path(scene.folder.name)
    theirs = SAE.load_from_disk(place / "sae")
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
    assert torch.equal(load_file(place / "tokens.safetensors")["tokens"], tokens)
    with torch.no_grad():
        x = model.hf(tokens, output_hidden_states=True).hidden_states[1]
        assert torch.allclose(theirs.encode(x), dictionary.encode(x), atol=1e-5)
        assert 0 < (dictionary.encode(x) > 0).float().mean() < 0.1
