"""What delta features fire on, and how simply that can be said; beside other units of the same sites on the same tokens."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from lib.book import stats
from lib.dictionary import bases, deltas
from lib.dictionary.dictionaries import Dictionary
from lib.dictionary.training import train
from lib.measure.browser import tokens_of
from lib.measure.describe import Tokens, described, looked_at
from lib.model import activations, encoding, models
from lib.model.encoding import Encoded
from lib.model.hooks import read, recorded
from lib.model.models import LanguageModel
from lib.model.sites import Site
from lib.profiles.tables import Profile
from lib.studies.tool import controls, splits
from lib.studies.tool.ingredients import seen_in
from lib.texts import corpus, jsonl
from lib.texts.prompts import Prompt

KINDS = {
    "delta": "features of the headline delta",
    "base": "features of the frozen base, finetuned model",
    "neuron": "neurons of the finetuned model's MLP",
    "random encoder": "features of a delta whose encoder stays random",
    "linear": "directions that the best linear map of the delta's size reads",
    "random model": "features of a transcoder of a model with random weights",
}
"""The units that are read."""
ORDINARY = "ordinary"
STRONGEST = 0.02
"""Of the tokens: those at which a unit is said to fire where it has no threshold, or to be compared with such."""
UNSAID = 32.0
"""An L0 for where a release does not say its own."""


@dataclass(frozen=True)
class Reading:
    """Texts, their tokens, and which subset and half each is of."""

    batches: list[Encoded]
    tokens: Tokens
    subset: list[str]
    """Of each text."""
    fitting: Bool[Tensor, " text"]
    """Whether rules are chosen on it; texts of one template are all of one half."""
    rows: list[list[int]]


def ordinary(n: int) -> list[str]:
    """Texts that ask for nothing: pages of seven kinds, about vehicles, lists, of the corpus from a seed of their own."""
    kinds = ("seven kinds", "vehicles", "lists")
    return [d.text for d in islice((d for d in corpus.documents("reading") if d.kind in kinds), n)]


def reading(profile: Profile, model: LanguageModel, prompts: Mapping[str, Sequence[Prompt]], n_ordinary: int) -> Reading:
    """Prompts with their answers, by subset, and as many ordinary texts."""
    texts = [(subset, prompt) for subset, some in prompts.items() for prompt in some]
    texts += [(ORDINARY, text) for text in ordinary(n_ordinary)]
    texts.sort(key=lambda pair: encoding.length(model.tokenizer, pair[1]))
    batches = encoding.batches(model.tokenizer, [text for _, text in texts], profile.tool.evaluation.forward_batch)
    rows = [row for batch in batches for row in tokens_of(batch.ids, batch.attention)]
    units = pd.factorize(pd.Series(jsonl.templates([text for _, text in texts])))[0]
    half = torch.rand(units.max() + 1, generator=torch.Generator().manual_seed(profile.seed)) < 0.5
    tool = profile.tool.grammar
    begin, end = re.escape(tool.open), re.escape(tool.close)
    parts = {
        "the call": f"{begin}.*?{end}",
        "its argument": f"(?<={re.escape(tool.open + tool.before)}).*?(?={re.escape(tool.after + tool.close)})",
    }
    first = 1  # BOS, or the first token where there is none
    tokens = looked_at(model.tokenizer, rows, parts, skipped=first)
    return Reading(batches, tokens, [subset for subset, _ in texts], half[torch.from_numpy(units)], rows)


Units = Callable[[Float[Tensor, "token d_in"]], Float[Tensor, "token unit"]]


@torch.no_grad()
def values_of(
    model: LanguageModel, units: Mapping[Site, tuple[str, Units]], batches: Sequence[Encoded]
) -> dict[Site, Float[Tensor, "token unit"]]:
    """What units of each site have at every token where dictionaries act; each is given the hook point that it reads."""
    found: dict[Site, list[Tensor]] = {site: [] for site in units}
    points = list({point for point, _ in units.values()})
    with recorded(model, points) as seen:
        for batch in batches:
            batch = batch.to(model.hf.device)
            model.hf(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=1)
            keep = encoding.token_mask(model.tokenizer, batch)
            for site, (point, function) in units.items():
                found[site].append(function(read(site, seen[point])[keep]).cpu())
    return {site: torch.cat(parts) for site, parts in found.items()}


def units(profile: Profile, model: LanguageModel, sites: Sequence[Site], n: int) -> dict[str, tuple]:
    """For each of `KINDS` the model that is read and, of every site, the hook point and the function of its units.

    Of bases and MLPs `n` units a site, drawn at random, of the base those alive on the training prompts.
    """
    (d_new, rank), draw = deltas.widest(profile), torch.Generator().manual_seed(profile.seed)
    own, given = deltas.pairs(profile, model, sites), bases.at_rank(profile, model, sites, rank)
    on = seen_in(profile, model, sites, "train")
    found: dict[str, dict[Site, tuple[str, Units]]] = {kind: {} for kind in KINDS if kind != "random model"}
    for i, site in enumerate(sites):
        x, y = on.x[i], on.y[i]
        alive = torch.zeros(given[site].d_sae, dtype=torch.bool, device=x.device)
        left = []
        for some, target in zip(x.split(4096), y.split(4096), strict=True):
            alive |= (f := given[site].encode(some)).gt(0).any(0)
            left.append(target - given[site].decode(f, some))
        some = alive.nonzero()[:, 0].cpu()
        some = some[torch.randperm(len(some), generator=draw)[:n]].sort().values
        map_ = controls.reduced_rank(x, torch.cat(left), controls.rank_for(x.shape[-1], d_new))
        left_vectors = torch.linalg.svd(map_.weight).U[:, : controls.rank_for(x.shape[-1], d_new)]
        random = Dictionary.initialised((), x.shape[-1], d_new, profile.seed).to(x.device).requires_grad_(False)
        d_mlp = model.hf.config.intermediate_size if hasattr(model.hf.config, "intermediate_size") else 4 * model.d_model
        neurons = torch.randperm(d_mlp, generator=draw)[:n].sort().values
        found["delta"][site] = (site.read, own[site].delta.encode)
        found["base"][site] = (site.read, given[site].changed(**_columns(given[site], some)).encode)
        found["neuron"][site] = (f"blocks.{site.layer}.mlp.out.hook_in", _picked(neurons))
        found["random encoder"][site] = (site.read, random.encode)
        found["linear"][site] = (site.read, _along(left_vectors, x.mean(0)))
    untrained, theirs = random_model(profile, model, sites)
    there = {kind: (model, places) for kind, places in found.items()}
    picks = {site: torch.randperm(one.d_sae, generator=draw)[:n].sort().values for site, one in theirs.items()}
    of_random = {site: (site.read, one.changed(**_columns(one, picks[site])).encode) for site, one in theirs.items()}
    return there | {"random model": (untrained, of_random)}


def _picked(some: Tensor) -> Units:
    """These numbers alone."""
    return lambda h: h[:, some]


def _along(directions: Float[Tensor, "d_in unit"], mean: Float[Tensor, " d_in"]) -> Units:
    """The components along some directions."""
    return lambda h: (h - mean) @ directions


def _columns(dictionary: Dictionary, some: Tensor) -> dict[str, Tensor]:
    """The tensors of some of the features alone."""
    tensors = dictionary.tensors
    return {name: tensors[name][..., some] for name in ("W_enc", "b_enc", "threshold")} | {"W_dec": tensors["W_dec"][some]}


def random_model(profile: Profile, model: LanguageModel, sites: Sequence[Site]) -> tuple[LanguageModel, dict[Site, Dictionary]]:
    """A model of the same shape that has learned nothing, and transcoders of its MLPs trained on the training prompts.

    They are as wide and as sparse as the bases, and learn as long as whole transcoders do in chapter 8.
    """
    torch.manual_seed(profile.seed)
    hf = AutoModelForCausalLM.from_config(model.hf.config, attn_implementation="eager", dtype=model.hf.dtype)
    untrained = models.bridged(hf.to(model.hf.device).eval().requires_grad_(False), model.tokenizer)
    on, check = (seen_in(profile, untrained, sites, split, "random") for split in ("train", "validation"))
    given = bases.at_rank(profile, model, sites, deltas.widest(profile)[1])
    settings = profile.tool.controls.retrain or profile.tool.deltas.training
    said = [bases.level(profile.transcoders, site.layer, deltas.widest(profile)[1]) for site in sites]  # a release may not say
    l0 = torch.tensor(said).nan_to_num(UNSAID).clamp(max=given[sites[0]].d_sae / 2)
    stack = Dictionary.initialised((len(sites),), on.x.shape[-1], given[sites[0]].d_sae, profile.seed).to(on.x.device)
    picks = activations.repeated(on.x.shape[-2], settings.batch, profile.seed)
    batches = ((on.x.index_select(1, pick), on.y.index_select(1, pick)) for pick in picks)
    train([stack], batches, (check.x, check.y), settings, l0.to(on.x.device), progress="random model")
    stack.requires_grad_(False)
    return untrained, {site: stack[i] for i, site in enumerate(sites)}


def fires(values: Float[Tensor, "token unit"]) -> dict[str, Bool[Tensor, "token unit"]]:
    """Where units fire: above 0, and, to compare units of any density, at the strongest `STRONGEST` of tokens."""
    cut = values.float().kthvalue(int((1 - STRONGEST) * len(values)), 0).values
    return {"active": values > 0, "strongest": (values > cut) & (values > 0)}


def read_all(profile: Profile, model: LanguageModel, sites: Sequence[Site], texts: Reading, n_units: int) -> pd.DataFrame:
    """One row per unit of each of `KINDS` and site, with its `density` on all tokens and by subset.

    And with the best rule that says where it fires, chosen on one half of the texts and judged on the other: `rule`, `auroc`
    and the rest of `describe.described` of where it is above 0, and `rule_strongest`, `auroc_strongest` of its strongest
    tokens. Without a rule: too seldom active.
    """
    subset = torch.tensor(pd.factorize(pd.Series(texts.subset))[0])[texts.tokens.text]
    names, rows = list(dict.fromkeys(texts.subset)), []
    for kind, (of, places) in units(profile, model, sites, n_units).items():
        for site, values in values_of(of, places, texts.batches).items():
            where = fires(values)
            table = pd.DataFrame({"kind": kind, "layer": site.layer, "unit": range(values.shape[1])})
            table["density"] = where["active"].float().mean(0).numpy()
            for i, name in enumerate(names):
                table[f"density_{name}"] = where["active"][subset == i].float().mean(0).numpy()
            for name, active in where.items():
                end = "" if name == "active" else f"_{name}"
                found = described(model.tokenizer, texts.tokens, active, texts.fitting).set_index("feature")
                table = table.join(found.add_suffix(end), on="unit")
            rows.append(table)
    return pd.concat(rows, ignore_index=True)


def simplicity(table: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of unit: how many fire at all and how often, and the mean AUROC of their rules with its interval over
    units."""
    rows = []
    for kind, some in table.groupby("kind", sort=False):
        row = {"kind": kind, "units": len(some), "alive": (some.density > 0).mean(), "median_density": some.density.median()}
        for end in ("", "_strongest"):
            e = stats.mean(some[f"auroc{end}"].dropna())
            row |= e.columns(f"auroc{end}") | {f"n{end}": e.n, f"above_0.9{end}": (some[f"auroc{end}"] > 0.9).mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def test_prompts(profile: Profile, n: int) -> dict[str, list[Prompt]]:
    """Test prompts, so many of each subset."""
    return jsonl.by_subset(splits.read(profile, "test"), n)
