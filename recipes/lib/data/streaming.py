"""Training rows that are read while training: checked one by one, shuffled in a window, endless.

The first rows of each source are looked at before the run, as all rows are where nothing streams:
they tell the format, and their faults end the run before it starts. Test rows are read before the
run and kept apart by their content, wherever in the stream they come again.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from recipes.lib.data.arguments import DataArguments, check_data, parts_of, test_part
from recipes.lib.data.file_rows import BrokenRowError, Row, keep_good, readable, to_dataset
from recipes.lib.data.formats import FORMATS
from recipes.lib.data.loading import (
    BESIDE,
    check_format,
    in_trl_format,
    load_splits,
    refuse_split,
)
from recipes.lib.data.messages import plain_messages
from recipes.lib.data.mixtures import Part, join_datasets
from recipes.lib.data.problems import PLACE, brief_place, refuse_or_drop
from recipes.lib.data.reading import choose_split, local_path
from recipes.lib.data.row_checks import check_rows, kind_mismatch, row_fault
from recipes.lib.data.sources import RowSource, find_sources
from recipes.lib.data.splitting import content_key
from recipes.lib.errors import UserError, note

if TYPE_CHECKING:
    from datasets import Dataset

LARGE_FILE = 1_000_000_000  # bytes of a file; as rows in memory it takes several times that


HEAD_ROWS = 10_000  # rows of each source that are looked at before the run
SHUFFLE_BUFFER = 1_000  # rows among which the next one is drawn


@dataclass
class Rows:
    """What a run trains on and is tested on."""

    train: Any  # a Dataset, or an IterableDataset
    test: Dataset | None
    known: Dataset  # training rows that can be looked at before the run; without streaming all
    stream: Stream | None = None
    counts: Counter[str] = field(default_factory=Counter)  # of a stream, or of packed rows

    def begin(self) -> None:
        """Say that training begins: from now on a stream has no end, and its rows are counted."""
        if self.stream is not None:
            self.stream.is_endless = True
            self.counts.subtract(self.counts.copy())


def load_rows(
    args: DataArguments,
    training: Any,
    required_columns: Callable[[Dataset], Sequence[str]],
    beside: Sequence[str] = BESIDE,
) -> Rows:
    """Load training and test rows; with `streaming` the training rows come while training.

    Args:
        args: What to load.
        training: A TrainingArguments.
        required_columns: Tells from the data which columns every row must fill.
        beside: Further columns that a row may have.

    Returns:
        The rows.

    Raises:
        UserError: As `load_splits`, or a key does not go with streaming.
    """
    if not args.streaming:
        train, test = load_splits(args, training.seed, required_columns, beside)
        return Rows(train, test, train)
    from datasets import IterableDataset

    check_data(args)
    parts = parts_of(args)
    _check_keys(args, training, parts)
    found = _find_parts(args)
    readers = _readers(args, found, parts, required_columns, beside)
    shares = [part.fraction or 1.0 for part in parts]
    stream = Stream(readers, shares, training.seed, args.test_fraction)
    test = _test_rows(args, stream, found, parts)
    known = [row for reader in readers for row in islice(reader.rows(), HEAD_ROWS)]
    kept = [row for row in known if not stream.is_test(row)]
    if args.test_fraction:
        test = [row for row in known if stream.is_test(row)]
        note(f"streaming: {len(test)} test rows, from the first {len(known)} good rows.")
    name = args.dataset_name or "datasets"
    if not kept and not args.test_fraction:
        raise UserError(f"dataset_name={name}: every row is also a test row; give other test rows.")
    if not kept or test == []:
        raise UserError(
            f"test_fraction={args.test_fraction}: of the first {len(known)} rows {len(kept)} are "
            "left to train on; choose another share, or name test_dataset_name."
        )
    train = IterableDataset.from_generator(stream)
    train = train.shuffle(seed=stream.seed, buffer_size=SHUFFLE_BUFFER)
    return Rows(train, _table(test, name) if test else None, _table(kept, name), stream)


def _readers(
    args: DataArguments,
    found: list[dict[str, RowSource]],
    parts: list[Part],
    required_columns: Callable[[Dataset], Sequence[str]],
    beside: Sequence[str],
) -> list[Reader]:
    """Readers of the training rows, in the format that the first rows of all parts have."""
    sources, head = _heads(args, found, HEAD_ROWS)
    name = f"{args.label} (first {len(head)} rows)"
    head, columns = check_format(head, required_columns, name, args.on_bad_rows, beside)
    given = [column for column in beside if column in head.column_names]
    absent = [column for column in beside if column not in given]
    is_text = isinstance(head[0][columns[0]], str)
    return [
        Reader(source, part, columns, given, absent, is_text, args.on_bad_rows)
        for source, part in zip(sources, parts, strict=True)
    ]


def _check_keys(args: DataArguments, training: Any, parts: list[Part]) -> None:
    if training.max_steps < 1:
        raise UserError("max_steps is missing: a stream has no length; set the number of steps.")
    if args.max_train_rows is not None:
        raise UserError(
            f"max_train_rows={args.max_train_rows}: a stream is limited by max_steps; leave it out."
        )
    if training.dataloader_num_workers:
        raise UserError(
            f"dataloader_num_workers={training.dataloader_num_workers}: a stream is read by the "
            "training process itself; leave it out."
        )
    if training.ignore_data_skip:
        raise UserError(
            "ignore_data_skip=true: a resumed run would see the first rows of the stream once "
            "more; leave it out."
        )
    without = [part.path for part in parts if part.fraction is None or part.weight is not None]
    if len(parts) > 1 and without:
        raise UserError(
            f"datasets: {without[0]} has no fraction; of a streamed mixture, whose sizes are not "
            "known, give each dataset its fraction (share of the mixture) and no weight."
        )
    if len(parts) == 1 and parts[0].weight is not None:
        raise UserError("datasets: weight does not go with streaming; leave it out.")


def read_head(source: RowSource, part: Part, on_bad_rows: str, limit: int | None) -> Dataset:
    """Read the first rows, their broken lines told or dropped.

    Args:
        source: Where to read.
        part: What it belongs to.
        on_bad_rows: "refuse" or "drop" those with a fault.
        limit: How many; None for all.

    Returns:
        The rows in TRL's formats.

    Raises:
        UserError: There are none, or some are bad and not to be dropped.
    """
    rows, problems, places = keep_good(islice(source.rows(), limit))
    refuse_or_drop(source.name, problems, places, on_bad_rows)
    if not rows:
        raise UserError(f"dataset_name={source.name}: no rows; give a file with at least one.")
    return in_trl_format(_table(rows, source.name), part, on_bad_rows)


def _table(rows: list[Row], name: str) -> Dataset:
    with readable(name):
        return to_dataset(rows)


def _test_rows(
    args: DataArguments, stream: Stream, found: list[dict[str, RowSource]], parts: list[Part]
) -> list[Row] | None:
    """Read the rows of named test data; they are held out of the stream."""
    readers = [
        replace(reader, source=sources[str(part.test_split)])
        for reader, sources, part in zip(stream.readers, found, parts, strict=True)
        if part.test_split in sources and part.test_split != part.split
    ]
    if args.datasets and args.test_fraction > 0:
        return None
    if args.test_dataset_name is not None:
        part, key = test_part(args), args.dataset_test_split
        source = choose_split(find_sources(part.path, key), key, part.path, "dataset_test_split")
        readers = [replace(stream.readers[0], source=source, part=part)]
    if not readers:
        return None
    refuse_split(args)
    rows = []
    for reader in readers:
        table = read_head(reader.source, reader.part, args.on_bad_rows, None)
        name = f"{reader.source.name} (test)"
        check_rows(table, reader.columns, name, args.on_bad_rows)
        rows += list(reader.rows())
    stream.held_out = frozenset(map(content_key, rows))
    return rows


@dataclass
class Reader:
    """Good rows of one source, in TRL's formats."""

    source: RowSource
    part: Part
    columns: Sequence[str]  # that every row must fill
    beside: Sequence[str]  # that it may have
    absent: Sequence[str]  # that it may not, because the first rows have none
    is_text: bool
    on_bad_rows: str
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
            for number, (place, row) in enumerate(self.source.rows()):
                try:
                    good = self._good(row)
                except BrokenRowError as error:
                    what = f"{error} in {brief_place(place, self.source.name)}"
                    if self.on_bad_rows != "drop":
                        raise UserError(
                            f"{self.source.name}: {what}; mend or remove it, or set "
                            "on_bad_rows=drop."
                        ) from error
                    if number >= HEAD_ROWS:  # those before were counted when they were looked at
                        told, dropped = told or what, dropped + 1
                else:
                    yield good | {PLACE: place}
        finally:
            if dropped and not self.has_told:
                self.has_told = True
                note(
                    f"{self.source.name}: {dropped} rows behind the first {HEAD_ROWS} dropped: "
                    f"first {told}."
                )

    def _good(self, row: Row | BrokenRowError) -> Row:
        if isinstance(row, BrokenRowError):
            raise row
        if self.part.columns is not None:
            names = self.part.renamed
            row = {names.get(key, key): one for key, one in row.items() if self.part.keeps(key)}
        if self.part.text_field in row and "text" not in row:
            row = dict(row)
            row["text"] = row.pop(str(self.part.text_field))
        row = FORMATS[str(self.part.format)](dict(row)) if self.part.format in FORMATS else row
        row = plain_messages(row)
        needed = {name: row.get(name) for name in self.columns}
        beside = {name: row.get(name) for name in self.beside}
        found = row_fault(needed | beside) or kind_mismatch(needed, self.columns[0], self.is_text)
        if found is not None:
            raise BrokenRowError(found[1])
        late = [name for name in self.absent if row.get(name)]
        if late:
            raise BrokenRowError(f"column {late[0]!r}, which the first {HEAD_ROWS} rows lack,")
        if "chat_template_kwargs" in beside:  # TRL unpacks them
            beside["chat_template_kwargs"] = beside["chat_template_kwargs"] or {}
        return needed | beside


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
    return _heads(args, _find_parts(args), limit)[1]


def _find_parts(args: DataArguments) -> list[dict[str, RowSource]]:
    return [find_sources(p.path, str(p.split), p.name, p.revision) for p in parts_of(args)]


def _heads(
    args: DataArguments, found: list[dict[str, RowSource]], limit: int
) -> tuple[list[RowSource], Dataset]:
    """The sources of the training rows, and their first rows."""
    parts, heads, sources = parts_of(args), [], []
    for splits, part in zip(found, parts, strict=True):
        sources.append(choose_split(splits, part.split, part.path, feedback=args.FEEDBACK))
        heads.append(read_head(sources[-1], part, args.on_bad_rows, limit))
    return sources, join_datasets(parts, heads) if len(parts) > 1 else heads[0]


def note_large_files(args: DataArguments) -> None:
    """Say how to look at a large file without reading all of it.

    Args:
        args: What to load, validated.
    """
    for part in parts_of(args):
        path = local_path(part.path)
        if path is not None and path.is_file() and path.stat().st_size > LARGE_FILE:
            size = path.stat().st_size / 1e9
            note(
                f"{part.path} has {size:.1f} GB and is read as a whole; --max_rows 10000 reads "
                "the first rows alone."
            )
