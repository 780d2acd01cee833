"""What the bench runs, ours and the published procedure."""

import functools
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.bench import as_published
from lib.bench.trainers import Layers
from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import save_npz
from lib.model import activations, encoding, models
from lib.model.encoding import tokens
from lib.model.sites import Site
from lib.profiles.organism import Training
from lib.profiles.tables import Profile
from lib.studies.tool import experiments
from lib.texts.jsonl import by_subset, read_jsonl

PUBLISHED = "published procedure"
PASSES = 3  # of a batch, timed together


@dataclass(frozen=True)
class Amount:
    """How much of everything is run: enough for a ratio, and no more. Both sides always do all of it."""

    runs: int = 6
    capture: int = 400
    exp1: int = 50
    exp2: int = 20
    cut: int = 10
    """Training of the whole grid: of a recipe's steps and of the prompts, one in so many, so that there are as many epochs."""
    shapes: tuple[tuple[int, int], ...] = ((640, 16384), (768, 24576), (2304, 16384))
    """d_model x d_sae of single layers with random weights and activations."""
    d_new: int = 128
    batch: int = 1024
    steps: int = 8
    at_once: int = 8
    """Deltas of a single layer that learn together."""

    @classmethod
    def of(cls, profile: Profile) -> "Amount":
        return cls(**profile.tool.bench.model_dump())


