"""What the study of features works on: SAEs at several sites, and seven kinds of text about eight topics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.base.text import Source, source
from lib.book import results
from lib.book.fingerprint import fingerprint
from lib.book.paths import discard, replacing
from lib.dictionary.bases import on_offer, released
from lib.dictionary.checkpoint import Checkpoint
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import load_npz, save_npz
from lib.dictionary.training import train
from lib.model import activations, encoding
from lib.model.activations import Activations
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.features import Features
from lib.profiles.tables import Profile
from lib.texts import kinds

POOLINGS = {
    "encode, then mean": "the mean over a text's tokens of a feature's activations",
    "encode, then max": "its largest activation in the text",
    "mean, then encode": "its activation for the mean of the text's activations, as the published study did",
    "last token": "its activation at the last token, as it did too",
}
"""How a text gets one number of each feature."""
HELD_OUT = 8_000
"""Tokens on which SAEs in training are looked at."""


def features(profile: Profile) -> Features:
    """The profile's table of this study; `ValueError` where there is none."""
    if profile.features is None:
        raise ValueError(f"profile {profile.name}: has no table [features], which this study is about; add it")
    return profile.features


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
    if they were trained so.

    Interrupted, it goes on from its last checkpoint where the text can be gone on with anywhere.
    """
    settings, mark = features(profile), profile.paths.data / "saes" / "made_from"
    learned = settings.d_sae, settings.l0, settings.training, profile.seed
    of = fingerprint(learned, [site.read for site in own], [p[:1] for p in model.hf.parameters()])
    if mark.exists() and mark.read_text() == of and all(file_of(profile, site).exists() for site in own):
        return
    text = source(profile, model, profile.paths.data)
    stack = Dictionary.initialised((len(own), 1), model.width(own[0]), settings.d_sae, profile.seed).to(model.hf.device)
    held = [batch for of in text.held_out(HELD_OUT, "validation").values() for batch in of]
    check = activations.collect(model, own, held)
    checkpoint = None
    if text.resumes:
        checkpoint = Checkpoint(profile.paths.data / "saes.pt", of, model.hf.device)
    l0 = torch.full((len(own), 1), settings.l0, device=model.hf.device)
    batches = text.batches(own, checkpoint.step if checkpoint else 0, settings.training.batch)
    pairs = (check.x[:, None], check.y[:, None])
    [history] = train([stack], batches, pairs, settings.training, l0, progress="SAEs", checkpoint=checkpoint)
    final = history.groupby("member").last()
    table = pd.DataFrame({
        "point": [site.name for site in own], "layer": [site.layer for site in own], "d_sae": settings.d_sae,
        "l0_aim": settings.l0, "l0": final.l0.to_numpy(), "fvu": final.fvu.to_numpy(),
        "tokens": final.step.to_numpy() * settings.training.batch, "n_tokens": check.x.shape[1],
    })  # fmt: skip
    stack.requires_grad_(False)
    for i, site in enumerate(own):
        save_npz(stack[i, 0], file_of(profile, site), "float16")
    results.save(table, profile.paths.results / "saes.csv")
    with replacing(mark) as temporary:
        temporary.write_text(of)
    discard(profile.paths.data / "saes.pt")


def plain_text(profile: Profile, model: LanguageModel, tokens: int) -> list[encoding.Encoded]:
    """Held-out running text, for cross-entropy: of the text that SAEs are trained on."""
    text: Source = source(profile, model, profile.paths.data)
    return [batch for of in text.held_out(tokens, "test").values() for batch in of]


# --- texts ---


@dataclass(frozen=True)
class Texts:
    """Texts of seven kinds, each about one of eight topics, in the order of their batches."""

    text: list[str]
    kind: np.ndarray
    topic: np.ndarray
    template: np.ndarray
    """What wrote it: the unit that was sampled."""
    chosen_on: Bool[np.ndarray, " text"]
    """True where features are chosen on it, False where they are judged on it; a template is on one side."""

    def __len__(self) -> int:
        return len(self.text)

    def where(self, which: Bool[np.ndarray, " text"]) -> "Texts":
        """Those that are meant, in their order."""
        text = [one for one, yes in zip(self.text, which, strict=True) if yes]
        return Texts(text, self.kind[which], self.topic[which], self.template[which], self.chosen_on[which])

    def batches(self, model: LanguageModel, size: int) -> list[encoding.Encoded]:
        return encoding.batches(model.tokenizer, self.text, size)


def texts(profile: Profile, model: LanguageModel, split: str = "test") -> Texts:
    """The same number of each kind and topic, none of which any training has seen; like lengths together."""
    n = features(profile).texts
    rows = [
        (text, kind, topic, f"{kind}: {template}")
        for kind in kinds.KINDS for topic in kinds.TOPICS for text, template in kinds.texts(kind, topic, n, split)
    ]  # fmt: skip
    rows.sort(key=lambda row: encoding.length(model.tokenizer, row[0]))
    text, *columns = zip(*rows, strict=True)
    kind, topic, template = (np.array(column) for column in columns)
    chosen_on = np.zeros(len(text), dtype=bool)
    draw = np.random.default_rng(profile.seed)
    for one in kinds.KINDS:
        own = np.unique(template[kind == one])
        chosen_on |= np.isin(template, draw.permutation(own)[: len(own) // 2])
    return Texts(list(text), kind, topic, template, chosen_on)


# --- one number of each feature for a text ---


@torch.no_grad()
def pooled(sae: Dictionary, held: Activations, i: int, n_texts: int) -> dict[str, Float[np.ndarray, "text feature"]]:
    """The values of all features for every text, by each of `POOLINGS`; `i` is the number of the site in `held`."""
    x, text = held.x[i], held.prompt.to(held.x.device)
    n = torch.bincount(text, minlength=n_texts).clamp(min=1)[:, None]
    total = x.new_zeros(n_texts, sae.d_sae)
    largest = x.new_zeros(n_texts, sae.d_sae)
    for some, of in zip(x.split(4096), text.split(4096), strict=True):
        f = sae.encode(some)
        total.index_add_(0, of, f)
        largest.scatter_reduce_(0, of[:, None].expand_as(f), f, "amax")
    mean_x = x.new_zeros(n_texts, x.shape[-1]).index_add_(0, text, x) / n
    ends = torch.zeros(n_texts, dtype=torch.long, device=x.device).scatter_reduce_(
        0, text, torch.arange(len(text), device=x.device), "amax"
    )
    found = (total / n, largest, sae.encode(mean_x), sae.encode(x[ends]))
    return {name: values.float().cpu().numpy() for name, values in zip(POOLINGS, found, strict=True)}


def everywhere(tokenizer, batch: encoding.Encoded) -> Tensor:
    """At every token and at padding, as the published study pooled before it mended that."""
    return torch.ones_like(batch.attention, dtype=torch.bool)


def with_padding(tokenizer, batch: encoding.Encoded) -> Tensor:
    """At all but the first position, padding among them."""
    keep = everywhere(tokenizer, batch)
    keep[:, 0] = False
    return keep


def with_first(tokenizer, batch: encoding.Encoded) -> Tensor:
    """At every token, the first among them."""
    return batch.attention.bool()


MASKS = {
    ("out", "out"): encoding.token_mask, ("out", "in"): with_first, ("in", "out"): with_padding, ("in", "in"): everywhere,
}  # fmt: skip
"""Padding in or out of the mean, and the first token in or out."""
