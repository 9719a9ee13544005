import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.prompts import prompt_text
from recipes.lib.data.reading import choose_split
from recipes.lib.data.row_checks import check_rows
from recipes.lib.data.splitting import remove_overlap
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import check_template
from tests.helpers.tiny_runs import plain

ROWS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(10)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path | str, columns: tuple[str, ...] = ("prompt",), **values: Any) -> Any:
    seed = values.pop("seed", 0)
    return load_splits(DataArguments(dataset_name=str(path), **values), seed, columns)


def test_a_file_without_a_fraction_has_no_test_rows(tmp_path: Path) -> None:
    train, test = load(write(tmp_path / "a.jsonl", ROWS))
    assert plain(train) == ROWS
    assert test is None


def test_of_a_feedback_project_prompts_are_read_from_any_file_and_a_named_one(
    tmp_path: Path,
) -> None:
    rated = [{"prompt": "a", "completion": "b", "rating": 3, "annotator": "bo", "aspect": "tone"}]
    write(tmp_path / "ratings.jsonl", rated)
    assert plain(load(tmp_path)[0]) == rated
    write(tmp_path / "preference.jsonl", [{"prompt": "c", "chosen": "d", "rejected": "e"}])
    assert load(tmp_path)[0]["prompt"] == ["c"]
    assert load(tmp_path, dataset_train_split="ratings")[0]["prompt"] == ["a"]
    write(tmp_path / "other.jsonl", ROWS)  # what is no project is not guessed at
    with pytest.raises(UserError, match="has the splits other, preference, ratings"):
        load(tmp_path)


def test_a_recipe_takes_the_first_of_its_files_of_a_feedback_project() -> None:
    splits, files = {"preference": 1, "ratings": 2}, ("unpaired_preference", "preference")
    assert choose_split(splits, "train", "x", feedback=files) == 1
    with pytest.raises(UserError, match="holds ratings and no unpaired_preference or preference"):
        choose_split({"ratings": 2}, "train", "x", feedback=files)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path, dataset = tmp_path / f"rows{suffix}", Dataset.from_list(ROWS)
    if suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif suffix == ".csv":
        dataset.to_csv(path)
    else:
        dataset.to_parquet(path)
    assert plain(load(path)[0]) == ROWS


def test_messages_and_any_script_pass_through(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "assistant", "content": "\u4f60\u597d\u2028x"}]}]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(rows[0], ensure_ascii=False), encoding="utf-8")
    assert plain(load(path, ("messages",))[0]) == rows


def test_a_folder_has_one_split_per_file(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS[:7])
    write(tmp_path / "test.jsonl", ROWS[7:])
    train, test = load(tmp_path)
    assert (plain(train), plain(test)) == (ROWS[:7], ROWS[7:])


def test_a_run_that_made_data_is_read_from_its_final_folder(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    write(tmp_path / "final" / "train.jsonl", ROWS)
    write(tmp_path / "feedback.jsonl", [{"other": 1}])
    assert plain(load(tmp_path)[0]) == ROWS


def test_the_split_is_seeded_and_shares_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    train, test = load(path, test_fraction=0.3, seed=5)
    assert len(test) == 3
    assert len(train) == 7
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in test)
    assert load(path, test_fraction=0.3, seed=5)[1].to_list() == test.to_list()
    seeds = {tuple(load(path, test_fraction=0.3, seed=seed)[1]["prompt"]) for seed in range(5)}
    assert len(seeds) > 1


def test_equal_rows_go_to_the_same_side(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS * 3)
    train, test = load(path, test_fraction=0.5)
    assert len(train) == len(test) == 15
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in test)


