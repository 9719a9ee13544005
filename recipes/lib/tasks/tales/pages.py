"""Text for the base model: a request, a tale that keeps to it or not, and what of it was kept."""

import random
from dataclasses import replace

from recipes.lib.tasks.tales.prompts import FACTS, Facts, request
from recipes.lib.tasks.tales.stories import TELLER, tell
from recipes.lib.tasks.tales.tokenizer import ASSISTANT, END, USER

# Up to a share of all pages, how many words of each kind are known. Whether a word is the one that
# was asked for is learned of two words, then of a few more, and not of sixteen at once.
GROWTH = ((0.08, 2), (0.16, 4), (0.28, 8), (1.0, 16))
READER = replace(TELLER, keeps=0.6, marks=0.75)
NONE_KEPT = "nothing"


def page(facts: Facts, num_words: int, rng: random.Random) -> str:
    """Write one page: the request, a tale with marks, and behind it which facts are as asked.

    A policy needs to copy from the request, and a reward model to compare with it, at the tale's
    last token; a base that never had to learns neither from a few thousand pairs.

    Args:
        facts: What is asked for.
        num_words: How many words of each kind the tale chooses from.
        rng: Source of every choice.

    Returns:
        The page on one line, in the tokens of the chat.
    """
    tale = tell(facts, READER, rng, num_words)
    kept = [name for name in FACTS if getattr(tale, name) == getattr(facts, name)]
    rng.shuffle(kept)
    said = " ".join(kept or [NONE_KEPT])
    return f"{USER}{request(facts, rng)}{END}{ASSISTANT}{tale.text}{END} {said}"
