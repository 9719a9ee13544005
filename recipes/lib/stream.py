"""Good training rows of several sources as one endless stream, without the test rows."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from recipes.lib.data.file_rows import BrokenRowError, Row
from recipes.lib.data.formats import FORMATS
from recipes.lib.data.mixtures import Part
from recipes.lib.data.row_checks import FOR_TEMPLATE, fault, other_kind
from recipes.lib.data.sources import Source
from recipes.lib.data.splitting import content_key
from recipes.lib.errors import UserError
from recipes.lib.notes import note

LOOKED_AT = 10_000  # rows of each source that are looked at before the run
# What a row may have beside its format, and what stands for it where it has none: TRL hands the
# first two to the chat template and reads the margin of a pair; noise tells the best accuracy.
BESIDE: dict[str, Any] = {"tools": None, "chat_template_kwargs": {}, "margin": None, "noise": None}


@dataclass
class Reader:
    """Good rows of one source, in TRL's formats."""

    source: Source
    part: Part
    columns: Sequence[str]  # that every row must fill
    beside: Sequence[str]  # that it may have
    is_text: bool
    drops: bool
    has_told: bool = False

    def rows(self) -> Iterator[Row]:
        """Go through the source once.

        Yields:
            Its good rows.

        Raises:
            UserError: A row is bad and bad rows are not to be dropped.
        """
        told, dropped = "", 0
        try:
            for place, (number, row) in enumerate(self.source.rows()):
                try:
                    good = self._good(row)
                except BrokenRowError as error:
                    what = f"{error} in {self.source.word} {number}"
                    if not self.drops:
                        raise UserError(
                            f"{self.source.name}: {what}; mend or remove it, or set "
                            "on_bad_rows=drop."
                        ) from error
                    if place >= LOOKED_AT:  # those before were counted when they were looked at
                        told, dropped = told or what, dropped + 1
                else:
                    yield good
        finally:
            if dropped and not self.has_told:
                self.has_told = True
                note(
                    f"{self.source.name}: {dropped} {self.source.word}s behind the first "
                    f"{LOOKED_AT} dropped: first {told}."
                )

    def _good(self, row: Row | BrokenRowError) -> Row:
        if isinstance(row, BrokenRowError):
            raise row
        if self.part.columns is not None:
            row = {name: row.get(name) for name in self.part.columns}
        if self.part.text_field in row and "text" not in row:
            row = dict(row)
            row["text"] = row.pop(str(self.part.text_field))
        row = FORMATS[str(self.part.format)](dict(row)) if self.part.format in FORMATS else row
        needed = {name: row.get(name) for name in self.columns}
        beside = {name: row.get(name) for name in FOR_TEMPLATE}
        found = fault(needed | beside) or other_kind(needed, self.columns[0], self.is_text)
        if found is not None:
            raise BrokenRowError(found[1])
        late = [name for name in BESIDE if row.get(name) and name not in self.beside]
        if late:
            raise BrokenRowError(f"column {late[0]!r}, which the first {LOOKED_AT} rows lack,")
        return needed | {name: row.get(name, BESIDE[name]) for name in self.beside}


@dataclass
class Stream:
    """Training rows of all readers; the same ones in the same order each time it is called."""

    readers: list[Reader]
    shares: list[float]  # of the readers in the stream
    seed: int
    fraction: float = 0.0  # share of the rows that are test rows, by their content
    held_out: frozenset[str] = frozenset()  # content of further test rows
    is_endless: bool = False

    def __call__(self) -> Iterator[Row]:
        """Go through the rows: pass after pass, or until one reader has been passed once."""
        import numpy as np

        streams = [self._passes(reader) for reader in self.readers]
        bounds = list(accumulate(share / sum(self.shares) for share in self.shares))[:-1]
        draws = np.random.default_rng(self.seed)
        while True:
            chosen = bisect(bounds, draws.random()) if bounds else 0
            try:
                yield next(streams[chosen])
            except StopIteration:
                return

    def is_test(self, row: Row) -> bool:
        """Whether a row is a test row, which depends on its content and the seed alone."""
        key = content_key(row)
        if self.fraction == 0:
            return key in self.held_out
        digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64

    def _passes(self, reader: Reader) -> Iterator[Row]:
        while True:
            count = 0
            for row in reader.rows():
                if not self.is_test(row):
                    count += 1
                    yield row
            if count == 0:
                raise UserError(f"dataset_name={reader.part.path}: no row is left to train on.")
            if not self.is_endless:
                return
