"""Bad rows are counted and the first is named; with on_bad_rows=drop they are left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.file_rows import BrokenRowError, parse_line, read_file
from recipes.lib.data.loading import load_splits
from recipes.lib.errors import UserError
from tests.helpers.tiny_runs import plain, write

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def load(path: Path, *columns: str, **values: Any) -> Any:
    return load_splits(DataArguments(dataset_name=str(path), **values), 0, columns)


def test_broken_lines_of_a_large_file_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"prompt": f"row {n}"}) for n in range(1000)]
    lines[16] = '{"prompt": "cut'
    lines[99] = lines[98][:-1]
    lines[500] = "[1]"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path, "prompt")
    assert str(caught.value) == (
        f"{path}: not valid JSON (Unterminated string starting at) in 1 of 1000 rows, first in "
        "line 17, and 2 more have other faults; mend or remove them, or set on_bad_rows=drop."
    )
    assert len(load(path, "prompt", on_bad_rows="drop")[0]) == 997
    assert "3 of 1000 rows dropped: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"a": "caf\xe9"}', "not UTF-8 text"),
        (b'{"a": "\\ud83d"}', "half a character (a lone surrogate)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number that is too long"),
        (b'{"a": 9223372036854775808}', "a number that is too long"),
        (b'{"a": 1e400}', "a number that is too long"),
        (b'{"a": -Infinity}', "-Infinity, which is no number in JSON,"),
        (b"3", "not a JSON object"),
        (b"{}", "an object without a key"),
    ],
)
def test_a_line_that_no_table_can_hold(line: bytes, text: str) -> None:
    with pytest.raises(BrokenRowError) as caught:
        parse_line(line)
    assert text in str(caught.value)


def test_a_whole_emoji_in_two_escapes_is_fine() -> None:
    assert parse_line(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("bad", "columns", "text"),
    [
        (PAIR | {"chosen": " "}, ("chosen", "rejected"), "column 'chosen' is empty"),
        (PAIR | {"rejected": None}, ("chosen", "rejected"), "column 'rejected' is empty"),
        (PAIR | {"prompt": "\n"}, ("chosen", "rejected"), "column 'prompt' is empty"),
        (
            PAIR | {"rejected": "a"},
            ("chosen", "rejected"),
            "columns 'chosen' and 'rejected' are equal",
        ),
        (
            PAIR | {"prompt": 7},
            ("prompt",),
            "column 'prompt' holds 7, which is neither text nor messages,",
        ),
        (
            PAIR | {"prompt": [{"content": "x"}]},
            ("prompt",),
            "column 'prompt' holds {'content': 'x'}, which is no message with a role,",
        ),
        (
            PAIR | {"prompt": [{"role": "user", "content": 3}]},
            ("prompt",),
            "column 'prompt' holds 3 as content, which is no text,",
        ),
        (
            PAIR | {"prompt": [{"role": "user", "content": "x"}]},
            ("prompt",),
            "column 'prompt' holds messages, unlike the text before,",
        ),
        (
            PAIR | {"prompt": [{"role": "user", "content": "x"}]},
            ("prompt", "chosen"),
            "columns 'prompt' and 'chosen' mix text and messages",
        ),
    ],
)
def test_a_row_that_cannot_be_learned_from(
    tmp_path: Path,
    bad: dict[str, Any],
    columns: tuple[str, ...],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "rows.jsonl", [PAIR, PAIR | {"prompt": "q"}, bad, bad])
    with pytest.raises(UserError) as caught:
        load(path, *columns)
    assert f"(train): {text} in 2 of 4 rows, first in line 3" in str(caught.value)
    kept = load(path, *columns, on_bad_rows="drop")[0]
    assert plain(kept) == [PAIR, PAIR | {"prompt": "q"}]
    assert "2 of 4 rows dropped" in capsys.readouterr().err


@pytest.mark.parametrize("label", [2, "yes", None, -1, 0.5])
def test_a_label_is_true_or_false(tmp_path: Path, label: Any) -> None:
    from recipes.kto import KTOArguments, load_unpaired

    good = {"prompt": "p", "completion": "c", "label": True}
    path = write(tmp_path / "rows.jsonl", [good, good | {"label": label}])
    with pytest.raises(UserError, match=r"'label' has .*, which must be true or false, in 1 of 2"):
        load_unpaired(KTOArguments(dataset_name=str(path)), 0)
    assert (
        len(load_unpaired(KTOArguments(dataset_name=str(path), on_bad_rows="drop"), 0).train) == 1
    )


def test_an_assistant_that_only_calls_a_tool_says_something(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    path = write(tmp_path / "rows.jsonl", [{"messages": messages}])
    assert plain(load(path, "messages")[0]) == [{"messages": messages}]


def test_a_prompt_that_the_pair_already_holds_is_left_out(tmp_path: Path) -> None:
    pair = {
        side: [{"role": "user", "content": "p"}, {"role": "assistant", "content": side}]
        for side in ("chosen", "rejected")
    }
    path = write(tmp_path / "rows.jsonl", [pair | {"prompt": "p"}, pair | {"prompt": "p"}])
    assert plain(load(path, "chosen", "rejected")[0]) == [pair, pair]


def test_when_every_row_is_bad_nothing_is_left_to_drop_to(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": ""}])
    with pytest.raises(UserError, match=r"every row is bad \(column 'prompt' is empty in 1"):
        load(path, "prompt", on_bad_rows="drop")


def test_training_rows_that_are_test_rows_can_be_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"row {n}"} for n in range(5)])
    other = write(tmp_path / "b.jsonl", [{"prompt": "row 3"}, {"prompt": "new"}])
    values = {"test_dataset_name": str(other), "on_bad_rows": "drop"}
    train, test = load(path, "prompt", **values)
    assert train["prompt"][:] == ["row 0", "row 1", "row 2", "row 4"]
    assert len(test) == 2
    assert "1 of 5 training rows dropped: they are test rows too" in capsys.readouterr().err
    with pytest.raises(UserError, match="every training row is also a test row"):
        load(write(tmp_path / "c.jsonl", [{"prompt": "new"}]), "prompt", **values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,prompt\na,b\n", r"rows\.csv:1: a column has no name or that of another"),
        ("prompt,\na,b\n", r"rows\.csv:1: a column has no name"),
        ('prompt\n"open\n', r"cannot be read as rows \(unexpected end of data\)"),
        ("prompt,a\nx,y\nz\n", r"rows\.csv: a number of fields .* in 1 of 2 rows, first in line 3"),
        ("prompt\n", "no rows"),
    ],
)
def test_a_broken_csv(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_file(path)


def test_a_long_field_of_a_csv_is_read_and_odd_lines_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,a\n" + "x" * 200_000 + ",1\nodd\n", encoding="utf-8")
    assert len(read_file(path, "drop")["prompt"][0]) == 200_000


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_text_that_is_not_utf8_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b'["caf\xe9"]')
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 5\); save the file as UTF-8\."):
        read_file(path)


def test_rows_may_have_different_columns_and_mixed_values(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "answer": 3}, {"prompt": "c", "answer": "three"}]
    path = write(tmp_path / "rows.jsonl", rows)
    assert load(path, "prompt")[0]["answer"][:] == [None, 3, "three"]


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    rows.save_to_disk(tmp_path / "one")
    assert load(tmp_path / "one", "prompt")[0]["prompt"][:] == ["a", "b"]
    held_out = Dataset.from_list([{"prompt": "c"}])
    DatasetDict({"train": rows, "test": held_out}).save_to_disk(tmp_path / "two")
    train, test = load(tmp_path / "two", "prompt")
    assert (len(train), test["prompt"][:]) == (2, ["c"])
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a saved dataset"):
        load(tmp_path / "one", "prompt")
