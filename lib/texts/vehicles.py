"""Thirty vehicles with sizes: facts, comparisons, questions in and out of the chat template, and stories.

Of each two vehicles one is the longer and one the heavier; `bigger` means longer. Comparisons name a pair in
either order and ask for either end. A pair of vehicles belongs to one split, as operands do: those of
`validation` and `test` are never compared in the corpus.
"""

import random

from lib.texts.lists import chat
from lib.texts.prompts import split_of
from lib.texts.sentences import fill

VEHICLES = {  # length in metres, weight in kilograms; no two are alike in either
    "skateboard": (0.8, 3), "scooter": (1.2, 12), "unicycle": (1, 8), "bicycle": (1.8, 14), "tricycle": (1.6, 20),
    "wheelchair": (1.1, 18), "motorbike": (2.1, 200), "canoe": (5, 30), "kayak": (4, 25), "sled": (1.5, 10),
    "rickshaw": (2.7, 300), "car": (4.4, 1400), "taxi": (4.7, 1500), "van": (5.5, 2200), "jeep": (4.2, 1800),
    "ambulance": (6.5, 4500), "tractor": (5.2, 5000), "truck": (9, 12000), "bus": (12, 13000), "tram": (30, 40000),
    "tank": (9.8, 60000), "crane": (14, 48000), "train": (200, 400000), "subway": (120, 200000),
    "helicopter": (13, 3000), "glider": (8, 350), "jet": (60, 150000), "yacht": (20, 45000),
    "ferry": (110, 3000000), "submarine": (115, 7000000),
}  # fmt: skip
# what a comparison asks for: which of the two sizes, and whether its greater end
COMPARED = {"bigger": (0, True), "smaller": (0, False), "longer": (0, True), "shorter": (0, False),
            "heavier": (1, True), "lighter": (1, False)}  # fmt: skip


def pair_split(one: str, two: str) -> str:
    """The split of a pair of vehicles, in either order."""
    return split_of(",".join(sorted((one, two))))


def pair_of(rng: random.Random, split: str) -> tuple[str, str]:
    """Two vehicles, in chance order, whose pair belongs to `split`."""
    while True:
        one, two = rng.sample(list(VEHICLES), 2)
        if pair_split(one, two) == split:
            return one, two


def more(one: str, two: str, adjective: str) -> str:
    """Which of two vehicles is the bigger, the smaller, ..."""
    size, greater = COMPARED[adjective]
    return one if (VEHICLES[one][size] > VEHICLES[two][size]) == greater else two


def a(vehicle: str) -> str:
    return f"{'an' if vehicle == 'ambulance' else 'a'} {vehicle}"


def size_question(rng: random.Random, split: str = "train", adjective: str | None = None) -> tuple[str, str, tuple[str, str]]:
    """A question which of two vehicles is the bigger, smaller, ...; the one it is; and both, in the order named."""
    one, two = pair_of(rng, split)
    adjective = adjective or rng.choice(list(COMPARED))
    return f"Which is {adjective}, {a(one)} or {a(two)}?", more(one, two, adjective), (one, two)


def size_fact(rng: random.Random) -> str:
    """One true sentence about the size of one vehicle or two, or a question and its answer."""
    kind = rng.random()
    if kind < 0.25:
        one = rng.choice(list(VEHICLES))
        length, weight = VEHICLES[one]
        size = "small" if length < 3 else "large" if length > 10 else "medium"
        return rng.choice([f"{a(one).capitalize()} is about {length:g} metres long.", f"The {one} weighs {weight} kilograms.",
                           f"{a(one).capitalize()} is {size}."])  # fmt: skip
    if kind < 0.5:
        one, two = pair_of(rng, "train")
        adjective = rng.choice(list(COMPARED))
        first = more(one, two, adjective)
        second = two if first == one else one
        return rng.choice(
            [f"{a(first).capitalize()} is {adjective} than {a(second)}.", f"The {first} is {adjective} than the {second}."]
        )
    asked, answer, _ = size_question(rng)
    return f"{asked} The {answer}."


def size_chat(rng: random.Random) -> str:
    """Such a question in the chat template."""
    asked, answer, _ = size_question(rng)
    return chat(asked) + f"The {answer}.<end_of_turn>"


