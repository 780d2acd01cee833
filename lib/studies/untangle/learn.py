"""How the toy and its SAE learn, once for each setting and seed: AdamW, the best by validation, resumed where it stopped."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from lib.book.fingerprint import fingerprint
from lib.book.paths import replacing
from lib.book.results import save
from lib.dictionary.checkpoint import Checkpoint
from lib.model.precision import products
from lib.profiles.untangle import Toy
from lib.studies.untangle import data
from lib.studies.untangle.data import PAD, SUM
from lib.studies.untangle.model import Transformer

TRAIN, VALIDATION, TEST = 0, 1, 2
"""The parts of `data.split`."""
RECIPE = 2
"""What else decides a training than its settings: to be raised when this file learns otherwise."""
SAVED_EVERY = 20
"""Seconds between two checkpoints, at least."""
PUBLISHED_POSITIONS = 7
"""Of an answer padded to eight characters; those of padding are foreseen without loss, and were averaged over too."""


@dataclass(frozen=True)
class Task:
    """The examples of both tasks as tokens, and which are to train (0), validate (1) and test (2)."""

    table: pd.DataFrame
    how: data.Tokenizer
    part: Int[np.ndarray, " example"]

    @classmethod
    def of(cls, operands: int, toy: Toy, seed: int) -> "Task":
        table = data.examples(operands)
        return cls(
            table, data.tokenizer(toy.tokenizer, operands), data.split(table, toy.train, toy.validation, seed, toy.split)
        )

    @cached_property
    def question(self) -> Int[Tensor, "example question"]:
        return torch.from_numpy(data.encoded(self.table.question, self.how))

    @cached_property
    def answer(self) -> Int[Tensor, "example pos"]:
        return torch.from_numpy(data.encoded(self.table.answer, self.how))

    @cached_property
    def target(self) -> Int[Tensor, "example pos"]:
        """The tokens to be foreseen: an answer without the `B` that opens it."""
        return self.answer[:, 1:]

    @cached_property
    def is_sum(self) -> Bool[np.ndarray, " example"]:
        return (self.table.task == SUM).to_numpy(copy=True)  # torch wants it writable

    def rows(self, part: int) -> Int[Tensor, " row"]:
        return torch.from_numpy(np.flatnonzero(self.part == part))

    def model(self, toy: Toy) -> Transformer:
        return Transformer(toy, len(self.how.tokens), self.question.shape[1], self.target.shape[1])


@dataclass(frozen=True)
class Learned:
    """A trained toy, its task, and how training went."""

    toy: Toy
    seed: int
    task: Task
    model: Transformer
    history: pd.DataFrame
    """A row per look: `epoch`, `train` (mean loss of the epoch, as minimised), and on validation examples `ce` (nats a token),
    `ce_published` (averaged over padding too) and the share right, `right_sum` and `right_join`; `best` where it was kept."""

    @property
    def seconds(self) -> float:
        return float(self.history.seconds.iloc[-1])


def learned(folder: Path, operands: int, toy: Toy, seed: int, progress: str = "toy") -> Learned:
    """Trained, or read from `folder` where it has been; one with an SAE post hoc stands on the model trained without one."""
    task = Task.of(operands, toy, seed)
    of = fingerprint(RECIPE, operands, toy, seed)
    file, log = folder / f"{of}.safetensors", folder / f"{of}.csv"
    model = task.model(toy).eval()
    if not (file.exists() and log.exists()):
        if toy.sae == "post hoc":
            alone = learned(folder, operands, toy.model_copy(update={"sae": "none"}), seed, progress)
            model.load_state_dict(alone.model.state_dict())
            _fit_sae(model, alone, toy, seed)
            history = alone.history
        else:
            with sdpa_kernel(SDPBackend.MATH):  # with five positions to look at, flash attention takes longer
                model, history = _train(task, toy, seed, Checkpoint(folder / f"{of}.pt", of), progress)
        save(history, log)
        with replacing(file) as temporary:
            save_file(model.state_dict(), temporary)
        (folder / f"{of}.pt").unlink(missing_ok=True)
    model.load_state_dict(load_file(file))
    return Learned(toy, seed, task, model.requires_grad_(False), pd.read_csv(log))


def _train(task: Task, toy: Toy, seed: int, checkpoint: Checkpoint, progress: str) -> tuple[Transformer, pd.DataFrame]:
    torch.manual_seed(seed)
    model, train = task.model(toy), task.rows(TRAIN)
    optimizer = _optimizer(model.parameters(), toy)
    history, best, start, saved = [], {}, 0, time.monotonic()
    if checkpoint.state:
        start, history, best = checkpoint.step, checkpoint.state["history"], checkpoint.state["best"]
        model.load_state_dict(checkpoint.state["model"])
        optimizer.load_state_dict(checkpoint.state["optimizer"])
    lowest = min((row["ce"] for row in history), default=np.inf)
    for epoch in tqdm(range(start, toy.epochs), desc=progress, initial=start, total=toy.epochs, mininterval=2, leave=False):
        losses = []
        for rows in _shuffled(train, toy.batch, seed, epoch):
            target = task.target[rows]
            real = target != PAD
            with products(getattr(torch, toy.precision), "cpu"):
                h = model.hidden(task.question[rows], task.answer[rows, :-1])[real]
                loss = F.cross_entropy(model.output(h).float(), target[real])
                if toy.sae == "joint":
                    loss = loss + sae_loss(model, h, toy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if (epoch + 1) % toy.check_every and epoch + 1 < toy.epochs:
            continue
        row = {"epoch": epoch + 1, "train": float(np.mean(losses)), **_validation(model, task)}
        row |= {"best": row["ce"] < lowest, "seconds": round(checkpoint.seconds, 1)}
        if row["best"]:
            lowest, best = row["ce"], {name: value.clone() for name, value in model.state_dict().items()}
        history.append(row)
        if time.monotonic() - saved > SAVED_EVERY:
            checkpoint.save(
                step=epoch + 1, model=model.state_dict(), optimizer=optimizer.state_dict(), best=best, history=history
            )
            saved = time.monotonic()
    model.load_state_dict(best)
    return model, pd.DataFrame(history)


def _optimizer(parameters, toy: Toy) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=toy.lr, weight_decay=toy.weight_decay, foreach=True)


def _shuffled(rows: Tensor, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """All rows in an order of this epoch's own, whatever came before, so that a training can be resumed."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    yield from rows[torch.randperm(len(rows), generator=draw)].split(batch)


