"""One episode, and batches made of many.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens (padded right).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipes.lib.errors import UserError


@dataclass
class Episode:
    """One prompt and what was said to it.

    Args:
        row: Row of the prompt in its data set.
        prompt_ids: Token ids of the prompt.
        completion_ids: Token ids of the completion, the stop token included.
        text: The completion as text.
        score: Weighted sum of the rewards.
        said: What each function said, NaN where it does not apply.
        logps: Log-probabilities of the policy that sampled, nats per token.
        ref_logps: Those of the reference.
        values: Values of the critic.
    """

    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str = ""
    score: float = 0.0
    said: tuple[float, ...] = ()
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    values: Tensor | None = None


def find_stop_token(tokenizer: Any, stop_token: str | None) -> int:
    """Id of the token that ends a completion; a model may have further ones.

    Args:
        tokenizer: The policy's tokenizer.
        stop_token: The token as text; None for the tokenizer's eos token.

    Returns:
        The id.

    Raises:
        UserError: There is no such token.
    """
    if stop_token in (None, "eos"):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token; set stop_token.")
        return int(tokenizer.eos_token_id)
    token_id = tokenizer.get_vocab().get(stop_token)
    if token_id is None:
        raise UserError(f"stop_token={stop_token!r} is not in the vocabulary of the tokenizer.")
    return int(token_id)


def pad_right(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of tokens, aligned at their beginnings."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids.to(device), mask.to(device)


def stack(rows: list[Any]) -> Tensor:
    """Numbers of episodes of different length in one tensor, 0 behind the end."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
