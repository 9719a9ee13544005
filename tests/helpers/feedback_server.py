"""The server of the feedback page as a process, which a test may kill and start again."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.lib.annotation.access import Access
from recipes.lib.annotation.server import make_app, serve
from recipes.lib.feedback.store import Store

ROOT = Path(__file__).parents[2]


class Server:
    """A real server on a port of its own.

    Args:
        database: The store's file.
        annotator: Who answers without a link; nobody if empty.
    """

    def __init__(self, database: Path, annotator: str = "anna") -> None:
        self.database, self.annotator, self.port = database, annotator, 0
        self.start()

    def start(self) -> None:
        """Start it, on the same port as before."""
        command = [sys.executable, "-m", "tests.helpers.feedback_server", str(self.database)]
        self.process = subprocess.Popen(
            [*command, self.annotator, str(self.port)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def item(
    number: int, kind: str = "pair", contents: Iterable[Any] | None = None, **more: Any
) -> Any:
    """What is asked; the completions say which they are unless they are given."""
    given = [f"first {number}", f"second {number}"] if contents is None else contents
    completions = [{"content": one, "run": f"runs/secret-{i}"} for i, one in enumerate(given)]
    asked = {"id": f"i{number}", "prompt": f"Prompt {number}", "kind": kind}
    return asked | {"completions": completions} | more


if __name__ == "__main__":
    database, annotator, port = sys.argv[1:]
    store = Store(database)
    app = make_app(store, Access(store, annotator or None), database)
    serve(app, "127.0.0.1", int(port), lambda port: print(port, flush=True), lambda: False)
