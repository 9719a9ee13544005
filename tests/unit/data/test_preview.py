"""The page of `rlhf data` shows whole what it shows, on 80 columns."""

import pytest
from rich.cells import cell_len

from recipes.lib.data.preview import Example, Page, show_page


def test_what_is_too_wide_is_folded_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(f"{number:04}" for number in range(40))  # one word of 199 characters
    wide = "".join(chr(0x4E00 + number) for number in range(100))  # two columns each
    show_page(Page("rows", {"data": [path]}, examples=[Example("row 0", [("LOSS", wide)])]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert path in "".join(line.removeprefix("data").strip() for line in lines)
    assert "".join(line.partition("#")[2] for line in lines) == wide
