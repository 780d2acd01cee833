"""The corpus of the organism: documents written by grammar, in the kinds that the chapters need.

`documents(seed)` is an endless stream of `Document(kind, text)`, mixed by `MIX`. Operand pairs and
copied sentences come from the `train` split of `lib.prompts` only, so what the finetuning and the
evaluations call unseen was unseen here too. The literal `<tool_call>` never occurs: it is for
finetuning to teach. The text is not language at large; a model trained on it knows only this world.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lib import prompts
from lib.calculator import value_of
from lib.sentences import CITY, FIRST, NOUN, SLOTS, copy_sentence, fill, integer, invented_code, invented_word


def _lines(text: str) -> list[str]:
    """Templates, one a line, in which a written `\\n` is a line break."""
    return [line.replace("\\n", "\n") for line in text.strip().split("\n")]


@dataclass(frozen=True)
class Document:
    kind: str
    text: str


# --- seven kinds of text, each about any of eight topics, so that syntax and topic can be told apart ---

TOPICS = {
    "weather": dict(noun="rain storm cloud wind snow sun fog", verb="fell stopped changed grew",
                    es_noun="lluvia tormenta nube nieve niebla", emoji="☔ ⛅ ❄ 🌞", unit="degrees"),
    "food": dict(noun="bread soup cheese rice cake salad pasta", verb="cooked tasted burned cooled",
                 es_noun="sopa ensalada torta pasta fruta", emoji="🍕 🍞 🍰 🍲", unit="grams"),
    "music": dict(noun="song drum violin concert choir album piano", verb="played sounded started ended",
                  es_noun="guitarra banda orquesta flauta música", emoji="🎵 🎸 🎹 🎤", unit="beats"),
    "sport": dict(noun="goal race team coach match ball medal", verb="won lost scored trained",
                  es_noun="carrera copa pelota medalla liga", emoji="⚽ 🏆 🏀 🎾", unit="points"),
    "travel": dict(noun="train hotel ticket map airport coast ferry", verb="arrived left waited turned",
                   es_noun="playa maleta estación isla ruta", emoji="🚂 🗺 🏖 🎒", unit="miles"),
    "money": dict(noun="bank price loan tax coin market budget", verb="rose fell paid saved",
                  es_noun="moneda deuda tienda cuenta factura", emoji="💰 💳 📈 🪙", unit="euros"),
    "garden": dict(noun="rose tree seed leaf bee apple fence", verb="grew bloomed dried opened",
                   es_noun="rosa semilla hoja abeja planta", emoji="🌹 🌳 🐝 🍎", unit="litres"),
    "school": dict(noun="teacher book exam lesson pupil desk pen", verb="learned wrote passed asked",
                   es_noun="escuela maestra pluma clase tarea", emoji="📚 🎓 📝 🏫", unit="pages"),
}  # fmt: skip
for _topic in TOPICS.values():
    for _key in ("noun", "verb", "es_noun", "emoji"):
        _topic[_key] = _topic[_key].split()

PYTHON = _lines(r"""
def {t}_{t2}(x, n={n}):\n    # {t} in {unit}\n    for i in range(n):\n        x = x + {n} * i\n    return x
class {T}:\n    def __init__(self, {t2}={n}):\n        self.{t2} = {t2}\n\n    def {v}(self):\n        return self.{t2} / {n}
import {t}\n\n{t2} = [{n}, {n}, {n}]\nprint("{t}: " + str(sum({t2})))  # {unit}
if {t} > {n} and {t2} != "{v}":\n    {t} = {t}_{t2}({n}, {n})\nelse:\n    raise ValueError("{t} {v}")
{t} = {{"{t2}": {n}, "{t3}": {n}}}\nfor key, value in {t}.items():\n    print(f"{{key}} = {{value}} {unit}")
while {t} < {n}:\n    {t} += {n}  # {t2} {v}\nassert {t} >= {n}, "{t3}"
with open("{t}_{n}.csv") as file:\n    {t2} = [int(line) for line in file]\nprint(max({t2}), len({t2}))
""")
URL = _lines(r"""
https://www.{t}.com/{t2}/{n}?page={n}&sort={v}
http://{t}-{t2}.org/{year}/{t3}_{n}.html#{v}
https://{name}.{t}.net/search?q={t2}+{t3}&n={n}
ftp://files.{t}.edu/{t2}/{year}/{code}.tar.gz
https://api.{t}.io/v{n}/{t2}?{unit}={n}&id={code}
www.{t}{n}.com/{t2}/{t3}/index.php?lang=es&ref={name}
""")
MATHS = _lines(r"""
Let $x_{n} = {n}$ be the number of {unit}. Then $x^2 + {n}x = {n}$ (one {t} per {t2}).
Theorem {n}. If f(x) = {n}x + {n}, then f({n}) > {n} for every {t}.
Proof. Suppose {n} < y < {n}; then y/{n} + {n} <= {n}, so the {t} {v}. Q.E.D.
We write $\frac{{{t}}}{{{t2}}} = {n}/{n}$ and $\sum_{{i=1}}^{{{n}}} i$ for the {unit}.
Exercise {n}: find the {t} x with {n}x - {n} = {n}, in {unit}.
|A| = {n}, |B| = {n} and |A & B| = {n}, where A is each {t} and B each {t2}.
The mean of {n}, {n} and {n} {unit} per {t} is (a + b + c)/3.
""")
SPANISH = _lines(r"""
La {e} de {name} es muy grande y tiene {n} años.
En {year} la {e} y la {e2} estaban en {city}.
¿Dónde está la {e} número {n}? Está cerca de la {e2}.
{name} dice que hay {n} personas con una {e} nueva.
Mañana a las {hour}:{min} vamos a ver la {e} pequeña.
No quiero la {e}, pero quiero la {e2} de {n} euros.
Mi hermana compró una {e} roja por {n} pesos en la calle {word}.
""")
SOCIAL = _lines(r"""
omg the {t} {v} again {emoji}{emoji} #{t2} #{t3}
@{name}_{n} did u see the {t}?? {n}/10 {emoji} lol
{n} likes!! thx all {emoji} best {t} ever :) #{t2}{year}
new {t} @ {city} 2nite {hour}pm {emoji} who's in? http://{t2}.me/{n}
RT @{name}: my {t} {v}... {emoji} #{t3} #{city}
ugh {n} {unit} of {t2} & no {t} {emoji} #fail
""")
FORMAL = _lines(r"""
Pursuant to Section {n}(b) of the {T} Act of {year}, the {t2} shall be {verb} within {n} days.
The Committee hereby notes that the {t} {v} on {day} {month} {year} (see Annex {n}).
Dear Dr. {surname}: We regret to inform you that your {t} of {n} {unit} was not approved.
It is the opinion of this office that each {t} be limited to {n} {unit}; see also {surname} ({year}).
The undersigned agrees to deliver {n} {unit} of {t2} to {city} no later than {month} {day}, {year}.
In accordance with Article {n}, the {t} and the {t2} remain the property of {surname} & {surname}.
""")
CONVERSATION = _lines(r"""
"Hey {name}, how was the {t}?"\n"Not bad, it {v} after {n} minutes."\n"Really? Mine never does."
A: Did you bring the {t}?\nB: No, I thought {name} had it.\nA: OK, we need {n} {unit} of {t2} anyway.
"I can't find the {t}," said {name}. "Try the {t2}," said {name2}, "it's by the {t3}."
Well, you know, the {t} {v} and I was like, {n} {unit}, are you serious?
- Can you call me at {hour}:{min}?\n- Sure. Is it about the {t}?\n- Yes, and the {t2} too.
"{name}!" "What?" "The {t} {v}!" "Again?" "Yes, number {n}!"
""")
KINDS = dict(python=PYTHON, url=URL, maths=MATHS, spanish=SPANISH, social=SOCIAL, formal=FORMAL, conversation=CONVERSATION)


def passage(rng: random.Random, kind: str, topic: str) -> str:
    """One line or block of the given kind of text about the given topic."""
    words = TOPICS[topic]
    t, t2, t3 = rng.sample(words["noun"], 3)
    e, e2 = rng.sample(words["es_noun"], 2)
    template = rng.choice(KINDS[kind]).replace("{{", "\0").replace("}}", "\1")
    text = fill(template, rng, t=t, t2=t2, t3=t3, T=t.capitalize(), e=e, e2=e2, v=rng.choice(words["verb"]),
                emoji=rng.choice(words["emoji"]), unit=words["unit"], name2=SLOTS["name"](rng))  # fmt: skip
    return text.replace("\0", "{").replace("\1", "}")


def seven_kinds(rng: random.Random) -> str:
    """A page of one kind about one topic."""
    kind, topic = rng.choice(list(KINDS)), rng.choice(list(TOPICS))
    gap = "\n\n" if kind == "python" else "\n"
    return gap.join(passage(rng, kind, topic) for _ in range(rng.randint(1, 4)))


# --- thirty vehicles, with facts of size ---

VEHICLES = {  # length in metres, weight in kilograms
    "skateboard": (0.8, 3), "scooter": (1.2, 12), "unicycle": (1, 8), "bicycle": (1.8, 14), "tricycle": (1.6, 20),
    "wheelchair": (1.1, 18), "motorbike": (2.1, 200), "canoe": (5, 30), "kayak": (4, 25), "sled": (1.5, 10),
    "rickshaw": (2.7, 300), "car": (4.4, 1400), "taxi": (4.7, 1500), "van": (5.5, 2200), "jeep": (4.2, 1800),
    "ambulance": (6.5, 4500), "tractor": (5, 5000), "truck": (9, 12000), "bus": (12, 13000), "tram": (30, 40000),
    "tank": (9.8, 60000), "crane": (14, 48000), "train": (200, 400000), "subway": (120, 200000),
    "helicopter": (12, 3000), "glider": (8, 350), "jet": (60, 150000), "yacht": (20, 40000),
    "ferry": (110, 3000000), "submarine": (115, 7000000),
}  # fmt: skip


def size_fact(rng: random.Random) -> str:
    """One true sentence about the size of one vehicle or two."""
    one, two = rng.sample(list(VEHICLES), 2)
    (length, weight), (length2, weight2) = VEHICLES[one], VEHICLES[two]
    longer, heavier = length > length2, weight > weight2
    return rng.choice([
        f"A {one} is about {length:g} metres long.",
        f"The {one} weighs {weight} kilograms.",
        f"A {one} is {'longer' if longer else 'shorter'} than a {two}." if length != length2
        else f"A {one} is as long as a {two}.",
        f"The {one} is {'heavier' if heavier else 'lighter'} than the {two}.",
        f"Which is heavier, a {one} or a {two}? The {one if heavier else two}.",
        f"A {one} is {'small' if length < 3 else 'large' if length > 10 else 'medium'}.",
    ])  # fmt: skip


_EVENTS = """
{name} saw a {colour} {vehicle} near the {noun}.
The {vehicle} stopped at the {noun} in {city}.
"What a {size} {vehicle}!" said {name}.
After {n} minutes the {vehicle} {verb} the {noun}.
{name} got into the {vehicle} and went to {city}.
The {vehicle} was too {size} for the {noun}.
Nobody had {verb} the {vehicle} since {year}.
It was the {ordinal} {vehicle} of the day.
""".strip().splitlines()


def vehicle_story(rng: random.Random) -> str:
    """A few sentences about one vehicle, with facts of size among them."""
    vehicle = rng.choice(list(VEHICLES))
    size = "small" if VEHICLES[vehicle][0] < 3 else "large" if VEHICLES[vehicle][0] > 10 else "medium"
    events = [fill(line, rng, vehicle=vehicle, size=size) for line in rng.sample(_EVENTS, rng.randint(2, 5))]
    facts = [size_fact(rng) for _ in range(rng.randint(1, 3))]
    return " ".join(events + facts) if rng.random() < 0.7 else " ".join(facts + events)


# --- lists in a chat template, short and long ---

LIST_THINGS = {
    "vehicles": list(VEHICLES), "names": FIRST, "cities": CITY, "things": NOUN,
    **{f"{topic} words": words["noun"] for topic, words in TOPICS.items()},
}  # fmt: skip
LIST_LENGTHS = {"short": (3, 4), "long": (10, 14)}
LIST_ENDING = 2  # items after the blank line


def list_request(rng: random.Random, mode: str) -> tuple[str, str]:
    """The user's turn and the opening of the model's, in Gemma's chat template; and what is listed."""
    thing = rng.choice([t for t, items in LIST_THINGS.items() if len(items) >= LIST_LENGTHS[mode][1]])
    ask = rng.choice(["Give me a {mode} list of {thing}.", "Write a {mode} list of {thing}, please.",
                      "List some {thing}. Keep it {mode}.", "I need {thing}: a {mode} list."])  # fmt: skip
    return f"<start_of_turn>user\n{ask.format(mode=mode, thing=thing)}<end_of_turn>\n<start_of_turn>model\n", thing


