"""The mistakes of the tests, made once more: what the program answers, and what changed on disk."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.conftest import word_tokenizer
from tests.helpers.mistakes import Answer, attempt
from tests.helpers.small_disk import NoMountError
from tests.recipes import test_refusals
from tests.unit.project import (
    test_data_mistakes,
    test_machine_limits,
    test_mistakes,
    test_model_mistakes,
)

Try = Callable[[str, Path], Answer]


def in_configuration(name: str, folder: Path) -> Answer:
    """Make a mistake in a file or on the command line."""
    return attempt(*test_mistakes.prepare(name, folder), folder)


def in_data(name: str, folder: Path) -> Answer:
    """Make a mistake in data."""
    return attempt(*test_data_mistakes.prepare(name, folder), folder)


def in_models(name: str, folder: Path) -> Answer:
    """Make a mistake in a model, an adapter, a reward function, a batch or a folder."""
    test_model_mistakes.furnish(folder, word_tokenizer())
    return attempt(*test_model_mistakes.prepare(name, folder), folder)


def on_machine(name: str, folder: Path) -> Answer:
    """Meet a limit of the machine."""
    test_model_mistakes.furnish(folder, word_tokenizer())
    return test_machine_limits.LIMITS[name][0](folder)


def in_libraries(name: str, folder: Path) -> Answer:
    """Set what only a library checks."""
    test_refusals.furnish(folder, word_tokenizer())
    return attempt(*test_refusals.prepare(name), folder)


TABLES: dict[str, tuple[list[str], Try]] = {
    "In a configuration or on the command line": (list(test_mistakes.MISTAKES), in_configuration),
    "In data": (list(test_data_mistakes.MISTAKES), in_data),
    "In models, rewards, batches and folders": (list(test_model_mistakes.MISTAKES), in_models),
    "What only a library checks": (list(test_refusals.CASES), in_libraries),
    "Limits of the machine": (list(test_machine_limits.LIMITS), on_machine),
}


def mistake_tables() -> str:
    """Make every mistake.

    Returns:
        Markdown: a heading and a table for each kind.
    """
    parts = []
    for heading, (names, run) in TABLES.items():
        lines = [f"### {heading}", "", "| mistake | recipe | answer | exit code | changed |"]
        lines += ["|---|---|---|---|---|", *(_row(name, run) for name in names)]
        parts.append("\n".join(lines))
        print(f"{heading}: {len(names)} mistakes", file=sys.stderr)
    return "\n\n".join(parts)


def _row(name: str, run: Try) -> str:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        try:
            answer = run(name, folder)
        except NoMountError:
            return f"| {name} | sft | needs the rights to mount a file system | | |"
        said = answer.sentence().replace(f"{folder}/", "").replace(str(folder), ".")
    changed = [path for path in answer.changed if Path(path).name != "disk"]
    return f"| {name} | {answer.recipe} | {_code(said)} | {answer.code} | {len(changed)} |"


def _code(text: str) -> str:
    marks = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{marks}{space}{text}{space}{marks}".replace("|", "\\|")
