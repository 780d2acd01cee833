"""What a chat model is asked to write about, so that there is text of its own."""

import itertools
import random

from lib.texts import kinds, lists, vehicles

FORMS = (
    "Write a short story about {a}.",
    "Explain {a} to a child.",
    "Give me a list of ten facts about {a}.",
    "Write an email to a colleague about {a}.",
    "What should one know before buying {a}?",
    "Write a dialogue between two friends about {a}.",
    "Describe {a} in one long paragraph.",
    "What is the difference between {a} and {b}?",
    "Write a news report about {a} and {b}.",
    "Give three reasons for and three against {a}.",
    "Write a poem about {a}.",
    "How does one explain {a} with numbers? Give an example with figures.",
)


def requests(n: int, seed: int) -> list[str]:
    """So many requests, each another one, in a random order."""
    vehicle = [f"a {name}" for name in vehicles.VEHICLES]
    things = [*vehicle, *kinds.TOPICS, *(word for topic in lists.TOPICS.values() for word in topic)]
    rng = random.Random(f"requests/{seed}")
    rng.shuffle(things)
    found = [form.format(a=a, b=b) for (a, b), form in itertools.product(itertools.pairwise(things), FORMS)]
    rng.shuffle(found)
    if n > len(found):
        raise ValueError(f"{n} requests: there are {len(found)} in all; ask for fewer")
    return found[:n]
