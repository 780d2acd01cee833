"""What edits do: to the answer, against every control; to its price; to other text; and to texts that are written."""

import numpy as np
import pandas as pd

from lib.book import stats
from lib.dictionary.dictionaries import Dictionary
from lib.measure.quality import losses
from lib.model.generation import Sampling
from lib.studies.transport import steer
from lib.studies.transport.material import NOUNS, Opened, questions, reply
from lib.studies.transport.steer import Acting, Edited, Pushed, Trial, activated
from lib.studies.transport.trials import (
    ACTIVATE,
    DROPPED,
    MEANS,
    OTHER,
    OTHER_OFF,
    OWN,
    RANDOM,
    RAW,
    SUPPRESS,
    THROUGH,
    at_random,
    trials,
)
from lib.studies.transport.words import Words, tables
from lib.texts.vehicles import SENTENCES, VEHICLES, sentence

OFF = (SUPPRESS, OTHER_OFF)
"""What is to make a vehicle less likely."""
EVERY_DOSE = (ACTIVATE, OWN, MEANS, RANDOM)
SOME = 40
"""Questions on which many SAEs are compared."""
RESAMPLES = 1000


def answered(o: Opened, sae: Dictionary, words: Words) -> pd.DataFrame:
    """One row per question and trial: `p`, that of the vehicle that the trial is about, of the two; and as it was."""
    asked = questions(o.profile)
    found = steer.named(o.model, o.site, asked, trials(sae, words, o.settings.doses, o.profile.seed))
    found = found.merge(asked, left_on="question", right_index=True, suffixes=("", "_asked"))
    of_two = (found.who == "two").to_numpy()
    found["p"] = np.where(of_two, 1 - found.p_one, found.p_one)
    found["target"] = np.where(of_two, found.two, found.one)
    raw, through = (found[found.method == name].set_index("question").p_one for name in (RAW, THROUGH))
    for name, before in (("p_before", raw), ("p_through", through)):
        p = before.reindex(found.question).to_numpy()
        found[name] = np.where(of_two, 1 - p, p)
    found["judged"] = ~found.pair.isin(chosen_on(asked))
    return found.drop(columns=["question_asked"])


