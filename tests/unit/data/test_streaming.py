"""A stream has the rows of the file, no bad one and no test row, pass after pass."""

import csv
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from recipes.lib.data import streaming
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.formats import format_of
from recipes.lib.data.loading import load_splits
from recipes.lib.data.sources import hub_sources
from recipes.lib.data.streaming import Rows, load_rows
from recipes.lib.errors import UserError
from tests.helpers.tiny_runs import plain, write

PAIRS = [{"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
TOLD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


class Training:
    """The keys of TrainingArguments that streaming looks at."""

    seed = 3
    max_steps = 5
    dataloader_num_workers = 0
    ignore_data_skip = False


def load(**keys: Any) -> Rows:
    args = DataArguments(streaming=True, **keys)
    return load_rows(args, Training(), lambda rows: format_of(rows).columns)


def as_csv(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, list(PAIRS[0]))
        lines.writeheader()
        lines.writerows(PAIRS)
    return path


def as_parquet(path: Path) -> Path:
    Dataset.from_list(PAIRS).to_parquet(path)
    return path


def as_saved(path: Path) -> Path:
    Dataset.from_list(PAIRS).save_to_disk(path)
    return path


def as_folder(path: Path) -> Path:
    path.mkdir()
    write(path / "train.jsonl", PAIRS)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "rows.jsonl": lambda path: write(path, PAIRS),
    "rows.json": lambda path: write(path, PAIRS),
    "rows.csv": as_csv,
    "rows.parquet": as_parquet,
    "saved": as_saved,
    "folder": as_folder,
}


def by_prompt(rows: Any) -> list[dict[str, Any]]:
    return sorted(plain(rows), key=lambda row: int(row["prompt"].split()[1]))


@pytest.mark.parametrize("name", WRITERS)
def test_a_pass_has_every_row_once_and_in_another_order(name: str, tmp_path: Path) -> None:
    rows = load(dataset_name=str(WRITERS[name](tmp_path / name)))
    found = plain(rows.train)
    assert by_prompt(found) == PAIRS
    assert found != PAIRS
    assert rows.test is None
    assert plain(rows.known) == PAIRS


def test_what_the_datasets_library_streams_under_a_name_is_read(tmp_path: Path) -> None:
    # The Hub cannot be asked here; a folder goes the same way through load_dataset.
    sources = hub_sources(str(as_folder(tmp_path / "data")), None, None)
    assert [row for _, row in sources["train"].rows()] == PAIRS
    with pytest.raises(UserError, match=r"^dataset_name=nobody/nothing: no such file here, and "):
        load(dataset_name="nobody/nothing", dataset_revision="1a2b3c")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", {"instruction": "add", "input": "1 and 2", "output": "3", "system": "brief"}),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "brief",
            },
        ),
        ("hh", {side: f"\n\nHuman: a\n\nAssistant: {side}" for side in ("chosen", "rejected")}),
    ],
)
def test_rows_of_other_formats_are_converted_as_without_streaming(
    name: str, row: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [row, row])
    keys: dict[str, Any] = {"dataset_name": str(path), "dataset_format": name}
    whole, _ = load_splits(DataArguments(**keys), 0, lambda rows: format_of(rows).columns)
    columns = list(format_of(whole).columns)
    assert plain(load(**keys).train) == list(whole.select_columns(columns))


def test_rows_without_settings_for_the_template_have_empty_ones(tmp_path: Path) -> None:
    rows = [{"messages": TOLD, "chat_template_kwargs": {"is_short": True}}, {"messages": TOLD}]
    found = load(dataset_name=str(write(tmp_path / "rows.jsonl", rows))).train
    settings = [row["chat_template_kwargs"] for row in found]  # TRL unpacks them
    assert sorted(settings, key=len) == [{}, {"is_short": True}]


def test_a_stream_goes_on_from_the_start_once_training_began(tmp_path: Path) -> None:
    rows = load(dataset_name=str(write(tmp_path / "rows.jsonl", PAIRS)))
    once = [row["prompt"] for row in rows.train]
    rows.begin()
    found = [row["prompt"] for row in islice(iter(rows.train), 4000)]
    assert len(once) == 40
    counts = [found.count(row["prompt"]) for row in PAIRS]
    assert sum(counts) == 4000
    # 4,000 of 5,000 rows that went through the window: 125 passes, of which it holds 25.
    assert all(abs(count - 100) <= 25 for count in counts)
    assert [row["prompt"] for row in islice(iter(rows.train), 4000)] == found


