"""Every way to answer a question about two vehicles: edits of features, and what they must be compared with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.dictionary.dictionaries import Dictionary
from lib.studies.transport import steer
from lib.studies.transport.material import reply
from lib.studies.transport.steer import (
    Acting,
    Edited,
    Pushed,
    Trial,
    activated,
    first_published,
    shifted,
    suppressed,
    unchanged,
)
from lib.studies.transport.words import Words, counts, largest, tables, taken_as_indices
from lib.texts.vehicles import VEHICLES

RAW, THROUGH = "as it is", "pass-through"
ACTIVATE, SUPPRESS, LARGEST, RANDOM = "activate", "suppress", "largest entry", "random features"
OTHER, OTHER_OFF = "activate another vehicle", "suppress another vehicle"
OWN = "activate what is its own"
MEANS, TOLD, FIRST, DROPPED = "difference of means", "told", "first code", "activate, error dropped"


def told(question: str, one: str) -> str:
    """A question that gives the answer away."""
    return f"Say {reply(one)} {question}"


def scaled(v: Tensor, sae: Dictionary, like: Tensor) -> Tensor:
    """A table made as long as another, in what both write."""
    return v * ((like @ sae.W_dec).norm() / (v @ sae.W_dec).norm().clamp(min=1e-9))


def at_random(v: dict[str, Tensor], sae: Dictionary, words: Words, seed: int) -> dict[str, Tensor]:
    """For each vehicle its values on living features drawn at random, as long in what they write."""
    alive = (words.features(sae) > 0).any(0).nonzero()[:, 0].cpu()
    draw, found = torch.Generator().manual_seed(seed), {}
    for name, table in v.items():
        values = table[table > 0]
        other = torch.zeros_like(table)
        picked = alive[torch.randperm(len(alive), generator=draw)[: len(values)]].to(table.device)
        other[picked] = values[: len(picked)]
        found[name] = scaled(other, sae, table)
    return found


def own_tables(v: dict[str, Tensor], sae: Dictionary, words: Words) -> dict[str, Tensor]:
    """For each vehicle its mean activations less those of all, the largest of them, as long as its table in what they write."""
    means = words.by_name(words.features(sae))
    centre = torch.stack(list(means.values())).mean(0)
    found = {}
    for name, mean in means.items():
        differs = mean - centre
        keep = largest(differs.abs()) > 0
        found[name] = scaled(differs * keep, sae, v[name])
    return found


def directions(v: dict[str, Tensor], sae: Dictionary, words: Words) -> dict[str, Tensor]:
    """For each vehicle the mean vector at its name less that at all names, as long as what its table writes."""
    means = words.by_name(words.vectors)
    centre = torch.stack(list(means.values())).mean(0)
    return {
        name: (means[name] - centre) * ((v[name] @ sae.W_dec).norm() / (means[name] - centre).norm().clamp(min=1e-9))
        for name in v
    }


def trials(sae: Dictionary, words: Words, doses: Sequence[float], seed: int = 0) -> list[Trial]:
    """Every way to answer; words are of vehicles alone."""
    v, acting, few = tables(words, sae), Acting(), counts(words, sae)
    indices = {name: taken_as_indices(table) for name, table in few.items()}
    both = {
        f"{one}|{two}": steer.as_published(indices[one], indices[two], sae.d_sae)
        for one in VEHICLES for two in VEHICLES if one != two
    }  # fmt: skip
    first = {name: largest(table, 1) for name, table in v.items()}
    random, pushes, own = at_random(v, sae, words, seed), directions(v, sae, words), own_tables(v, sae, words)
    found = [Trial(RAW), Trial(THROUGH, Edited(sae, acting, unchanged, keep_error=False), v),
             Trial(FIRST, Edited(sae, acting, first_published, keep_error=False), both, "both")]  # fmt: skip
    for dose in doses:
        add, off, push = Edited(sae, acting, activated, dose), Edited(sae, acting, suppressed, dose), Pushed(acting, dose)
        found += [
            Trial(ACTIVATE, add, v), Trial(ACTIVATE, add, v, "two"), Trial(OTHER, add, v, "another"),
            Trial(ACTIVATE, Edited(sae, acting, activated, dose, where="prompt"), v),
            Trial(ACTIVATE, Edited(sae, acting, activated, dose, where="last"), v),
            Trial(DROPPED, Edited(sae, acting, activated, dose, keep_error=False), v),
            Trial(OWN, Edited(sae, acting, shifted, dose), own), Trial(OWN, Edited(sae, acting, shifted, dose), own, "two"),
            Trial(SUPPRESS, off, v), Trial(SUPPRESS, off, v, "two"), Trial(OTHER_OFF, off, v, "another"),
            Trial(LARGEST, add, first), Trial(LARGEST, add, first, "two"),
            Trial(RANDOM, add, random), Trial(RANDOM, add, random, "two"),
            Trial(MEANS, push, pushes), Trial(MEANS, push, pushes, "two"),
        ]  # fmt: skip
    return [*found, Trial(TOLD, says=told)]
