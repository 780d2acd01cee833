"""`make base`: the organism's model, its base transcoders and its model card, from nothing.

    python -m lib.nano.base --profile nano [--again]

makes what is missing (`--again`: everything); for a profile without an organism it sees that all can be had.
Weights are stored in half precision; transcoders and card are made from the model as stored.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lib import activations, models, profiles, prompts, stats
from lib.encoding import Encoded, question
from lib.generation import generate
from lib.models import LanguageModel
from lib.nano import corpus
from lib.nano.pretrain import Rows, pretrain, train_tokenizer
from lib.paths import ROOT, replacing
from lib.profiles import Organism, Profile
from lib.quality import losses, transcoder_quality
from lib.results import with_intervals
from lib.sentences import copy_sentence
from lib.training import train
from lib.transcoders import Transcoder, save_npz

CARD = "organism.json"


def make(profile: Profile, again: bool = False) -> None:
    """Make the model, the transcoders and the card where they are missing."""
    organism = profile.organism
    if organism is None:
        models.check(profile)
        return
    model_folder, scope = ROOT / profile.model.source, ROOT / profile.transcoders.source
    folder = model_folder.parent
    if again:
        for path in (model_folder, scope):
            shutil.rmtree(path, ignore_errors=True)
        (folder / CARD).unlink(missing_ok=True)
    if not model_folder.exists():
        make_model(organism, model_folder, folder / "pretraining.pt", folder / "pretraining.json")
    if not scope.exists():
        make_transcoders(profile, organism, scope, folder / "transcoders.json")
    if not (folder / CARD).exists():
        make_card(profile, organism, folder)


def make_model(organism: Organism, folder: Path, checkpoint: Path, record: Path) -> None:
    """Tokenizer and pretraining; the finished model replaces the checkpoint."""
    tokenizer = train_tokenizer(organism.model)
    model, history = pretrain(organism.model, tokenizer, checkpoint)
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(history))
    with replacing(folder) as temporary:
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    checkpoint.unlink(missing_ok=True)


def corpus_batches(model: LanguageModel, organism: Organism, seed: str) -> Iterator[Encoded]:
    """Rows of the corpus without end; the same seed gives the same rows."""
    rows = Rows(model.tokenizer, organism.model.context, seed)
    while True:
        ids = rows.batch(organism.model.batch)
        yield Encoded(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))


def corpus_tokens(model: LanguageModel, organism: Organism, seed: str, tokens: int) -> list[Encoded]:
    """At least `tokens` tokens of the corpus."""
    n = -(-tokens // (organism.model.batch * organism.model.context))
    return list(islice(corpus_batches(model, organism, seed), n))


def make_transcoders(profile: Profile, organism: Organism, folder: Path, record: Path) -> None:
    """Transcoders for every layer and L0, trained together in one pass over fresh corpus text."""
    began, settings = time.time(), organism.transcoders
    model = models.load(profile)
    layers, n_levels = list(range(model.n_layers)), len(settings.l0)
    stack = Transcoder.initialised((len(layers), n_levels), model.d_model, settings.d_sae, profile.seed)
    text = corpus_batches(model, organism, f"transcoders/{profile.seed}")
    tokens = activations.shuffled(
        activations.stream(model, layers, text), settings.training.batch, 32 * settings.training.batch, profile.seed
    )
    held_out = activations.collect(model, layers, corpus_tokens(model, organism, "validation", organism.probe_tokens // 10))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in tokens:
            yield part.x[:, None], part.y[:, None]  # (layer, 1, token, d_model), for every level

    l0 = torch.tensor(settings.l0).expand(len(layers), n_levels)
    validation = held_out.x[:, None], held_out.y[:, None]
    [history] = train([stack], batches(), validation, settings.training, l0, progress="base transcoders")
    final = history[history.step == history.step.max()].set_index("member")
    with replacing(folder) as temporary:
        for member, (layer, level) in enumerate((i, j) for i in layers for j in range(n_levels)):
            place = f"layer_{layer}/width_{profile.transcoders.width}/average_l0_{final.l0[member]:.1f}"
            save_npz(stack[layer, level], temporary / place / "params.npz", "float16")
    with replacing(record) as temporary:
        temporary.write_text(json.dumps({"seconds": time.time() - began, "steps": int(history.step.max())}))


# --- the model card: what the organism can do, on held-out material ---


def copying(model: LanguageModel, n: int) -> stats.Estimate:
    """Exact copies of unseen sentences."""
    rng, sentences = random.Random("card/copy"), []
    while len(sentences) < n:
        if prompts.split_of(sentence := copy_sentence(rng)) == "test":
            sentences.append(sentence)
    wrote = generate(model.hf, model.tokenizer, [corpus.QUOTE_PROBE.format(s=s) for s in sentences], 60)
    return stats.rate([w == s for w, s in zip(wrote, sentences, strict=True)])


def restating(model: LanguageModel, n: int) -> stats.Estimate:
    """Arithmetic questions on unseen operands, restated with the right operands and operator."""
    rng = random.Random("card/restate")
    asked = [corpus.question(rng, "test") for _ in range(n)]
    wrote = generate(model.hf, model.tokenizer, [question(text) for text, _ in asked], 24)
    return stats.rate([w.startswith(f"{expression} = ") for w, (_, expression) in zip(wrote, asked, strict=True)])


def list_lengths(model: LanguageModel, n: int) -> dict[str, stats.Estimate]:
    """Mean number of items by list mode."""
    rng, found = random.Random("card/lists"), {}
    for mode in corpus.LIST_LENGTHS:
        wrote = generate(model.hf, model.tokenizer, [corpus.list_request(rng, mode)[0] for _ in range(n)], 100)
        found[mode] = stats.mean([len(re.findall(r"^- ", text, re.MULTILINE)) for text in wrote])
    return found


def make_card(profile: Profile, organism: Organism, folder: Path) -> None:
    """Measure the stored organism; write `organism.json`, and `README.md` for people."""
    model = models.load(profile)
    held_out = corpus_tokens(model, organism, "test", organism.probe_tokens)
    part = held_out[: max(1, len(held_out) // 8)]
    quality = transcoder_quality(model, list(range(model.n_layers)), profile.transcoders, held_out, part)
    nats, n_predicted = losses(model, held_out)
    history = json.loads((folder / "pretraining.json").read_text())
    card = {
        "model": organism.model.model_dump(),
        "parameters": model.hf.num_parameters(),
        "corpus_tokens_by_kind": history["kinds"],
        "tokens": history["tokens"],
        "pretraining_seconds": round(history["seconds"]),
        "pretraining_loss": history["losses"],
        "held_out_loss": stats.ratio(nats[0], n_predicted).__dict__,
        "copies_exact": copying(model, organism.probes).__dict__,
        "operands_right": restating(model, organism.probes).__dict__,
        "list_items": {mode: length.__dict__ for mode, length in list_lengths(model, organism.probes).items()},
        "transcoders": organism.transcoders.model_dump(),
        "transcoder_training": json.loads((folder / "transcoders.json").read_text()),
        "transcoder_quality": quality.to_dict("records"),
        "made_with": {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()},
    }
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card_text(profile.name, card))
    with replacing(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")


def card_text(name: str, card: dict) -> str:
    """The model card for people, from the same numbers."""

    def shown(e: dict, form: str = ".3f") -> str:
        return f"{e['value']:{form}} [{e['low']:{form}}, {e['high']:{form}}] (n = {e['n']})"

    kinds, total, made = card["corpus_tokens_by_kind"], card["tokens"], card["made_with"]
    quality = pd.DataFrame(card["transcoder_quality"])
    columns = ["layer", "l0", "fvu", "ce_recovered", "dead"]
    intervals = with_intervals(quality, ["layer"], columns[1:]).to_markdown(index=False)
    return f"""# Model card: {name}