@pytest.mark.parametrize(
    ("number", "most", "held_out"),
    [(79, None, 0), (80, None, 8), (160, None, 8), (500, None, 25), (500, 100, 8), (500, 79, 0)],
)
def test_a_twentieth_is_held_out_where_a_recipe_does_so(
    number: int, most: int | None, held_out: int, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{row}"} for row in range(number)] * 2  # equal rows count once
    args = DataArguments(dataset_name=str(write(tmp_path / "a.jsonl", rows)), max_train_rows=most)
    args.holds_out = True
    _, test = load_splits(args, 0, ("prompt",))
    assert args.test_fraction == held_out
    assert (0 if test is None else len(test)) == 2 * held_out
    told = DataArguments(dataset_name=args.dataset_name, test_fraction=held_out)
    if held_out:  # as the number says that is kept for a resume
        assert load_splits(told, 0, ("prompt",))[1].to_list() == test.to_list()


def test_max_train_rows_keeps_the_test_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    train, test = load(path, test_fraction=0.3, max_train_rows=2)
    assert len(train) == 2
    assert len(test) == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"rows\.jsonl: not valid JSON .* first in line 2"),
        ('{"prompt": "a"}\n\n[1]\n', r"rows\.jsonl: not a JSON object .* first in line 3"),
        ("", "no rows"),
        ('{"text": "a"}\n', "column 'prompt' is missing; the columns are text"),
        ('{"prompt": "a"}\n{"prompt": " "}\n', "'prompt' is empty in 1 of 2 rows, first in line 2"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "'prompt' is empty in 1 of 2 rows"),
        ('{"prompt": "a"}\n{"prompt": 3}\n', "'prompt' holds 3, which is neither text nor"),
    ],
)
def test_a_broken_file_is_told_by_place(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=text):
        load(path)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="dataset_name is missing"):
        load_splits(DataArguments(), 0, ())
    with pytest.raises(UserError, match=r"no \.jsonl.* file in"):
        load(tmp_path)
    with pytest.raises(UserError, match="Hub gave no dataset"):
        load("nobody/nothing")


def test_a_missing_split_names_those_present(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"dataset_train_split=all: .* has the splits train"):
        load(tmp_path, dataset_train_split="all")


def test_test_rows_and_a_fraction_contradict_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:5])
    other = write(tmp_path / "b.jsonl", ROWS[5:])
    with pytest.raises(UserError, match="has test rows already"):
        load(path, test_dataset_name=str(other), test_fraction=0.1)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"test_fraction": 1.0}, "from 0 to below 1"),
        ({"test_fraction": 0.01}, "leaves one side empty"),
    ],
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        load(write(tmp_path / "a.jsonl", ROWS), **values)


def test_test_rows_among_the_training_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    other = write(tmp_path / "b.jsonl", [{"prompt": "new", "completion": "x"}, ROWS[3]])
    with pytest.raises(
        UserError, match="1 of 2 test rows are also training rows, first line 2 of "
    ):
        load(path, test_dataset_name=str(other))


def test_the_same_pair_judged_the_other_way_is_the_same_pair() -> None:
    train = Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b", "id": 1}])
    swapped = Dataset.from_list([{"prompt": "p", "chosen": "b", "rejected": "a", "id": 2}])
    other = Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b", "id": 3}])
    with pytest.raises(UserError, match="also training rows"):
        remove_overlap(train, swapped)
    remove_overlap(train, other)


def test_prompt_text_of_messages() -> None:
    assert prompt_text("plain") == "plain"
    assert prompt_text([{"role": "user", "content": "hello"}]) == "hello"
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert prompt_text(turns) == "system: be brief\nuser: hi"
    assert prompt_text([{"role": "assistant", "tool_calls": [1]}]) == ""


def test_messages_without_a_template_are_refused() -> None:
    row = {"prompt": [{"role": "user", "content": "hi"}]}
    with pytest.raises(UserError, match="chat_template_path is missing: prompt holds messages"):
        check_template(row, "prompt", has_template=False)
    check_template(row, "prompt", has_template=True)


def test_an_empty_conversation_is_empty() -> None:
    rows = Dataset.from_list([{"chosen": [{"role": "assistant", "content": " "}]}])
    with pytest.raises(UserError, match="'chosen' is empty in 1 of 1 rows"):
        check_rows(rows, ("chosen",), "here")
