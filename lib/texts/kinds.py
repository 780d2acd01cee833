"""Seven kinds of text, each about any of eight topics, so that syntax and topic can be told apart.

A text belongs to one split, as a sentence to copy does: those of `validation` and `test` are never in the corpus.
The kinds share digits, signs and quotation marks; there are twelve or more templates for each.
"""

import random

from lib.texts.prompts import split_of
from lib.texts.sentences import SLOTS, fill


def lines_of(text: str) -> list[str]:
    """Templates, one a line, in which a written `\\n` is a line break."""
    return [line.replace("\\n", "\n") for line in text.strip().split("\n")]


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

PYTHON = lines_of(r"""
def {t}_{t2}(x, n={n}):\n    # {t} in {unit}\n    for i in range(n):\n        x = x + {n} * i\n    return x
class {T}:\n    def __init__(self, {t2}={n}):\n        self.{t2} = {t2}\n\n    def {v}(self):\n        return self.{t2} / {n}
import {t}\n\n{t2} = [{n}, {n}, {n}]\nprint("{t}: " + str(sum({t2})))  # {unit}
if {t} > {n} and {t2} != "{v}":\n    {t} = {t}_{t2}({n}, {n})\nelse:\n    raise ValueError("{t} {v}")
{t} = {{"{t2}": {n}, "{t3}": {n}}}\nfor key, value in {t}.items():\n    print(f"{{key}} = {{value}} {unit}")
while {t} < {n}:\n    {t} += {n}  # {t2} {v}\nassert {t} >= {n}, "{t3}"
with open("{t}_{n}.csv") as file:\n    {t2} = [int(line) for line in file]\nprint(max({t2}), len({t2}))
@cache\ndef {v}_{t}(n):\n    if n < {n}:\n        return {n}\n    return {v}_{t}(n - {n}) + {n}
try:\n    {t} = load("{t2}_{n}.json")\nexcept KeyError:\n    {t} = None  # no {t3}
{t}s = sorted(({t2}, {n}) for {t2} in {t3}s if {t2} != {n})
lambda {t}, {t2}={n}: {t}["{unit}"] // {t2} - {n}
return {{{t}: len({t2}) for {t}, {t2} in {t3}.items() if {t2} > {n}}}
@dataclass\nclass {T}:\n    {t2}: int = {n}\n    {t3}: str = "{v}"
""")
URL = lines_of(r"""
https://www.{t}.com/{t2}/{n}?page={n}&sort={v}
http://{t}-{t2}.org/{year}/{t3}_{n}.html#{v}
https://{name}.{t}.net/search?q={t2}+{t3}&n={n}
ftp://files.{t}.edu/{t2}/{year}/{code}.tar.gz
https://api.{t}.io/v{n}/{t2}?{unit}={n}&id={code}
www.{t}{n}.com/{t2}/{t3}/index.php?lang=es&ref={name}
https://{t}-{t2}.com/{year}/{month}/{t3}.html?id={n}
https://github.com/{name}/{t}-{t2}/issues/{n}#{v}
http://localhost:{n}/{t}/{t2}?{v}=true&limit={n}
mailto:{name}@{t}.org?subject={t2}%20{n}
https://{t}.{t2}.co.uk/{t3}/{code}?ref={name}&unit={unit}
git@{t}.com:{name}/{t2}_{n}.git
""")
MATHS = lines_of(r"""
Let $x_{n} = {n}$ be the number of {unit}. Then $x^2 + {n}x = {n}$ (one {t} per {t2}).
Theorem {n}. If f(x) = {n}x + {n}, then f({n}) > {n} for every {t}.
Proof. Suppose {n} < y < {n}; then y/{n} + {n} <= {n}, so the {t} {v}. Q.E.D.
We write $\frac{{{t}}}{{{t2}}} = {n}/{n}$ and $\sum_{{i=1}}^{{{n}}} i$ for the {unit}.
Exercise {n}: find the {t} x with {n}x - {n} = {n}, in {unit}.
|A| = {n}, |B| = {n} and |A & B| = {n}, where A is each {t} and B each {t2}.
The mean of {n}, {n} and {n} {unit} per {t} is (a + b + c)/3.
For all x > {n} there is a {t} y < {n} with |x - y| <= {n}/x.
Let G be a {t} of order {n}. If {n} divides |G|, then the {t2} {v}.
$$\int_{{{n}}}^{{{n}}} {n}x^2 dx = {n}$$ gives the {unit} of the {t}.
Define h(n) = n! / {n} for n >= {n} ({unit} in a {t}).
Lemma {n}. No {t} has more than {n} {unit}, since {n} is prime.
It follows that lim x_n = {n}, so each {t} and each {t2} {v} at most {n} times.
""")
SPANISH = lines_of(r"""
La {e} de {name} es muy grande y tiene {n} años.
En {year} la {e} y la {e2} estaban en {city}.
¿Dónde está la {e} número {n}? Está cerca de la {e2}.
{name} dice que hay {n} personas con una {e} nueva.
Mañana a las {hour}:{min} vamos a ver la {e} pequeña.
No quiero la {e}, pero quiero la {e2} de {n} euros.
Mi hermana compró una {e} roja por {n} pesos en la calle {word}.
¿Cuánta {e2} hay en la {e}? Hay {n} kilos, creo.
El {day} de agosto {name} vio una {e} en {city}.
Todos los días la {e} llega a las {hour}:{min}, pero hoy no.
Me gusta mucho la {e} porque no cuesta más de {n} euros.
Según {surname} ({year}), la {e} es más vieja que la {e2}.
Había una vez una {e} de {n} años que vivía en {word}.
""")
SOCIAL = lines_of(r"""
omg the {t} {v} again {emoji}{emoji} #{t2} #{t3}
@{name}_{n} did u see the {t}?? {n}/10 {emoji} lol
{n} likes!! thx all {emoji} best {t} ever :) #{t2}{year}
new {t} @ {city} 2nite {hour}pm {emoji} who's in? http://{t2}.me/{n}
RT @{name}: my {t} {v}... {emoji} #{t3} #{city}
ugh {n} {unit} of {t2} & no {t} {emoji} #fail
{emoji} {t} check: {n}% done!! #{t2}life
pls vote 4 my {t} {emoji}{emoji} only {n} votes so far :(
lol {name} just {verb} the {t} again {emoji} smh
day {n} of no {t}: im fine {emoji} #{t2}challenge
tbh {t} > {t2} {emoji} dont @ me
who else {verb} their {t} @ {hour}am?? {emoji} #{t3}{n}
""")
FORMAL = lines_of(r"""
Pursuant to Section {n}(b) of the {T} Act of {year}, the {t2} shall be {verb} within {n} days.
The Committee hereby notes that the {t} {v} on {day} {month} {year} (see Annex {n}).
Dear Dr. {surname}: We regret to inform you that your {t} of {n} {unit} was not approved.
It is the opinion of this office that each {t} be limited to {n} {unit}; see also {surname} ({year}).
The undersigned agrees to deliver {n} {unit} of {t2} to {city} no later than {month} {day}, {year}.
In accordance with Article {n}, the {t} and the {t2} remain the property of {surname} & {surname}.
Subject to Clause {n}, no {t} may be {verb} without the written consent of {surname} Ltd.
We acknowledge receipt of your letter of {day} {month} {year} concerning the {t}.
The Board resolved, by {n} votes, that the {t} be {verb} and the {t2} be closed.
Notice is given that the annual {t} meeting will take place in {city} on {month} {day}.
Applicants shall submit {n} copies of Form {code} together with the {t2}.
Whereas the {t} {v} in {year}, the parties agree as set out in Schedule {n}.
""")
CONVERSATION = lines_of(r"""
"Hey {name}, how was the {t}?"\n"Not bad, it {v} after {n} minutes."\n"Really? Mine never does."
A: Did you bring the {t}?\nB: No, I thought {name} had it.\nA: OK, we need {n} {unit} of {t2} anyway.
"I can't find the {t}," said {name}. "Try the {t2}," said {name2}, "it's by the {t3}."
Well, you know, the {t} {v} and I was like, {n} {unit}, are you serious?
- Can you call me at {hour}:{min}?\n- Sure. Is it about the {t}?\n- Yes, and the {t2} too.
"{name}!" "What?" "The {t} {v}!" "Again?" "Yes, number {n}!"
"Do you like the {t}?"\n"I do, but I'd rather have the {t2}."\n"Me too, to be honest."
I told {name} about the {t}, and guess what? She just laughed.
Hi, it's me. I'm at the {t}, be there in {n} minutes, OK?
A: What did you do on {weekday}?\nB: Nothing much. The {t} {v}, so I stayed in.
"Sorry, I think that's my {t}."\n"Oh! I thought it was {name}'s."
I'm not sure, I think I left my {t} by the {t2}. Can you have a look?
""")
KINDS = dict(python=PYTHON, url=URL, maths=MATHS, spanish=SPANISH, social=SOCIAL, formal=FORMAL, conversation=CONVERSATION)


