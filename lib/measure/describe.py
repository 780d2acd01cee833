"""How simply can it be said when a feature is active? The best of a fixed family of rules about tokens.

The family was written down before any feature was looked at: what sort of token this is, and the one before; which of a few
tokens it is, or the one before; where in the line and in the text it stands; whether it stood in the text before; inside
which marked part it is; and any two of these sorts and places at once. A rule is chosen on some texts and judged on others,
by the AUROC with which it tells tokens where the feature is active from those where it is not: with a rule that says yes or
no that is the mean of the shares of tokens of either kind that it puts right; .5 is chance. No judge model writes or scores a
description: such scores may tell little of a feature (arXiv 2507.08473), and dictionaries of models with random weights get
good ones (arXiv 2501.17727), so other units are given the same family.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lib.model import encoding

SORTS = {
    "digits": r"\s*\d+", "letters": r"\s*[^\W\d_]+", "a capital first": r"\s*[A-Z].*", "capitals": r"\s*[A-Z]{2,}",
    "an operator": r"\s*[-+*/^=<>%]+", "a point, comma or the like": r"\s*[.,;:!?]+", "a bracket": r"\s*[()\[\]{}]+",
    "a quotation mark": r"\s*[\"'`“”]+", "a line break": r"\n+", "a space first": r"\s.*", "a sign of code": r"\s*[#@_&|~$\\]+",
    "not ASCII": r".*[^\x00-\x7f].*",
}  # fmt: skip
"""What a token may be, as a pattern of all of its text."""
SETS = (1, 5)
"""How many tokens a rule may name."""
EARLY = 3
LEAST = 5
"""Tokens at which a feature must be active, and others at which it must not be, on either side, to be described."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of some texts, one after another, and what rules say of them."""

    ids: Int[Tensor, " token"]
    before: Int[Tensor, " token"]
    """The one before each; -1 at the first of a text."""
    text: Int[Tensor, " token"]
    """Which text each is of."""
    names: list[str]
    holds: Bool[Tensor, "token rule"]


def looked_at(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], parts: Mapping[str, str], skipped: int = 0
) -> Tokens:
    """What the rules about sort and place say of every token of some texts but the first `skipped` of each.

    `parts`: names of marked parts, each with the pattern of its text; a token is inside one if it begins there.
    """
    vocabulary = sorted({i for row in rows for i in row})
    said = {i: tokenizer.decode([i]) for i in vocabulary}
    sorts = {i: [bool(re.fullmatch(pattern, said[i], re.DOTALL)) for pattern in SORTS.values()] for i in vocabulary}
    none = [False] * len(SORTS)
    ids, before, text, holds = [], [], [], []
    for number, row in enumerate(rows):
        pieces = [said[i] for i in row]
        starts = [0]
        for piece in pieces:
            starts.append(starts[-1] + len(piece))
        whole, seen, pairs = "".join(pieces), set(), set()
        inside = {name: [match.span() for match in re.finditer(pattern, whole, re.DOTALL)] for name, pattern in parts.items()}
        line, in_line = 0, 0
        for at, i in enumerate(row):
            last = row[at - 1] if at else -1
            places = [
                at < skipped + EARLY, line == 0, line > 0, in_line == 0, 0 < in_line <= EARLY, i in seen, (last, i) in pairs,
                *(any(start <= starts[at] < end for start, end in spans) for spans in inside.values()),
            ]  # fmt: skip
            if at >= skipped:
                ids.append(i)
                before.append(last)
                text.append(number)
                holds.append([*sorts[i], *sorts.get(last, none), *places])
            seen.add(i)
            pairs.add((last, i))
            line, in_line = (line + 1, 0) if "\n" in pieces[at] else (line, in_line + 1)
    names = [
        *(f"it is {sort}" for sort in SORTS), *(f"the one before is {sort}" for sort in SORTS),
        f"among the first {EARLY} tokens", "in the first line", "after the first line", "first in its line",
        f"among the first {EARLY} after that", "it stood before in the text", "it stood before, after the same token",
        *(f"inside {name}" for name in parts),
    ]  # fmt: skip
    return Tokens(torch.tensor(ids), torch.tensor(before), torch.tensor(text), names, torch.tensor(holds))


