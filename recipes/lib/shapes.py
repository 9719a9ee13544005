"""Which of TRL's formats rows have, and which recipes can use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One of TRL's formats."""

    name: str
    columns: tuple[str, ...]  # that make a row
    recipes: tuple[str, ...]


SAMPLING = ("ppo", "rloo", "grpo", "feedback")
# In this order: rows with more columns come first.
SHAPES = (
    Shape("preference", ("prompt", "chosen", "rejected"), ("reward", "dpo", "kto")),
    Shape("preference, implicit prompt", ("chosen", "rejected"), ("reward", "dpo", "kto")),
    Shape("unpaired preference", ("prompt", "completion", "label"), ("kto", "sft")),
    Shape("prompt-completion", ("prompt", "completion"), ("sft", *SAMPLING)),
    Shape("language modeling", ("messages",), ("sft",)),
    Shape("language modeling", ("text",), ("sft",)),
    Shape("prompt-only", ("prompt",), SAMPLING),
)


def shape_of(dataset: Dataset) -> Shape:
    """Find the format of rows by their columns.

    Args:
        dataset: The rows.

    Returns:
        The first of `SHAPES` whose columns are there.

    Raises:
        UserError: It is none of TRL's formats; the text says which dataset_format fits, if one
            does.
    """
    names = set(dataset.column_names)
    for shape in SHAPES:
        if names >= set(shape.columns):
            return shape
    hints = {"instruction": "alpaca", "conversations": "sharegpt"}
    fitting = [f"dataset_format={hints[name]}" for name in sorted(names & set(hints))]
    remedy = f"set {fitting[0]}" if fitting else "rename them"
    raise UserError(
        f"dataset_name: the columns {', '.join(dataset.column_names)} are none of TRL's formats "
        f"(text, messages, prompt with or without completion and label, chosen and rejected); "
        f"{remedy}."
    )


def is_conversational(row: Row, shape: Shape) -> bool:
    """Whether a row holds messages.

    Args:
        row: The row.
        shape: Its format.

    Returns:
        False for text.
    """
    return isinstance(row[shape.columns[0]], list)
