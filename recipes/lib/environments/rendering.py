"""Conversations with an environment as tokens: what it says, as the policy's template has it.

What was said before is never rendered again: the tokens of a turn are those that were sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recipes.lib.data.prompts import Prompt, prompt_token_ids
from recipes.lib.errors import UserError

# Of a conversation that every template can render, before what an environment, or a tool, says.
ASKED = {"role": "user", "content": "a"}
BEFORE: dict[str, list[dict[str, Any]]] = {
    "user": [ASKED, {"role": "assistant", "content": "b"}],
    "tool": [
        ASKED,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "b", "arguments": {}}}],
        },
    ],
}


class Rendering:
    """What an environment says, in tokens.

    Args:
        tokenizer: The policy's tokenizer.
        stop_token_id: Token that ends a turn of the policy.
        template_kwargs: Further arguments of the chat template.
        tools: Functions that it tells of, which may be called; they are who answers then.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_token_id: int,
        template_kwargs: dict[str, Any] | None,
        tools: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.tokenizer, self.stop = tokenizer, stop_token_id
        self.kwargs = (template_kwargs or {}) | ({"tools": list(tools)} if tools else {})
        self.role = "tool" if tools else "user"  # of what is answered

    def begin(self, prompt: Prompt | None, observation: str) -> tuple[Prompt, list[int]]:
        """A prompt with an observation behind it.

        Args:
            prompt: Text or messages of the row; None where it has none.
            observation: What the environment said.

        Returns:
            The whole as text or messages, and its tokens.

        Raises:
            UserError: There is nothing in it, or no template can render it.
        """
        if prompt is None:
            prompt = "" if self.tokenizer.chat_template is None else []
        if isinstance(prompt, str):
            asked: Prompt = prompt + observation
        else:
            asked = [*prompt, {"role": "user", "content": observation}] if observation else prompt
        ids = prompt_token_ids(self.tokenizer, asked, self.kwargs) if asked else []
        if not ids:
            raise UserError("an episode begins with an empty prompt; let reset return a text.")
        return asked, ids

    def answer_ids(
        self, answer: str, *, as_text: bool, has_ended: bool, is_last: bool = False
    ) -> list[int]:
        """Tokens between a turn of the policy and its next one.

        Args:
            answer: What the environment said.
            as_text: Whether the conversation is plain text and not messages.
            has_ended: Whether the turn ended with its stop token; else that stands first here.
            is_last: Whether no turn follows; then there may be nothing to read.

        Returns:
            The token ids.

        Raises:
            UserError: There are none.
        """
        closing = [] if has_ended else [self.stop]
        if as_text:
            ids = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        else:
            ids = self._between(answer)
        if not ids and not is_last:
            raise UserError("an environment answered an empty text; let step return what to read.")
        return closing + ids

    def _between(self, answer: str) -> list[int]:
        """What the template has behind the end of an assistant's turn, up to the next one."""
        said, earlier = {"role": self.role, "content": answer}, BEFORE[self.role]
        asked = self._rendered([ASKED], opens=False)
        whole = self._rendered([*earlier, said], opens=True)
        # The turn ends with the first stop token behind those that what was asked has.
        ends = [place for place, token in enumerate(whole) if token == self.stop]
        if len(ends) > (before := asked.count(self.stop)):
            return whole[ends[before] + 1 :]
        turn = self._rendered(earlier, opens=False)
        if whole[: len(turn)] != turn:
            raise UserError(
                "context=all: where a turn ends cannot be told from the chat template, which has "
                "no stop token there; use another chat_template_path, or context=last."
            )
        return whole[len(turn) :]

    def _rendered(self, messages: list[dict[str, Any]], *, opens: bool) -> list[int]:
        how: dict[str, Any] = {"tokenize": True, "return_dict": True, **self.kwargs}
        made = self.tokenizer.apply_chat_template(messages, add_generation_prompt=opens, **how)
        return list(made["input_ids"])
