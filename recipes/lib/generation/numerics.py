"""Numbers of a model that have to be finite before anything is made of them.

Shapes: B episodes, C completion tokens.
"""

from __future__ import annotations

from torch import Tensor

from recipes.lib.errors import UserError

CAUSE = (
    "weights or number format overflowed; load it with dtype=float32 or bfloat16, or start anew "
    "with a lower learning_rate"
)


class NotFiniteError(UserError):
    """A model said NaN or infinite numbers."""


def check_sampled(faulty_B: Tensor | None) -> None:
    """Refuse completions that were sampled from NaN or infinite logits.

    Args:
        faulty_B: True for each episode that has such logits; None where nothing was sampled.

    Raises:
        NotFiniteError: There is one.
    """
    if faulty_B is not None and (number := int(faulty_B.sum())):
        raise NotFiniteError(
            f"the logits of {number} of {len(faulty_B)} completions were NaN or infinite while "
            f"they were sampled: the model's {CAUSE}."
        )