def passage(rng: random.Random, kind: str, topic: str, split: str = "train") -> tuple[str, str]:
    """One line or block of the given kind of text about the given topic, of `split`; and its template."""
    words = TOPICS[topic]
    while True:
        t, t2, t3 = rng.sample(words["noun"], 3)
        e, e2 = rng.sample(words["es_noun"], 2)
        template = rng.choice(KINDS[kind])
        given = dict(t=t, t2=t2, t3=t3, T=t.capitalize(), e=e, e2=e2, v=rng.choice(words["verb"]), unit=words["unit"])
        given |= dict(emoji=rng.choice(words["emoji"]), name2=SLOTS["name"](rng))
        text = fill(template.replace("{{", "\0").replace("}}", "\1"), rng, **given)
        text = text.replace("\0", "{").replace("\1", "}")
        if split_of(text) == split:
            return text, template


def texts(kind: str, topic: str, n: int, split: str = "test", seed: int = 0) -> list[tuple[str, str]]:
    """`n` different passages of one kind and topic, each with its template; the first n are the same for any n."""
    rng, found = random.Random(f"{kind}/{topic}/{split}/{seed}"), {}
    while len(found) < n:
        found.setdefault(*passage(rng, kind, topic, split))
    return list(found.items())


def seven_kinds(rng: random.Random) -> str:
    """A page of one kind about one topic."""
    kind, topic = rng.choice(list(KINDS)), rng.choice(list(TOPICS))
    gap = "\n\n" if kind == "python" else "\n"
    return gap.join(passage(rng, kind, topic)[0] for _ in range(rng.randint(1, 4)))