def sae_loss(model: Transformer, h: Float[Tensor, "n d_model"], toy: Toy) -> Float[Tensor, ""]:
    """alpha times the mean squared error and lambda times the mean activation, over tokens and entries, as published."""
    z, back = model.sae(h)
    return toy.alpha * (back.float() - h.float()).square().mean() + toy.l1 * z.float().mean()


def _fit_sae(model: Transformer, alone: Learned, toy: Toy, seed: int) -> None:
    """The SAE alone learns, on the hidden states of a model that stays as it is: as long as that learnt, in the same way."""
    task, train = alone.task, alone.task.rows(TRAIN)
    h, real = hidden(alone.model, task), task.target != PAD
    optimizer = _optimizer(model.sae.parameters(), toy)
    for epoch in range(toy.epochs):
        for rows in _shuffled(train, toy.batch, seed, epoch):
            with products(getattr(torch, toy.precision), "cpu"):
                loss = sae_loss(model, h[rows][real[rows]], toy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def hidden(
    model: Transformer, task: Task, rows: Tensor | None = None, batch: int = 2048
) -> Float[Tensor, "example pos d_model"]:
    """What the output layer reads of every example, given its right answer so far; or of some `rows`."""
    rows = torch.arange(len(task.table)) if rows is None else rows
    return torch.cat([model.hidden(task.question[i], task.answer[i, :-1]) for i in rows.split(batch)])


@torch.no_grad()
def scores(
    logits: Float[Tensor, "example pos token"], target: Int[Tensor, "example pos"]
) -> tuple[Bool[Tensor, " example"], Float[Tensor, " example"], Int[Tensor, " example"]]:
    """Whether a greedy answer is right, its cross-entropy in nats, summed over its tokens, and how many these are.

    Greedy answers are right just where every token is the likeliest given the right ones before it.
    """
    real = target != PAD
    nats = F.cross_entropy(logits.transpose(1, 2), target, reduction="none") * real
    return ((logits.argmax(-1) == target) | ~real).all(1), nats.sum(1), real.sum(1)


@torch.no_grad()
def _validation(model: Transformer, task: Task) -> dict[str, float]:
    model.eval()
    rows = task.rows(VALIDATION)
    right, nats, n = scores(model.output(hidden(model, task, rows)), task.target[rows])
    model.train()
    is_sum = torch.from_numpy(task.is_sum)[rows]
    return {
        "ce": float(nats.sum() / n.sum()), "ce_published": float(nats.mean() / PUBLISHED_POSITIONS),
        "right_sum": float(right[is_sum].float().mean()), "right_join": float(right[~is_sum].float().mean()),
    }  # fmt: skip
