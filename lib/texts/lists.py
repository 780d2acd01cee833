"""Lists in Gemma's chat template, as asked for in three ways: short, long, or neither (plain).

How long a list becomes is drawn, not counted: from its second item on it may end at any, sooner in some topics
than in others. An item may end in a blank, a space that says nothing, the more often the nearer it stands to the
end: `BLANKS` are the shares that 115 short lists of Gemma-2-2B-it had (the study of list endings that the book
follows; gboxo/GemmaExploration, commit 220e860, short template at temperature 0.8, lists that ended). Long ones
have hardly any; of plain ones no such figure is known, and theirs are set half-way.

`HELD_OUT` topics are never listed in the corpus. What belongs to a topic is also said in sentences, of these too.
"""

import random
import re

from lib.texts.sentences import CITY, FIRST

_WORDS = {
    "animals": """cat dog cow pig goat sheep horse lion tiger bear wolf fox deer rabbit mouse rat bat seal whale camel
zebra monkey otter beaver badger donkey mule moose bison panda koala lynx hyena weasel mole hamster""",
    "birds": """robin crow owl hawk eagle duck goose swan hen dove pigeon sparrow finch heron stork gull tern raven parrot
falcon lark wren thrush kite crane puffin pelican penguin turkey quail magpie jay swift swallow vulture ostrich""",
    "fruits": """apple pear plum peach cherry grape lemon lime orange mango melon fig date kiwi banana papaya guava apricot
berry quince olive coconut lychee currant damson nectarine pineapple tangerine pomelo raisin prune cranberry""",
    "vegetables": """carrot potato onion garlic leek bean pea lentil cabbage spinach lettuce celery turnip radish beet corn
pepper tomato pumpkin squash cucumber kale chard fennel parsnip artichoke asparagus broccoli yam okra sorrel shallot""",
    "trees": """oak elm ash pine fir cedar birch maple beech willow poplar spruce larch yew holly alder aspen walnut chestnut
hazel rowan linden palm cypress juniper laurel acacia ebony teak mahogany eucalyptus sycamore hornbeam baobab""",
    "flowers": """rose tulip lily daisy violet iris orchid poppy pansy lotus peony aster dahlia lilac jasmine lavender crocus
daffodil marigold carnation primrose snowdrop bluebell buttercup hyacinth magnolia camellia begonia petunia foxglove""",
    "countries": """France Spain Italy Greece Norway Sweden Finland Denmark Poland Austria Hungary Ireland Iceland Portugal
Turkey Egypt Kenya Ghana Chad Mali India China Japan Nepal Laos Peru Chile Brazil Cuba Mexico Canada Fiji Malta Yemen""",
    "languages": """French Spanish Italian Greek Norse Swedish Finnish Danish Polish German Dutch English Irish Welsh Latin
Turkish Arabic Hebrew Hindi Urdu Tamil Bengali Chinese Japanese Korean Thai Malay Maori Swahili Zulu Czech Russian Basque""",
    "sports": """tennis golf rugby hockey football cricket rowing sailing skiing skating boxing fencing judo karate cycling
running swimming diving surfing archery chess darts polo squash bowling climbing riding curling baseball handball""",
    "clothes": """shirt coat hat sock shoe boot scarf glove dress skirt belt tie jacket jumper vest cap cloak robe gown apron
sandal slipper trousers shorts blouse cardigan hood mitten shawl suit sweater tunic pyjamas uniform veil""",
    "jobs": """baker cook farmer nurse doctor teacher driver pilot sailor soldier lawyer judge clerk plumber painter tailor
miner mason smith butcher barber actor singer dancer writer poet editor banker grocer waiter guard porter surgeon""",
    "tools": """hammer saw drill axe spade rake hoe file nail screw wrench pliers chisel plane level ladder brush knife shovel
clamp anvil bolt hook rope tape ruler needle scissors tongs crowbar mallet sickle trowel pump""",
    "instruments": """piano violin guitar drum flute harp horn trumpet tuba cello viola oboe clarinet bassoon banjo lute organ
bell gong lyre fiddle trombone mandolin recorder whistle bagpipe accordion harmonica ukulele sitar zither bugle""",
    "furniture": """chair table desk bed sofa stool bench shelf lamp rug couch dresser wardrobe cupboard cabinet mirror cradle
crib hammock drawer bookcase armchair footstool screen chest sideboard rack trunk curtain cushion mattress""",
    "colours": """red blue green white black yellow brown grey pink purple silver golden orange violet cream beige navy teal
scarlet crimson amber ivory olive maroon indigo turquoise lilac magenta khaki rust ruby emerald""",
    "fish": """cod trout salmon tuna carp eel pike perch herring sardine shark ray sole plaice haddock halibut mackerel bass
bream catfish anchovy sturgeon turbot minnow roach tench barbel mullet swordfish piranha""",
}  # fmt: skip
TOPICS = {topic: words.split() for topic, words in _WORDS.items()} | {"names": FIRST, "cities": CITY}
HELD_OUT = ("birds", "vegetables", "jobs", "instruments")

