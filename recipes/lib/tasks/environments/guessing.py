"""A guessing game: a simulated user thinks of an animal, answers questions, and hears a guess.

    reward = 1 - QUESTION * (turns before), for the right guess; 0 otherwise

The first trait or animal that a text names is what it asks or guesses. A guess ends the game, and
so does the last turn that the row allows; a text that is neither costs its turn.
"""

from __future__ import annotations

import random
import re
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.tasks.tales.words import ANIMALS

QUESTION = 0.05
# No two animals have the same traits.
TRAITS = {
    "small": "mouse hare otter frog cat badger hen duck".split(),
    "quick": "mouse hare otter frog deer wolf fox dog".split(),
    "quiet": "mouse hare cat badger deer wolf owl bear".split(),
    "brown": "hare otter badger hen deer fox bear beaver".split(),
}


class Guessing:
    """The user of the game; `left` are the animals that the answers so far leave.

    `asked` are the traits that were asked for.
    """

    def reset(self, seed: int, animals: str, turns: int = 6, scored: bool = True, **_: Any) -> str:
        """Think of an animal.

        Args:
            seed: Which one it is is drawn from it.
            animals: The animals that it may be, as words.
            turns: How many turns there are, the guess among them.
            scored: Whether the game rewards; otherwise somebody else says how good it was.

        Returns:
            What may be guessed, and in how many turns.

        Raises:
            UserError: There is none, or one that is no animal of the tales.
        """
        known = animals.split()
        if not known or not set(known) <= set(ANIMALS):
            raise UserError(f"animals={animals}: write some of {' '.join(ANIMALS)}.")
        self.asked: list[str] = []
        self.secret, self.left = random.Random(f"guessing {seed}").choice(known), known
        self.turns, self.turn, self.scored = turns, 0, scored
        return f"One of {' '.join(known)}. {turns} turns."

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        """Answer a question such as "Is it small?", or judge a guess such as "The fox."."""
        words = re.findall(r"[a-z]+", text.lower())
        named = next((word for word in words if word in TRAITS or word in ANIMALS), None)
        worth = (1 - QUESTION * self.turn) * self.scored
        self.turn += 1
        if named in ANIMALS:
            right = named == self.secret
            return f"{'Yes' if right else 'No'}, the {self.secret}.", worth * right, True, False
        if self.turn == self.turns:
            return f"It was the {self.secret}.", 0.0, True, False
        if named is None:
            return "What?", 0.0, False, False
        self.asked.append(named)
        is_so = self.secret in TRAITS[named]
        self.left = [animal for animal in self.left if (animal in TRAITS[named]) == is_so]
        return "Yes." if is_so else "No.", 0.0, False, False