def test_a_share_is_held_out_by_content_and_seed(tmp_path: Path) -> None:
    # Each pair three times: as it is, judged the other way round, and with a further column.
    swapped = [p | {"chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    marked = [pair | {"source": "elsewhere"} for pair in PAIRS]
    path = write(tmp_path / "rows.jsonl", PAIRS + swapped + marked)
    rows = load(dataset_name=str(path), test_fraction=0.3)
    rows.begin()
    assert rows.test is not None
    test = {row["prompt"] for row in rows.test}
    known = {row["prompt"] for row in rows.known}
    trained = {row["prompt"] for row in islice(iter(rows.train), 2000)}
    assert len(rows.test) == 3 * len(test)
    assert test | known == {row["prompt"] for row in PAIRS}
    assert test & known == set()
    assert trained == known
    assert 4 <= len(test) <= 20  # 12 are expected, with a standard deviation of 2.9

    class Other(Training):
        seed = 4

    args = DataArguments(dataset_name=str(path), streaming=True, test_fraction=0.3)
    other = load_rows(args, Other(), lambda rows: format_of(rows).columns)
    assert other.test is not None
    assert {row["prompt"] for row in other.test} != test


def test_test_rows_behind_those_that_are_looked_at_do_not_train_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HEAD_ROWS", 10)
    monkeypatch.setattr(streaming, "HEAD_ROWS", 10)
    path = write(tmp_path / "rows.jsonl", [{"text": f"row {n}"} for n in range(1000)])
    rows = load(dataset_name=str(path), test_fraction=0.5)
    assert rows.test is not None
    assert len(rows.test) + len(rows.known) == 10
    trained = [row["text"] for row in rows.train]
    assert 400 < len(trained) < 600
    assert set(trained).isdisjoint(rows.test["text"])


def test_named_test_rows_are_left_out_of_the_stream(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "folder")
    write(folder / "test.jsonl", PAIRS[:7])
    write(tmp_path / "apart.jsonl", PAIRS[30:])
    apart = str(tmp_path / "apart.jsonl")
    for named, test in (({}, PAIRS[:7]), ({"test_dataset_name": apart}, PAIRS[30:])):
        rows = load(dataset_name=str(folder), **named)
        assert plain(rows.test or []) == test
        assert by_prompt(rows.train) == [row for row in PAIRS if row not in test]


def test_a_test_row_is_known_though_a_table_filled_in_keys(tmp_path: Path) -> None:
    called = [*TOLD, {"role": "assistant", "tool_calls": [{"name": "f"}]}]
    path = write(tmp_path / "rows.jsonl", [{"messages": TOLD}, {"messages": called}])
    Dataset.from_list([{"messages": [m | {"tool_calls": None} for m in TOLD]}]).save_to_disk(
        tmp_path / "test"
    )
    keys: dict[str, Any] = {"dataset_name": str(path), "test_dataset_name": str(tmp_path / "test")}
    assert [row["messages"] for row in load(**keys, on_bad_rows="drop").train] == [called]
    train, _ = load_splits(
        DataArguments(**keys, on_bad_rows="drop"), 0, lambda rows: format_of(rows).columns
    )
    assert len(train) == 1


def test_a_bad_row_far_behind_is_told_when_it_comes_or_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [{"text": f"row {n}"} for n in range(streaming.HEAD_ROWS + 5)])
    with path.open("a") as file:
        file.write('{"text": \n{"text": " "}\n{"text": "last"}\n')
    rows = load(dataset_name=str(path))
    with pytest.raises(UserError) as told:
        list(rows.train)
    assert str(told.value) == (
        f"{path}: not valid JSON (Expecting value) in line 10006; mend or remove it, or set "
        "on_bad_rows=drop."
    )
    found = [row["text"] for row in load(dataset_name=str(path), on_bad_rows="drop").train]
    assert set(found) == {f"row {n}" for n in range(10_005)} | {"last"}
    assert (
        f"note: {path}: 2 rows behind the first 10000 dropped: first not valid JSON (Expecting "
        "value) in line 10006.\n"
    ) in capsys.readouterr().err


def test_the_first_rows_are_checked_before_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*PAIRS, PAIRS[0] | {"chosen": " "}])
    with pytest.raises(UserError, match=r"\(first 41 rows\): column 'chosen' is empty in 1 of 41"):
        load(dataset_name=str(path))
    assert by_prompt(load(dataset_name=str(path), on_bad_rows="drop").train) == PAIRS


