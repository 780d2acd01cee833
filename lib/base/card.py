"""The model card: what the model and its base transcoders are made from and worth, on held-out text, with intervals.

Intervals resample what was drawn: rows of text; of what an organism can do, phrasings, topics, pairs of vehicles.
"""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.base.text import Source
from lib.book import stats
from lib.book.paths import ROOT, replacing
from lib.book.results import with_intervals
from lib.measure.quality import losses, quality
from lib.model.gguf import ORIGIN
from lib.model.models import LanguageModel, layers_of
from lib.nano.card import abilities, of_making, of_organism, shares
from lib.profiles.tables import Profile

CARD = "card.json"


def make_card(profile: Profile, model: LanguageModel, text: Source, folder: Path) -> None:
    """Measure what is stored; write `card.json`, and `README.md` for people."""
    made, origin = profile.transcoders.made, ROOT / profile.model.source / ORIGIN
    held_out = text.held_out(made.probe_tokens, "test")
    every = [batch for batches in held_out.values() for batch in batches]
    part = every[::8]
    sites = [model.site("trained", layer) for layer in layers_of(profile, model.n_layers)]
    of_transcoders = quality(model, sites, profile.transcoders, every, part)
    of_kinds = {kind: losses(model, batches) for kind, batches in held_out.items()}
    nats, n_predicted = (np.concatenate(parts, -1) for parts in zip(*of_kinds.values(), strict=True))
    card = {
        "weights": json.loads(origin.read_text()) if origin.exists() else {"source": profile.model.source},
        "parameters": model.hf.num_parameters(),
        "held_out_loss": asdict(stats.ratio(nats[0], n_predicted)),
        "text_tokens_by_kind": text.counted(),
        "text_loss_by_kind": {kind: asdict(stats.ratio(of[0], n)) for kind, (of, n) in of_kinds.items()},
        "transcoders": made.model_dump(),
        "transcoder_training": json.loads((folder / "transcoders.json").read_text()),
        "transcoder_quality": of_transcoders.to_dict("records"),
        "made_with": {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()},
    } | (abilities(model, profile.organism, folder) if profile.organism else {})
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card_text(profile.name, card))
    with replacing(folder / CARD) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")


def measures(card: dict) -> dict[str, dict]:
    """What the card says of the model, by its words: each an estimate's value, low, high, n and clusters."""
    found = {"next-token loss on unseen text, nats": card["held_out_loss"]}
    found |= {f"next-token loss on unseen text, {kind}, nats": e for kind, e in card.get("text_loss_by_kind", {}).items()}
    return found | (of_organism(card) if "copies_exact" in card else {})


def weights(card: dict) -> str:
    """Which weights these are, in a sentence."""
    of = card.get("weights", {})
    if "stored_as" not in of:
        return f"Weights: {of['source']}." if of else "Weights made by this project."
    total = sum(of["stored_as"].values())
    types = ", ".join(f"{n / total:.1%} as {kind}" for kind, n in of["stored_as"].items())
    return (
        f"Weights: `{of['file']}` of the package {of['name']} {of['version']}, quantized ({types}) and turned back into plain "
        "numbers; they are near the model that was released, and not equal to it."
    )


def card_text(name: str, card: dict) -> str:
    """The model card for people, from the same numbers."""

    def shown(e: dict) -> str:
        return f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}] | {e['n']} in {e['clusters']}"

    made, trained = card["made_with"], card["transcoder_training"]
    quality = pd.DataFrame(card["transcoder_quality"])
    columns = [column for column in ("l0", "fvu", "fvu_with_first", "ce_recovered", "dead") if column in quality]
    intervals = with_intervals(quality, ["layer"], columns).to_markdown(index=False)
    kinds = card["text_tokens_by_kind"]
    of_text = f"on {sum(kinds.values()):,} tokens ({shares(kinds)})" if kinds else "on its corpus"
    return f"""# Model card: {name}

{of_making(card) if "corpus_tokens_by_kind" in card else weights(card)}

{card["parameters"]:,} parameters. JumpReLU transcoders made by this project {of_text}: {card["transcoders"]["d_sae"]} features,
{trained["steps"]} steps of {card["transcoders"]["training"]["batch"]} tokens, {trained["seconds"] / 60:.0f} minutes,
{made["cores"]} CPU cores, torch {made["torch"]}.

## On held-out material, with 95% intervals

What was drawn, and is resampled for the interval, stands behind n: phrasings, topics, pairs, vehicles, templates or rows.
Lists are sampled at temperature 1, all else is greedy.

| measure | value | n in units |
|---|---|---|
{"".join(f"| {what} | {shown(e)} |{chr(10)}" for what, e in measures(card).items())}
Transcoders, on {quality.n_tokens.iloc[0]:,} tokens of {quality.n.iloc[0]} rows. `ce_recovered` is against
mean ablation; `dead` is the share of features never active on these tokens (its interval is over features);
`fvu_with_first`, where it stands, counts the first token of each row too, on which dictionaries do not act.

{intervals}
"""