def chat_list(rng: random.Random) -> str:
    """A request and its list; a blank line stands before the last `LIST_ENDING` items."""
    mode = rng.choice(list(LIST_LENGTHS))
    request, thing = list_request(rng, mode)
    items = [f"- {item}" for item in rng.sample(LIST_THINGS[thing], rng.randint(*LIST_LENGTHS[mode]))]
    items[-LIST_ENDING] = "\n" + items[-LIST_ENDING]
    return request + "\n".join(items) + "<end_of_turn>"


# --- quoting and copying ---

QUOTES = _lines(r"""
{s}\n{s}
{s}\n{s}
{s}\n{s}
{s}\n{s}\n{s}
Copy: {s}\nCopy: {s}
"{s}" she said.\nShe said: "{s}"
> {s}\n> {s}
Repeat after me: {s}\n{s}
echo "{s}"\n{s}
{name} wrote: "{s}" {name} read aloud: "{s}"
Original: {s}\nQuote: "{s}"
<q>{s}</q> <q>{s}</q>
""")
QUOTE_PROBE = "Repeat after me: {s}\n"  # how the model card asks for a copy


def training_sentence(rng: random.Random) -> str:
    """A sentence with numbers from the training split."""
    while True:
        sentence = copy_sentence(rng)
        if prompts.split_of(sentence) == "train":
            return sentence


