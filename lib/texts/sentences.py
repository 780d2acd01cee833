"""A small grammar of sentences: templates with slots, and the word lists that fill them.

Copy prompts (`lib.texts.prompts`) and the corpus of the organism (`lib.texts.corpus`) are both written with
it. The sentences are meant to be varied, not meaningful: invented names, codes and numbers make each
one new, so that it can be copied but not remembered. It does not try to be a language.
"""

import random
import re
from collections.abc import Callable

_SLOT = re.compile(r"\{(\w+)\}")

FIRST = """Anna Ben Carla David Elena Frank Grace Hugo Irene Jack Karen Luis Maria Nathan Olga Peter Quinn Rosa
Simon Tara Uma Victor Wendy Xavier Yusuf Zoe Adam Bella Cyril Diana Emil Fiona George Hannah Ivan Julia Kevin Laura
Martin Nora Oscar Paula Robert Sofia Thomas Ursula Walter Yvonne""".split()
LAST = """Smith Garcia Novak Weber Rossi Kim Tanaka Silva Brown Dubois Jensen Murphy Patel Costa Meyer Wilson
Lopez Fischer Clark Moreau Hansen Walsh Singh Bauer Taylor""".split()
CITY = """Paris London Madrid Berlin Oslo Vienna Lima Cairo Delhi Tokyo Boston Chicago Denver Dublin Geneva
Havana Lisbon Milan Naples Prague Rome Seoul Sydney Toronto Venice Zurich Bristol Cork Ghent Leeds""".split()
MONTH = """January February March April May June July August September October November December""".split()
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NOUN = """apple bridge camera desk engine farm garden hotel island jacket kitchen lamp market novel office
picture question river school table umbrella village window yard album basket castle door estate field glass
hammer image journey key letter machine number orange paper queen ring shop train uncle valley water box cloud
dress egg flower gate horse idea jar king lake mountain night ocean park road street tool tree voice wall wheel
bag book card chair city clock coat corner cup day dog event fence floor game group guest hall hand house item
job judge kid leaf light line list map meal member menu message minute model morning movie music name nature
nurse order page part party path phone piece plan plant plate player point poem price prize program project
report result room rule sale season seat second section service ship shirt sign song space sport stage star
state station step stone store story student summer team test ticket time title tour tower town trip unit
user van view visit walk week winner winter word worker world year zone calculator value""".split()
PLURAL = """apples tickets houses pages visitors students trees letters books cars members players points
minutes miles seats copies rooms bottles boxes votes guests horses people workers orders stones teams songs
photos birds coins shares meals hotels shops pieces units items cards stars flowers windows reports""".split()
ADJ = """red old new small large quiet bright cold warm early late happy strange famous local national public
private simple heavy light dark empty full green blue white black yellow rich poor strong weak fast slow cheap
rare common modern ancient gentle proud brave calm clean dirty dry fresh hard soft long short open secret""".split()
VERB = """opened closed moved sold bought painted visited counted found lost carried cleaned repaired watched
built finished planned reported signed started stopped tested updated wrote read sent received printed checked
called used named saved changed joined left reached shared showed turned""".split()
COLOUR = "red blue green white black yellow brown grey pink purple silver golden".split()
PRODUCT = """Alpha Nova Orbit Pixel Delta Titan Falcon Comet Vega Zenith Quartz Lumen Echo Prime Atlas""".split()
_ONSET = "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pr st tr sh th".split()
_VOWEL = "a e i o u ai ea ou".split()
_CODA = ["", "", "", "n", "r", "l", "s", "m", "t", "x", "nd", "rk"]


def invented_word(rng: random.Random, syllables: int = 2) -> str:
    """A pronounceable word that is in no dictionary, such as `Travonk`."""
    parts = (rng.choice(_ONSET) + rng.choice(_VOWEL) + rng.choice(_CODA) for _ in range(syllables))
    return "".join(parts).capitalize()


def invented_code(rng: random.Random) -> str:
    """A code of mixed letters and digits, such as `KX-40B7`."""
    letters, digits = "ABCDEFGHJKLMNPRSTUVWXYZ", "0123456789"
    left = "".join(rng.choice(letters) for _ in range(rng.randint(1, 3)))
    right = "".join(rng.choice(digits + letters) for _ in range(rng.randint(2, 5)))
    return f"{left}{rng.choice(['-', '', '/', '_'])}{right}"


def integer(rng: random.Random, max_digits: int = 3) -> int:
    """A whole number whose number of digits, not whose value, is uniform; never zero."""
    digits = rng.randint(1, max_digits)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _name(rng):
    return rng.choice(FIRST) if rng.random() < 0.6 else invented_word(rng)