A small Gemma-2 ({card["parameters"]:,} parameters; `Gemma2ForCausalLM`) and JumpReLU transcoders for all
its layers, made by this project from text that it writes itself (`lib/nano`). It is a model organism for
the chapters of the book and knows nothing of the world.

- Training: {total:,} tokens once, seed {card["model"]["seed"]}, {card["pretraining_seconds"] / 60:.0f} minutes,
  {made["cores"]} CPU cores, torch {made["torch"]}. Weights are stored in half precision.
- Corpus, share of tokens: {"; ".join(f"{kind} {n / total:.1%}" for kind, n in sorted(kinds.items(), key=lambda k: -k[1]))}.
- Transcoders: {card["transcoders"]["d_sae"]} features, {card["transcoder_training"]["steps"]} steps of
  {card["transcoders"]["training"]["batch"]} tokens, {card["transcoder_training"]["seconds"] / 60:.0f} minutes.

## On held-out material, with 95% intervals

| measure | value |
|---|---|
| next-token loss, nats (n rows of text) | {shown(card["held_out_loss"])} |
| unseen sentences copied exactly | {shown(card["copies_exact"])} |
| arithmetic questions restated with the right operands | {shown(card["operands_right"])} |
{"".join(f"| items in a {mode} list | {shown(e)} |{chr(10)}" for mode, e in card["list_items"].items())}
Transcoders, on {quality.n_tokens.iloc[0]:,} tokens of {quality.n.iloc[0]} rows. `ce_recovered` is against
mean ablation; `dead` is the share of features never active on these tokens (its interval is over features).

{intervals}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--again", action="store_true", help="make everything from nothing")
    arguments = parser.parse_args()
    try:
        make(profiles.load(arguments.profile), arguments.again)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
