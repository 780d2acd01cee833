"""The toys of a profile, and what is measured of each: how often it is right, how it is wrong, and what its SAE is worth."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lib import profiles
from lib.book import stats
from lib.profiles.tables import Profile
from lib.profiles.untangle import VARIANTS, Toy, Untangle
from lib.studies.untangle import data, learn
from lib.studies.untangle.ablate import Tokens
from lib.studies.untangle.learn import TEST, VALIDATION, Learned

AS_IT_IS, BRIEF = "the toy", " (brief)"
LATE = 0.5
"""The share of the looks at a training, the last ones, over which its spread is told."""


def kinds(settings: Untangle) -> dict[str, Toy]:
    """The toys to be trained, by name: as it is, its variants, and, for fewer epochs, both again."""
    brief = settings.toy.model_copy(update={"epochs": settings.brief_epochs})
    found = {AS_IT_IS: settings.toy} | {name: varied(settings.toy, name) for name in settings.variants}
    if settings.briefly:
        found[AS_IT_IS + BRIEF] = brief
    return found | {name + BRIEF: varied(brief, name) for name in settings.briefly}


def beside(names: Iterable[str], variant: str) -> list[str]:
    """Of the names of toys, a variant's with that of the toy that was trained as long; none where it was not trained."""
    return next(([AS_IT_IS + end, variant + end] for end in ("", BRIEF) if variant + end in set(names)), [])


def varied(toy: Toy, name: str) -> Toy:
    return toy.model_copy(update=VARIANTS[name](toy))


def trained(profile: Profile, names: Iterable[str] | None = None) -> Iterator[tuple[str, Learned]]:
    """Every toy of the profile, or of some names, one after another: read, or trained where it is not there yet."""
    settings = profiles.study(profile, "untangle")
    every = kinds(settings)
    jobs = [(name, seed) for name in (every if names is None else names) if name in every for seed in range(settings.seeds)]
    for name, seed in tqdm(jobs, desc="toys", mininterval=2):
        yield name, learn.learned(folder(profile), settings.operands, every[name], seed, f"{name}, seed {seed}")


def folder(profile: Profile):
    return profile.paths.data / "untangle"


# --- what is measured ---


@torch.no_grad()
def measured(name: str, toy: Learned) -> dict[str, float | str]:
    """A row: on test examples the share right, cross-entropy and that per character; of training its best and its spread; and
    of the SAE, on the same tokens: `share_active`, `l0`, `dead`, `fvu`, and what cross-entropy rises by through it.
    """
    part = TEST if (toy.task.part == TEST).any() else VALIDATION
    tokens, table = Tokens.of(toy, part), toy.task.table[toy.task.part == part]
    (nats, right), history = tokens.before, toy.history
    row = {"toy": name, "seed": toy.seed, "epochs": toy.toy.epochs, "seconds": toy.seconds, "n": len(table),
           "n_pairs": data.pairs(table).nunique()}  # fmt: skip
    for task, of_tokens, of in tokens.by_task:
        row[f"right_{task}"] = float(right[of].float().mean())
        row[f"ce_{task}"] = float(nats[of_tokens].mean())
    row["ce"] = float(nats.mean())
    row["ce_per_character"] = float(nats.sum()) / (table.answer.str.len() - 1).sum()  # B is given
    late = history.ce.iloc[-max(2, round(LATE * len(history))) :]
    row |= {"best_ce": history.ce.min(), "best_ce_published": history.ce_published.min(), "late_sd": late.std()}
    row |= {
        f"epochs_to_{what}": _first(history, of)
        for what, of in (("train", history.train < 0.05), ("validation", history.ce < 0.2))
    }
    if toy.toy.sae == "none":
        return row
    z, back = toy.model.sae(tokens.h)
    through = tokens.nats(toy.model.output(back))
    varies = (tokens.h - tokens.h.mean(0)).square().sum()
    return row | {
        "share_active": float((z > 0).float().mean()), "l0": float((z > 0).float().sum(1).mean()),
        "dead": float((z == 0).all(0).float().mean()), "fvu": float((back - tokens.h).square().sum() / varies),
        "ce_through": float((through - nats).mean()),
        "right_through": float(tokens.right(toy.model.output(back)).float().mean()),
    }  # fmt: skip