def chosen_on(asked: pd.DataFrame) -> set[str]:
    """The pairs on which doses are chosen; the others are what is told."""
    pairs = np.random.default_rng(0).permutation(asked.pair.unique())
    return set(pairs[: len(pairs) // 2])


KEYS = ["method", "who", "where"]


def best_doses(table: pd.DataFrame) -> pd.DataFrame:
    """Of each method, and place where it acts, the dose that moves answers furthest its way on the pairs to choose on."""
    some = table[~table.judged]
    way = np.where(some.method.isin(OFF), -1.0, 1.0)
    moved = ((some.p - some.p_before) * way).groupby([some[key] for key in [*KEYS, "dose"]], sort=False).mean()
    best = moved.groupby(KEYS, sort=False).idxmax()
    return pd.DataFrame(list(best), columns=[*KEYS, "dose"])


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The questions about other pairs than doses were chosen on, each method at its best dose."""
    best, judged = best_doses(table).set_index(KEYS).dose, table[table.judged]
    return judged[judged.dose.to_numpy() == best.reindex(pd.MultiIndex.from_frame(judged[KEYS])).to_numpy()]


def moved(table: pd.DataFrame, target: str = "") -> pd.DataFrame:
    """How far each method moves the probability of its vehicle, named first or second: `moved`, interval over pairs.

    Of one `target` alone where it is given. `over_other`: less what the same edit with another vehicle's table does;
    `over_random`: less what random features do; `of_whole`: as a share of what the whole table does.
    """
    pick, rows = at_best(table), []

    def beside(some: pd.DataFrame, method: str) -> np.ndarray:
        """Of the same questions the probability of the same vehicle by another method."""
        other = pick[(pick.method == method) & (pick["where"] == "all")].drop_duplicates("question").set_index("question").p_one
        p = other.reindex(some.question).to_numpy()
        return np.where(some.who == "two", 1 - p, p)

    pick_of = pick[pick.target == target] if target else pick
    for (method, where), some in pick_of.groupby(["method", "where"], sort=False):
        before, pairs = some.p_through if method == DROPPED else some.p_before, some.pair.to_numpy()
        e = stats.difference(some.p, before, pairs)
        found = {
            "over_other": stats.difference(some.p, beside(some, OTHER_OFF if method in OFF else OTHER), pairs),
            "over_random": stats.difference(some.p, beside(some, RANDOM), pairs),
        }  # fmt: skip
        whole = pick_of[(pick_of.method == ACTIVATE) & (pick_of["where"] == "all")].set_index(["question", "who"])
        whole = whole.reindex(pd.MultiIndex.from_frame(some[["question", "who"]]))
        if whole.p.notna().all():
            found["of_whole"] = stats.ratio(some.p - some.p_before, whole.p.to_numpy() - whole.p_before.to_numpy(), pairs)
        rows.append({
            "target": target, "method": method, "where": where, "doses": " ".join(f"{d:g}" for d in sorted(some.dose.unique())),
            "p_before": before.mean(), "p": some.p.mean(), **e.columns("moved"), **stats.columns(found), "n": e.n,
            "n_pairs": e.clusters,
        })  # fmt: skip
    return pd.DataFrame(rows)


def curve(table: pd.DataFrame) -> pd.DataFrame:
    """How far each method moves the probability of its vehicle at each dose, over all pairs."""
    rows = []
    for (method, where, dose), some in table.groupby(["method", "where", "dose"], sort=False):
        e = stats.difference(some.p, some.p_before, some.pair.to_numpy())
        rows.append({"method": method, "where": where, "dose": dose, **e.columns("moved"), "n": e.n, "n_pairs": e.clusters})
    return pd.DataFrame(rows)


# --- what it costs ---


def texts(o: Opened, sae: Dictionary, words: Words, table: pd.DataFrame) -> pd.DataFrame:
    """The greedy answer to every question under some methods at their `best` doses, and some at every dose.

    One row each: `text`, whom it `names`, and its `surprise`, nats a token under the model as it is.
    """
    best = best_doses(table).set_index(KEYS).dose
    asked, limit = questions(o.profile), max(len(o.model.tokenizer(reply(name)).input_ids) for name in VEHICLES) + 8
    rows = []
    for trial in trials(sae, words, o.settings.doses, o.profile.seed):
        about = trial.about
        key = tuple(about[name] for name in KEYS)
        is_best = about["dose"] == best.get(key, 0.0)
        if trial.method in (OTHER, OTHER_OFF) or about["who"] == "two" or about["where"] != "all":
            continue
        if not is_best and trial.method not in EVERY_DOSE:
            continue
        said = [trial.says(row.question, row.one) for row in asked.itertuples()]
        of = [trial.table_of(row) for row in asked.itertuples()] if trial.replacement else []
        found = steer.written(o.model, o.site, said, of, trial.replacement, limit)
        rows += [
            {"method": trial.method, "dose": about["dose"], "best": is_best, "pair": row.pair, "one": row.one, "two": row.two,
             "question": row.Index, "text": text, "names": names(text, row.one, row.two)}
            for row, text in zip(asked.itertuples(), found, strict=True)
        ]  # fmt: skip
    surprise = steer.surprise(o.model, [asked.question[row["question"]] for row in rows], [row["text"] for row in rows])
    return pd.DataFrame(rows).assign(surprise=surprise)


def names(text: str, one: str, two: str) -> str:
    """Which vehicle an answer names first: `one`, `two`, or neither."""
    places = {who: place for who, name in (("one", one), ("two", two)) if (place := text.lower().find(name)) >= 0}
    return min(places, key=places.get) if places else "neither"


def costs(o: Opened, sae: Dictionary, words: Words, table: pd.DataFrame, target: str = "car") -> pd.DataFrame:
    """The cross-entropy that each method adds to running text at its best dose, nats a token, interval over rows of text."""
    best, conditions, about = best_doses(table).set_index(KEYS).dose, [{}], []
    for trial in trials(sae, words, o.settings.doses, o.profile.seed):
        said = trial.about
        key = tuple(said[name] for name in KEYS)
        if trial.replacement is None or said["who"] != "one" or said["where"] != "all" or said["dose"] != best.get(key, 0.0):
            continue
        edit = trial.replacement
        own = Acting(trial.tables[target][None])
        conditions.append({o.site: Pushed(own, edit.dose) if isinstance(edit, Pushed)
                           else Edited(sae, own, edit.change, edit.dose, edit.keep_error)})  # fmt: skip
        about.append(trial.method)
    nats, tokens = losses(o.model, o.other, conditions)
    rows = []
    for method, ce in zip(about, nats[1:], strict=True):
        e = stats.ratio(ce - nats[0], tokens)
        rows.append({"method": method, **e.columns("ce_added"), "n": e.n})
    return pd.DataFrame(rows)


def wrote(o: Opened, sae: Dictionary, words: Words) -> pd.DataFrame:
    """Stories about things that are no vehicles, written with a vehicle's features on: does its name come in them?

    One row per text: `method`, `dose`, `vehicle`, `opening` (the sentence that it was to begin with), `text`, `holds`.
    """
    v, acting, n = tables(words, sae), Acting(), o.settings.written
    random, vehicle = at_random(v, sae, words, o.profile.seed), [list(VEHICLES)[i % len(VEHICLES)] for i in range(n)]
    openings = [sentence(SENTENCES[i % len(SENTENCES)], NOUNS[i * 7 % len(NOUNS)]) for i in range(n)]
    asked, rows = [o.settings.ask.format(sentence=opening) for opening in openings], []
    for dose in (0.0, *o.settings.doses):
        for method, of in ((RAW, v),) if not dose else ((ACTIVATE, v), (RANDOM, random)):
            edit = Edited(sae, acting, activated, dose) if dose else None
            how = dict(sampling=Sampling(1.0, seed=o.profile.seed))
            found = steer.written(o.model, o.site, asked, [of[name] for name in vehicle], edit, o.settings.story_tokens, **how)
            surprise = steer.surprise(o.model, asked, found)
            rows += [
                {"method": method, "dose": dose, "vehicle": name, "opening": opening, "text": text,
                 "holds": name in text.lower(),
                 "surprise": float(nats)}
                for name, opening, text, nats in zip(vehicle, openings, found, surprise, strict=True)
            ]  # fmt: skip
    return pd.DataFrame(rows)


# --- over many SAEs ---


def over_saes(o: Opened, saes: dict[str, Dictionary], words: Words) -> pd.DataFrame:
    """How far each SAE's tables move the answers to some questions: `moved`, at the dose that moves them furthest."""
    asked = questions(o.profile)
    asked = asked[asked.pair.isin(asked.pair.unique()[: max(1, SOME // 4)])]
    rows = []
    for name, sae in saes.items():
        v, acting = tables(words, sae), Acting()
        some = [Trial(RAW), *(Trial(ACTIVATE, Edited(sae, acting, activated, dose), v) for dose in o.settings.doses)]
        found = steer.named(o.model, o.site, asked, some, size=len(asked))
        p = found.groupby(["method", "dose"]).p_one.mean()
        rows.append({"sae": name, "moved": float(p[ACTIVATE].max() - p[RAW].iloc[0]), "n_questions": len(asked)})
    return pd.DataFrame(rows)


def better_guide(table: pd.DataFrame, one: str = "ce_added", two: str = "fvu", seed: int = 0) -> stats.Estimate:
    """How much better (in |Spearman| with how far SAEs move the answers) one figure ranks SAEs than another; SAEs resampled."""
    values = table[[one, two, "moved"]].to_numpy(float).T

    def difference(picks: np.ndarray) -> np.ndarray:
        a, b, moved = values[:, picks]
        return np.abs(stats.spearman(a, moved)) - np.abs(stats.spearman(b, moved))

    draw = np.random.default_rng(seed)
    found = difference(draw.integers(len(table), size=(RESAMPLES, len(table))))
    low, high = np.nanquantile(found, [0.025, 0.975])
    value = float(difference(np.arange(len(table))))
    return stats.Estimate(value, float(min(low, value)), float(max(high, value)), len(table), len(table))
