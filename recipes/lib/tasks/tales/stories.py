"""Telling: short tales of three to five sentences, some as asked and some not, from one seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recipes.lib.tasks.tales.prompts import Facts, article
from recipes.lib.tasks.tales.words import (
    ANIMALS,
    DEEDS,
    GIFTS,
    HAPPY,
    OBJECTS,
    PLACES,
    PLAIN,
    SAD,
    WARM,
)

AS_ASKED, NOT_AS_ASKED = "indeed", "instead"


@dataclass(frozen=True)
class Habits:
    """How often a teller does each thing; all are probabilities, each drawn by itself.

    None of it can be told from the words alone, without their order and the prompt, nor from
    another habit, so that each has to be learned.

    Attributes:
        keeps: For each of hero, deed, object and place: it is the one that was asked for.
        leads: A sentence begins with the hero, not with the circumstances.
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
        marks: A fact of the opening is followed by a word on whether it is as asked.
    """

    keeps: float = 0.7
    leads: float = 0.5
    gives_help: float = 0.5
    rises: float = 0.35
    falls: float = 0.35
    has_two_moods: float = 0.85
    has_help: float = 0.8
    brings_thing_back: float = 0.6
    adds_scene: float = 0.15
    warm: float = 0.25
    plain: float = 0.1
    doubled: float = 0.06
    marks: float = 0.0


TELLER = Habits()


@dataclass(frozen=True)
class Tale:
    """A tale and what happens in it.

    Attributes:
        text: Three to five sentences on one line.
        hero: The animal that it is about.
        deed: What it did.
        thing: Its object.
        place: Where it happens.
        has_thing_back: The object is there in the last sentence.
        moods: The hero's moods in their order, True for happy.
        giver: Who helps: "hero", "friend" or nobody.
    """

    text: str
    hero: str
    deed: str
    thing: str
    place: str
    has_thing_back: bool
    moods: tuple[bool, ...]
    giver: str | None


def tell(facts: Facts, habits: Habits, rng: random.Random, num_words: int | None = None) -> Tale:
    """Tell one tale.

    Args:
        facts: What was asked for.
        habits: How often the teller does what.
        rng: Source of every choice.
        num_words: How many words of each kind can come instead of what was asked; all by default.

    Returns:
        The tale.
    """
    hero = _kept(facts.hero, ANIMALS[:num_words], habits, rng)
    deed = _kept(facts.deed, DEEDS[:num_words], habits, rng)
    thing = _kept(facts.thing, OBJECTS[:num_words], habits, rng)
    place = _kept(facts.place, PLACES[:num_words], habits, rng)
    friend = _other(ANIMALS, hero, rng)
    has_thing_back = rng.random() < habits.brings_thing_back
    moods = _moods(habits, rng)
    helps = rng.random() < habits.has_help
    giver = ("hero" if rng.random() < habits.gives_help else "friend") if helps else None

    def noun(word: str) -> str:
        return _described(word, habits, rng)

    def fact(words: str, told: str, asked: str) -> str:
        if rng.random() >= habits.marks:
            return words
        return f"{words} {AS_ASKED if told == asked else NOT_AS_ASKED}"

    lines = [
        _opening(
            fact(noun(hero), hero, facts.hero),
            fact(deed, deed, facts.deed),
            fact(noun(thing), thing, facts.thing),
            fact(f"near the {place}", place, facts.place),
            is_led=rng.random() < habits.leads,
        )
    ]
    if len(moods) == 2:
        lines.append(_feeling(noun(hero), moods[0], habits, rng))
    lines.append(_meeting(noun(hero), noun(friend), giver, rng))
    if rng.random() < habits.adds_scene:
        lines.append(_scene(noun, rng))
    back = noun(thing) if has_thing_back else None
    lines.append(_ending(noun(hero), back, _mood(moods[-1], rng), habits, rng))
    return Tale(" ".join(lines), hero, deed, thing, place, has_thing_back, moods, giver)


def _kept(asked: str, words: Sequence[str], habits: Habits, rng: random.Random) -> str:
    return asked if rng.random() < habits.keeps else _other(words, asked, rng)


def _moods(habits: Habits, rng: random.Random) -> tuple[bool, ...]:
    is_happy = rng.random() < 0.5
    if rng.random() >= habits.has_two_moods:
        return (is_happy,)
    draw = rng.random()
    if draw < habits.rises:
        return (False, True)
    return (True, False) if draw < habits.rises + habits.falls else (is_happy, is_happy)


def _other(words: Sequence[str], word: str, rng: random.Random) -> str:
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


def _opening(hero: str, deed: str, thing: str, where: str, is_led: bool) -> str:
    if is_led:
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
