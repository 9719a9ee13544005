"""How much the libraries say."""

import logging
import warnings
from collections.abc import Iterator

import pytest

from recipes.lib.verbosity import LIBRARIES, restore


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("asked", "level"), [("debug", 10), ("detail", 10), ("info", 20), ("passive", 40)]
)
def test_libraries_speak_at_the_level_that_was_asked_for(asked: str, level: int) -> None:
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    restore(asked)
    assert {logging.getLogger(name).level for name in LIBRARIES} == {level}
