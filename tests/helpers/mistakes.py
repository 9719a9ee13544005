"""What a program answers to a mistake, for the tests and for docs/benchmarks/input.md."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.lib.recipe.main import launch
from tests.helpers.tiny_runs import snapshot


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    recipe: str
    code: int
    err: str
    out: str
    changed: list[str]  # paths that are new, gone, newer or of other content

    def sentence(self) -> str:
        """The error without the words before it; there is exactly one."""
        start = f"rlhf {self.recipe}: error: "
        (line,) = [line for line in self.err.splitlines() if line.startswith(start)]
        return line.removeprefix(start)


def attempt(recipe: str, words: list[str], folder: Path) -> Answer:
    """Run a command in a folder, in this process.

    Args:
        recipe: Name of the recipe.
        words: The words behind it.
        folder: Becomes the working folder; what changes in it is told.

    Returns:
        The answer.
    """
    before = snapshot(folder)
    err, out = io.StringIO(), io.StringIO()
    with within(folder), contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = launch(recipe, words)
    return Answer(recipe, code, err.getvalue(), out.getvalue(), changes(before, snapshot(folder)))


def changes(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> list[str]:
    """Paths whose entries differ between two snapshots."""
    return sorted(path for path in before | after if before.get(path) != after.get(path))


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Make a folder the working folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