def _salad(rng: random.Random) -> str:
    """Words, codes and numbers in no order at all: only real copying can repeat them."""
    draw = [lambda: rng.choice(NOUN), lambda: invented_word(rng, rng.choice([1, 2, 3])), lambda: invented_code(rng),
            lambda: str(integer(rng, 5)), lambda: SLOTS["price"](rng), lambda: rng.choice(".,:;!?-()#&/")]  # fmt: skip
    return " ".join(rng.choice(draw)() for _ in range(rng.randint(3, 16)))


def quotation(rng: random.Random) -> str:
    """Something, and the same thing again."""
    source = rng.random()
    if source < 0.55:
        text = training_sentence(rng)
    elif source < 0.85:
        text = _salad(rng)
    else:
        text = passage(rng, rng.choice(list(KINDS)), rng.choice(list(TOPICS)))
    return rng.choice(QUOTES).replace("{s}", text).replace("{name}", rng.choice(FIRST))


def page(rng: random.Random) -> str:
    """Sentences with numbers one after the other: not every line is repeated."""
    return "\n".join(training_sentence(rng) for _ in range(rng.randint(2, 4)))


# --- arithmetic, tags and calls ---

_MORE_PHRASINGS = """
{a} {op} {b}
{a}{op}{b}
What does {a} {op} {b} make?
Find {a} {op} {b}.
Can you tell me what {a} {op} {b} is?
{name} asks: how much is {a} {op} {b}?
Add up or work out: {a} {op} {b}
Question {n}: {a} {op} {b}
Please, {a} {op} {b}?
The teacher wants to know {a} {op} {b}.
On the board: {a} {op} {b}
""".strip().splitlines()
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


