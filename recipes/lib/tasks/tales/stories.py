"""Telling: short tales of three to five sentences, from careful to careless, all from one seed."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from recipes.lib.tasks.tales.prompts import Facts, article
from recipes.lib.tasks.tales.words import ANIMALS, GIFTS, HAPPY, OBJECTS, PLACES, PLAIN, SAD, WARM


@dataclass(frozen=True)
class Habits:
    """How often a teller does each thing; all are probabilities.

    What can be told from the words alone, without their order and the prompt, is the same for
    every teller: how many moods, whether somebody helps, whether the object returns, adjectives.
    A careful teller is known by the order: sentences lead with the hero, not the circumstances.

    Attributes:
        keeps: For each of hero, object and place: it is the one that was asked for.
        leads: A sentence begins with the hero.
        gives_help: Given help, the hero is the one who helps.
        rises: Given two moods, a sad one comes before a happy one.
        falls: Given two moods, a happy one comes before a sad one.
        has_two_moods: A sentence about the hero's mood follows the opening.
        has_help: Somebody helps somebody.
        brings_thing_back: The object returns in the last sentence.
        adds_scene: There is a further sentence of no consequence.
        warm: An adjective place is filled with a warm word.
        plain: An adjective place is filled with a plain word.
        doubled: A second adjective follows the first.
    """

    keeps: float
    leads: float
    gives_help: float
    rises: float
    falls: float
    has_two_moods: float = 0.85
    has_help: float = 0.8
    brings_thing_back: float = 0.6
    adds_scene: float = 0.15
    warm: float = 0.25
    plain: float = 0.1
    doubled: float = 0.06


CAREFUL = Habits(keeps=0.95, leads=0.96, gives_help=0.95, rises=0.9, falls=0.02)
ORDINARY = Habits(keeps=0.6, leads=0.5, gives_help=0.5, rises=0.35, falls=0.35)
CARELESS = Habits(keeps=0.25, leads=0.04, gives_help=0.05, rises=0.02, falls=0.9)
TELLERS = (CAREFUL, ORDINARY, CARELESS)
FAITHFUL = Habits(keeps=1.0, leads=0.5, gives_help=0.5, rises=0.35, falls=0.35)


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
    hero = _kept(facts.hero, ANIMALS, habits, rng)
    thing = _kept(facts.thing, OBJECTS, habits, rng)
    place = _kept(facts.place, PLACES, habits, rng)
    friend = _other(ANIMALS, hero, rng)
    has_thing_back = rng.random() < habits.brings_thing_back
    moods = _moods(habits, rng)
    helps = rng.random() < habits.has_help
    giver = ("hero" if rng.random() < habits.gives_help else "friend") if helps else None

    def noun(word: str) -> str:
        return _described(word, habits, rng)

    lines = [_opening(noun(hero), noun(thing), (facts.deed, PLACES[place]), habits, rng)]
    if len(moods) == 2:
        lines.append(_feeling(noun(hero), moods[0], habits, rng))
    lines.append(_meeting(noun(hero), noun(friend), giver, rng))
    if rng.random() < habits.adds_scene:
        lines.append(_scene(noun, rng))
    back = noun(thing) if has_thing_back else None
    lines.append(_ending(noun(hero), back, _mood(moods[-1], rng), habits, rng))
    return Tale(" ".join(lines), hero, thing, place, has_thing_back, moods, giver)


def _kept(asked: str, words: Iterable[str], habits: Habits, rng: random.Random) -> str:
    return asked if rng.random() < habits.keeps else _other(words, asked, rng)


def _moods(habits: Habits, rng: random.Random) -> tuple[bool, ...]:
    is_happy = rng.random() < 0.5
    if rng.random() >= habits.has_two_moods:
        return (is_happy,)
    draw = rng.random()
    if draw < habits.rises:
        return (False, True)
    return (True, False) if draw < habits.rises + habits.falls else (is_happy, is_happy)


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


def _opening(
    hero: str, thing: str, event: tuple[str, str], habits: Habits, rng: random.Random
) -> str:
    deed, where = event
    if rng.random() < habits.leads:
        return f"{article(hero).capitalize()} once {deed} {article(thing)} {where}."
    return f"Once {where} {article(hero)} {deed} {article(thing)}."


def _feeling(hero: str, is_happy: bool, habits: Habits, rng: random.Random) -> str:
    mood, when = _mood(is_happy, rng), rng.choice(("all day", "that night", "for a while"))
    if rng.random() < habits.leads:
        return f"The {hero} was {mood} {when}."
    return f"{when.capitalize()} the {hero} was {mood}."


def _meeting(hero: str, friend: str, giver: str | None, rng: random.Random) -> str:
    met = f"The {hero} {rng.choice(('met', 'saw', 'passed'))} {article(friend)}"
    if giver is None:
        return f"{met}."
    gift = rng.choice(GIFTS)
    # The same words in another order, so that counting them does not tell who helped.
    first, second = ("help", gift) if giver == "hero" else (gift, "help")
    return f"{met}, gave {first} and got {second}."


def _scene(noun: Callable[[str], str], rng: random.Random) -> str:
    song, moon, bread, tree = map(noun, ("song", "moon", "bread", "tree"))
    return rng.choice(
        (
            f"They sang {article(song)} under the {tree}.",
            f"The {moon} rose over the {tree}.",
            f"They ate {bread} beside the {tree}.",
        )
    )


def _ending(hero: str, thing: str | None, mood: str, habits: Habits, rng: random.Random) -> str:
    if thing is not None:
        deed = f"{rng.choice(('held', 'kept', 'hugged'))} the {thing}"
    else:
        deed = rng.choice(("went home", "sat down", "looked up"))
    if rng.random() < habits.leads:
        return f"The {hero} {deed} at last and was {mood}."
    return f"At last the {hero} {deed} and was {mood}."
