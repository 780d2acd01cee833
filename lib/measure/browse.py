"""What the features of a dictionary do on some texts, from one pass over them.

Of each feature: how often and how strongly it is active, the texts where it is strongest, a random sample of the tokens where
it is active, and in how many texts it fires together with others. Memory is bounded by the number of examples kept, whatever
the number of tokens: an example is a window of activations around one token, and its text is named by its number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom
from statsmodels.stats.multitest import multipletests
from torch import Tensor
from tqdm.auto import tqdm

from lib.dictionary.dictionaries import Dictionary
from lib.model.encoding import Encoded, token_mask
from lib.model.hooks import read, recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site

BEFORE, AFTER = 31, 16
"""Tokens of an example on either side of the one that it is of."""
AT_ONCE = 2**25
"""Activations held at once, of all features."""
BINS = 32
"""Of a histogram: each is as wide as half a doubling of the activation, the middle one begins at 1."""
STREAM = 256
"""Tokens at which the final norm is looked at, for what features make likelier."""


class Kept:
    """For each feature the `k` examples with the largest keys: their texts, positions, values and windows."""

    def __init__(self, d_sae: int, k: int):
        self.key = torch.full((d_sae, k), -math.inf)
        self.value = torch.zeros(d_sae, k)
        self.text, self.at = torch.full((d_sae, k), -1), torch.zeros(d_sae, k, dtype=torch.long)
        self.window = torch.zeros(d_sae, k, BEFORE + 1 + AFTER, dtype=torch.float16)

    def offer(
        self, f: Float[Tensor, "text pos d_sae"], key: Tensor, text: Tensor, at: Tensor, feature: Tensor, first: int
    ) -> None:
        """Examples in any number: the keys, texts, positions and features of each; `first` is the number of text 0."""
        d_sae, k = self.key.shape
        some = key > self.key[:, -1][feature]  # what is no better than the last one kept need not be sorted
        key, text, at, feature = key[some], text[some], at[some], feature[some]
        if not len(key):
            return
        order = key.argsort(descending=True)
        order = order[feature[order].argsort(stable=True)]
        key, text, at, feature = key[order], text[order], at[order], feature[order]
        first_of = torch.searchsorted(feature, feature)
        rank = torch.arange(len(feature)) - first_of
        some = rank < k
        key, text, at, feature, rank = key[some], text[some], at[some], feature[some], rank[some]
        padded = torch.nn.functional.pad(f, (0, 0, BEFORE, AFTER))
        places = at[:, None] + torch.arange(BEFORE + 1 + AFTER)
        new = Kept(d_sae, k)
        new.key[feature, rank], new.value[feature, rank] = key, f[text, at, feature]
        new.text[feature, rank], new.at[feature, rank] = first + text, at
        new.window[feature, rank] = padded[text[:, None], places, feature[:, None]].half()
        touched = feature.unique()  # of all others nothing changes
        both = {name: torch.cat([getattr(self, name)[touched], getattr(new, name)[touched]], 1) for name in vars(self)}
        best = both["key"].topk(k, 1).indices
        for name, values in both.items():
            index = best if values.ndim == 2 else best[..., None].expand(*best.shape, values.shape[-1])
            getattr(self, name)[touched] = values.gather(1, index)


@dataclass
class Browsed:
    """What the features of a dictionary have done on `n_texts` texts with `n_tokens` tokens in all."""

    site: Site
    n_tokens: int
    n_texts: int
    active: Int[Tensor, " d_sae"]
    """At how many tokens."""
    texts: Int[Tensor, " d_sae"]
    """In how many texts."""
    total: Float[Tensor, " d_sae"]
    """Of its activations."""
    histogram: Int[Tensor, "d_sae bin"]
    """Of them, in bins of half a doubling; bin `BINS // 2` begins at 1."""
    top: Kept
    """The texts where it is strongest, at their strongest token."""
    sample: Kept
    """Tokens at which it is active, at random."""
    chosen: list[int]
    together: Int[Tensor, "chosen d_sae"]
    """In how many texts a chosen feature and any other are both active."""

    def table(self) -> pd.DataFrame:
        """One row per feature: `density`, its share of tokens; `in_texts`, its share of texts; `mean`, where it is active; and
        `maximum`."""
        n = self.active.clamp(min=1)
        return pd.DataFrame({
            "feature": range(len(n)), "density": self.active.numpy() / self.n_tokens,
            "in_texts": self.texts.numpy() / self.n_texts,
            "mean": (self.total / n).numpy(), "maximum": self.top.value[:, 0].numpy(),
        })  # fmt: skip

    def quantiles(self, feature: int, parts: int = 4) -> list[list[int]]:
        """The random examples of a feature, by their numbers, in so many parts of equal size, the strongest first."""
        there = (self.sample.text[feature] >= 0).nonzero()[:, 0]
        order = there[self.sample.value[feature, there].argsort(descending=True)]
        return [part.tolist() for part in torch.tensor_split(order, parts)]

    def companions(self, feature: int, alive: int = 1) -> pd.DataFrame:
        """The features that fire in the same texts as a chosen one more often than they would if texts were shuffled.

        One row per feature that is active in `alive` texts or more: `together`, texts in which both are; `expected`, their mean
        number over all orders of the texts; `p`, the share of orders with as many or more (hypergeometric); and `q`, p adjusted
        for the number of rows (Benjamini and Hochberg 1995).
        """
        both, here = self.together[self.chosen.index(feature)].numpy(), int(self.texts[feature])
        others = np.flatnonzero(self.texts.numpy() >= alive)
        others = others[others != feature]
        there = self.texts.numpy()[others]
        p = hypergeom.sf(both[others] - 1, self.n_texts, there, here)
        found = pd.DataFrame({"feature": others, "together": both[others], "expected": here * there / self.n_texts, "p": p})
        found["q"] = multipletests(p, method="fdr_bh")[1] if len(p) else p
        return found.sort_values(["p", "together"], ascending=[True, False], ignore_index=True)


@torch.no_grad()
def browse(
    model: LanguageModel,
    site: Site,
    dictionary: Dictionary,
    batches: Sequence[Encoded],
    k: int = 10,
    sampled: int = 20,
    chosen: Sequence[int] | None = None,
    seed: int = 0,
) -> Browsed:
    """Run the texts of `batches` through the model once, up to the site, and see what each feature does there.

    `k` texts and `sampled` random tokens are kept of each feature. `chosen`: the features whose companions are counted; all
    where it is left out, which takes memory with the square of `d_sae`.
    """
    d_sae, chosen = dictionary.d_sae, list(range(dictionary.d_sae)) if chosen is None else list(chosen)
    found = Browsed(
        site, 0, 0, *(torch.zeros(d_sae, dtype=torch.long) for _ in range(2)), torch.zeros(d_sae, dtype=torch.float64),
        torch.zeros(d_sae * BINS, dtype=torch.long), Kept(d_sae, k), Kept(d_sae, sampled), chosen,
        torch.zeros(len(chosen), d_sae),
    )  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    for batch in tqdm(batches, desc="texts", mininterval=2):
        batch = batch.to(model.hf.device)
        with recorded(model, [site.read], stop=True) as seen:
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        x, acts = read(site, seen[site.read]), token_mask(model.tokenizer, batch)
        at_once = max(1, AT_ONCE // (x.shape[1] * d_sae))
        for some, there in zip(x.split(at_once), acts.split(at_once), strict=True):
            _add(found, (dictionary.encode(some) * there[..., None]).cpu(), there.cpu(), draw)
    found.histogram = found.histogram.view(d_sae, BINS)
    found.together = found.together.long()
    return found


def _add(found: Browsed, f: Float[Tensor, "text pos d_sae"], acts: Bool[Tensor, "text pos"], draw: torch.Generator) -> None:
    """Count and keep what the features do in some more texts."""
    first, d_sae = found.n_texts, f.shape[-1]
    found.n_tokens += int(acts.sum())
    found.n_texts += len(f)
    strongest, at = f.max(1)
    present = strongest > 0
    found.texts += present.sum(0)
    found.together += present[:, found.chosen].float().T @ present.float()
    text, feature = present.nonzero(as_tuple=True)
    found.top.offer(f, strongest[text, feature], text, at[text, feature], feature, first)
    text, at, feature = f.nonzero(as_tuple=True)
    values = f[text, at, feature]
    found.active += torch.bincount(feature, minlength=d_sae)
    found.total += torch.bincount(feature, values.double(), d_sae)
    bins = (2 * values.log2()).floor().long().add_(BINS // 2).clamp_(0, BINS - 1)
    found.histogram += torch.bincount(feature * BINS + bins, minlength=d_sae * BINS)
    found.sample.offer(f, torch.rand(len(feature), generator=draw), text, at, feature, first)


def nearest(dictionary: Dictionary, features: Sequence[int], k: int = 5) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """The other features whose decoder rows have the largest cosine with those of some, and these cosines."""
    W_dec = torch.nn.functional.normalize(dictionary.W_dec.detach().float(), dim=-1)
    cosine = W_dec[list(features)] @ W_dec.T
    cosine[torch.arange(len(cosine)), list(features)] = -math.inf
    best = cosine.topk(min(k, dictionary.d_sae - 1), -1)
    return best.indices, best.values


def promoted(
    model: LanguageModel, site: Site, dictionary: Dictionary, features: Sequence[int], batch: Encoded
) -> Float[Tensor, "n vocab"]:
    """What a unit of each feature adds to the logits of all tokens, in logits, were nothing but the final norm above it.

    To first order, for the final norm divides by the size of what it is given: its derivative is the mean over some tokens of
    `batch`. A site whose output goes through more than an addition on its way to the stream (`z`) has none: `ValueError`.
    Soft-capping, which keeps the order of logits, is left out.
    """
    if site.name == "z":
        raise ValueError("what z writes goes through the output projection first: no logits of its features alone")
    norm, unembed = model.bridge.ln_final, model.hf.get_output_embeddings().weight
    batch = batch.to(model.hf.device)
    with torch.no_grad(), recorded(model, ["ln_final.hook_in"]) as seen:
        model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
    stream = seen["ln_final.hook_in"][token_mask(model.tokenizer, batch)][:STREAM]
    derivative = torch.autograd.functional.jacobian(lambda shift: norm(stream + shift).mean(0), torch.zeros_like(stream[0]))
    rows = dictionary.W_dec.detach()[list(features)].to(unembed.dtype) * site.scale
    return (rows @ derivative.to(unembed.dtype).T @ unembed.detach().T).float()