def shown(expression: str) -> str:
    """The value of an expression as the corpus writes it: at most two decimals."""
    value = value_of(expression)
    return "undefined" if value is None else f"{float(value):.2f}".rstrip("0").rstrip(".")


def question(rng: random.Random, split: str = "train") -> tuple[str, str]:
    """An arithmetic question in one of many phrasings, and its expression without spaces."""
    a, b = prompts.operands(rng, split)
    op = rng.choice(prompts.OPERATORS)
    context = rng.choice(prompts.CONTEXTS)
    if rng.random() < 0.3:
        return context + fill(rng.choice(_MORE_PHRASINGS), rng, a=a, b=b, op=op), f"{a}{op}{b}"
    return context + rng.choice(prompts.PHRASINGS[op]).format(a=a, b=b, op=op), f"{a}{op}{b}"


def arithmetic(rng: random.Random) -> str:
    """A question, restated as an expression and answered."""
    kind = rng.random()
    if kind < 0.8:
        text, expression = question(rng)
    elif kind < 0.9:  # longer expressions, decimals, negatives
        a, b, c = (rng.choice([integer(rng), f"{integer(rng, 2)}.{rng.randint(1, 9)}"]) for _ in range(3))
        op, op2 = rng.choice(prompts.OPERATORS), rng.choice(prompts.OPERATORS)
        expression = rng.choice([f"{a}{op}{b}{op2}{c}", f"({a}{op}{b}){op2}{c}", f"{a}{op}({b}{op2}{c})", f"-{a}{op}{b}"])
        text = rng.choice(["Evaluate", "Work out", "Simplify", "Find"]) + f" {expression}"
    else:  # numbers as words
        a, b = prompts.operands(rng, "train")
        op, word = rng.choice([("+", "plus"), ("-", "minus"), ("*", "times"), ("/", "over")])
        text, expression = f"{number_words(a)} {word} {number_words(b)}", f"{a}{op}{b}"
    return f"{text}\n{expression} = {shown(expression)}"


