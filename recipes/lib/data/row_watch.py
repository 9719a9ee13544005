"""What becomes of rows that TRL does not keep one by one: those of a stream, and packed ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.file_rows import Row
from recipes.lib.data.formats import format_of
from recipes.lib.data.problems import PLACE, brief_place
from recipes.lib.data.streaming import Rows
from recipes.lib.data.tokenization import Tokens, tokenize_row
from recipes.lib.data.tokenizer_fit import LostCharacters, spoken_texts
from recipes.lib.errors import UserError, note, one_sentence

# What TRL makes of a row.
CUT, LEFT_OUT, SILENT = "cut", "left out", "left without a token to learn from"
LOSSY = "with lost characters"


def fate_of(found: Sequence[Tokens], args: Any) -> str:
    """What TRL makes of a row.

    Args:
        found: Its sequences, whole.
        args: The configuration of TRL's SFT, Reward, DPO or KTO trainer.

    Returns:
        `CUT`, `LEFT_OUT`, `SILENT`, or nothing where all of it is trained on.
    """
    limit, is_packed = args.max_length, getattr(args, "packing", False)
    is_long = limit is not None and max(len(one.ids) for one in found) > limit
    if type(args).__name__ == "RewardConfig":  # which cuts nothing, and learns from whole texts
        return LEFT_OUT if is_long else ""
    if not is_long or (is_packed and args.packing_strategy != "bfd"):
        limit = None
    keeps_end = limit and not is_packed and getattr(args, "truncation_mode", "") == "keep_end"
    part = slice(-limit, None) if keeps_end else slice(limit)
    is_masked = getattr(args, "completion_only_loss", None) is not False
    silent = is_masked and any(True not in one.has_loss[part] for one in found)
    if silent or (limit and len({tuple(one.ids[part]) for one in found}) < len(found)):
        return SILENT
    return CUT if limit else ""


def _name(kind: str) -> str:
    return f"num_rows_{kind.replace(' ', '_')}"


class RowWatch:
    """Tokenizes rows as TRL will, and counts those that are cut, left out or lose characters.

    Args:
        rows: What is trained on; its `counts` are kept.
        tokenizer: The model's.
        template: The chat template that rows are rendered with.
        training: The configuration of TRL's SFT, Reward or DPO trainer.
        data: Where the rows come from, and what becomes of bad ones.
    """

    def __init__(
        self, rows: Rows, tokenizer: Any, template: Any, training: Any, data: DataArguments
    ) -> None:
        self.shape, self.training, self.data = format_of(rows.known), training, data
        self.tokenizer, self.lost = copy.copy(tokenizer), LostCharacters(tokenizer)
        self.tokenizer.chat_template = template
        self.counts, self.told = rows.counts, set[str]()
        self.counts.update({_name(kind): 0 for kind in ("read", CUT, LEFT_OUT, LOSSY)})

    def sees(self, row: Row) -> bool:
        """Count a row, and tell the first of those that are not trained on as they are.

        Args:
            row: The row.

        Returns:
            Whether it is good.

        Raises:
            UserError: It is bad and not to be dropped.
        """
        self.counts[_name("read")] += 1
        is_bad = False  # where nothing becomes of it
        for kind, what in self._fates(row):
            is_bad = kind == SILENT
            told = f"{self.data.label}: {what} in {brief_place(row[PLACE], self.data.label)}"
            if is_bad and self.data.on_bad_rows != "drop":
                raise UserError(f"{told}; mend or remove it, or set on_bad_rows=drop.")
            name = _name(LEFT_OUT if is_bad else kind)
            self.counts[name] += 1
            if name not in self.told:
                note(f"{told}, the first that summary.json counts in {name}.")
            self.told.add(name)
        return not is_bad

    def _fates(self, row: Row) -> Iterator[tuple[str, str]]:
        """What becomes of a row, with the same in words."""
        from jinja2.exceptions import TemplateError

        gone, faults = self.lost.of(spoken_texts(row))
        if faults:
            yield SILENT, faults[0]
            return
        if gone:
            yield LOSSY, f"the tokenizer has no token for {', '.join(map(repr, sorted(gone)))}"
        only = getattr(self.training, "assistant_only_loss", False)
        try:
            found = tokenize_row(row, self.shape, self.tokenizer, assistant_only_loss=only)
        except TemplateError as error:
            yield SILENT, f"the chat template cannot render ({one_sentence(error)})"
            return
        if fate := fate_of(found, self.training):
            yield fate, f"a row is {fate} at max_length={self.training.max_length}"
