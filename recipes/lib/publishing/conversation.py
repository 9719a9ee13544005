"""A conversation with a model: its turns, and answers that appear as they are sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from recipes.lib.data.prompts import completion_text, context_length, prompt_token_ids
from recipes.lib.errors import UserError, visible
from recipes.lib.generation.completions import decoding_of
from recipes.lib.generation.sampling import episode_uniforms, generate, pad_left
from recipes.lib.models.forward import base_model


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
        ids = prompt_token_ids(self.tokenizer, self._prompt(), self.template_kwargs)
        context, number = context_length(self.model.config), self.max_completion_length
        number = number if context is None else min(number, context - len(ids))
        if number < 1:
            raise UserError("the model's context is full; /new begins anew.")
        decoding = decoding_of(self.model, self.tokenizer, number, self.temperature)
        noise_BC = episode_uniforms(self.seed, [self.num_answers], number)
        printer = Printer(self.tokenizer, ids, decoding.stops)
        batch = pad_left([ids], decoding.pad_token_id, self.model.device)
        noise = noise_BC if self.temperature else None
        try:
            generate(base_model(self.model), *batch, noise, decoding, printer)
        finally:  # what was said before Ctrl-C is said
            self.num_answers += 1
            if self.tokenizer.chat_template:
                self.turns.append({"role": "assistant", "content": printer.text})
        return printer.text

    def _prompt(self) -> Any:
        if not self.tokenizer.chat_template:
            return self.turns[-1]["content"]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns


class Printer(BaseStreamer):
    """Prints the text of a completion as its tokens come, whole characters alone."""

    def __init__(self, tokenizer: Any, prompt: list[int], stops: list[int]) -> None:
        self.tokenizer, self.prompt, self.stops = tokenizer, prompt, stops
        self.ids: list[int] | None = None  # the first that generate gives is the prompt
        self.text = self.shown = ""

    def put(self, value: Tensor) -> None:
        """Take the next token."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        self.text = completion_text(self.tokenizer, self.prompt, self.ids, self.stops)
        if not self.text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character in the making
            self.end()

    def end(self) -> None:
        """Print what is not yet printed."""
        print(visible(self.text[len(self.shown) :]), end="", flush=True)
        self.shown = self.text
