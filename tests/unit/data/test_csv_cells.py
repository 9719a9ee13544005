"""Cells of a CSV file are all text: what stands for messages and labels is read as that."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from recipes.data import run as look_at
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.file_rows import read_file
from recipes.lib.data.loading import load_splits
from recipes.lib.data.sources import find_sources
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from tests.helpers.tiny_runs import plain

ASK = [{"role": "user", "content": 'the cat, or "the dog"?'}]
ANSWER = [{"role": "assistant", "content": "sat"}]
NO_CARD = {"use_cpu": True}
OTHER = [{"role": "assistant", "content": "ran"}]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(
            {key: cell if isinstance(cell, str) else json.dumps(cell) for key, cell in row.items()}
            for row in rows
        )
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASK + ANSWER},
        {"prompt": ASK, "completion": ANSWER},
        {"prompt": ASK, "chosen": ANSWER, "rejected": OTHER},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        {"prompt": "[a] list", "completion": "[1, 2]"},
        {"prompt": '[{"price": 3}]', "completion": " {}"},
        {"text": "two\r\nlines"},
    ],
    ids=lambda row: "-".join(row) + ("-text" if isinstance(next(iter(row.values())), str) else ""),
)
def test_messages_in_json_are_messages_and_other_text_is_text(row: Any, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [row, row])
    assert plain(read_file(path)) == [row, row]
    streamed = find_sources(str(path), "train")["train"].rows()
    assert [found for _, found in streamed] == [row, row]


@pytest.mark.parametrize(
    ("yes", "no"), [("True", "False"), ("true", "false"), ("1", "0"), ("TRUE", " FALSE")]
)
def test_words_for_true_and_false_are_labels(yes: str, no: str, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in (yes, no)]
    args = DataArguments(dataset_name=str(write_csv(tmp_path / "rows.csv", rows)))
    train, _ = load_splits(args, 0, ("prompt", "completion", "label"))
    assert train["label"] == [True, False]


def test_another_word_is_no_label(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in ("True", "good")]
    args = DataArguments(dataset_name=str(write_csv(tmp_path / "rows.csv", rows)))
    with pytest.raises(UserError, match="column 'label' has 'good', which must be true or false"):
        load_splits(args, 0, ("prompt", "completion", "label"))


def test_a_label_without_a_completion_is_left_to_the_reward_functions(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"prompt": "p", "label": "1"}])
    assert read_file(path)["label"] == ["1"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("plain text", "messages in column 'messages' that cannot be read (not valid JSON"),
        ("[{'role': 'user', 'content': 'a'}]", "messages in column 'messages' that cannot be"),
        ("3", "a column 'messages' that is no list of messages in JSON in 1 of 2 rows"),
    ],
)
def test_what_is_no_json_is_a_bad_line(cell: str, said: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"messages": ASK + ANSWER}, {"messages": cell}])
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert said in str(caught.value)
    assert "first in line 3" in str(caught.value)
    assert plain(read_file(path, "drop")) == [{"messages": ASK + ANSWER}]
    found = [row for _, row in find_sources(str(path), "train")["train"].rows()]
    assert isinstance(found[1], ValueError)


def test_the_page_of_the_data_says_that_they_are_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": ASK + ANSWER}, {"messages": ASK + OTHER}]
    path = write_csv(tmp_path / "rows.csv", rows)
    look_at(parse("data", [str(path)]))
    assert "messages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "number"), [("3", 3), ("1", 1), ("0.1", 1), ("0.25", 2)], ids=["3", "1", "0.1", "0.25"]
)
@pytest.mark.parametrize("key", ["test_fraction", "test_split_size", "dataset_mixture", "flag"])
def test_a_number_or_a_share_of_test_rows_is_held_out(
    key: str, size: str, number: int, tmp_path: Path
) -> None:
    # As in train_test_split of the datasets library, which counts a whole number in rows.
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(10)))
    text = f"dataset_name: {path}\n"
    if key == "dataset_mixture":
        text = f"dataset_mixture: {{datasets: [{{id: {path}}}], test_split_size: {size}}}\n"
    elif key != "flag":
        text += f"{key}: {size}\n"
    (tmp_path / "run.yaml").write_text(text)
    words = ["--config", str(tmp_path / "run.yaml")]
    config = parse("sft", words + (["--test_fraction", size] if key == "flag" else []), NO_CARD)
    train, test = load_splits(config.script, 0, ("text",))
    assert test is not None
    assert (len(train), len(test)) == (10 - number, number)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"test_fraction": 1.0},
            "test_fraction=1.0: give a share from 0 to below 1, or the number",
        ),
        (
            {"test_fraction": 1.5},
            "test_fraction=1.5: give a share from 0 to below 1, or the number",
        ),
        ({"test_fraction": -1}, "test_fraction=-1: give a share from 0 to below 1, or the number"),
        ({"test_fraction": 2}, "test_fraction=2: of 2 distinct rows that leaves one side empty"),
    ],
)
def test_a_number_of_test_rows_that_cannot_be(
    values: dict[str, float], sentence: str, tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(UserError, match=sentence):
        load_splits(DataArguments(dataset_name=str(path), **values), 0, ("text",))


def test_a_stream_holds_out_no_number_of_rows(tmp_path: Path) -> None:
    from recipes.lib.data.arguments import check_data

    args = DataArguments(dataset_name="rows.csv", streaming=True, test_fraction=2)
    with pytest.raises(UserError, match="a stream cannot hold out a number of rows"):
        check_data(args)


def test_ratings_beside_a_completion_are_numbers_where_they_are_some(tmp_path: Path) -> None:
    cells = {"4": 4.0, " -2.50 ": -2.5, "five": "five", "1e9": "1e9"}
    rows = [{"prompt": "a", "completion": "b", "rating": cell} for cell in cells]
    found = read_file(write_csv(tmp_path / "rows.csv", rows))
    assert [row["rating"] for row in found] == [*cells.values()]
