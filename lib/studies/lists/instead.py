"""Making lists longer without features: a steering vector, and stopping made less likely when tokens are drawn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib.measure import metrics
from lib.measure.patching import Pair
from lib.model.encoding import padded
from lib.model.hooks import edited, recorded, replaced
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.studies.lists.features import batches, metric
from lib.studies.lists.material import Opened, topics
from lib.studies.lists.runs import Chosen, Run, written

STEERED, BIASED = "steered", "biased"
DOSES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of a steering vector, in multiples of the mean difference."""


@dataclass(frozen=True)
class Shift:
    """Adds a direction to the residual stream at every token."""

    direction: Float[Tensor, " d_model"]

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.direction


@contextmanager
def biased(model: LanguageModel, ids: Sequence[int], nats: float) -> Iterator[None]:
    """Inside the block some tokens' logits are so much lower: sampling is restricted, and nothing else is touched."""

    def lower(module, args, out):
        out.logits[..., list(ids)] -= nats
        return out

    with model.lock:
        handle = model.hf.register_forward_hook(lower)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def direction(o: Opened, pairs: Sequence[Pair], site: Site) -> Float[Tensor, " d_model"]:
    """The mean vector after the last item of lists asked for as long ones, less that of the same lists asked for as short."""
    total = torch.zeros(o.model.d_model, device=o.model.hf.device)
    for batch in batches(o, pairs, "direction"):
        for sign, texts, at in (
            (-1, batch.tokens, [pair.reads[0] for pair in batch.pairs]),
            (1, padded(o.model.tokenizer, [pair.corrupt for pair in batch.pairs]), [pair.reads[1] for pair in batch.pairs]),
        ):
            texts = texts.to(o.model.hf.device)
            with recorded(o.model, [site.write], stop=True) as seen:
                o.model.hf(input_ids=texts.ids, attention_mask=texts.attention, use_cache=False)
            total += sign * seen[site.write][torch.arange(len(at)), at].float().sum(0)
    return total / len(pairs)


@torch.no_grad()
def price(o: Opened, pairs: Sequence[Pair], within: Callable[[Sequence[int]], AbstractContextManager]) -> dict[str, float]:
    """What an edit does to lists that are there, teacher-forced: how far it lowers the log-odds of stopping after the last item
    (`push`, nats), and what it does to all other tokens of the list (`kl_other`, KL(clean || edited), nats a token)."""
    push, kl, n, start = 0.0, 0.0, 0, 0
    for batch in batches(o, pairs, "price"):
        row, reads = batch.reads
        ids, logits = batch.tokens, []
        numbers = range(start, start + len(batch.pairs))
        for edit in (None, within):
            if edit is None:
                out = o.model.hf(input_ids=ids.ids, attention_mask=ids.attention, use_cache=False).logits
            else:
                with edit(numbers):
                    out = o.model.hf(input_ids=ids.ids, attention_mask=ids.attention, use_cache=False).logits
            logits.append(out.float())
        clean, other = logits
        push += float((metric(o, clean[row, reads], "stop") - metric(o, other[row, reads], "stop")).sum())
        divergence = metrics.kl_from(metrics.log_probs(clean))(metrics.log_probs(other))  # (row, pos): of the token there
        counts = batch.tokens.attention.bool().clone()
        for i, pair in enumerate(batch.pairs):
            counts[i, : pair.roles["turn"][0] + 2] = False
        breaks = torch.isin(ids.ids, torch.tensor(o.endings.those + o.endings.these, device=ids.ids.device))
        counts &= ~breaks  # whether a list goes on is what the edit is for
        kl, n, start = kl + float(divergence[counts].sum()), n + int(counts.sum()), start + len(batch.pairs)
    return {"push": push / len(pairs), "kl_other": kl / max(1, n)}


def of_features(o: Opened, pairs: Sequence[Pair], chosen: Chosen) -> dict[str, float]:
    """The price of switching a site's chosen features off at their tokens."""
    return price(o, pairs, lambda rows: edited(o.model, {chosen.site: chosen.sae}, chosen.edit(pairs, rows)))


def instead(o: Opened, pairs: Sequence[Pair], site: Site, aim: Mapping[str, float]) -> pd.DataFrame:
    """Runs of short requests without features: a steering vector at the largest dose whose `kl_other` is no more than the
    aim's, and stopping made less likely by as much as the aim's `push`."""
    keys = [(topic, i) for topic in topics(o.profile) for i in range(o.settings.runs)]
    vector, found = direction(o, pairs, site), []
    prices = {dose: price(o, pairs, lambda rows, dose=dose: replaced(o.model, {site: Shift(dose * vector)})) for dose in DOSES}
    cheap = [dose for dose in DOSES if prices[dose]["kl_other"] <= aim["kl_other"]] or [DOSES[0]]
    bias = max(0.0, aim["push"])
    ways = {
        STEERED: (cheap[-1], prices[cheap[-1]], lambda rows: replaced(o.model, {site: Shift(cheap[-1] * vector)})),
        BIASED: (bias, {"push": bias, "kl_other": 0.0}, lambda rows: biased(o.model, o.endings.these, bias)),
    }
    for number, (name, (dose, paid, within)) in enumerate(ways.items()):
        head = {"point": site.name, "layer": site.layer, "dose": dose, **paid}
        every = [Run(name, "short", *key) for key in keys]
        found.append(written(o, every, o.profile.seed + 7000 + number, head, within))
    return pd.concat(found, ignore_index=True)
