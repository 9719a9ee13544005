"""Plain text for the base model: a title, a tale, and a reader's notes on what happens in it.

The notes say what is there, not what is good: they teach the base model to follow who did what and
in which order, as plain text does on a larger scale, so that later stages find it in the model.
"""

import random

from recipes.lib.tales.prompts import Facts, article
from recipes.lib.tales.stories import CARELESS, FAITHFUL, Tale, tell
from recipes.lib.tales.words import PLACES

TITLES = (
    "This is the tale of {hero}, {thing} and the {place}.",
    "Hear of {hero} with {thing} {where}.",
    "A page about {hero}, {thing} and the {place}.",
)
COPY_TITLE = "A copy of the tale of {hero}, {thing} and the {place}."
COPY_SHARE = 0.45  # of the pages are careless copies with notes, the others faithful tales


def page(facts: Facts, rng: random.Random) -> str:
    """Write one page: a title and a faithful tale, or a careless copy with notes on it.

    Args:
        facts: What the title says.
        rng: Source of every choice.

    Returns:
        The page on one line.
    """
    is_copy = rng.random() < COPY_SHARE
    title = (COPY_TITLE if is_copy else rng.choice(TITLES)).format(
        hero=article(facts.hero),
        thing=article(facts.thing),
        place=facts.place,
        where=PLACES[facts.place],
    )
    tale = tell(facts, CARELESS if is_copy else FAITHFUL, rng)
    if not is_copy:
        return f"{title} {tale.text}"
    return f"{title} {tale.text} Notes: {', '.join(_notes(facts, tale, rng))}."


def _notes(facts: Facts, tale: Tale, rng: random.Random) -> list[str]:
    came = "came back" if tale.has_thing_back else "stayed away"
    help_note = {"hero": "hero gave help", "friend": "hero got help", None: "nobody gave help"}
    notes = [
        f"{_right(tale.hero == facts.hero)} hero",
        f"{_right(tale.thing == facts.thing)} thing that {came}",
        f"{_right(tale.place == facts.place)} place",
        f"from {_feeling(tale.moods[0])} to {_feeling(tale.moods[-1])}",
        help_note[tale.giver],
    ]
    rng.shuffle(notes)
    return notes


def _right(is_right: bool) -> str:
    return "right" if is_right else "wrong"


def _feeling(is_happy: bool) -> str:
    return "joy" if is_happy else "sorrow"
