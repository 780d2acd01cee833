"""`make base`: the organism's model, its base transcoders and its model card, from nothing.

    python -m lib.nano.make --profile nano [--again]

makes what is missing (`--again`: everything); for a profile without an organism it sees that all can be had.
Weights are stored in half precision; transcoders and card are made from the model as stored.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lib import profiles
from lib.book import files, hub
from lib.book.hub import local_or_hub
from lib.book.paths import ROOT, alone, discard, replacing
from lib.dictionary import bases
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import save_npz
from lib.dictionary.training import train
from lib.model import activations, adapters, models
from lib.model.models import control_layers, layers_of, load_tokenizer
from lib.model.sites import site
from lib.nano.card import CARD, make_card
from lib.nano.pretrain import corpus_batches, corpus_tokens, pretrain, train_tokenizer
from lib.profiles.organism import Organism
from lib.profiles.tables import Profile


def make(profile: Profile, again: bool = False) -> None:
    """Make the model, the transcoders and the card where they are missing."""
    organism = profile.organism
    if organism is None:
        check(profile)
        return
    model_folder, scope = ROOT / profile.model.source, ROOT / profile.transcoders.source
    folder = model_folder.parent
    with alone(folder):
        _make(profile, organism, model_folder, scope, folder, again)


def _make(profile: Profile, organism: Organism, model_folder: Path, scope: Path, folder: Path, again: bool) -> None:
    if again:
        for path in (model_folder, scope):
            discard(path)
        (folder / CARD).unlink(missing_ok=True)
    if not model_folder.exists():
        make_model(organism, model_folder, folder / "pretraining.pt", folder / "pretraining.json")
    discard(folder / "pretraining.pt")
    if not scope.exists():
        make_transcoders(profile, organism, scope, folder / "transcoders.json")
    if not (folder / CARD).exists():
        make_card(profile, organism, folder)


def make_model(organism: Organism, folder: Path, checkpoint: Path, record: Path) -> None:
    """Tokenizer and pretraining."""
    tokenizer = train_tokenizer(organism.model)
    model, history = pretrain(organism.model, tokenizer, checkpoint)
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(history))
    with replacing(folder) as temporary:
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def make_transcoders(profile: Profile, organism: Organism, folder: Path, record: Path) -> None:
    """Transcoders for every layer and L0, trained together in one pass over fresh corpus text."""
    began, settings = time.time(), organism.transcoders
    model = models.load(profile)
    layers, n_levels = list(range(model.n_layers)), len(settings.l0)
    sites = [model.site("trained", layer) for layer in layers]
    stack = Dictionary.initialised((len(layers), n_levels), model.d_model, settings.d_sae, profile.seed)
    text = corpus_batches(model, organism, f"transcoders/{profile.seed}")
    tokens = activations.shuffled(
        activations.stream(model, sites, text), settings.training.batch, 32 * settings.training.batch, profile.seed
    )
    held_out = activations.collect(model, sites, corpus_tokens(model, organism, "validation", organism.probe_tokens // 10))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in tokens:
            yield part.x[:, None], part.y[:, None]  # (site, 1, token, d_model), for every level

    l0 = torch.tensor(settings.l0).expand(len(layers), n_levels)
    validation = held_out.x[:, None], held_out.y[:, None]
    [history] = train([stack], batches(), validation, settings.training, l0, progress="base transcoders")
    final = history[history.step == history.step.max()].set_index("member")
    with replacing(record) as temporary:  # before the folder, whose being there says that all is
        temporary.write_text(json.dumps({"seconds": time.time() - began, "steps": int(history.step.max())}))
    with replacing(folder) as temporary:
        for member, (layer, level) in enumerate((i, j) for i in layers for j in range(n_levels)):
            place = f"layer_{layer}/width_{profile.transcoders.width}/average_l0_{final.l0[member]:.1f}"
            save_npz(stack[layer, level], temporary / place / "params.npz", "float16")


def check(profile: Profile) -> None:
    """See that everything a profile names can be had, before anything large is fetched or computed.

    `ValueError`, one line, for a gate not passed, a name or a revision that does not exist, a model
    without a site, a tokenizer that loses the tool's tags, and a layer without transcoders.
    """
    source, revision = local_or_hub(profile.model.source), profile.model.revision
    config = files.json_object(hub.file(source, "config.json", revision))
    site(config["model_type"], "trained", 0, config["hidden_size"])
    tokenizer = load_tokenizer(source, revision)
    if profile.tool:
        call = profile.tool.grammar.call("1+1")
        if call not in (back := tokenizer.decode(tokenizer(call).input_ids, skip_special_tokens=True)):
            raise ValueError(
                f"{source}: its tokenizer reads the call {call} back as {back}; choose other tags in [tool.grammar]"
            )
    for layer in layers_of(profile, config["num_hidden_layers"]):
        bases.on_offer(profile.transcoders, layer)
    if profile.tool:
        control_layers(profile, config["num_hidden_layers"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--again", action="store_true", help="make everything from nothing")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        profiles.claim(profile, arguments.profile)
        make(profile, arguments.again)
        if profile.tool:
            adapters.check(profile)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


if __name__ == "__main__":
    main()
