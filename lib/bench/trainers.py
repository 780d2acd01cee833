"""A step of training deltas on given activations: by ours, as published, by other trainers, and its matrix products alone.

Each is timed the same way: from one batch's being asked for to the next one's. What is done once before the first
step, and checks on validation tokens, are not in it. Every function trains on `Layers` and returns the seconds of a
step per delta.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bench import as_published
from lib.dictionary import deltas
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.sae_lens import fit
from lib.dictionary.training import train
from lib.model import activations
from lib.profiles.organism import Training

SPARSIFY = "eai-sparsify==1.3.3"
PRODUCTS = "matrix products alone"


class Clock:
    """Ticks when a batch is asked for."""

    def __init__(self):
        self.ticks: list[float] = []

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())

    def over(self, batches: Iterator) -> Iterator:
        while True:
            self.tick()
            yield next(batches)

    def step(self, parts: int = 1) -> float:
        """The median step but the first, which warms up; or its share, where a step is of several parts."""
        return float(np.median(np.diff(self.ticks)[1:])) / parts


@dataclass(frozen=True)
class Layers:
    """What trainers are compared on: inputs, outputs and bases of some layers, several targets each."""

    name: str
    x: Float[Tensor, "layer 1 token d_model"]
    y: Float[Tensor, "layer 1 token d_model"]
    target: Float[Tensor, "layer delta token d_model"]
    base: Dictionary
    """Of the first layer."""
    d_new: int

    @property
    def n(self) -> int:
        """Deltas that learn at once."""
        return self.target.shape[0] * self.target.shape[1]

    def one(self) -> "Layers":
        """The first delta alone."""
        return Layers(self.name, self.x[:1], self.y[:1], self.target[:1, :1], self.base, self.d_new)


def picks(layers: Layers, settings: Training) -> Iterator[Tensor]:
    return activations.repeated(layers.x.shape[-2], settings.batch, 0)


def initialised(layers: Layers, settings: Training) -> Dictionary:
    return Dictionary.initialised(layers.target.shape[:2], layers.x.shape[-1], layers.d_new, 0, settings.threshold)


def our_step(layers: Layers, settings: Training) -> float:
    clock, x, target = Clock(), layers.x, layers.target
    drawn = clock.over(picks(layers, settings))
    batches = ((x.index_select(-2, pick), target.index_select(-2, pick)) for pick in drawn)
    train([initialised(layers, settings)], batches, (x[..., :64, :], target[..., :64, :]), settings)
    return clock.step(layers.n)


def published_step(layers: Layers, settings: Training) -> float:
    clock, x, y = Clock(), layers.x[0, 0], layers.y[0, 0]
    start, held = initialised(layers, settings)[0, 0], (x[:64], y[:64])
    as_published.train_delta(start, layers.base, (x, y), held, clock.over(picks(layers, settings)), settings)
    return clock.step()


@torch.no_grad()
def products_alone(layers: Layers, settings: Training) -> float:
    """The matrix products of a step, forward and backward: x W_enc, f W_dec, and the gradients of f, W_dec and W_enc."""
    clock, pick, stack = Clock(), next(picks(layers, settings)), initialised(layers, settings)
    dy = layers.target[..., pick, :]
    x = layers.x[..., pick, :].expand_as(dy).contiguous()
    for _ in range(settings.steps):
        clock.tick()
        f = x @ stack.W_enc
        f @ stack.W_dec
        df = dy @ stack.W_dec.mT
        f.mT @ dy
        x.mT @ df
    return clock.step(layers.n)


def sae_lens_step(layers: Layers, settings: Training) -> float:
    """sae-lens's trainer of several SAEs, ReLU with L1. It trains no transcoders: x is input and target."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    clock, d_model = Clock(), layers.x.shape[-1]
    names = [(str(layer), f"{layer}.{i}") for layer, i in product(*map(range, layers.target.shape[:2]))]
    saes = {
        name: StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_model, d_sae=layers.d_new, l1_coefficient=settings.l1))
        for _, name in names
    }
    batches = ({str(layer): x[0, pick] for layer, x in enumerate(layers.x)} for pick in clock.over(picks(layers, settings)))
    fit(saes, {name: layer for layer, name in names}, batches, settings.steps, settings.batch, settings.lr)
    return clock.step(layers.n)


class Site(nn.Module):
    """A module whose input and output are given."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y


class Replay(nn.Module):
    """For a trainer that hooks a model: one that answers token ids with the activations held under them."""

    def __init__(self, layers: Layers, clock: Clock):
        super().__init__()
        self.layers, self.clock, self.device = layers, clock, layers.x.device
        self.sites = nn.ModuleList(Site() for _ in layers.x)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> "Replay":
        return self

    def forward(self, input_ids: Tensor) -> None:
        self.clock.tick()
        for site, x, y in zip(self.sites, self.layers.x, self.layers.y, strict=True):
            site(x[0, input_ids], y[0, input_ids])


def sparsify_step(layers: Layers, settings: Training) -> float:
    """eai-sparsify's trainer of transcoders, TopK with a quarter of the features, Adam; deltas of one layer differ in seed."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), tempfile.TemporaryDirectory() as folder:
        from sparsify import SparseCoderConfig, TrainConfig, Trainer

        clock = Clock()
        coder = SparseCoderConfig(num_latents=layers.d_new, k=max(1, layers.d_new // 4), transcode=True)
        config = TrainConfig(
            coder, batch_size=1, optimizer="adam", lr=settings.lr, init_seeds=list(range(layers.target.shape[1])),
            hookpoints=[f"sites.{i}" for i in range(len(layers.x))], log_to_wandb=False, save_dir=folder,
        )  # fmt: skip
        asked = picks(layers, settings)
        trainer = Trainer(config, [{"input_ids": next(asked)} for _ in range(settings.steps)], Replay(layers, clock))
        clock.ticks.clear()  # it has looked at the widths
        trainer.fit()
    return clock.step(layers.n)


def autoencoders() -> str:
    """sae-lens's trainer, with its version."""
    return f"sae-lens {importlib.metadata.version('sae-lens')}, autoencoders"


def others() -> dict[str, Callable[[Layers, Training], float]]:
    """Whatever trains on given activations, by the name of the other side."""
    found = {PRODUCTS: products_alone, autoencoders(): sae_lens_step}
    if importlib.util.find_spec("sparsify"):
        found[SPARSIFY.replace("==", " ")] = sparsify_step
    return found


def random_layers(layers: int, at_once: int, d_model: int, d_sae: int, d_new: int, tokens: int, name: str = "") -> Layers:
    """Random weights and activations, some 1% of the base's features active; one base and one target for all deltas."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(layers, 1, tokens, d_model, generator=draw) for _ in range(2))
    base = Dictionary.initialised((), d_model, d_sae, 1, threshold=2.3).requires_grad_(False)
    target = deltas.unexplained([[base]] * layers, x[:, 0], y[:, 0])
    return Layers(name, x, y, target.expand(-1, at_once, -1, -1), base, d_new)
