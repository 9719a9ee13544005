"""A conversation with a model: its turns, and answers that appear as they are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recipes.lib.errors import UserError, visible
from recipes.lib.generation.completions import stream


@dataclass
class Conversation:
    """Turns so far, and the model that answers.

    Args:
        model: A causal language model, with or without adapters.
        tokenizer: Its tokenizer; without a chat template the model goes on with each text alone.
        max_completion_length: Longest answer, in tokens.
        temperature: Of the sampling; 0 takes the most probable token.
        seed: Of the sampling; the same seed and turns give the same answers.
        system: System prompt.
        template_kwargs: Further arguments of the chat template, as in training.
    """

    model: Any
    tokenizer: Any
    max_completion_length: int = 256
    temperature: float = 1.0
    seed: int = 0
    system: str | None = None
    template_kwargs: dict[str, Any] | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    num_answers: int = 0

    def say(self, text: str | None) -> str:
        """Say something and have it answered; the answer is printed as it comes.

        Args:
            text: The user's turn; None has the last one answered again.

        Returns:
            The answer.

        Raises:
            UserError: The conversation is longer than the model's context, or nothing was said.
            KeyboardInterrupt: The answer ends where it is, and stays in the conversation.
        """
        before = list(self.turns)
        if text is None:
            self.turns = self.turns[:-1] if self.tokenizer.chat_template else self.turns
            if not self.turns:
                raise UserError("/again: nothing was said yet.")
        else:
            self.turns = [*self.turns, {"role": "user", "content": text}]
        try:
            return self._answer()
        except UserError:
            self.turns = before
            raise

    def _answer(self) -> str:
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            print_piece(piece)

        try:
            stream(
                self.model,
                self.tokenizer,
                self._prompt(),
                show,
                max_new_tokens=self.max_completion_length,
                temperature=self.temperature,
                seed=self.seed,
                episode=self.num_answers,
                template_kwargs=self.template_kwargs,
            )
        finally:  # what was said before Ctrl-C is said
            self.num_answers += 1
            if self.tokenizer.chat_template:
                self.turns.append({"role": "assistant", "content": "".join(pieces)})
        return "".join(pieces)

    def _prompt(self) -> Any:
        if not self.tokenizer.chat_template:
            return self.turns[-1]["content"]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns


def print_piece(text: str) -> None:
    """Print what comes next, without moving the cursor."""
    print(visible(text), end="", flush=True)
