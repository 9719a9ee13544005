"""Each mistake in data is one sentence with exit code 2, and nothing changes on disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mistakes import attempt

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LIKED = {"prompt": "p", "completion": "a", "label": True}
MEND = "mend or remove them, or set on_bad_rows=drop."
ROWS = "dataset_name=rows.jsonl (train): "


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# id: (recipe, files by name, flags, what is said)
MISTAKES: dict[str, tuple[str, dict[str, str | bytes], list[str], str]] = {
    "no data named": (
        "dpo",
        {},
        [],
        "dataset_name is missing: name a file, a folder or a Hub dataset.",
    ),
    "a file that is not there": (
        "dpo",
        {},
        ["--dataset_name", "absent.jsonl"],
        "dataset_name=absent.jsonl: there is no such file or folder; check the path.",
    ),
    "a folder that is not there": (
        "dpo",
        {},
        ["--dataset_name", "runs/feedback/absent"],
        "dataset_name=runs/feedback/absent: there is no such file or folder; check the path.",
    ),
    "a folder without data": (
        "dpo",
        {"folder/notes.md": "x"},
        ["--dataset_name", "folder"],
        "dataset_name=folder: no .jsonl, .json, .csv, .txt, .jsonl.gz, .json.gz, .csv.gz, "
        ".txt.gz, .parquet file in folder; name the file or a "
        "folder that holds train.jsonl.",
    ),
    "a folder without the split": (
        "dpo",
        {"folder/pairs.jsonl": lines(PAIR)},
        ["--dataset_name", "folder"],
        "dataset_train_split=train: folder has the splits pairs; name one of them.",
    ),
    "an unknown ending": (
        "sft",
        {"rows.xlsx": b"PK"},
        ["--dataset_name", "rows.xlsx"],
        "dataset_name=rows.xlsx: unknown ending; use .jsonl, .json, .csv, .txt, "
        ".jsonl.gz, .json.gz, .csv.gz, .txt.gz, .parquet.",
    ),
    "a column that is not there": (
        "dpo",
        {"rows.jsonl": lines({"question": "p", "chosen": "a"})},
        [],
        f"{ROWS}column 'rejected' is missing; the columns are question, chosen. Rename the right "
        "one to 'rejected', or say what the file holds with dataset_format.",
    ),
    "columns of no format": (
        "sft",
        {"rows.jsonl": lines({"question": "p"})},
        [],
        "dataset_name: the columns are question; SFT needs prompt and completion, or messages, or "
        "text.",
    ),
    "an empty file": (
        "sft",
        {"rows.jsonl": ""},
        [],
        "dataset_name=rows.jsonl: no rows; give a file with at least one.",
    ),
    "an empty side": (
        "reward",
        {"rows.jsonl": lines(PAIR, PAIR | {"rejected": ""})},
        [],
        f"{ROWS}column 'rejected' is empty in 1 of 2 rows, first in line 2; {MEND}",
    ),
    "a side of white space": (
        "dpo",
        {"rows.jsonl": lines(PAIR, PAIR, PAIR | {"chosen": " \n"})},
        [],
        f"{ROWS}column 'chosen' is empty in 1 of 3 rows, first in line 3; {MEND}",
    ),
    "chosen equal to rejected": (
        "dpo",
        {"rows.jsonl": lines(PAIR | {"rejected": "a"}, PAIR)},
        [],
        f"{ROWS}columns 'chosen' and 'rejected' are equal in 1 of 2 rows, first in line 1; {MEND}",
    ),
    "two kinds of faults": (
        "dpo",
        {"rows.jsonl": lines(PAIR | {"rejected": "a"}, PAIR, PAIR | {"prompt": None})},
        [],
        f"{ROWS}columns 'chosen' and 'rejected' are equal in 1 of 3 rows, first in line 1"
        f", and 1 more have other faults; {MEND}",
    ),
    "text that is not UTF-8": (
        "dpo",
        {"rows.jsonl": lines(PAIR).encode() + b'{"prompt": "caf\xe9"}\n'},
        [],
        f"rows.jsonl: not UTF-8 text in 1 of 2 rows, first in line 2; {MEND}",
    ),
    "a CSV that is not UTF-8": (
        "sft",
        {"rows.csv": b"text\ncaf\xe9\n"},
        ["--dataset_name", "rows.csv"],
        "rows.csv: not UTF-8 text (byte 8); save the file as UTF-8.",
    ),
    "a broken JSON line": (
        "dpo",
        {"rows.jsonl": lines(PAIR, PAIR) + '{"prompt": "p", "chosen": \n' + lines(PAIR)},
        [],
        f"rows.jsonl: not valid JSON (Expecting value) in 1 of 4 rows, first in line 3; {MEND}",
    ),
    "a line that is no object": (
        "dpo",
        {"rows.jsonl": lines(PAIR) + "[1]\n"},
        [],
        f"rows.jsonl: not a JSON object in 1 of 2 rows, first in line 2; {MEND}",
    ),
    "a broken JSON list": (
        "sft",
        {"rows.json": '[\n{"text": "a"},\n{"text": }]'},
        ["--dataset_name", "rows.json"],
        "rows.json:3: not valid JSON (Expecting value); mend it.",
    ),
    "a broken Parquet file": (
        "sft",
        {"rows.parquet": b"PAR1 and no more"},
        ["--dataset_name", "rows.parquet"],
        "dataset_name=rows.parquet: cannot be read as rows (Could not open Parquet input "
        "source 'rows.parquet': Parquet magic bytes not found in "
        "footer. Either the file is corrupted or this is not a parquet file.); mend the file.",
    ),
    "a number for text": (
        "dpo",
        {"rows.jsonl": lines(PAIR, PAIR | {"prompt": 3})},
        [],
        f"{ROWS}column 'prompt' holds 3, which is neither text nor messages, in 1 of 2 rows, first "
        f"in line 2; {MEND}",
    ),
    "bad rows in a large file": (
        "dpo",
        {"rows.jsonl": lines(*(PAIR | {"chosen": "a" if n % 73 else ""} for n in range(1, 10001)))},
        [],
        f"{ROWS}column 'chosen' is empty in 136 of 10000 rows, first in line 73; {MEND}",
    ),
    "a label out of range": (
        "kto",
        {"rows.jsonl": lines(LIKED, LIKED | {"label": 2})},
        [],
        f"{ROWS}column 'label' has 2, which must be true or false, in 1 of 2 rows, first in line 2"
        f"; {MEND}",
    ),
    "a format that is not the file's": (
        "sft",
        {"rows.jsonl": lines({"text": "a"})},
        ["--dataset_format", "sharegpt"],
        "dataset_format=sharegpt: rows.jsonl: no list of conversations in 1 of 1 rows, first in "
        f"line 1; {MEND}",
    ),
    "a test row that is a training row": (
        "dpo",
        {"rows.jsonl": lines(PAIR, PAIR | {"prompt": "q"}), "test.jsonl": lines(PAIR)},
        ["--test_dataset_name", "test.jsonl"],
        "1 of 1 test rows are also training rows, first line 1 of test.jsonl; remove them from "
        "one side, or set on_bad_rows=drop to leave them out of training.",
    ),
    "a conversation without an answer": (
        "sft",
        {"rows.jsonl": lines({"messages": [{"role": "user", "content": "a"}]})},
        [],
        f"{ROWS}column 'messages' has no turn of the assistant in 1 of 1 rows, first in line "
        f"1; {MEND}",
    ),
    "tools that are no list": (
        "sft",
        {"rows.jsonl": lines({"text": "a", "tools": "[{"})},
        [],
        f"{ROWS}column 'tools' has '[{{', which is no list of tools, in 1 of 1 rows, first in line "
        f"1; {MEND}",
    ),
    "all rows as test rows": (
        "sft",
        {"rows.jsonl": lines({"text": "a"})},
        ["--test_fraction", "1.0"],
        "test_fraction=1.0: give a share from 0 to below 1, or the number of rows as a whole "
        "number (1 is one row).",
    ),
    "a split that leaves a side empty": (
        "dpo",
        {"rows.jsonl": lines(PAIR)},
        ["--test_fraction", "0.5"],
        "test_fraction=0.5: of 1 distinct rows that leaves one side empty; choose another share.",
    ),
    "nothing is left when bad rows are dropped": (
        "dpo",
        {"rows.jsonl": lines(PAIR | {"chosen": ""})},
        ["--on_bad_rows", "drop"],
        f"{ROWS}every row is bad (column 'chosen' is empty in 1, first in line 1); mend the data.",
    ),
    "a mixture with an unknown key": (
        "dpo",
        {"run.yaml": "datasets:\n  - path: rows.jsonl\n    share: 1"},
        ["--config", "run.yaml"],
        "datasets=[{'path': 'rows.jsonl', 'share': 1}] (run.yaml, line 1): has the unknown key "
        "share; known are path, name, revision, format, split, test_split, columns, "
        "text_field, weight, fraction.",
    ),
    "a mixture that is no list": (
        "dpo",
        {"run.yaml": "datasets: rows.jsonl"},
        ["--config", "run.yaml"],
        "datasets='rows.jsonl' (run.yaml, line 1): must be a list of mappings.",
    ),
    "a mixture without a path": (
        "dpo",
        {"run.yaml": "datasets:\n  - weight: 1.0"},
        ["--config", "run.yaml"],
        "datasets=[{'weight': 1.0}] (run.yaml, line 1): must give path in each mapping.",
    ),
    "a mixture beside a name": (
        "dpo",
        {"rows.jsonl": lines(PAIR), "run.yaml": "datasets:\n  - path: rows.jsonl"},
        ["--config", "run.yaml"],
        "datasets and dataset_name=rows.jsonl exclude each other; leave one out.",
    ),
    "a weight above 1": (
        "dpo",
        {"run.yaml": "datasets:\n  - path: rows.jsonl\n    weight: 2"},
        ["--config", "run.yaml"],
        "datasets[0] (path=rows.jsonl): weight=2.0 must be above 0 and at most 1, the share of the "
        "dataset's rows; to give it more room, lower the other weights.",
    ),
    "a number in quotes": (
        "dpo",
        {"run.yaml": 'learning_rate: "1e-5"'},
        ["--config", "run.yaml"],
        "learning_rate='1e-5' (run.yaml, line 1): must be a number; write it without quotes.",
    ),
    "a word for what to do with bad rows": (
        "dpo",
        {"rows.jsonl": lines(PAIR)},
        ["--on_bad_rows", "ignore"],
        "--on_bad_rows ignore: must be one of refuse, drop.",
    ),
}


def prepare(name: str, folder: Path) -> tuple[str, list[str]]:
    """Write the files of a mistake; the recipe and the words of the command that makes it."""
    recipe, files, flags, _ = MISTAKES[name]
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["--use_cpu", "--model_name_or_path", "absent", *flags]
    if "rows.jsonl" in files and "--dataset_name" not in flags:
        words += ["--dataset_name", "rows.jsonl"]
    return recipe, words


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_data_is_one_sentence_and_leaves_nothing_behind(
    name: str, tmp_path: Path
) -> None:
    recipe, words = prepare(name, tmp_path)
    answer = attempt(recipe, words, tmp_path)
    sentence = MISTAKES[name][3]
    assert answer.err == f"rlhf {recipe}: error: {sentence}\n"
    assert (answer.code, answer.out) == (2, "")
    assert answer.changed == []
    assert "\n" not in sentence