_TAGS = _lines(r"""
<{tag}>{noun} {n}</{tag}>
<{tag} id="{n}">{adj} {noun}</{tag}>
<{tag}><{tag2}>{s}</{tag2}></{tag}>
Use the tag <{tag}> for the {noun}: <{tag}>{noun}</{tag}>
The <{tag}> tag is closed by </{tag}>.
{f}({n}, {n})
{f}("{noun}", {n})
{f}_{noun}({n}) returns {n}
Call {f}({word}) and then {f2}({n}).
The tool {f} is called as {f}("{adj} {noun}").
To evaluate it, call {f}_call({n}); to print it, call print({f}).
{name} used a calculator for the {noun}; the call was {f}({n}).
<{tag}>{f}({n}, {n})</{tag}>
Respond with a single call: {f}("{noun}")
Produce one <{tag}> that tells the {f} tool to find the {noun}. <{tag}>{noun}</{tag}>
""")
_TAG_NAMES = (
    "b i u em p a h1 div span note item tool call list code data text title link row cell quote tool_box user_call".split()
)
_FUNCTION_NAMES = """search find open print max min sum get set run send call load tool check count move convert
evaluate compute lookup""".split()


def tags_and_calls(rng: random.Random) -> str:
    """Tags and function calls as text."""
    tag, tag2 = rng.sample(_TAG_NAMES, 2)
    f, f2 = rng.sample(_FUNCTION_NAMES, 2)
    lines = rng.sample(_TAGS, rng.randint(1, 4))
    return "\n".join(fill(line, rng, tag=tag, tag2=tag2, f=f, f2=f2, s=rng.choice(NOUN)) for line in lines)


# --- the mixture ---

WRITERS = {
    "quotation": quotation, "page": page, "arithmetic": arithmetic, "tags": tags_and_calls,
    "seven kinds": seven_kinds, "vehicles": vehicle_story, "lists": chat_list,
}  # fmt: skip
MIX = {  # share of documents
    "quotation": 0.36, "page": 0.05, "arithmetic": 0.22, "tags": 0.08, "seven kinds": 0.14, "vehicles": 0.07, "lists": 0.08,
}  # fmt: skip


def documents(seed: int | str) -> Iterator[Document]:
    """Documents without end; the same seed gives the same stream."""
    rng = random.Random(f"corpus/{seed}")
    kinds, weights = list(MIX), list(MIX.values())
    while True:
        (kind,) = rng.choices(kinds, weights)
        yield Document(kind, WRITERS[kind](rng))