class Workplace:
    """The finetuned model of a profile, its prompts and its transcoders."""

    def __init__(self, profile: Profile, amount: Amount):
        self.profile, self.amount = profile, amount
        config = self.load()[0].config
        self.d_model, self.layers = config.hidden_size, models.layers_of(profile, config.num_hidden_layers)
        # what is trained here is not for the book
        self.scratch = profile.paths.data.with_name(f"{profile.name}.bench")

    def load(self):
        return models.load_plain(self.profile, self.profile.paths.finetuned)

    @functools.cached_property
    def model(self) -> models.LanguageModel:
        return models.load(self.profile, self.profile.paths.finetuned)

    @functools.cached_property
    def sites(self) -> list[Site]:
        return models.studied(self.profile, self.model)

    def prompts(self, split: str, n: int | None = None) -> list:
        """All prompts of a split, or `n` of them from all over it."""
        found = read_jsonl(self.profile.paths.prompts / f"{split}.jsonl")
        return found if n is None else found[:: max(1, len(found) // n)][:n]

    def test(self, n: int) -> dict[str, list]:
        return by_subset(self.prompts("test"), n)

    def captured(self, model: models.LanguageModel, split: str, n: int | None = None):
        batches = encoding.streamed(model.tokenizer, self.prompts(split, n), self.profile.tool.evaluation.forward_batch)
        return activations.collect(model, models.studied(self.profile, model), batches, f"{split} activations")

    def load_bases(self) -> list[list[Dictionary]]:
        """Of every site and L0 rank."""
        return [bases.load(self.profile, self.model, site, self.profile.transcoders.l0_ranks) for site in self.sites]

    @functools.cached_property
    def real(self) -> Layers:
        held, loaded = self.captured(self.model, "validation"), self.load_bases()
        target = deltas.unexplained(loaded, held.x, held.y)
        width = max(self.profile.tool.deltas.d_new)
        return Layers(self.profile.name, held.x[:, None], held.y[:, None], target, loaded[0][0], width)

    # capture

    def capture_ours(self) -> None:
        self.captured(models.load(self.profile, self.profile.paths.finetuned), "train", self.amount.capture)

    def capture_published(self) -> None:
        as_published.capture(self.load, self.layers, self.prompts("train", self.amount.capture))

    # training of the whole grid

    @functools.cached_property
    def grid_data(self) -> list[activations.Activations]:
        """Activations of one in so many training and validation prompts."""
        splits = ("train", "validation")
        return [self.captured(self.model, split, len(self.prompts(split)) // self.amount.cut) for split in splits]

    def recipe(self, **changes) -> Training:
        """The profile's, or what it is with `changes`, so much shorter as there is less data."""
        learn = self.profile.tool.deltas.training.model_copy(update=changes)
        steps, warmup = (max(4, n // self.amount.cut) for n in (learn.steps, learn.l1_warmup))
        return learn.model_copy(update={"steps": steps, "l1_warmup": warmup, "patience": steps})

    def grid_ours(self) -> float:
        profile, settings, loaded = self.profile, self.recipe(), self.load_bases()
        data, check = (
            (held.x[:, None].to(dtype), deltas.unexplained(loaded, held.x, held.y, dtype))
            for held, dtype in zip(self.grid_data, deltas.dtypes(profile), strict=True)
        )
        losses, widths = [], profile.tool.deltas.d_new
        for d_new, (stack, curve) in zip(widths, deltas.fit(settings, data, check, widths, profile.seed), strict=True):
            for (i, site), (j, rank) in product(enumerate(self.sites), enumerate(profile.transcoders.l0_ranks)):
                save_npz(stack[i, j], deltas.delta_file(self.scratch, site, d_new, rank))
            losses.append(curve.groupby("member").fvu.min().mean())
        return float(np.mean(losses))

    def grid_published(self, **changes) -> float:
        profile, (held, validation), losses = self.profile, self.grid_data, []
        settings, ranks = self.recipe(**changes), profile.transcoders.l0_ranks
        for d_new in profile.tool.deltas.d_new:
            shape = (len(self.sites), len(ranks))
            starts = Dictionary.initialised(shape, self.model.d_model, d_new, profile.seed, settings.threshold)
            for (i, site), (j, rank) in product(enumerate(self.sites), enumerate(ranks)):
                [base] = bases.load(profile, self.model, site, [rank])
                asked = activations.repeated(len(held.prompt), settings.batch, profile.seed)
                data, check = (held.x[i], held.y[i]), (validation.x[i], validation.y[i])
                delta, loss = as_published.train_delta(starts[i, j], base, data, check, asked, settings)
                save_npz(delta, deltas.delta_file(self.scratch, site, d_new, rank))
                losses.append(loss)
        return float(np.mean(losses))

    # a forward pass beside its matrix products

    @functools.cached_property
    def asked(self) -> encoding.Encoded:
        """A batch as the evaluations have them, full of tokens."""
        rows = self.profile.tool.evaluation.forward_batch
        batch = encoding.streamed(self.model.tokenizer, self.prompts("test"), rows)[-1]
        return batch.to(self.model.hf.device)

    @torch.no_grad()
    def forward_ours(self) -> None:
        for _ in range(PASSES):
            self.model.hf(input_ids=self.asked.ids, attention_mask=self.asked.attention, use_cache=False)

    @torch.no_grad()
    def forward_products(self) -> None:
        """The same products of the same shapes and dtype: of every weight matrix, and of queries, keys and values."""
        config, (rows, length) = self.model.hf.config, self.asked.ids.shape
        head = self.model.hf.get_output_embeddings().weight
        of_layer = [m.weight for m in self.model.hf.model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
        x = {weight.shape[1]: head.new_ones(rows * length, weight.shape[1]) for weight in (*of_layer, head)}
        q = head.new_ones(rows * config.num_attention_heads, length, config.head_dim)
        for _ in range(PASSES):
            for _ in range(self.model.n_layers):
                for weight in of_layer:
                    torch.nn.functional.linear(x[weight.shape[1]], weight)
                q @ q.mT @ q
            torch.nn.functional.linear(x[head.shape[1]], head)

    # the experiments

    def pair(self, layer: int, d_new: int, rank: float):
        site = self.model.site(self.profile.tool.protocol.site, layer)
        return deltas.load_pair(self.profile, self.model, site, d_new, rank)

    @functools.cached_property
    def exp1_prompts(self) -> list:
        found = self.test(self.amount.exp1)
        return found["tool"] + found["copy"]

    def exp1_ours(self) -> pd.DataFrame:
        model = models.load(self.profile, self.profile.paths.finetuned)
        return experiments.exp1(self.profile, model, self.exp1_prompts, models.studied(self.profile, model))

    def exp1_published(self) -> pd.DataFrame:
        grid = list(product(self.profile.tool.deltas.d_new, self.profile.transcoders.l0_ranks))
        return as_published.exp1(self.load, self.pair, grid, self.layers, self.exp1_prompts)

    def exp2_ours(self, keep: Path | None = None) -> pd.DataFrame:
        model = models.load(self.profile, self.profile.paths.finetuned)
        asked, doses = self.test(self.amount.exp2), experiments.AT_ENDS
        sites = models.studied(self.profile, model)
        return experiments.exp2_by_layer(self.profile, model, asked, sites, doses=doses, keep=keep)

    def exp2_published(self) -> tuple[pd.DataFrame, dict]:
        tokenizer = self.load()[1]

        def longest(asked) -> int:
            return max(len(tokens(tokenizer, p)[1]) for p in asked) + self.profile.tool.evaluation.margin

        d_new, rank = deltas.widest(self.profile)
        pair = functools.partial(self.pair, d_new=d_new, rank=rank)
        asked = self.test(self.amount.exp2)
        return as_published.exp2(self.load, pair, self.layers, asked, experiments.AT_ENDS, longest, self.profile.tool.grammar)