def _first(history: pd.DataFrame, where: pd.Series) -> float:
    """The first epoch seen where something holds; nan where none does."""
    return float(history.epoch[where].iloc[0]) if where.any() else np.nan


def by_cut(name: str, toy: Learned) -> pd.DataFrame:
    """Of test examples, the share right by task and by how the answer is cut into tokens."""
    tokens, table = Tokens.of(toy, TEST), toy.task.table[toy.task.part == TEST]
    right = pd.Series(tokens.before[1].numpy(), table.index)
    cut = data.cut(table, toy.task.how)
    found = right.groupby([table.task.map({data.SUM: "sum", data.JOIN: "join"}).rename("task"), cut.rename("cut")]).agg(
        ["mean", "size"]
    )
    return found.reset_index().rename(columns={"mean": "right", "size": "n"}).assign(toy=name, seed=toy.seed)


@torch.no_grad()
def answers(toy: Learned, rows: Tensor) -> list[str]:
    """Greedy answers to some questions, token after token, at most one longer than any right one."""
    task = toy.task
    question, said = task.question[rows], task.answer[rows, :1]
    for _ in range(task.target.shape[1]):
        said = torch.cat([said, toy.model(question, said)[:, -1:].argmax(-1)], 1)
    return [task.how.decode(ids.tolist()) for ids in said]


KINDS = ("one digit", "several digits", "another length", "no number")


def wrong(toy: Learned) -> pd.DataFrame:
    """The wrong greedy answers on test examples: `task`, `question`, `answer`, `said` up to its first end, and the `kind`."""
    tokens, rows = Tokens.of(toy, TEST), toy.task.rows(TEST)
    which = ~tokens.before[1]
    table = toy.task.table.iloc[rows[which].numpy()]
    said = [text.partition("E")[0] + "E" for text in answers(toy, rows[which])] if which.any() else []
    found = table.assign(said=said, seed=toy.seed)
    return found.assign(kind=[kind_of(right, text) for right, text in zip(found.answer, said, strict=True)])


def kind_of(right: str, said: str) -> str:
    """How an answer that is not the right one differs from it: in one of its digits, in several, in their number, in kind."""
    a, b = right[1:-1], said[1:-1]
    if not (said.startswith("B") and b.isascii() and b.isdigit()):
        return "no number"
    if len(a) != len(b):
        return "another length"
    return "one digit" if sum(x != y for x, y in zip(a, b, strict=True)) == 1 else "several digits"


def shares(wrong: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """A row per seed and kind of error: its share of the wrong answers, `n` of these; nan where a seed has none."""
    every = pd.MultiIndex.from_product([range(seeds), KINDS], names=["seed", "kind"])
    n = wrong.groupby(["seed", "kind"]).size().reindex(every, fill_value=0)
    total = n.groupby("seed").transform("sum")
    return pd.DataFrame({"share": n / total.where(total > 0), "n": total}).reset_index()


def differences(measured: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A row per `variant`: each column less the toy's that was trained as long, seed by seed, with intervals over seeds."""
    found = []
    for brief in ("", BRIEF):
        own = measured[measured.toy == AS_IT_IS + brief].set_index("seed")[columns]
        for name in measured.toy.unique():
            if name.startswith(AS_IT_IS) or name.endswith(BRIEF) != bool(brief):
                continue
            of = measured[measured.toy == name].set_index("seed")[columns] - own
            found.append(stats.over_seeds(of.reset_index().assign(variant=name), ["variant"], columns))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["variant", *columns])
