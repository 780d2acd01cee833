"""What each part of the book needs."""

import math
from dataclasses import dataclass, field

import torch

from lib.dictionary import deltas
from lib.model import models
from lib.plan.machine import Machine, Pace
from lib.plan.work import Work, bases_to_download, is_here, to_be_made
from lib.profiles.tables import Profile

GENERATED = 0.2
"""Share of a finetuned model's answers that teacher forcing does not already give: one in ten with one layer of `nano`
replaced, more with all of them."""

GPU_RESERVE = 1.0e9  # of a GPU: its context, libraries, and what the allocator cannot use

CHUNK = 2048  # tokens in a step of validation


@dataclass(frozen=True)
class Need:
    """What one part of the book needs. Bytes are by what they are for; those of `device` are the host's without a GPU."""

    name: str
    device: dict[str, float]
    host: dict[str, float]
    flops: float
    seconds: float
    remedy: str
    """What to change in the profile where the memory is not there."""
    disk: dict[str, float] = field(default_factory=dict)


def needs(work: Work, here: Machine, at: Pace) -> list[Need]:
    """Chapters 2 to 6, and what memory chapter 8 takes."""
    p, d, vocab, b = work.profile, work.d_model, work.config.vocab_size, work.n_bytes
    n_layers, n_ranks, widths = len(work.layers), len(p.transcoders.l0_ranks), p.tool.deltas.d_new
    batch = p.tool.evaluation.forward_batch * work.longest
    weights = {"weights": work.parameters * b}
    process = {"process": here.process}
    base = 4 * work.d_sae * (2 * d + 2)
    base_flops = 4 * work.d_sae * d  # a token
    loading = {"weights being loaded": work.parameters * b} if here.gpu else {}
    trained, kept, learning_flops = work.learning
    micro_tokens = p.tool.finetune.micro_batch * work.longest

    def evaluated(
        tokens: int, raw: int = 0, single: int = 0, every: int = 0, answers: float = 0, bases: int | None = None
    ) -> tuple[float, float]:
        """Operations and seconds of conditions that replace no layer, a single one, or every one; `answers` are generated.

        A base is run once a condition and layer, or `bases` times in all.
        """
        # a replacement runs the layers above it: about half of them in the mean
        passes = raw + every + single / 2
        of_bases = (single + every * n_layers if bases is None else bases) * base_flops
        seconds = tokens * (passes * at.forward + of_bases / here.flops_float32)
        # log-probabilities, KL and their sums: 12 times over float32 logits
        seconds += tokens * (raw + single + every) * 48 * vocab / here.bandwidth
        seconds += answers / p.tool.evaluation.generate_batch * work.answer * at.decode
        return tokens * (passes * work.flops_a_token + of_bases), seconds

    found = [made(work, here, at, weights, process)] if to_be_made(p.transcoders.source, p.transcoders.made) else []
    test = work.tokens("test", padded=True)
    asked = len(work.splits["test"])
    # chapter 2: epochs of training, the model measured before and after
    passes = p.tool.finetune.epochs * work.tokens("train", padded=True)
    flops, seconds = evaluated(test, raw=2, answers=(1 + GENERATED) * asked)
    logits_back = 8 * micro_tokens * vocab
    found.append(Need(
        "2 finetune",
        weights | {"LoRA and Adam": 16 * trained, "kept for backpropagation": kept, "logits' gradients": logits_back},
        process | loading, flops + passes * learning_flops / micro_tokens, seconds + passes * at.learn,
        "lower tool.finetune.micro_batch",
        {"finetuned model": work.parameters * b, "checkpoints": 12 * trained},
    ))  # fmt: skip

    # chapter 3: one pass of the model for each group of layers; then the deltas
    n_tokens = work.tokens("train", "validation")
    held, to_files = deltas.held_size(p, work.each_split, work.at_once, n_ranks, d)
    data = {} if to_files else {"inputs and targets": held}
    groups = len(deltas.groups(p, work.layers))
    padded = work.tokens("train", "validation", padded=True)
    of_bases = n_tokens * n_layers * n_ranks * base_flops
    bases = {"bases": work.at_once * n_ranks * base}
    logits = {"logits": 3 * b * batch * vocab}
    part = {"a batch": 4 * batch * (d * work.at_once * (5 + 2 * n_ranks) + 3 * work.d_sae)}
    found.append(Need(
        "3 capture", weights | bases | data | logits | part, process | loading,
        groups * padded * work.flops_a_token + of_bases, groups * padded * at.forward + of_bases / here.flops_float32,
        "lower tool.memory.layers, tool.memory.data_gb or tool.evaluation.forward_batch",
        {"inputs and targets": held} if to_files else {},
    ))  # fmt: skip
    members, together, widest = work.at_once * n_ranks, sum(widths), max(widths)
    of_grid = together * (2 * d + 2) + len(widths) * d  # parameters at one layer and L0 rank
    settings = p.tool.deltas.training
    checks = settings.steps / settings.check_every * work.tokens("validation") / settings.batch / 3
    steps = groups * settings.steps
    found.append(Need(
        "3 delta training",
        weights | data | {
            "parameters, Adam, best": 6 * 4 * members * of_grid,
            "a step or a check": 4 * members * max(settings.batch * (7 * d + 4 * together), CHUNK * (7 * d + 3 * widest)),
        },
        process | loading, steps * members * settings.batch * together * (8 * d + 4 * together),
        steps * at.delta_step * (1 + checks / settings.steps),
        "lower tool.memory.layers, tool.memory.data_gb or tool.deltas.training.batch",
        {"deltas": 4 * n_layers * n_ranks * of_grid},
    ))  # fmt: skip

    # chapters 4 to 6: teacher forcing keeps the raw model's log-probabilities beside a condition's
    in_test = sum(subset != "tool_ood" for subset in (q.subset for q in work.splits["test"])) / asked
    seen = 8 * int(in_test * work.tokens("test")) * d
    scoring = {"logits": (20 + 3 * b) * batch * vocab}
    conditions = n_ranks * (1 + len(widths))
    of_bases = 2 * n_ranks * n_layers  # under the model, and on the activations
    flops, seconds = evaluated(int(in_test * test), raw=2 * groups, single=conditions * n_layers, bases=of_bases)
    found.append(Need(
        "4 exp1",
        weights | scoring | bases | {
            "a layer's activations": 3 * seen, "features": 8 * batch * work.d_sae,
            "what layers read and write": (4 + 3 * b) * batch * d * work.at_once,
        },
        process | loading | {"activations": work.at_once * seen}, flops, seconds,
        "lower tool.memory.layers, tool.evaluation.forward_batch or tool.prompts.test",
    ))  # fmt: skip
    cache = 4 * b * p.tool.evaluation.generate_batch * work.longest * work.config.num_key_value_heads * work.config.head_dim
    behaviour = weights | scoring | {
        "bases": n_layers * base, "key-value cache": cache * work.config.num_hidden_layers,
        "features": 8 * p.tool.evaluation.generate_batch * work.longest * work.d_sae,
    }  # fmt: skip
    doses, by_layer = len(p.tool.evaluation.alphas), len(p.tool.evaluation.alphas_by_layer)
    for name, kinds in (
        ("5 exp2a", dict(raw=1, single=2 * n_layers)), ("6 exp2b", dict(raw=2, single=by_layer * n_layers, every=doses)),
    ):  # fmt: skip
        flops, seconds = evaluated(test, **kinds, answers=GENERATED * asked * sum(kinds.values()))
        found.append(Need(
            name, behaviour, process | loading, flops, seconds, "lower tool.evaluation.forward_batch or .generate_batch"
        ))  # fmt: skip
    return [*found, controls(work, weights, process | loading, behaviour)]


