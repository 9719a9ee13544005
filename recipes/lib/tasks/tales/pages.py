"""Plain text for the base model: a title or a request, and a tale that is faithful to it or not."""

import random

from recipes.lib.tasks.tales.prompts import Facts, article, request
from recipes.lib.tasks.tales.stories import FAITHFUL, TELLERS, tell
from recipes.lib.tasks.tales.words import PLACES

TALE_TITLES = (
    "This is the tale of {hero}, {thing} and the {place}.",
    "Hear of {hero} with {thing} {where}.",
    "A page about {hero}, {thing} and the {place}.",
)
RETOLD_TITLE = "The tale of {hero}, {thing} and the {place}, told again."
RETOLD_SHARE = 0.5  # of the pages; the others keep to their title, which teaches copying early
REQUEST_SHARE = 0.3  # of the pages begin with a request, so that copying from one is known as well


def page(facts: Facts, rng: random.Random) -> str:
    """Write one page: a title or a request and a faithful tale, or one told again by anybody.

    Args:
        facts: What the title says.
        rng: Source of every choice.

    Returns:
        The page on one line.
    """
    draw = rng.random()
    is_retold = draw < RETOLD_SHARE
    if not is_retold and draw < RETOLD_SHARE + REQUEST_SHARE:
        title = request(facts, rng)
    else:
        title = (RETOLD_TITLE if is_retold else rng.choice(TALE_TITLES)).format(
            hero=article(facts.hero),
            thing=article(facts.thing),
            place=facts.place,
            where=PLACES[facts.place],
        )
    tale = tell(facts, rng.choice(TELLERS) if is_retold else FAITHFUL, rng)
    return f"{title} {tale.text}"
