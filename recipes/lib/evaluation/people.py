"""People's answers as a judge: of the pairs that they compared, the prompts that they cover."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError
from recipes.lib.feedback.exchange import ANSWERS, read_answers
from recipes.lib.feedback.rows import Row, current
from recipes.lib.models.folders import RUNS


def answers_of(name: str) -> Path | None:
    """The file of answers of a feedback run or of an export; None of any other judge."""
    if name.endswith(".jsonl"):
        return Path(name)
    places = (Path(name) / ANSWERS, Path(RUNS) / name / ANSWERS)
    return next((path for path in places if path.is_file()), None)


class PeopleJudge:
    """Answers to pairs that were exported.

    Args:
        name: A feedback run, or a .jsonl file of pairs.

    Raises:
        UserError: It cannot be read, or holds no pair.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            rows = current(read_answers(answers_of(name) or Path(name)))
        except UserError as error:
            raise UserError(str(error).replace("names=", "judge=", 1)) from error
        self.answers = defaultdict[str, list[Row]](list)
        for row in rows:
            if row["kind"] == "pair" and row["aspect"] == "overall" and row["weight"] > 0:
                self.answers[prompt_text(row["prompt"])].append(row)
        if not self.answers:
            raise UserError(f"judge={name}: holds no answers to pairs; compare two completions.")

    def shares(
        self,
        prompts: Sequence[Any],
        names: tuple[str, str],
        texts: tuple[Sequence[str], Sequence[str]],
    ) -> list[float | None]:
        """What most people said of each prompt.

        An answer counts where it is about these very texts, or about completions of these two runs.

        Returns:
            1 where most prefer the first run, 0 the second, 0.5 where they are even, None where
            nobody answered.
        """
        made: list[float | None] = []
        for prompt, one, other in zip(prompts, *texts, strict=True):
            votes = [
                0.0 if row["value"] is None else 1.0 if row["value"] == place else -1.0
                for row in self.answers.get(prompt_text(prompt), ())
                if (place := _place(row, names, (one, other))) is not None
            ]
            made.append(float(np.sign(sum(votes)) + 1) / 2 if votes else None)
        return made


def _place(row: Row, names: tuple[str, str], texts: tuple[str, str]) -> int | None:
    """Which completion of an answer is that of the first of two; None where it is not of them."""
    said = [prompt_text(one["content"]) for one in row["completions"]]
    runs = [one["run"] and _plain(one["run"]) for one in row["completions"]]
    for found, wanted in ((said, list(texts)), (runs, [*map(_plain, names)])):
        if wanted[0] != wanted[1] and found in (wanted, wanted[::-1]):
            return found.index(wanted[0])
    return None


def _plain(run: str) -> str:
    """A run's name, with or without runs/ before it and final/ behind it."""
    parts = [part for part in Path(run).parts if part != "."]
    parts = parts[1:] if parts[:1] == [str(RUNS)] else parts
    return "/".join(parts[:-1] if parts[-1:] == ["final"] else parts)