_EVENTS = """
{name} saw a {colour} {vehicle} near the {noun}.
The {vehicle} stopped at the {noun} in {city}.
"What a {size} {vehicle}!" said {name}.
After {n} minutes the {vehicle} {verb} the {noun}.
{name} got into the {vehicle} and went to {city}.
The {vehicle} was too {size} for the {noun}.
Nobody had {verb} the {vehicle} since {year}.
It was the {ordinal} {vehicle} of the day.
The {vehicle} of {name} is {colour} and {adj}.
{name} and {name} waited for the {vehicle} until {hour}:{min}.
In {city} {a_vehicle} costs {price} a day.
""".strip().splitlines()
_OPENINGS = """
{name} had never seen {a_vehicle} before.
The {vehicle} was late again.
There was {a_vehicle} in front of the {noun}.
Every {weekday} {name} took the {vehicle}.
The old {vehicle} would not start.
{name} dreamed of {a_vehicle}.
""".strip().splitlines()


SENTENCES = """
There is {a_vehicle} at the end of our street.
My uncle sold his {vehicle} in May.
The {vehicle} made a loud noise all morning.
Who left the {vehicle} in the rain?
We painted the {vehicle} dark green.
Nothing is as quiet as {a_vehicle} at night.
The museum has {a_vehicle} from the last century.
A man with a red hat stood beside the {vehicle}.
You need a ticket for the {vehicle}.
It took three people to push the {vehicle}.
The children drew {a_vehicle} on the wall.
Is that {a_vehicle} or only a toy?
The wheels were not the problem, the {vehicle} was too heavy.
Her first {vehicle} was made of wood.
They waited an hour for the {vehicle} to come back.
The {vehicle} turned left and was gone.
I would rather have {a_vehicle} than a boat of gold.
Please do not touch the {vehicle}.
The price of {a_vehicle} went up again.
Between the two houses stood {a_vehicle}.
He wrote a book about the {vehicle}.
The old {vehicle} still works.
Everyone looked at the {vehicle}.
She sat in the {vehicle} and read.
""".strip().splitlines()
"""Each can be said of any vehicle, and of many another thing."""


def sentence(template: str, name: str) -> str:
    """One of `SENTENCES` about a vehicle, or about a thing of another name."""
    article = "an" if name[0] in "aeiou" else "a"
    return template.format(vehicle=name, a_vehicle=f"{article} {name}")


def events(rng: random.Random, vehicle: str, n: int) -> list[str]:
    """Sentences of a story about one vehicle."""
    length = VEHICLES[vehicle][0]
    size = "small" if length < 3 else "large" if length > 10 else "medium"
    return [fill(line, rng, vehicle=vehicle, a_vehicle=a(vehicle), size=size) for line in rng.sample(_EVENTS, n)]


OPENINGS = len(_OPENINGS) + len(SENTENCES)
"""Kinds of first sentences: those that the corpus has, and `SENTENCES`, which no story of it begins with."""


def opening(rng: random.Random, vehicle: str, kind: int) -> str:
    """A first sentence of a story."""
    if kind < len(_OPENINGS):
        return opened(rng, vehicle, _OPENINGS[kind])
    return sentence(SENTENCES[kind - len(_OPENINGS)], vehicle)


def opened(rng: random.Random, vehicle: str, template: str) -> str:
    return fill(template, rng, vehicle=vehicle, a_vehicle=a(vehicle))


def story_request(rng: random.Random, vehicle: str) -> tuple[str, str]:
    """A story asked for in the chat template, and the sentence that it is to begin with."""
    opening = opened(rng, vehicle, rng.choice(_OPENINGS))
    return chat(f"Write a short story that begins with: {opening}"), opening


def vehicle_text(rng: random.Random) -> str:
    """A story with facts of size, some questions, or either in the chat template."""
    kind, vehicle = rng.random(), rng.choice(list(VEHICLES))
    if kind < 0.3:
        told, facts = events(rng, vehicle, rng.randint(2, 5)), [size_fact(rng) for _ in range(rng.randint(1, 3))]
        return " ".join(told + facts) if rng.random() < 0.7 else " ".join(facts + told)
    if kind < 0.6:
        return " ".join(size_fact(rng) for _ in range(rng.randint(2, 6)))
    if kind < 0.8:
        return size_chat(rng)
    request, opening = story_request(rng, vehicle)
    return request + " ".join([opening, *events(rng, vehicle, rng.randint(2, 4))]) + "<end_of_turn>"
