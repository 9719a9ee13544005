"""Rows of SFT in which no token is left to learn from: refused, or dropped and counted.

TRL cuts rows at max_length and leaves out those whose completion is cut off, without a word.
"""

from __future__ import annotations

from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.notes import note

NUMBER = "row_number"  # a column that stays with a row through TRL's preparation
BATCH = 1000  # rows at a time
IGNORED = -100  # label of a token without loss


def numbered(rows: Any) -> Any:
    """Give every row its number.

    Args:
        rows: A dataset; a stream or None is let through, whose rows come too late to be counted.

    Returns:
        The dataset with a column `NUMBER`.
    """
    return rows.add_column(NUMBER, list(range(len(rows)))) if hasattr(rows, "__len__") else rows


def settle_silent(trainer: Any, rows: Any, on_bad_rows: str) -> None:
    """Refuse or drop the rows of a trainer that have no loss, and take the numbers away again.

    Args:
        trainer: TRL's SFTTrainer, made of numbered rows.
        rows: The same rows as they were given.
        on_bad_rows: "refuse" or "drop".

    Raises:
        UserError: There are such rows and they are not to be dropped.
    """
    limit = trainer.args.max_length
    for name, given, word in (
        ("train_dataset", rows.train, "training"),
        ("eval_dataset", rows.test, "test"),
    ):
        made = getattr(trainer, name)
        if made is None or NUMBER not in (made.column_names or ()):
            continue  # packed, streamed or absent
        made = made if limit is not None else _learnable(made)
        setattr(trainer, name, made.remove_columns(NUMBER))
        kept = set(made[NUMBER])
        silent = [row for row in range(len(given)) if row not in kept]
        if silent and kept:
            _tell(limit, silent, len(given), word, on_bad_rows)


def _tell(limit: int | None, silent: list[int], total: int, word: str, on_bad_rows: str) -> None:
    key = "dataset_name" if limit is None else f"max_length={limit}"
    what = f"no token to learn from is left in {len(silent)} of {total} {word} rows, first in row"
    where = f"{silent[0]} (counted from 0)"
    if on_bad_rows == "drop":
        note(f"{key}: {what} {where}; they are dropped.")
        return
    remedy = "mend them" if limit is None else "raise it"
    raise UserError(f"{key}: {what} {where}; {remedy}, or set on_bad_rows=drop.")


def _learnable(rows: Any) -> Any:
    """What TRL does where there is a limit: rows whose labels are all masked are left out."""
    labels = rows.with_format("numpy", columns=["labels"])
    has_loss = [
        bool((one != IGNORED).any()) for part in labels.iter(BATCH) for one in part["labels"]
    ]
    return rows if all(has_loss) else rows.select([i for i, on in enumerate(has_loss) if on])