def made(work: Work, here: Machine, at: Pace, weights: dict[str, float], process: dict[str, float]) -> Need:
    """Base transcoders that are trained here, all together."""
    d, made = work.d_model, work.profile.transcoders.made
    passes = made.text.passes if made.text else 1
    tokens, members = made.training.steps * made.training.batch, len(work.layers) * len(made.l0)
    parameters = members * made.d_sae * (2 * d + 2)
    # five products of a step; parameters, gradients and Adam's two moments are gone through a dozen times
    learning = 10 * tokens * members * made.d_sae * d
    seconds = tokens / passes * at.forward + learning / here.flops + 48 * made.training.steps * parameters / here.bandwidth
    seconds += 24 * tokens * members * made.d_sae / here.bandwidth
    held = made.text.round * made.text.context if made.text else 32 * made.training.batch
    return Need(
        "0 base transcoders",
        weights | {
            "parameters, gradients, Adam, best": 20 * parameters, "a step": 12 * members * made.training.batch * made.d_sae,
            "inputs and outputs": 4 * work.n_bytes * len(work.layers) * held * d,
            "validation": 8 * len(work.layers) * made.probe_tokens / 10 * d,
        },
        process, tokens / passes * work.flops_a_token + learning, seconds,
        "lower transcoders.made.training.batch or transcoders.made.text.round, or name fewer transcoders.layers",
        {"transcoders": 2 * parameters, "a checkpoint": 16 * parameters},
    )  # fmt: skip


