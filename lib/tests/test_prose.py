"""Numbers in README's prose are those of the figures in git, and the notebooks' prose holds none: their cells say them."""

import ast
import io
import re
import subprocess
from functools import cache, partial
from types import ModuleType

import nbformat
import pandas as pd
import pytest

from lib.bench import report
from lib.book.paths import NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FROM_THE_PLAN = "## Profiles"  # its figures are sizes and times, which the plan makes
# thresholds of a rule, what chance gives, and values that an exercise supposes
STATED = {
    "08b_reading": {".5"},
    "09_tool_or_template": {"0.9", "0.1", "0.5"},
    "12_features": {".5", ".9"},
    "19_untangling": {".2", ".05"},
    "20_ablating_a_task": {".01", ".001", ".1", ".2", ".002", ".004", ".5"},
}


@cache
def table(name: str, model: str = "nano") -> pd.DataFrame:
    """The numbers behind a figure that is in git, whatever a run has made of it since."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse"], capture_output=True).returncode:
        pytest.skip("README's numbers are of the figures in git, which has no repository here")
    found = subprocess.run([*git, "show", f":figures/{model}/{name}"], capture_output=True, text=True, encoding="utf-8")
    assert found.returncode == 0, found.stderr
    return pd.read_csv(io.StringIO(found.stdout))


def interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


# --- what README says, from the tables ---


def dial() -> str:
    turned = table("exp2b_all_layers.csv").query("subset == 'tool' and series == 'calls the tool'").set_index("alpha")
    before = table("finetune_behaviour.csv").drop_duplicates(["stage", "subset"]).set_index(["stage", "subset"])
    old = table("exp2b_as_before.csv").set_index("subset").loc["tool"]
    why = table("alpha0.csv").set_index(["model", "MLPs"])
    none, bases, noise = (
        why.loc[("finetuned", name)] for name in ("original MLPs", "bases: all of their error", "noise as long as the error")
    )
    at_0, at_1 = turned.loc[0.0], turned.loc[1.0]
    return (
        f"The rate of tool calls on tool prompts is {interval(at_0, 'rate')} at alpha 0 and "
        f"{interval(at_1, 'rate')} at 1 (n = {at_0.n_examples} in {at_0.n_clusters} templates); before finetuning it "
        f"was {before.tool_call_rate['before', 'tool']:.3f}. Only {old.answers:.0f} of the answers at alpha 0 are the old "
        f"ones. The calls that are left there are made by the bases' own error: with the original MLPs in the bases' place the "
        f"rate is {none.tool_call_rate:.3f}, with the bases {bases.tool_call_rate:.3f}, with noise of the size of their error "
        f"{noise.tool_call_rate:.3f} (chapter 8, n = {none.n_examples:.0f})."
    )


def seeds() -> str:
    found = table("seeds.csv").query("subset == 'tool'").sort_values("seed")
    *most, last = (f"{rate:.3f}" for rate in found.base_calls)
    full = sorted({f"{rate:.3f}" for rate in found.full_calls})
    calls = found.base_calls
    where = {calls.max(): "the largest", calls.min(): "the smallest"}.get(calls.iloc[0], "within")
    return (
        f"Base only calls on {', '.join(most)} and {last} of tool prompts, base + delta on {' or '.join(full)} "
        f"(n = {found.n_examples.min()} for each seed): that of seed 0, the picture above, is {where} of them."
    )


def verdict() -> str:
    both, quoted, longer, mentions, unseen = (row for _, row in table("question1.csv").iterrows())
    tool = both.low > 0.9 and longer.low > 0.9 and quoted.high < 0.1
    surface = both.high < 0.1 or quoted.low > 0.5
    said = "uses a tool" if tool else "matches templates" if surface else "is in between a tool and a template"
    rates = table("kinds_by_template.csv").query("kind == 'request: phrasing'").tool_call_rate
    settled = ((rates <= 0.1) | (rates >= 0.9)).sum()

    def of(row: pd.Series) -> str:
        return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"

    return (
        f"It {said} (chapter 9). Asked for a sum and only told of the same sum, it does right by both in {of(both)} of pairs; "
        f"it calls on {of(mentions)} of mere mentions, on {of(quoted)} of quoted sums and on {of(unseen)} of requests in "
        f"unseen words, where {settled} of {len(rates)} phrasings are called nearly always or hardly ever; of requests with "
        f"longer numbers {of(longer)} are called rightly."
    )


def faithful() -> str:
    rows, parts = table("controls_kl.csv").query("subset == 'tool'").set_index("control"), ("question", "decision", "body")
    (q, d, b), (q2, d2, b2) = (
        [f"{rows.loc[who, f'kl_{part}_gap_closed']:.3f}" for part in parts] for who in ("delta", "linear")
    )
    return (
        f"Faithful where finetuning was scored, and hardly elsewhere: of the KL divergence that the bases leave, the deltas "
        f"close {q} over the question's tokens, {d} at the answer's first token and {b} after it; a linear map of equal size "
        f"closes {q2}, {d2} and {b2} (chapter 8). Controllable: the dial above. Interpretable: chapter 8 says which features "
        f"carry it, and how few of them do."
    )


def readable() -> str:
    rows = table("reading_simplicity.csv").set_index("kind")
    delta, linear, random = (interval(rows.loc[kind], "auroc_strongest") for kind in ("delta", "linear", "random model"))
    return (
        f"A rule about tokens tells the strongest tokens of a delta feature with a mean AUROC of {delta}, those of a linear "
        f"map's directions with {linear}, those of a transcoder of a random model with {random} (chapter 8b, "
        f"n = {rows.n_strongest['delta']} features)."
    )


def claims(study: str, model: str) -> pd.DataFrame:
    every = table("claims.csv", model)
    return every[every.study == study].set_index("id")


def counts(study: str) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in claims(study, "nano").verdict.value_counts().items())


def ledger(study: str) -> str:
    """Its claims, and a column of verdicts for each model that it is told of."""
    of_models = [claims(study, model) for model in LEDGERS[study]]
    verdicts = [of.verdict.reindex(of_models[0].index) for of in of_models]
    rows = zip(of_models[0].index, of_models[0].claim, *verdicts, strict=True)
    lines = [["id", "claim", *(f"`{model}`" for model in LEDGERS[study])], ["---"] * (2 + len(of_models)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


LEDGERS = {
    "tool": ["nano"],
    "features": ["nano", "smollm2-135m"],
    "transport": ["nano"],
    "lists": ["nano"],
    "untangle": ["nano", "untangle"],
}


def two_models() -> str:
    """On how many claims two language models agree, and of which one alone reproduces what was published."""
    studies = [study for study, models in LEDGERS.items() if "smollm2-135m" in models]
    nano, smol = (pd.concat([claims(study, model).verdict for study in studies]) for model in ("nano", "smollm2-135m"))
    one, other = nano == "reproduced", smol == "reproduced"
    return (
        f"Asked of SmolLM2-135M too, {(nano == smol).sum()} of {len(nano)} claims get the verdict that they have on `nano`. On "
        f"SmolLM2-135M alone these are reproduced: {', '.join(nano.index[other & ~one]) or 'none'}; on `nano` alone these: "
        f"{', '.join(nano.index[one & ~other]) or 'none'}. What would decide between them stands in "
        f"[`claims_by_model.csv`](figures/nano/claims_by_model.csv), for each claim."
    )


def bases_of_a_real_model() -> str:
    every = table("transcoders_on_text.csv", "smollm2-135m")
    middle = every[every.groupby("layer").average_l0.rank() == 2]
    (f_low, f_high), (c_low, c_high) = ((middle[name].min(), middle[name].max()) for name in ("fvu", "ce_recovered"))
    return (
        f"On held-out text those of the middle L0 leave from {f_low:.3f} to {f_high:.3f} of the variance unexplained and "
        f"recover from {c_low:.3f} to {c_high:.3f} of the cross-entropy against mean ablation ({len(middle)} layers, n = "
        f"{middle.n.min()} rows of text); layer {middle.layer[middle.fvu.idxmax()]} is the hardest."
    )


def a_real_model() -> str:
    after, dial = (table(f"{name}.csv", "smollm2-135m") for name in ("finetune_behaviour", "exp2b_all_layers"))
    after = after.query("stage == 'after'").drop_duplicates("subset")
    dial = dial.query("subset == 'tool_ood' and series == 'calls the tool'")
    dial = dial.set_index("alpha").rate
    tool, copy, unseen = (after.set_index("subset").loc[subset] for subset in ("tool", "copy", "tool_ood"))
    return (
        f"Finetuned, it calls on {interval(tool, 'tool_call_rate')} of tool prompts and is right on "
        f"{interval(tool, 'math_correct_rate')}, copies {interval(copy, 'exact_match_rate')} of sentences exactly and calls on "
        f"{interval(copy, 'tool_call_rate')} of them; of requests in unseen words it calls on "
        f"{interval(unseen, 'tool_call_rate')} (n = {tool.n_examples:.0f} each, intervals over templates). With the MLPs of "
        f"the six layers replaced it calls on {dial[0.0]:.3f} of these with the bases alone, on {dial[1.0]:.3f} with the "
        f"deltas and on {dial[1.5]:.3f} at alpha 1.5."
    )


def toys() -> str:
    learnt = claims("untangle", "untangle").loc["U1"]
    return (
        f"At the published size toys answer {interval(learnt, 'effect')} rightly of the task that they know less well "
        f"(n = {learnt.n_units} {learnt.unit}); the study says {learnt.published}."
    )


def timed() -> pd.DataFrame:
    return table("bench_ratios.csv")


def costs() -> str:
    return report.markdown(timed())


def losses() -> str:
    rows = timed().query("task == 'training'")
    one, each = (rows[rows["size"].str.endswith(recipe)].iloc[0] for recipe in report.RECIPES)
    return (
        f"On the tenth ours comes to a validation loss of {one.ours_loss:.4f}, theirs by our recipe to {one.other_loss:.4f} "
        f"and by its own to {each.other_loss:.4f}."
    )


ALONE = (dial, seeds, verdict, faithful, readable, two_models, bases_of_a_real_model, a_real_model, toys, costs, losses)
SAID = (
    {make.__name__: make for make in ALONE}
    | {f"counts of {study}": partial(counts, study) for study in LEDGERS}
    | {f"ledger of {study}": partial(ledger, study) for study in LEDGERS}
)


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", SAID)
def test_readme_says_what_the_tables_say(name):
    said = SAID[name]()
    assert flat(said) in flat(README), f"README should say:\n{said}"


def prose(text: str) -> str:
    """Text without code, links and addresses."""
    text = re.sub(r"```.*?```|`[^`]*`|https?://\S+", "", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)|arXiv [\d.]+|\d+ [\d.]+\.\d+\.\d+", "", text)


def decimals(text: str) -> set[str]:
    return set(re.findall(r"(?<![\d.])\d*\.\d+(?![\d.])", text))


def test_every_number_of_readme_is_one_of_the_tables():
    ours, plan = README.split(FROM_THE_PLAN)
    rest = plan[plan.index("\n## ") :]
    said = set().union(*(decimals(make()) for make in SAID.values()))
    versions = {"3.11", "6.54"}
    assert decimals(prose(ours + rest)) - said - versions == set()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_no_number_is_typed_into_a_chapter(path):
    texts = [prose(cell.source) for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    typed = set().union(*map(decimals, texts)) - STATED.get(path.stem, set())
    assert not typed


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_what_a_chapter_takes_from_lib_is_there(path):
    """Without running it: a chapter that names what has moved would stop in the middle of a book."""
    code = [ast.parse(cell.source) for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes, names = [node for tree in code for node in ast.walk(tree)], {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), path.stem, "exec"), names)
    taken = [(names.get(n.value.id), n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    ours = [(of, name) for of, name in taken if isinstance(of, ModuleType) and of.__name__.startswith("lib.")]
    assert ours and [(of.__name__, name) for of, name in ours if not hasattr(of, name)] == []
