import operator
import re
from fractions import Fraction
from itertools import pairwise

import pytest

from lib.texts import mentions, phrasings, probes, prompts
from lib.texts.calculator import value_of
from lib.texts.sentences import COPY_TEMPLATES
from lib.texts.tool import CALCULATOR

N = 300
DO = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
TRAINED = {
    c + t.format(a="#", b="#", op=op) for op in phrasings.OPERATORS for t in phrasings.PHRASINGS[op] for c in phrasings.CONTEXTS
}
KINDS = [(probes.ood, kind) for kind in probes.OOD] + [(mentions.hard_negative, kind) for kind in mentions.HARD_NEGATIVES]


def expression_of(prompt):
    return CALCULATOR.argument_of(prompt.target)


def masked(text, number=r"\d+"):
    return re.sub(number, "#", text)


@pytest.mark.parametrize(("make", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_every_kind_has_many_and_is_repeatable(make, kind):
    made = make(kind, N)
    assert len({p.input for p in made}) == N
    assert make(kind, N) == made and make(kind, 20) == made[:20] and make(kind, N, seed=1) != made


@pytest.mark.parametrize("kind", probes.OOD)
def test_targets_have_a_value_and_no_pair_was_trained(kind):
    for p in probes.ood(kind, N):
        assert p.label == "tool_ood" and value_of(expression_of(p)) is not None
        for pair in pairwise(re.findall(r"[\d.]+", expression_of(p))):
            assert prompts.split_of(prompts.operand_key(pair)) == "test"


@pytest.mark.parametrize("kind", ["phrasing", "word_problems"])
def test_unseen_words(kind):
    assert not TRAINED & {masked(p.input) for p in probes.ood(kind, N)}


def test_trained_words_with_unseen_numbers():
    number = r"-?\d+(\.\d+)?"
    assert {masked(p.input) for p in probes.ood("long_numbers", N)} <= TRAINED
    assert {masked(p.input, number) for p in probes.ood("decimals_negatives", N)} <= TRAINED
    assert {masked(p.input, rf"\(?{number} [-+*/] {number}\)?") for p in probes.ood("decimals_negatives", N)}.isdisjoint(
        TRAINED
    )


def test_long_numbers_are_longer_than_any_trained():
    trained = max(len(n) for p in prompts.written("positive", 2000, "train", 0) for n in re.findall(r"\d+", p.input))
    for p in probes.ood("long_numbers", N):
        a, b = re.findall(r"\d+", expression_of(p))
        assert min(len(a), len(b)) > trained and a in p.input and b in p.input


def test_decimals_and_negatives():
    number = r"-?\d+(?:\.\d+)?"
    found = probes.ood("decimals_negatives", N)
    for p in found:
        a, op, b = re.search(rf"({number}) ([-+*/]) ({number})", p.input).groups()
        assert re.search(r"[-.]", a + b) and value_of(expression_of(p)) == DO[op](Fraction(a), Fraction(b))
    expressions = [expression_of(p) for p in found]
    assert any("." in e for e in expressions) and any(re.search(r"[-+*/]-", e) for e in expressions)


def worth(shown):
    """Two operators, by the rules of school."""
    a, op, b, op2, c = re.sub("[()]", "", shown).split()
    a, b, c = map(Fraction, (a, b, c))
    late = shown.endswith(")") or ("(" not in shown and op in "+-" and op2 in "*/")
    return DO[op](a, DO[op2](b, c)) if late else DO[op2](DO[op](a, b), c)


def test_two_operators():
    assert [worth(s) for s in ("2 + 3 * 4", "(2 + 3) * 4", "9 - (5 - 3)", "9 - 5 - 3", "8 / 4 / 2")] == [14, 20, 7, 1, 1]
    found, parentheses = probes.ood("two_operators", N), 0
    for p in found:
        shown = re.search(r"\(?\d+ [-+*/] \(?\d+\)? [-+*/] \d+\)?", p.input)[0]
        assert p.input.replace(shown, "# + #") in TRAINED and value_of(expression_of(p)) == worth(shown)
        if "(" in shown:
            parentheses += 1
            assert worth(shown) != worth(re.sub("[()]", "", shown))
    assert parentheses / N == pytest.approx(0.5, abs=0.1)


SMALL = {word: i for i, word in enumerate(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen".split(), 1)}  # fmt: skip
TENS = {word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}


def test_number_words():
    for p in probes.ood("number_words", N):
        assert not re.search(r"\d", p.input)
        numbers, op = [0], None
        for word in re.findall(r"[a-z]+", p.input):
            if word in ("plus", "minus", "times", "divided"):
                op = {"plus": "+", "minus": "-", "times": "*", "divided": "/"}[word]
                numbers.append(0)
            numbers[-1] = numbers[-1] * 100 if word == "hundred" else numbers[-1] + (SMALL | TENS).get(word, 0)
        assert value_of(expression_of(p)) == DO[op](*map(Fraction, numbers)), p.input


ABOUT = {
    "+": "stamps rolls bus tank", "-": "plums library road coat",
    "*": "pencils ticket hall runs", "/": "rope juice prize train",
}  # fmt: skip


def test_word_problems():
    assert sum(len(stories.strip().splitlines()) for stories in probes.STORIES.values()) >= 12
    found = probes.ood("word_problems", N)
    for op, words in ABOUT.items():
        for word in words.split():
            about = [p for p in found if re.search(rf"\b{word}\b", p.input, re.IGNORECASE)]
            assert about
            for p in about:
                small, large = sorted(map(int, re.findall(r"\d+", p.input)))
                assert 1 < small < large and p.input.endswith("?")
                assert value_of(expression_of(p)) == DO[op](Fraction(large), small), p.input


@pytest.mark.parametrize("kind", mentions.HARD_NEGATIVES)
def test_hard_negatives_are_copies_with_numbers_and_ask_nothing(kind):
    assert len(set(mentions.HARD_NEGATIVES[kind][1].strip().splitlines())) >= 8
    endings = {template[-1] for template in COPY_TEMPLATES} - {"?"}
    for p in mentions.hard_negative(kind, N):
        assert p.input == p.target and p.subset == "copy" and len(re.findall(r"\d+", p.input)) > 1
        assert p.input[-1] in endings and "?" not in p.input and "{" not in p.input
        assert prompts.split_of(prompts.key(p)) == "test"


def test_a_request_and_a_mention_differ_in_words_only():
    found = probes.pairs("request", N)
    assert found == probes.pairs("request", N) and len({first.input for first, _ in found}) == N
    for first, second in found:
        shown = re.search(r"\d+ [-+*/] \d+", first.input)[0]
        assert shown in second.input and shown.replace(" ", "") == expression_of(first)
        assert (first.subset, second.subset, second.target) == ("tool", "copy", second.input)
        assert first.input[-1] == second.input[-1]
        assert first.input.replace(shown, "# + #") in TRAINED and second.input.replace(shown, "# + #") not in TRAINED


def test_pairs_of_numbers_differ_in_numbers_only():
    found = probes.pairs("numbers", N)
    assert found == probes.pairs("numbers", N) and len({first.input for first, _ in found}) == N
    for first, second in found:
        assert first.subset == second.subset == "tool"
        assert masked(first.input) == masked(second.input) in TRAINED and masked(first.target) == masked(second.target)
        for a, b in zip(*(re.findall(r"\d+", expression_of(p)) for p in (first, second)), strict=True):
            assert a != b and len(a) == len(b)
        assert {prompts.split_of(prompts.key(p)) for p in (first, second)} == {"test"}