MEAN_ITEMS = {"short": 5, "plain": 10, "long": 30}  # as the study of list endings gives them; few topics have so many words
SPREAD = 0.2  # of a topic's mean, as the standard deviation of its logarithm
_SHORT = (0.93, 0.42, 0.31, 0.31, 0.30, 0.30, 0.09, 0.04, 0.01, 0.03)  # by distance from the end
BLANKS = {"short": _SHORT, "plain": tuple(round(p / 2, 3) for p in _SHORT), "long": (0.03,)}

_ASK = [
    "Give me a {mode}list of {topic}.",
    "Write a {mode}list of {topic}, please.",
    "I need a {mode}list of {topic}. Only the names.",
    "Make a {mode}list of {topic}.",
    "Can you write a {mode}list of {topic}?",
    "A {mode}list of {topic}, one on each line.",
]


def topics_of(split: str) -> list[str]:
    """The topics that the corpus lists (`train`), or those that it never does (`test`)."""
    return [topic for topic in TOPICS if (topic in HELD_OUT) == (split == "test")]


def mean_items(mode: str, topic: str) -> float:
    """How many items a list has in the mean before it is cut to its topic's words: a fixed draw for each topic."""
    return MEAN_ITEMS[mode] * random.Random(f"length/{topic}").lognormvariate(0, SPREAD)


def n_items(rng: random.Random, mode: str, topic: str) -> int:
    """Two, and a negative binomial draw: after each further item the list goes on or, at the third "no", ends.

    Drawn again where the topic has fewer words.
    """
    more = mean_items(mode, topic) - 2
    while True:
        n, noes = 2, 0
        while noes < 3:
            goes_on = rng.random() < more / (more + 3)
            n, noes = (n + 1, noes) if goes_on else (n, noes + 1)
        if n <= len(TOPICS[topic]):
            return n


def list_request(rng: random.Random, mode: str, split: str = "train") -> tuple[str, str]:
    """The user's turn and the opening of the model's; and the topic."""
    topic = rng.choice(topics_of(split))
    word = "" if mode == "plain" else f"{mode} "
    return chat(rng.choice(_ASK).format(mode=word, topic=topic)), topic


def chat(user: str) -> str:
    """A user's turn and the opening of the model's, in Gemma's chat template."""
    return f"<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n"


def written(rng: random.Random, mode: str, topic: str) -> list[str]:
    """The items of a list, some with a blank at their end."""
    items = rng.sample(TOPICS[topic], n := n_items(rng, mode, topic))
    shares = BLANKS[mode]
    found = []
    for i, item in enumerate(items):
        from_end = n - 1 - i
        blank = rng.random() < (shares[from_end] if from_end < len(shares) else 0)
        found.append(f"{item}{' ' if blank else ''}")
    return found


def chat_list(rng: random.Random) -> str:
    """A request and its list."""
    mode = rng.choice(list(MEAN_ITEMS))
    request, topic = list_request(rng, mode)
    return request + "\n".join(f"- {item}" for item in written(rng, mode, topic)) + "<end_of_turn>"


def ended(text: str) -> bool:
    """Whether a list that was written came to its end."""
    return "<end_of_turn>" in text


def items(text: str) -> list[str]:
    """The lines of a list up to its end that open with a hyphen, without it; a blank at the end of one is kept."""
    return re.findall(r"^- (.*)$", text.partition("<end_of_turn>")[0], re.MULTILINE)


def membership(rng: random.Random) -> str:
    """Sentences that say what belongs to a topic, be it one that is never listed."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        topic = rng.choice(list(TOPICS))
        a, b, c = rng.sample(TOPICS[topic], 3)
        lines.append(rng.choice([f"Among {topic} are {a} and {b}.", f"Of all {topic}, {a} is what {rng.choice(FIRST)} knows.",
                                 f"{a} is one of the {topic}.", f"We spoke of {topic}: {a}, {b}, {c}."]))  # fmt: skip
    return "\n".join(lines)


def lists(rng: random.Random) -> str:
    """A list, or now and then sentences about what could be listed."""
    return chat_list(rng) if rng.random() < 0.8 else membership(rng)