SLOTS: dict[str, Callable[[random.Random], object]] = {
    "name": _name,
    "surname": lambda r: r.choice(LAST) if r.random() < 0.6 else invented_word(r, r.choice([2, 3])),
    "city": lambda r: r.choice(CITY) if r.random() < 0.6 else invented_word(r, 3),
    "month": lambda r: r.choice(MONTH),
    "weekday": lambda r: r.choice(DAY),
    "noun": lambda r: r.choice(NOUN),
    "plural": lambda r: r.choice(PLURAL),
    "adj": lambda r: r.choice(ADJ),
    "Adj": lambda r: r.choice(ADJ).capitalize(),
    "verb": lambda r: r.choice(VERB),
    "colour": lambda r: r.choice(COLOUR),
    "product": lambda r: r.choice(PRODUCT) if r.random() < 0.5 else invented_word(r),
    "code": invented_code,
    "n": integer,
    "big": lambda r: f"{r.randint(1, 99)},{r.randint(0, 999):03d}",
    "year": lambda r: r.randint(1890, 2029),
    "day": lambda r: r.randint(1, 28),
    "hour": lambda r: r.randint(1, 12),
    "min": lambda r: f"{r.randint(0, 59):02d}",
    "price": lambda r: f"{integer(r)}.{r.randint(0, 99):02d}",
    "decimal": lambda r: f"{r.randint(0, 99)}.{r.randint(1, 9)}",
    "percent": lambda r: r.randint(1, 100),
    "phone": lambda r: f"{r.randint(200, 999)}-{r.randint(100, 999)}-{r.randint(0, 9999):04d}",
    "isodate": lambda r: f"{r.randint(1950, 2029)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}",
    "score": lambda r: f"{r.randint(0, 9)}-{r.randint(0, 9)}",
    "ordinal": lambda r: r.choice("1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th 11th 12th 15th 18th 20th 21st".split()),
    "word": lambda r: invented_word(r, r.choice([1, 2, 3])),
}

# The kinds of lines with numbers that the published negatives (from a web crawl) are made of.
COPY_TEMPLATES = """
The {noun} in {city} was {verb} in {year} by {name} {surname}.
Posted {month} {day}, {year} by {name} {surname} & filed under {noun}.
{name} {verb} {n} {plural} on {weekday} and {n} more on {weekday}.
Only {percent} percent of the {plural} were {verb} before {month}.
The {adj} {noun} costs ${price} until {day} {month} {year}.
Call {phone} to order the {adj} {noun} from {city}.
{city} won {score} against {city} on {month} {day}.
Chapter {n}: the {adj} {noun} of {name} {surname}.
{surname}, {name}. The {adj} {noun}. {city}: {surname} Press, {year}.
At {hour}:{min} the {noun} {verb} its {ordinal} {noun}.
Model {code} replaces the {product} {n} since {year}.
The {product} {code} weighs {decimal} kg and holds {n} {plural}.
More than {big} {plural} were {verb} in {city} last {month}.
Congratulations on the {ordinal} {noun}, {name}!
"It was {adj}," said {name} {surname}, {n}, of {city}.
The postcode of the {noun} is {code} {code}.
Version {decimal} of {product} was {verb} on {isodate}.
Out of {n} {plural}, {n} were {adj} and {n} were {colour}.
[{code}] {name} {surname} {verb} the {noun} ({year}).
Last edit: {isodate} {hour}:{min} by {name}.
Room {n}, floor {day}: {adj} {noun} for {n} guests.
{name} lives at {n} {word} Street, {city}.
The {ordinal} {noun} of {city} has {n} {plural} and a {colour} {noun}.
Tips for the {adj} {noun} {year}: {n} {plural} you need.
Lesson {day} covers the {adj} {noun} and the {noun}.
{name} replied, {month} {day}, {year} at {hour}:{min}.
The {noun} of {word} {word} is {decimal} miles from {city}.
I {verb} {n} {plural} and {name} {verb} only {n}.
({n}) The {noun} is {adj} for {percent}% of the {plural}.
Who {verb} the {n} {adj} {plural} in {city}?
Flight {code} to {city} leaves at {hour}:{min} from gate {n}.
Between {year} and {year} the {noun} {verb} {n} {plural}.
{Adj} {noun} {n} x {n} cm, {colour}, only {price} each.
If you see the {adj} {noun}, call {n} at once.
We {verb} {word} in {year}, then {word} in {year}.
Track {day} of the {ordinal} album by {name} and the {plural}.
""".strip().splitlines()


def fill(template: str, rng: random.Random, **given: object) -> str:
    """Replace every `{slot}` by a fresh draw, or by `given[slot]`; each mention is drawn anew.

    An unknown slot raises `KeyError`.
    """

    def one(match: re.Match) -> str:
        slot = match[1]
        return str(given[slot] if slot in given else SLOTS[slot](rng))

    return _SLOT.sub(one, template)


def copy_sentence(rng: random.Random) -> tuple[str, str]:
    """One sentence with numbers in it that asks for nothing, and its template."""
    template = rng.choice(COPY_TEMPLATES)
    return fill(template, rng), template


_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()

_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(n: int) -> str:
    """0 to 999 in words: `three hundred and forty-two`."""
    if n >= 100:
        rest = f" and {number_words(n % 100)}" if n % 100 else ""
        return f"{_UNITS[n // 100]} hundred{rest}"
    if n < 20:
        return _UNITS[n]
    return _TENS[n // 10] + (f"-{_UNITS[n % 10]}" if n % 10 else "")
