"""Who sits at the feedback page: a browser, the server, its store."""

from collections.abc import Iterator

import pytest

from recipes.lib.feedback.store import Store
from recipes.lib.feedback.tables import ANSWERS, CLAIMS, ITEMS, JOBS
from tests.helpers.devtools import Browser
from tests.helpers.feedback_page import COMMAND
from tests.helpers.feedback_server import Server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    profile = tmp_path_factory.mktemp("profile")
    made = Browser([*COMMAND, f"--user-data-dir={profile}"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("project") / "feedback.db")
    yield made
    made.kill()


@pytest.fixture
def store(server: Server, browser: Browser) -> Store:
    """The server's, empty, and nobody at the page."""
    browser.open("about:blank")
    opened = Store(server.database)
    with opened.engine.begin() as connection:
        for table in (JOBS, ITEMS, CLAIMS, ANSWERS):
            connection.execute(table.delete())
    return opened
