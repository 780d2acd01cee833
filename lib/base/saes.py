"""The SAEs of a profile at its sites: of a release, or trained here once on the text that base transcoders are trained on."""

from collections.abc import Sequence

import pandas as pd
import torch

from lib import profiles
from lib.base.text import held_out, source
from lib.book import results
from lib.book.fingerprint import fingerprint
from lib.book.paths import discard, replacing
from lib.dictionary import lengths
from lib.dictionary.bases import on_offer, released
from lib.dictionary.checkpoint import Checkpoint
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import load_npz, save_npz
from lib.dictionary.training import train
from lib.model import activations
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.features import Features
from lib.profiles.tables import Profile

HELD_OUT = 8_000
"""Tokens on which SAEs in training are looked at."""


def features(profile: Profile) -> Features:
    """The profile's table of this study; `ValueError` where there is none."""
    return profiles.study(profile, "features")


def sites(profile: Profile, model: LanguageModel, point: str | None = None) -> list[Site]:
    """The sites with an SAE, or those of one hook point."""
    named = features(profile).sites
    return [model.site(name, layer) for name, layers in named.items() if point in (None, name) for layer in layers]


def compared(profile: Profile, model: LanguageModel) -> list[Site]:
    """The sites of which layers are compared: those of the first hook point."""
    return sites(profile, model, next(iter(features(profile).sites)))


def file_of(profile: Profile, site: Site):
    """Where an SAE that is trained here is kept."""
    return profile.paths.data / "saes" / f"{site.name}_{site.layer}.npz"


def saes(profile: Profile, model: LanguageModel) -> dict[Site, Dictionary]:
    """The SAE of every site: of the release that the profile names, or trained here, once, all together."""
    settings, every = features(profile), sites(profile, model)
    own = [site for site in every if site.name not in settings.releases]
    if own:
        make(profile, model, own)
    found = {}
    for site in every:
        if site.name in settings.releases:
            offer = on_offer(released(settings, site.name), site.layer, model, site, profile.model.source)
            found[site] = next(iter(offer.values()))().to(model.hf.device)
        else:
            found[site] = load_npz(file_of(profile, site), model.width(site)).to(model.hf.device)
    return found


def make(profile: Profile, model: LanguageModel, own: Sequence[Site]) -> None:
    """Train the SAEs of some sites on the text that base transcoders are trained on, and save them; those there already stay,
    if they were trained so. They learn from activations of one length, outliers left out (`lib.dictionary.lengths`); `saes.csv`
    tells of each how good it is on held-out tokens, without outliers and with them.

    Interrupted, it goes on from its last checkpoint where the text can be gone on with anywhere.
    """
    settings, mark = features(profile), profile.paths.data / "saes" / "made_from"
    learned = settings.d_sae, settings.l0, settings.training, profile.seed
    of = fingerprint(learned, lengths, [site.read for site in own], [p[:1] for p in model.hf.parameters()])
    if mark.exists() and mark.read_text() == of and all(file_of(profile, site).exists() for site in own):
        return
    text = source(profile, model, profile.paths.data)
    stack = Dictionary.initialised((len(own), 1), model.width(own[0]), settings.d_sae, profile.seed).to(model.hf.device)
    held = activations.collect(model, own, held_out(text, HELD_OUT, "validation")).x
    found = lengths.Lengths.of(held)
    checkpoint = None
    if text.resumes:
        checkpoint = Checkpoint(profile.paths.data / "saes.pt", of, model.hf.device)
    l0 = torch.full((len(own), 1), settings.l0, device=model.hf.device)
    batches = found.batches(text.batches(own, checkpoint.step if checkpoint else 0, settings.training.batch))
    check = found.learned_from(held)
    [history] = train([stack], batches, (check, check), settings.training, l0, progress="SAEs", checkpoint=checkpoint)
    stack, steps, rows = found.unscaled(stack), history.groupby("member").step.max(), []
    for i, (site, outlier) in enumerate(zip(own, found.outliers(held), strict=True)):
        save_npz(stack[i, 0], file_of(profile, site), "float16")
        rows.append({
            "point": site.name, "layer": site.layer, "d_sae": settings.d_sae, "l0_aim": settings.l0,
            **lengths.told(stack[i, 0], held[i], outlier), "tokens": steps[i] * settings.training.batch,
        })  # fmt: skip
    results.save(pd.DataFrame(rows), profile.paths.results / "saes.csv")
    with replacing(mark) as temporary:
        temporary.write_text(of)
    discard(profile.paths.data / "saes.pt")
