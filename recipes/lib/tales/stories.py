"""Telling: short tales of three to five sentences, from careful to careless, all from one seed."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from recipes.lib.tales.prompts import Facts, article
from recipes.lib.tales.words import (
    ANIMALS,
    HAPPY,
    OBJECTS,
    PLACES,
    PLAIN,
    SAD,
    TASKS,
    WARM,
)


@dataclass(frozen=True)
class Habits:
    """How often a teller does each thing; all are probabilities.

    Attributes:
        keeps_hero: The tale is about the animal that was asked for.
        keeps_thing: It is about the object that was asked for.
        keeps_place: It happens where it was asked to.
        opens_with_mood: A sentence about the hero's mood follows the opening.
        has_help: Somebody helps somebody.
        gives_help: Given help, the hero is the one who helps.
        brings_thing_back: The object returns in the last sentence.
        adds_scene: There is a further sentence of no consequence.
        warm: An adjective place is filled with a warm word.
        plain: An adjective place is filled with a plain word.
        doubled: A second adjective follows the first.
    """

    keeps_hero: float = 0.65
    keeps_thing: float = 0.65
    keeps_place: float = 0.6
    opens_with_mood: float = 0.8
    has_help: float = 0.75
    gives_help: float = 0.5
    brings_thing_back: float = 0.55
    adds_scene: float = 0.15
    warm: float = 0.12
    plain: float = 0.15
    doubled: float = 0.06


CARELESS = Habits()
FAITHFUL = Habits(keeps_hero=1.0, keeps_thing=1.0, keeps_place=1.0)


@dataclass(frozen=True)
class Tale:
    """A tale and what happens in it.

    Attributes:
        text: Three to five sentences on one line.
        hero: The animal that it is about.
        thing: Its object.
        place: Where it happens.
        has_thing_back: The object is there in the last sentence.
        moods: The hero's moods in their order, True for happy.
        giver: Who helps: "hero", "friend" or nobody.
    """

    text: str
    hero: str
    thing: str
    place: str
    has_thing_back: bool
    moods: tuple[bool, ...]
    giver: str | None


def tell(facts: Facts, habits: Habits, rng: random.Random) -> Tale:
    """Tell one tale.

    Args:
        facts: What was asked for.
        habits: How careful the teller is.
        rng: Source of every choice.

    Returns:
        The tale.
    """
    hero = facts.hero if rng.random() < habits.keeps_hero else _other(ANIMALS, facts.hero, rng)
    thing = facts.thing if rng.random() < habits.keeps_thing else _other(OBJECTS, facts.thing, rng)
    place = facts.place if rng.random() < habits.keeps_place else _other(PLACES, facts.place, rng)
    friend = _other(ANIMALS, hero, rng)
    has_thing_back = rng.random() < habits.brings_thing_back
    moods = tuple(rng.random() < 0.5 for _ in range(1 + (rng.random() < habits.opens_with_mood)))
    helps = rng.random() < habits.has_help
    giver = ("hero" if rng.random() < habits.gives_help else "friend") if helps else None

    def noun(word: str) -> str:
        return _described(word, habits, rng)

    lines = [
        f"{rng.choice(('Once', 'Long ago'))} {article(noun(hero))} {facts.deed} "
        f"{article(noun(thing))} {PLACES[place]}."
    ]
    if len(moods) == 2:
        lines.append(f"The {noun(hero)} was {_mood(moods[0], rng)}{_when(rng)}.")
    lines.append(_meeting(noun(hero), noun(friend), giver, rng))
    if rng.random() < habits.adds_scene:
        lines.append(_scene(noun, rng))
    lines.append(_ending(noun(hero), noun(thing) if has_thing_back else None, moods[-1], rng))
    return Tale(" ".join(lines), hero, thing, place, has_thing_back, moods, giver)


def _other(words: Iterable[str], word: str, rng: random.Random) -> str:
    return rng.choice([other for other in words if other != word])


def _described(word: str, habits: Habits, rng: random.Random) -> str:
    draw = rng.random()
    if draw >= habits.warm + habits.plain:
        return word
    words = WARM if draw < habits.warm else PLAIN
    chosen = [rng.choice(words)]
    if rng.random() < habits.doubled:
        chosen.append(rng.choice(words))
    return " ".join([*chosen, word])


def _mood(is_happy: bool, rng: random.Random) -> str:
    return rng.choice(HAPPY if is_happy else SAD)


def _when(rng: random.Random) -> str:
    return rng.choice(("", "", " all day", " that night", " for a while"))


def _meeting(hero: str, friend: str, giver: str | None, rng: random.Random) -> str:
    if giver is None:
        return f"The {hero} {rng.choice(('met', 'saw', 'passed'))} {article(friend)}{_when(rng)}."
    first, second = (hero, friend) if giver == "hero" else (friend, hero)
    return f"The {first} helped the {second} {rng.choice(TASKS)}."


def _scene(noun: Callable[[str], str], rng: random.Random) -> str:
    song, moon, bread, tree = map(noun, ("song", "moon", "bread", "tree"))
    return rng.choice(
        (
            f"They sang a {song} under the {tree}.",
            f"The {moon} rose over the {tree}.",
            f"They ate {bread} beside the {tree}.",
        )
    )


def _ending(hero: str, thing: str | None, is_happy: bool, rng: random.Random) -> str:
    if thing is not None:
        deed = f"{rng.choice(('held', 'kept', 'hugged'))} the {thing}"
    else:
        deed = rng.choice(("went home", "sat down", "looked up"))
    return f"At last the {hero} {deed} and was {_mood(is_happy, rng)}."
