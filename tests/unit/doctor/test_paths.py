"""Padding and neighbours, of a model whose way of reading is known."""

import pytest

from recipes.lib.doctor import paths
from recipes.lib.doctor.findings import limit_of
from recipes.lib.doctor.subject import PADDING
from tests.helpers.known_scorer import pair, subject

ROWS = [pair("good " + "w1 " * (n % 4), "bad w2", f"w{n} ") for n in range(12)]
WEIGHTS = {"good": 1.0, "bad": -1.0, "<pad>": 0.25}


@pytest.mark.parametrize(
    ("way", "right", "left"),
    [("", "fine", "fine"), ("unmasked", "fault", "remark"), ("last column", "fault", "fine")],
)
def test_padding_is_named_by_its_side(way: str, right: str, left: str) -> None:
    examined = subject(ROWS, WEIGHTS | {"<eos>": 1.0}, way=way)
    # By transformers it cannot be loaded, since it lies nowhere; that is another check.
    for side, name, status in (("right", "last_column", right), ("left", "left_padding", left)):
        off = paths._gap(examined, examined.padded(**{side: PADDING}))
        expected = {"": 0.0, "unmasked": 5 * 0.25, "last column": 0.75 if side == "right" else 0.0}
        assert off == pytest.approx(expected[way] / examined.spread, rel=1e-5)
        assert (off > limit_of(name)) == (status != "fine")