def test_what_trl_reads_beside_the_format_comes_along(tmp_path: Path) -> None:
    margins = [pair | {"margin": 0.5, "noise": 0.1, "id": "x"} for pair in PAIRS]
    path = str(write(tmp_path / "pairs.jsonl", margins))
    pair = {"prompt", "chosen", "rejected", "noise"}
    assert set(plain(load(dataset_name=path).train)[0]) == pair
    args = DataArguments(streaming=True, dataset_name=path)
    of_reward = load_rows(args, Training(), lambda _: ("chosen", "rejected"), ("noise", "margin"))
    assert set(plain(of_reward.train)[0]) == pair | {"margin"}
    told = [{"messages": TOLD}, {"messages": TOLD, "tools": "[]"}]
    rows = load(dataset_name=str(write(tmp_path / "told.jsonl", told)))
    assert sorted(str(row["tools"]) for row in rows.train) == ["None", "[]"]


def test_the_parts_of_a_mixture_come_as_often_as_their_fractions_say(tmp_path: Path) -> None:
    parts = []
    for name, size, fraction in (("a", 50, 6), ("b", 10, 3), ("c", 2, 1)):
        path = write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(size)])
        parts.append({"path": str(path), "fraction": fraction})
    rows = load(datasets=parts)
    rows.begin()
    found = [row["text"] for row in islice(iter(rows.train), 5000)]
    shares = [sum(text.startswith(name) for text in found) / 5000 for name in "abc"]
    # Five standard deviations of a share of 5,000 draws are at most 0.035.
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.035)
    assert len(set(found)) == 62


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no end": ({}, {"max_steps": -1}, "max_steps is missing: a stream has no length"),
    "a number of rows": ({"max_train_rows": 5}, {}, "max_train_rows=5: a stream is limited by"),
    "workers": ({}, {"dataloader_num_workers": 2}, "dataloader_num_workers=2: a stream is read by"),
    "no skipping": ({}, {"ignore_data_skip": True}, "ignore_data_skip=true: a resumed run would"),
    "a list": ({"dataset_name": "list.json"}, {}, "list.json: a list can only be read as a whole"),
    "an empty file": ({"dataset_name": "empty.jsonl"}, {}, "dataset_name=empty.jsonl: no rows"),
    "an empty CSV": ({"dataset_name": "empty.csv"}, {}, "dataset_name=empty.csv: no rows"),
    "no such split": (
        {"dataset_name": "folder"},
        {},
        "dataset_train_split=train: folder has the splits other; name one of them.",
    ),
    "no such test split": (
        {"test_dataset_name": "folder"},
        {},
        "dataset_test_split=test: folder has the splits other; name one of them.",
    ),
    "Latin-1": (
        {"dataset_name": "latin.csv"},
        {},
        "dataset_name=latin.csv: cannot be read as rows",
    ),
    "a name that no table can hold": (
        {"dataset_name": "null.jsonl"},
        {},
        "dataset_name=null.jsonl: cannot be read as rows (Couldn't cast",
    ),
    "no Parquet": (
        {"dataset_name": "broken.parquet"},
        {},
        "dataset_name=broken.parquet: cannot be read as rows (Parquet magic bytes not found",
    ),
    "an unknown ending": (
        {"dataset_name": "rows.xlsx"},
        {},
        "dataset_name=rows.xlsx: unknown ending",
    ),
    "no test row": (
        {"test_fraction": 1e-9},
        {},
        "test_fraction=1e-09: of the first 40 rows 40 are",
    ),
    "two kinds of test rows": (
        {"test_fraction": 0.1, "test_dataset_name": "rows.jsonl"},
        {},
        "test_fraction=0.1: the data has test rows already",
    ),
    "nothing but test rows": (
        {"test_dataset_name": "rows.jsonl"},
        {},
        "dataset_name=rows.jsonl: every row is also a test row; give other test rows.",
    ),
    "a mixture without fractions": (
        {"dataset_name": None, "datasets": [{"path": "rows.jsonl"}, {"path": "rows.jsonl"}]},
        {},
        "datasets: rows.jsonl has no fraction; of a streamed mixture",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_streaming_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, training, sentence = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    write(Path("rows.jsonl"), PAIRS)
    Path("list.json").write_text(json.dumps(PAIRS))
    Path("empty.jsonl").write_text("\n\n")
    Path("empty.csv").write_text("text\n")
    Path("latin.csv").write_bytes(b"text\ncaf\xe9\n")
    Path("null.jsonl").write_text(json.dumps({"\x00text": "a"}))
    Path("broken.parquet").write_bytes(b"PAR1 and no more")
    Path("rows.xlsx").write_text("a")
    Path("folder").mkdir()
    write(Path("folder/other.jsonl"), PAIRS)
    given = type("Given", (Training,), training)()
    args = DataArguments(**({"dataset_name": "rows.jsonl", "streaming": True} | keys))
    with pytest.raises(UserError) as told:
        load_rows(args, given, lambda rows: format_of(rows).columns)
    assert sentence in str(told.value)
