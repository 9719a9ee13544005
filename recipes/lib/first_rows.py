"""The first rows of data that is too large to be read as a whole, for a look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.lib.data.arguments import parts_of
from recipes.lib.data.mixtures import join
from recipes.lib.data.reading import local_path
from recipes.lib.data.sources import find_sources
from recipes.lib.data.streaming import look, named
from recipes.lib.notes import note

if TYPE_CHECKING:
    from datasets import Dataset

    from recipes.lib.data.arguments import DataArguments

LARGE = 1_000_000_000  # bytes of a file; as rows in memory it takes several times that


def first_rows(args: DataArguments, limit: int) -> Dataset:
    """Read the first training rows of each dataset, and nothing behind them.

    Args:
        args: What to load, validated.
        limit: Rows of each dataset.

    Returns:
        The rows in TRL's formats, unchecked.

    Raises:
        UserError: As `load_rows`, but for what it says of rows behind the first.
    """
    parts = parts_of(args)
    drops = args.on_bad_rows == "drop"
    heads = []
    for part in parts:
        found = find_sources(part.path, str(part.split), part.name, part.revision)
        heads.append(look(named(found, part), part, drops, limit))
    return join(parts, heads) if len(parts) > 1 else heads[0]


def tell_large(args: DataArguments) -> None:
    """Say how to look at a large file without reading all of it.

    Args:
        args: What to load, validated.
    """
    for part in parts_of(args):
        path = local_path(part.path)
        if path is not None and path.is_file() and path.stat().st_size > LARGE:
            size = path.stat().st_size / 1e9
            note(
                f"{part.path} has {size:.1f} GB and is read as a whole; --max_rows 10000 reads "
                "the first rows alone."
            )
