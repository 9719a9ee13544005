"""Plain text for the base model: pages of a title and a tale, some of them faithful, some not."""

import random

from recipes.lib.tales.prompts import Facts, article
from recipes.lib.tales.stories import FAITHFUL, TELLERS, tell
from recipes.lib.tales.words import PLACES

TITLES = (
    "This is the tale of {hero}, {thing} and the {place}.",
    "Hear of {hero} with {thing} {where}.",
    "A page about {hero}, {thing} and the {place}.",
)
RETOLD_TITLE = "The tale of {hero}, {thing} and the {place}, told again."
RETOLD_SHARE = 0.6  # of the pages; the others keep to their title, which teaches copying early


def page(facts: Facts, rng: random.Random) -> str:
    """Write one page: a title and a faithful tale, or one told again by whatever teller.

    Args:
        facts: What the title says.
        rng: Source of every choice.

    Returns:
        The page on one line.
    """
    is_retold = rng.random() < RETOLD_SHARE
    title = (RETOLD_TITLE if is_retold else rng.choice(TITLES)).format(
        hero=article(facts.hero),
        thing=article(facts.thing),
        place=facts.place,
        where=PLACES[facts.place],
    )
    tale = tell(facts, rng.choice(TELLERS) if is_retold else FAITHFUL, rng)
    return f"{title} {tale.text}"
