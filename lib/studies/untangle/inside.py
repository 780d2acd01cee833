"""Where in a toy the task is decided: activation patching, and integrated gradients."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from lib.studies.untangle import data
from lib.studies.untangle.data import PAD
from lib.studies.untangle.learn import TEST, Learned

PLACES = ("B", "first number", "sign", "second number", "E")


@torch.no_grad()
def patched(toy: Learned) -> pd.DataFrame:
    """Activation patching on pairs of questions that differ in their sign alone and whose answers are one token each.

    The model is asked to join, with one activation taken from where it is asked to add. `restored` is how much of the
    difference in logits between sum and joined number that moves: 0 none, 1 all. Places: the encoder's output at each of the
    question's tokens; in the decoder, where the number is foreseen, what self-attention, attention to the question and the
    feed-forward layer add, and the last hidden state. Of an encoder and decoder, with tokens of numbers.
    """
    task, model = toy.task, toy.model
    table = task.table.assign(row=np.arange(len(task.table)))
    table = table[(task.target != PAD).sum(1).numpy() == 2].set_index(["a", "b", "task"]).row.unstack().dropna().astype(int)
    add, join = (torch.tensor(table[sign].to_numpy()) for sign in (data.SUM, data.JOIN))
    differ = task.target[add, 0] != task.target[join, 0]
    add, join = add[differ], join[differ]
    sites = {
        "encoder": model.encoder, "self-attention": model.decoder.self_attn,
        "attention to the question": model.decoder.multihead_attn, "feed-forward": model.decoder.linear2,
        "last hidden state": model.decoder,
    }  # fmt: skip
    kept: dict[str, Tensor] = {}

    def difference(rows: Tensor) -> Tensor:
        first = model(task.question[rows], task.answer[rows, :1])[:, 0]
        return (first.gather(1, task.target[add, :1]) - first.gather(1, task.target[join, :1]))[:, 0]

    def keep(name):
        def hook(module, arguments, output):
            kept[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def put(name, at):
        def hook(module, arguments, output):
            new = (output[0] if isinstance(output, tuple) else output).clone()
            new[:, at] = kept[name][:, at]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    handles = [site.register_forward_hook(keep(name)) for name, site in sites.items()]
    clean = difference(add)
    for handle in handles:
        handle.remove()
    corrupt, found = difference(join), []
    for name, site in sites.items():
        for at, place in enumerate(PLACES if name == "encoder" else ("the number",)):
            handle = site.register_forward_hook(put(name, at))
            restored = (difference(join) - corrupt).sum() / (clean - corrupt).sum()
            handle.remove()
            found.append({"site": name, "position": place, "restored": float(restored)})
    return pd.DataFrame(found).assign(
        seed=toy.seed, n=len(add), difference_clean=float(clean.mean()), difference_corrupt=float(corrupt.mean())
    )


def attributed(toy: Learned, n: int = 400, steps: int = 16, seed: int = 0) -> dict[str, float]:
    """Integrated gradients (Sundararajan et al. 2017, by captum) of the answer's first token's logit on the neurons of the
    decoder's feed-forward layer, from a question of padding; and how well the best neuron's tells the tasks apart.

    The neuron, and the sign of its difference, is chosen on half of `n` test examples and judged on the other: `auroc`.
    """
    from captum.attr import LayerIntegratedGradients  # slow to import

    task, model = toy.task, toy.model
    draw = np.random.default_rng(seed)
    rows = torch.from_numpy(draw.permutation(task.rows(TEST).numpy())[:n])
    begin = task.answer[rows, :1]

    def first(embedded: Tensor) -> Tensor:
        return model.output(model.from_embedded(embedded, begin.repeat(len(embedded) // len(begin), 1)))[:, 0]

    embedded = model.embed(task.question[rows])
    empty = model.embed(torch.full_like(task.question[rows], PAD))
    found = LayerIntegratedGradients(first, model.decoder.linear1).attribute(
        embedded, empty, task.target[rows, 0], n_steps=steps
    )
    values, is_sum = found.detach()[:, 0].numpy(), task.is_sum[rows.numpy()]
    half = len(rows) // 2
    each = _aurocs(values[:half], is_sum[:half])
    best = int(np.abs(each - 0.5).argmax())
    judged = _aurocs(values[half:, [best]], is_sum[half:])[0]
    return {"seed": toy.seed, "neuron": best, "auroc": judged if each[best] >= 0.5 else 1 - judged, "n": len(rows) - half}


def _aurocs(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of each column: how often a positive's value is above a negative's."""
    a, b = values[positive], values[~positive]
    return mannwhitneyu(a, b).statistic / (len(a) * len(b))
