"""Numbers of a model that have to be finite before anything is made of them.

Shapes: B episodes, C completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    number = int(faulty_B.sum()) if faulty_B is not None else 0
    if faulty_B is not None and number:
        raise NotFiniteError(
            f"the logits of {number} of {len(faulty_B)} completions were NaN or infinite while "
            f"they were sampled: the model's {CAUSE}."
        )


def check_scored(
    mask_BC: Tensor, logps_BC: Tensor, ref_logps_BC: Tensor, values_BC: Tensor
) -> None:
    """Refuse episodes with log-probabilities or values that are not finite.

    Args:
        mask_BC: 1 where a token counts.
        logps_BC: Log-probabilities of the policy.
        ref_logps_BC: Log-probabilities of the reference.
        values_BC: Values of the critic.

    Raises:
        NotFiniteError: One that counts is not finite.
    """
    of_models = {
        "log-probabilities of the policy": logps_BC,
        "log-probabilities of the reference": ref_logps_BC,
        "values of the critic": values_BC,
    }
    for what, numbers_BC in of_models.items():
        faulty_B = (~numbers_BC.isfinite() & mask_BC.bool()).any(1)
        if number := int(faulty_B.sum()):
            raise NotFiniteError(
                f"the {what} of {number} of {len(faulty_B)} completions were NaN or infinite while "
                f"they were scored: its {CAUSE}."
            )


@contextmanager
def of_rollout(number: int) -> Iterator[None]:
    """Say of which rollout the numbers are that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise UserError(f"rollout {number}: {error}") from error
