"""What a tale is asked to be about, how it is asked, and which stage may see it."""

import random
import zlib
from dataclasses import dataclass
from itertools import product

from recipes.lib.tasks.tales.words import ANIMALS, DEEDS, OBJECTS, PLACES

REQUESTS = (
    "Tell me a tale about {hero} who {deed} {thing} near the {place}.",
    "Please tell a tale of {hero} who {deed} {thing} near the {place}.",
    "I want a tale in which {hero} {deed} {thing} near the {place}.",
    "Can you tell how {hero} {deed} {thing} near the {place}?",
)
# Shares of a hundred, upper bounds: every set of facts belongs to one stage and to no other.
SPLITS = {"base": 35, "sft_train": 50, "sft_test": 54, "feedback": 75, "ppo": 92, "eval": 100}


FACTS = ("hero", "deed", "thing", "place")


@dataclass(frozen=True)
class Facts:
    """What a prompt promises: the hero, what happened to which object, and where."""

    hero: str
    deed: str
    thing: str
    place: str


def split_of(facts: Facts) -> str:
    """Name the one stage that may see these facts."""
    text = f"{facts.hero} {facts.deed} {facts.thing} {facts.place}"
    share = zlib.crc32(text.encode()) % 100
    return next(name for name, bound in SPLITS.items() if share < bound)


def facts_of(split: str, num_words: int | None = None) -> list[Facts]:
    """All facts that one split may see, of the first words of each kind or of all."""
    words = (kind[:num_words] for kind in (ANIMALS, DEEDS, OBJECTS, PLACES))
    every = (Facts(*values) for values in product(*words))
    return [facts for facts in every if split_of(facts) == split]


def draw_facts(split: str, number: int, seed: int) -> list[Facts]:
    """Draw distinct facts of one split, without replacement."""
    return random.Random(seed).sample(facts_of(split), number)


def article(noun: str) -> str:
    """Put "a" or "an" before a word."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def request(facts: Facts, rng: random.Random) -> str:
    """Ask for a tale with these facts, in one of a few wordings."""
    return rng.choice(REQUESTS).format(
        hero=article(facts.hero),
        deed=facts.deed,
        thing=article(facts.thing),
        place=facts.place,
    )
