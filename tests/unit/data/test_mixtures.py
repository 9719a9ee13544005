"""Several datasets as one: weights, fractions, test rows, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.mixtures import Part, row_counts
from recipes.lib.data.problems import named_columns
from recipes.lib.errors import UserError
from tests.helpers.tiny_runs import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.jsonl", [{"prompt": f"a {n}", "more": n} for n in range(10)])
    write(tmp_path / "b.jsonl", [{"prompt": f"b {n}"} for n in range(30)])
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "train.jsonl", [{"prompt": f"c {n}"} for n in range(5)])
    write(tmp_path / "split" / "test.jsonl", [{"prompt": f"d {n}"} for n in range(2)])
    write(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    return tmp_path


def mixed(folder: Path, *parts: dict[str, Any], seed: int = 0, **values: Any) -> Any:
    whole = [part | {"path": str(folder / part["path"])} for part in parts]
    return load_splits(DataArguments(datasets=whole, **values), seed, ("prompt",))


def count(rows: Any, letter: str) -> int:
    return sum(prompt.startswith(letter) for prompt in rows["prompt"])


def test_all_rows_of_all_with_further_columns(folder: Path) -> None:
    train, test = mixed(folder, {"path": "a.jsonl"}, {"path": "b.jsonl"})
    assert (count(train, "a"), count(train, "b"), test) == (10, 30, None)
    assert train["more"][:11] == [*range(10), None]


def test_a_weight_is_a_share_of_the_datasets_own_rows(folder: Path) -> None:
    parts = ({"path": "a.jsonl", "weight": 0.5}, {"path": "b.jsonl", "weight": 0.1})
    train = mixed(folder, *parts)[0]
    assert (count(train, "a"), count(train, "b")) == (5, 3)
    again, other = mixed(folder, *parts)[0], mixed(folder, *parts, seed=1)[0]
    assert again["prompt"][:] == train["prompt"][:] != other["prompt"][:]
    assert len(set(train["prompt"])) == 8


def test_a_fraction_is_a_share_of_the_mixture(folder: Path) -> None:
    parts = ({"path": "a.jsonl", "fraction": 1}, {"path": "b.jsonl", "fraction": 0.5})
    train = mixed(folder, *parts)[0]
    assert (count(train, "a"), count(train, "b")) == (10, 5)


@pytest.mark.parametrize("fractions", [(0.3, 0.7), (1.0, 1.0), (5.0, 1.0), (1e-9, 1.0)])
def test_fractions_never_take_a_row_twice(fractions: tuple[float, float]) -> None:
    parts = [Part(path="x", fraction=fraction) for fraction in fractions]
    counts = row_counts(parts, [10, 30])
    assert 1 <= counts[0] <= 10
    assert 1 <= counts[1] <= 30
    assert counts[0] == 10 or counts[1] == 30


def test_fractions_mean_what_they_mean_to_trl(folder: Path) -> None:
    from trl import DatasetMixtureConfig, get_dataset
    from trl.scripts.utils import DatasetConfig

    files = (("a.jsonl", 0.2), ("b.jsonl", 0.8))
    theirs = get_dataset(
        DatasetMixtureConfig(
            datasets=[
                DatasetConfig(path="json", data_files=str(folder / name), fraction=fraction)
                for name, fraction in files
            ]
        )
    )["train"]
    ours = mixed(folder, *({"path": name, "fraction": f} for name, f in files))[0]
    assert [count(ours, "a"), count(ours, "b")] == [count(theirs, "a"), count(theirs, "b")]


def test_test_rows_are_those_of_the_parts_unless_the_mixture_is_split(folder: Path) -> None:
    parts = ({"path": "a.jsonl"}, {"path": "split"})
    train, test = mixed(folder, *parts)
    assert (len(train), test["prompt"][:]) == (15, ["d 0", "d 1"])
    train, test = mixed(folder, *parts, test_fraction=0.2)
    assert (len(train), len(test), count(test, "d")) == (12, 3, 0)


def test_columns_and_formats_are_of_each_part(folder: Path) -> None:
    write(folder / "alpaca.jsonl", [{"instruction": "e", "output": "f"}])
    write(folder / "pc.jsonl", [{"prompt": [{"role": "user", "content": "g"}], "completion": []}])
    train = mixed(
        folder,
        {"path": "alpaca.jsonl", "format": "alpaca"},
        {"path": "pc.jsonl"},
    )[0]
    assert [prompt[0]["content"] for prompt in train["prompt"]] == ["e", "g"]
    rows = mixed(folder, {"path": "a.jsonl", "columns": ["prompt"]})[0]
    assert named_columns(rows) == ["prompt"]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"path": "a.jsonl", "weight": 0}], "weight=0 must be above 0 and at most 1"),
        ([{"path": "a.jsonl", "weight": 2.0}], "weight=2.0 must be above 0 and at most 1"),
        ([{"path": "a.jsonl", "fraction": -1.0}], "fraction=-1.0 must be above 0"),
        (
            [{"path": "a.jsonl", "fraction": 1.0}, {"path": "b.jsonl"}],
            "datasets[1]: fraction is missing; give it to all datasets or none.",
        ),
        (
            [{"path": "a.jsonl", "fraction": 1.0, "weight": 1.0}],
            "exclude each other; use one of them.",
        ),
        ([{"path": "a.jsonl", "format": "csv"}], "format=csv of"),
        ([{"path": "a.jsonl", "columns": ["text"]}], "columns names text, but"),
        ([{"path": "a.jsonl"}, {"path": "chat.jsonl"}], "bring them to one format"),
        ([{"path": "a.jsonl"}, {"path": "none.jsonl"}], "there is no such file or folder"),
    ],
)
def test_a_mixture_that_is_wrongly_written(
    folder: Path, parts: list[dict[str, Any]], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        mixed(folder, *parts)
    assert text in str(caught.value)


def test_a_mixture_and_a_name_exclude_each_other(folder: Path) -> None:
    with pytest.raises(UserError, match=r"datasets and dataset_name=x exclude each other"):
        mixed(folder, {"path": "a.jsonl"}, dataset_name="x")
