"""What is told of a delta that is given away."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib import profiles
from lib.book import results
from lib.dictionary.dictionaries import BaseDelta, Dictionary, as_one
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles import tables
from lib.profiles.tables import Profile


@dataclass(frozen=True)
class Delta:
    """The trained delta of a site, its base, and what is known of them. Weights are loaded when asked for, and not kept."""

    site: Site
    load: Callable[[], BaseDelta]
    """base + alpha * delta."""
    base_l0: float

    @property
    def parts(self) -> dict[str, Dictionary]:
        """What is exported, by name: base + alpha * delta as one, and the delta alone."""
        pair = self.load()
        return {f"base_plus_delta_alpha_{pair.alpha:g}": as_one(pair), "delta": pair.delta}


@dataclass(frozen=True)
class Job:
    """Deltas of one d_new and L0 rank."""

    profile: Profile
    model: LanguageModel
    d_new: int
    rank: float
    deltas: list[Delta]

    def rows(self, table: str) -> pd.DataFrame:
        """The rows about these deltas in a table of results; none where it has none, or was not made."""
        path = self.profile.paths.results / f"{table}.csv"
        if not path.exists():
            return pd.DataFrame()
        rows = pd.read_csv(path)
        ours = (rows.d_new == self.d_new) & (rows.percentile == self.rank)
        return rows[ours & rows.layer.isin([delta.site.layer for delta in self.deltas])]

    def placed(self) -> Iterator[tuple[Delta, str, Dictionary, Path]]:
        """Each delta, the name of each of its parts, that part, and the place for it."""
        for delta in self.deltas:
            for name, part in delta.parts.items():
                place = Path(f"layer_{delta.site.layer}", f"d_new_{self.d_new}_percentile_{self.rank:g}", name)
                yield delta, name, part, place


MEASURES = {
    "deltas": (["layer", "n"], ["base_fvu", "full_fvu", "full_cos", "delta_l0"], "Reconstruction, on validation prompts"),
    "exp1": (["layer", "n"], ["dce_base", "dce_full"], "Rise of cross-entropy with one layer replaced, nats a token"),
    "exp2a": (
        ["layer", "subset", "condition", "n_examples"], ["tool_call_rate", "math_correct_rate"],
        "Behaviour with one layer replaced: nothing (raw), base alone (no_delta), base + delta (full)",
    ),
}  # fmt: skip
"""The tables that a card shows: what tells rows apart, what was measured, and a caption."""

SKIP = "The base has an affine skip: `transcoder(x)` applies it; attached to a model by sae-lens 6.54, a transcoder loses it."


def at(source: tables.Model | tables.Transcoders) -> str:
    """A source with its revision."""
    return f"{source.source}, revision {source.revision}" if source.revision else source.source


def card(job: Job) -> str:
    """The model card: profile, data, metrics with their intervals where they were measured, how to load."""
    p, [first, *_] = job.profile, job.deltas
    pair = first.load()
    base_plus_delta, alone = (place.as_posix() for *_, place in list(job.placed())[:2])
    tables = ""
    for name, (keep, names, caption) in MEASURES.items():
        rows = job.rows(name)
        shown = results.with_intervals(rows, keep, names).to_markdown(index=False) if len(rows) else "Not measured."
        tables += f"### {caption}\n\n{shown}\n\n"
    prompts = (
        p.tool.prompts.train_file
        or f"{p.tool.prompts.train} tool and {p.tool.prompts.train} copy prompts that the project writes"
    )
    skip = "" if pair.base.W_skip is None else f"\n{SKIP}"
    finetuned = p.tool.finetune.source or f"LoRA of rank {p.tool.finetune.rank}, {p.tool.finetune.epochs} epochs, seed {p.seed}"
    layers = ", ".join(str(delta.site.layer) for delta in job.deltas)
    l0s = ", ".join("unknown" if math.isnan(delta.base_l0) else f"{delta.base_l0:g}" for delta in job.deltas)
    hub = f"base_model: {p.model.source}\n" if not (profiles.ROOT / p.model.source).is_dir() else ""
    return f"""---
library_name: saelens
tags: [sparse-autoencoder, transcoder, delta-transcoder, mechanistic-interpretability]
{hub}---

# Delta transcoders: {p.name}

{job.d_new} delta features a layer, which make a frozen transcoder of the original model fit a finetuned one:
`base(x) + alpha * delta(x)` stands in for an MLP. Layers: {layers}.

| | |
|---|---|
| model | {at(p.model)}; finetuned: {finetuned} |
| base transcoders | {at(p.transcoders)}; {pair.base.d_sae} features; average L0 by layer: {l0s} |
| reads, writes (layer {first.site.layer}) | `{first.site.read}`, `{first.site.write}` |
| d_new, rank of the base's L0 (0 the sparsest, 1 the densest), alpha | {job.d_new}, {job.rank:g}, {pair.alpha:g} |

## Data

{prompts}; deltas are trained on the activations of the finetuned model on these, BOS left out.

## Metrics

With 95% intervals, over prompts; the delta at alpha 1.

{tables}
## How to load

```python
from sae_lens import SAE

transcoder = SAE.load_from_disk("{base_plus_delta}")  # in a copy of this folder
transcoder = SAE.from_pretrained("OWNER/NAME", "{base_plus_delta}")  # from the hub
y = transcoder(x)  # x at transcoder.cfg.metadata.hook_name, y for transcoder.cfg.metadata.hook_name_out
```

Its first {pair.base.d_sae} features are the base's, the last {job.d_new} the delta's, with alpha in their decoder rows.
The delta alone, whose output is added to the base's, is `{alone}`. Attach it to the *finetuned* model,
and leave BOS, if its tokenizer puts one, on the dense MLP: transcoders are not trained on it.{skip}

## Limits

It is an account of one finetuned model on prompts like those above. The licence is that of the model and of the base
transcoders.
"""