def described(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    active: Bool[Tensor, "token feature"],
    fitting: Bool[Tensor, " text"],
) -> pd.DataFrame:
    """The best rule of each feature: chosen where `fitting` says so of a text, judged on the other texts.

    One row per feature that is active at `LEAST` tokens on either side, and not at as many: `feature`, its column; `rule`, in
    words; `auroc_fit` and `auroc`; `hits`, the share of tokens where it is active of which the rule says so, and
    `false_alarms`, that of the others, both on the texts it was not chosen on; `n_active`, tokens there.
    """
    fit = fitting[tokens.text]
    enough = torch.stack([(of & side[:, None]).sum(0) for of in (active, ~active) for side in (fit, ~fit)]).amin(0) >= LEAST
    features = enough.nonzero()[:, 0]
    labels = active[:, features].float()
    single = tokens.holds.float()
    pairs = list(combinations(range(single.shape[1]), 2))
    fitted = [_told_apart(single[fit], labels[fit])]
    i, j = (torch.tensor(side, dtype=torch.long) for side in zip(*pairs, strict=True))
    for a, b in zip(i.split(128), j.split(128), strict=True):
        fitted.append(_told_apart(single[fit][:, a] * single[fit][:, b], labels[fit]))
    names = [*tokens.names, *(f"{tokens.names[a]} and {tokens.names[b]}" for a, b in pairs)]
    best, which = torch.cat(fitted).max(0)  # (feature,)
    sets = {
        (place, m): _sets(of[fit], labels[fit], m)
        for place, of in (("it is", tokens.ids), ("the one before is", tokens.before)) for m in SETS
    }  # fmt: skip
    rows = []
    for column, feature in enumerate(features.tolist()):
        rule, holds, score = names[which[column]], _holding(single, int(which[column]), pairs), best[column]
        for (place, _), (named, scores) in sets.items():
            if scores[column] > score:
                of = tokens.ids if place == "it is" else tokens.before
                chosen, score = named[column], scores[column]
                holds = torch.isin(of, torch.tensor(chosen)).float()
                said = ", ".join(repr(encoding.readable(tokenizer, i)) if i >= 0 else "the beginning" for i in chosen)
                rule = f"{place} {said}" if len(chosen) == 1 else f"{place} one of {said}"
        label = labels[:, column]
        right, wrong = (holds[~fit & on].mean() for on in (label > 0, label == 0))
        rows.append({
            "feature": feature, "rule": rule, "auroc_fit": float(score), "auroc": float(1 + right - wrong) / 2,
            "hits": float(right), "false_alarms": float(wrong), "n_active": int(label[~fit].sum()),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["feature", "rule", "auroc_fit", "auroc", "hits", "false_alarms", "n_active"])


def _told_apart(holds: Float[Tensor, "token rule"], labels: Float[Tensor, "token feature"]) -> Float[Tensor, "rule feature"]:
    """AUROC of each rule for each feature."""
    n, both = labels.sum(0), holds.T @ labels
    return (1 + both / n - (holds.sum(0)[:, None] - both) / (len(labels) - n)) / 2


def _holding(single: Float[Tensor, "token rule"], which: int, pairs: list[tuple[int, int]]) -> Float[Tensor, " token"]:
    if which < single.shape[1]:
        return single[:, which]
    a, b = pairs[which - single.shape[1]]
    return single[:, a] * single[:, b]


def _sets(
    ids: Int[Tensor, " token"], labels: Float[Tensor, "token feature"], m: int
) -> tuple[list[list[int]], Float[Tensor, " feature"]]:
    """For each feature the set of at most `m` tokens with the largest AUROC, and that.

    Each token adds its share of the active tokens less its share of the others, so the best set is that of the largest such
    differences that are above 0.
    """
    known, index = ids.unique(return_inverse=True)
    n = labels.sum(0)
    active = torch.zeros(len(known), labels.shape[1]).index_add_(0, index, labels)
    all_of = torch.bincount(index, minlength=len(known)).float()[:, None]
    gain, which = (active / n - (all_of - active) / (len(ids) - n)).topk(min(m, len(known)), 0)
    sets = [
        [int(known[i]) for i, g in zip(column, gains, strict=True) if g > 0]
        for column, gains in zip(which.T, gain.T, strict=True)
    ]
    return sets, (1 + gain.clamp(min=0).sum(0)) / 2
