"""A page to look through the features of a dictionary: one file that works offline, in any browser and from any folder.

What is in it is what `lib.measure.browse` has found on some texts. Texts, tokens and labels may hold anything: they are data in
the page, which its script puts there as text and never as markup.
"""

import html
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from IPython.display import HTML
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lib.book.paths import replacing
from lib.dictionary.dictionaries import Dictionary
from lib.measure.browse import AFTER, BEFORE, BINS, Browsed, Kept, nearest
from lib.model import encoding

TEMPLATE = Path(__file__).with_suffix(".html")
LISTED = 8
"""Tokens raised and lowered, companions and neighbours that are named of each feature."""


def data(
    browsed: Browsed,
    dictionary: Dictionary,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    features: Sequence[int],
    about: Mapping[str, str],
    labels: Mapping[int, str] | None = None,
    logits: Float[Tensor, "n vocab"] | None = None,
    per_quarter: int = 2,
    neuronpedia: str | None = None,
) -> dict:
    """What the page of some features shows. `rows`: the token ids of every text, in the order in which they were browsed.

    `about`: names and values for its head. `labels`: of features, made by rule. `logits`: what each of `features` adds to those
    of all tokens (`browse.promoted`). `per_quarter`: random examples of each quarter of the strengths. `neuronpedia`: the name
    of the dictionary there, such as `gpt2-small/6-res-jb`.
    """
    texts: dict[int, int] = {}
    near, cosine = nearest(dictionary, features, LISTED)
    table, found = browsed.table().set_index("feature"), []

    def example(kept: Kept, feature: int, i: int, part: int) -> list:
        """Part of the strengths (0: the strongest), text, first token, the token that it is of, and activations."""
        text, at = int(kept.text[feature, i]), int(kept.at[feature, i])
        start, end = max(0, at - BEFORE), min(len(rows[text]), at + AFTER + 1)
        window = kept.window[feature, i, start - at + BEFORE : end - at + BEFORE]
        number = texts.setdefault(text, len(texts))
        return [part, number, start, at, [float(f"{value:.3g}") for value in window.tolist()]]

    for n, feature in enumerate(features):
        if not browsed.active[feature]:
            raise ValueError(
                f"feature {feature} is active nowhere in these {browsed.n_texts} texts; there is nothing to show of it"
            )
        examples = [example(browsed.top, feature, i, 0) for i in (browsed.top.text[feature] >= 0).nonzero()[:, 0].tolist()]
        for part, chosen in enumerate(browsed.quantiles(feature), 1):
            examples += [example(browsed.sample, feature, i, part) for i in chosen[:per_quarter]]
        counts = browsed.histogram[feature]
        filled = counts.nonzero()[:, 0].tolist()
        one = {
            "id": feature, "label": (labels or {}).get(feature, ""), **{name: float(f"{table.at[feature, name]:.3g}") for name
            in ("density", "in_texts", "mean", "maximum")}, "histogram": [[float(f"{2 ** ((i - BINS // 2) / 2):.3g}"),
            int(counts[i])] for i in range(filled[0], filled[-1] + 1)], "near": [[int(i), round(float(c), 3)] for i, c in
            zip(near[n], cosine[n], strict=True)], "examples": examples,
        }  # fmt: skip
        if feature in browsed.chosen:
            company = browsed.companions(feature, alive=2).head(LISTED)
            one["company"] = [
                [int(r.feature), int(r.together), round(r.expected, 1)] for r in company.itertuples() if r.q < 0.05
            ]
        if logits is not None:
            for name, sign in (("raises", 1), ("lowers", -1)):
                best = (sign * logits[n]).topk(LISTED)
                one[name] = [
                    [encoding.readable(tokenizer, i), float(f"{sign * v:.3g}")]
                    for i, v in zip(*map(Tensor.tolist, best[::-1]), strict=True)
                ]
        found.append(one)
    said = {i: encoding.readable(tokenizer, i) for text in texts for i in set(rows[text])}
    return {
        "about": [[name, str(value)] for name, value in about.items()], "neuronpedia": neuronpedia,
        "texts": [[said[i] for i in rows[text]] for text in texts], "features": found,
    }  # fmt: skip


def page(found: dict, title: str) -> str:
    """The page, as one piece of HTML."""
    packed = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":  # nothing in it may end the script that holds it
        packed = packed.replace(sign, f"\\u{ord(sign):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title)).replace("{{data}}", packed)


def save(text: str, path: Path) -> None:
    """Write the page, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def shown(text: str, height: int = 640) -> HTML:
    """The page inside a notebook, in a frame of its own that can reach nothing around it."""
    frame = f'<iframe sandbox="allow-scripts allow-popups" style="width: 100%; height: {height}px; border: 1px solid #ccc"'
    with warnings.catch_warnings(action="ignore"):  # IPython would have a frame with an address
        return HTML(f'{frame} title="Feature browser" srcdoc="{html.escape(text)}"></iframe>')


def tokens_of(batch_ids: Tensor, attention: Tensor) -> list[list[int]]:
    """The rows of a batch without their padding."""
    return [ids[: int(n)].tolist() for ids, n in zip(batch_ids, attention.sum(1), strict=True)]


def most_active(browsed: Browsed, n: int) -> list[int]:
    """The `n` features that are active at the most tokens, those active everywhere and nowhere left aside."""
    density = browsed.active.float() / browsed.n_tokens
    listed = (density > 0) & (density <= 0.5)
    return torch.where(listed, density, -1.0).topk(min(n, int(listed.sum()))).indices.tolist()


def on_neuronpedia(release: str | None, layer: int) -> str | None:
    """The name of a layer's SAE there, where sae-lens knows one for the release."""
    if release is None:
        return None
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory().get(release)
    names = (known.neuronpedia_id if known else {}).items()
    return next((name for sae, name in names if name and re.search(rf"blocks\.{layer}\.|layer_{layer}(?!\d)", sae)), None)