def controls(work: Work, weights: dict[str, float], host: dict[str, float], behaviour: dict[str, float]) -> Need:
    """Chapter 8: more of what it takes to make the controls and what it takes to measure them. Its time is not planned."""
    p, d, n_tokens = work.profile, work.d_model, work.control_tokens
    layers, base = len(models.control_layers(p, work.config.num_hidden_layers)), 4 * work.d_sae * (2 * d + 2)
    retrained = layers * base * bool(p.tool.controls.retrain)
    made = weights | {"bases": layers * base, "MLPs of two models": 8 * layers * work.mlp, "transcoders retrained": retrained}
    making = made | {
        "activations of two models": 16 * layers * n_tokens * d, "targets": 4 * layers * n_tokens * d,
        "the other model, Adam or float64": max(sum(weights.values()), 4 * retrained, 40 * n_tokens * d),
    }  # fmt: skip
    _, kept, _ = work.learning
    through = made | {
        "kept for backpropagation": kept,
        "log-probabilities and their gradients": 24 * p.tool.finetune.micro_batch * work.longest * work.config.vocab_size,
    }  # fmt: skip
    device = max(making, through, behaviour | made, key=lambda parts: sum(parts.values()))
    return Need(
        "8 controls", device, host, math.nan, math.nan, "lower tool.controls.prompts or name fewer in tool.controls.layers"
    )


def downloads(work: Work) -> dict[str, float]:
    """Bytes still to be downloaded."""
    stored = getattr(torch, str(work.config.dtype or "float32").removeprefix("torch.")).itemsize
    p, found = work.profile, {}
    if not is_here(p):
        found["model"] = p.model.package.bytes if p.model.package else work.parameters * stored
    if files := bases_to_download(work):
        found["transcoders"] = files * 4 * (work.d_sae * (2 * work.d_model + 2) + work.d_model)
    return found


def refusals(profile: Profile, found: list[Need], here: Machine, to_download: dict[str, float]) -> list[str]:
    """One line for each thing that cannot fit."""
    lines = []
    for need in found:
        host, device = sum(need.host.values()), sum(need.device.values())
        places = [("memory", host, here.host)] if here.gpu else [("memory", host + device, here.host)]
        places += [("GPU memory", device + GPU_RESERVE, here.gpu)] if here.gpu else []
        lines += [
            f"profile {profile.name}: {need.name} needs {needed / 1e9:.1f} GB of {place}, {there / 1e9:.1f} GB are there; "
            f"{need.remedy}, or use a larger machine"
            for place, needed, there in places
            if needed > there
        ]
    disk = sum(to_download.values()) + sum(sum(need.disk.values()) for need in found)
    if disk > here.disk:
        lines.append(
            f"profile {profile.name}: {disk / 1e9:.1f} GB of disk are needed, {here.disk / 1e9:.1f} GB are free; "
            "free some, or lower tool.memory.layers"
        )
    return lines
