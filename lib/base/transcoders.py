"""Base transcoders of every layer studied, at several L0, trained together."""

import json
import time
from pathlib import Path

import torch

from lib.base.text import Source, held_out
from lib.book.fingerprint import fingerprint
from lib.book.paths import discard, replacing
from lib.dictionary.checkpoint import Checkpoint
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.layouts import save_npz
from lib.dictionary.training import train
from lib.model import activations
from lib.model.models import LanguageModel, layers_of
from lib.profiles.tables import Profile

VALIDATION = 10
"""One token of so many of the card's is looked at while training."""


def make_transcoders(profile: Profile, model: LanguageModel, text: Source, folder: Path, record: Path) -> None:
    """Train and save them in Gemma Scope's layout, in half precision; `record` has the learning curves.

    What is learned is kept at every check beside `folder`, where the text can be gone on with anywhere, and a rerun goes on.
    """
    made, began = profile.transcoders.made, time.time()
    layers, n_levels = layers_of(profile, model.n_layers), len(made.l0)
    sites = [model.site("trained", layer) for layer in layers]
    stack = Dictionary.initialised((len(layers), n_levels), model.d_model, made.d_sae, profile.seed)
    some = held_out(text, made.probe_tokens // VALIDATION, "validation")
    check = activations.collect(model, sites, some)
    checkpoint = None
    if text.resumes:
        of = fingerprint(made, layers, [p[:1] for p in model.hf.parameters()], [batch.ids for batch in some])
        checkpoint = Checkpoint(folder.with_name("transcoders.pt"), of)
    l0 = torch.tensor(made.l0).expand(len(layers), n_levels)
    [history] = train(
        [stack], text.batches(sites, checkpoint.step if checkpoint else 0, made.training.batch), (check.x[:, None],
        check.y[:, None]), made.training, l0, progress="base transcoders", checkpoint=checkpoint,
    )  # fmt: skip
    final = history[history.step == history.step.max()].set_index("member")
    curve = [
        {"layer": layer, "l0_aim": made.l0[level], "tokens": int(step) * made.training.batch, "fvu": fvu, "l0": now}
        for step, member, fvu, now in history[["step", "member", "fvu", "l0"]].itertuples(index=False)
        for layer, level in [(layers[int(member) // n_levels], int(member) % n_levels)]
    ]
    seconds = checkpoint.seconds if checkpoint else time.time() - began
    with replacing(record) as temporary:  # before the folder, whose being there says that all is
        temporary.write_text(json.dumps({"seconds": seconds, "steps": int(history.step.max()), "curve": curve}))
    with replacing(folder) as temporary:
        for member, (i, level) in enumerate((i, j) for i in range(len(layers)) for j in range(n_levels)):
            place = f"layer_{layers[i]}/width_{profile.transcoders.width}/average_l0_{final.l0[member]:.1f}"
            save_npz(stack[i, level], temporary / place / "params.npz", "float16")
    discard(folder.with_name("transcoders.pt"))
