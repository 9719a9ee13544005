"""A feedback project: a folder with a store, and what is exported from it for training.

Layout: config.yaml, feedback.db, and of the last export answers.jsonl, final/, lineage.json,
summary.json, report.html.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.errors import UserError
from recipes.lib.feedback.arguments import NAMES, AskArguments
from recipes.lib.feedback.queue import make_jobs, with_repeats
from recipes.lib.feedback.rows import KINDS, Row
from recipes.lib.feedback.status import preferred
from recipes.lib.feedback.store import FILE, Item, Store
from recipes.lib.runs.files import write_text
from recipes.lib.runs.folder import config_text, is_run

# Keys that the page and the process that samples read from the store.
KEPT = "temperature max_completion_length seed overlap repeat compare_every implicit".split()


@dataclass
class Project:
    """An opened project.

    Args:
        path: Its folder.
        store: Its database.
        database: Its URL; None for the file in the folder.
    """

    path: Path
    store: Store
    database: str | None = None

    def ask(
        self,
        script: AskArguments,
        given: Container[str],
        items: Sequence[Item],
        prompts: Sequence[Any],
    ) -> None:
        """Put what is to be asked into the store; what is there already stays as it is.

        Args:
            script: Keys of the recipe.
            given: Those that the user gave; what they say nothing of stays as it was.
            items: Ready items.
            prompts: What completions are sampled for.
        """
        before = self.store.settings
        new = {name for name in KEPT if name in given or name not in before} | {"num_answers"}
        kept = before | {name: getattr(script, name) for name in new}
        self.store.settings = kept | {"models": script.names or before.get("models")}
        self.store.add_items(with_repeats(items, kept))
        self.store.add_jobs(make_jobs(prompts, script))

    def export(self, format: str, implicit_weight: float = 0.0) -> dict[str, Any]:
        """Write the answers that hold.

        Args:
            format: As of `exchange.write_answers`.
            implicit_weight: Of answers that were merely implied.

        Returns:
            The summary: rows by file, how often each run was preferred, what `describe` says.

        Raises:
            UserError: The files cannot be written.
        """
        from recipes.lib.feedback.exchange import write_answers  # late: the page does without it

        rows = [
            row | {"weight": implicit_weight} if row["source"] == "implicit" else row
            for row in self.store.rows()
        ]
        try:
            held_out = {item["id"] for item in self.store.items() if item.get("held_out")}
            written = write_answers(rows, self.path, format, held_out)
        except OSError as error:
            raise UserError(f"output_dir={self.path} cannot be written: {error}.") from error
        numbers = {f"num_{name}": number for name, number in written.items()}
        told = self.describe(rows)
        del told["answers"]
        return numbers | {"preferred": preferred(rows)} | told

    def describe(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What `agreement.describe` says of rows, with the gold answers of the project."""
        from recipes.lib.feedback.agreement import describe

        gold = {item["id"]: item["gold"] for item in self.store.items() if "gold" in item}
        return describe(rows, gold)


def open_project(path: Path, values: dict[str, Any], *, may_begin: bool) -> Project:
    """Open a project, or begin one.

    Args:
        path: Its folder.
        values: The keys that were given; `database` is kept with the project.
        may_begin: Whether it is made where it is not there.

    Returns:
        The project.

    Raises:
        UserError: There is none, the folder holds something else, or the database cannot be opened.
    """
    database = values.get("database")
    if is_run(path):
        database = database or read_yaml(path / "config.yaml").values.get("database")
        if database is None and not (path / FILE).is_file():
            raise UserError(f"output_dir={path}: holds a run, and no answers of people.")
        _refuse_password(database)
        return Project(path, Store(database or path / FILE), database)
    if not may_begin:
        raise UserError(f"output_dir={path}: no feedback project is there; name one.")
    # A database alone is what a kill left before there was anything in it.
    if path.is_dir() and any(not one.name.startswith(FILE) for one in path.iterdir()):
        raise UserError(f"output_dir={path} is not empty and holds no run; choose another folder.")
    _refuse_password(database)
    kept = {key: value for key, value in values.items() if key not in NAMES}
    try:
        path.mkdir(parents=True, exist_ok=True)
        store = Store(database or path / FILE)
        write_text(path / "config.yaml", config_text(kept))
    except OSError as error:
        raise UserError(f"output_dir={path} cannot be written: {error.strerror}.") from error
    return Project(path, store, database)


def _refuse_password(database: str | None) -> None:
    url = make_url(database) if database else None
    if url is not None and (url.password or "password" in url.query):
        raise UserError(
            "database: holds a password, which would be kept in config.yaml; leave it out and set "
            "PGPASSWORD, or use ~/.pgpass."
        )


def check_asked(script: AskArguments, *, is_new: bool) -> None:
    """Check what is to be asked, before anything is read or made.

    Args:
        script: Keys of the recipe.
        is_new: Whether the project is not there yet.

    Raises:
        UserError: A key is wrong, or nothing is asked.
    """
    if not script.kinds or set(script.kinds) - set(KINDS):
        raise UserError(f"kinds={script.kinds}: name some of {', '.join(KINDS)}.")
    if not script.aspects:
        raise UserError("aspects=[]: name at least one.")
    for name in ("overlap", "repeat"):
        if not 0 <= getattr(script, name) <= 1:
            raise UserError(f"{name}={getattr(script, name)}: must be a share from 0 to 1.")
    if script.num_completions < 3 and "rank" in script.kinds:
        raise UserError(f"num_completions={script.num_completions}: a ranking takes 3 or more.")
    _check_source(script, bool(script.dataset_name or script.datasets), is_new)


def _check_source(script: AskArguments, has_prompts: bool, is_new: bool) -> None:
    if script.items and (has_prompts or script.names):
        raise UserError(f"items={script.items}: stands for runs and prompts; leave one out.")
    if has_prompts and not script.names and set(script.kinds) != {"text"}:
        raise UserError("names is missing; write rlhf feedback serve RUN --dataset_name PROMPTS.")
    if script.chat and (script.items or has_prompts or not script.names):
        raise UserError("chat=true: write rlhf feedback serve RUN --chat; it takes no data.")
    if script.names and not has_prompts and not script.chat:
        raise UserError("dataset_name is missing: name the prompts that are answered.")
    if is_new and not (script.chat or script.items or has_prompts):
        raise UserError(
            "nothing is to be asked: write rlhf feedback serve RUN --dataset_name PROMPTS, or give "
            "items."
        )
