"""Text and gzip files are read, and whatever is said of a row names its line in its file."""

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.kto import KTOArguments, load_unpaired
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.formats import other_readings
from recipes.lib.data.loading import load_splits
from recipes.lib.data.mixtures import Part
from recipes.lib.data.problems import PLACE
from recipes.lib.data.sources import find_sources
from recipes.lib.errors import UserError
from tests.helpers.tiny_runs import plain, write

LINES = "\ufeffOnce  upon\r\n\n  a time\u2028there\n \t\nwas"
TEXTS = [{"text": "Once  upon"}, {"text": "  a time\u2028there"}, {"text": "was"}]


def load(path: Path | str, *columns: str, **values: Any) -> tuple[Any, Any]:
    return load_splits(DataArguments(dataset_name=str(path), **values), 0, columns)


def pack(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def test_a_text_file_has_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(LINES.encode())
    for path in (tmp_path / "rows.txt", pack(tmp_path / "rows.txt")):
        rows, _ = load(path, "text")
        assert plain(rows) == TEXTS
        assert [place.split(" of ")[0] for place in rows[PLACE]] == ["line 1", "line 3", "line 5"]
        streamed = find_sources(str(path), "train")["train"].rows()
        assert [row for _, row in streamed] == TEXTS
    prompts, _ = load(tmp_path / "rows.txt", "prompt", columns={"prompt": "text"})
    assert prompts["prompt"][:] == [row["text"] for row in TEXTS]


def test_packed_files_are_as_unpacked_ones(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "completion": f"c\n{n}"} for n in range(4)]
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    cells = "".join(f'{row["prompt"]},"{row["completion"]}"\n' for row in rows)
    (tmp_path / "rows.csv").write_text(f"prompt,completion\n{cells}")
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        packed = pack(tmp_path / name)
        assert plain(load(packed, "prompt")[0]) == plain(load(tmp_path / name, "prompt")[0]) == rows
        if name != "rows.json":  # a list is no stream
            assert [row for _, row in find_sources(str(packed), "train")["train"].rows()] == rows
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tmp_path / "rows.jsonl.gz", folder / "train.jsonl.gz")
    (folder / "README.txt").write_text("about the rows")
    assert plain(load(folder, "prompt")[0]) == rows
    write(folder / "train.jsonl", rows)
    with pytest.raises(UserError, match="folder: several files are the split train; name the"):
        load(folder, "prompt")


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_broken_packed_file_is_one_sentence(is_cut: bool, tmp_path: Path) -> None:
    rows = [{"prompt": f"{random.random()}"} for _ in range(2000)]
    packed = pack(write(tmp_path / "rows.jsonl", rows))
    whole = packed.read_bytes()
    half = len(whole) // 2
    packed.write_bytes(whole[:half] if is_cut else whole[:half] + bytes(99) + whole[half + 99 :])
    for read in (
        lambda: load(packed, "prompt"),
        lambda: list(find_sources(str(packed), "train")["train"].rows()),
    ):
        with pytest.raises(UserError, match=r"^dataset_name=.*rows\.jsonl\.gz: cannot be read as"):
            read()
    packed.write_text('{"prompt": "a"}')
    with pytest.raises(UserError, match=r"cannot be read as rows \(Not a gzipped file"):
        load(packed, "prompt")


def test_a_place_stays_with_its_row(tmp_path: Path) -> None:
    """Behind blank, broken and bad lines, a mixture, a split, a shuffle and a conversion."""
    good = [{"messages": [{"role": "user", "content": f"q {n}"}, ANSWER]} for n in range(30)]
    for name in ("a", "b"):
        rows = [json.dumps(row | {"source": f"{name}{n}"}) for n, row in enumerate(good)]
        rows[4], rows[7], rows[9] = "", "{broken", '{"messages": []}'
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows).replace("q ", f"{name} "))
    parts = [Part(path=f"{tmp_path}/a.jsonl", weight=0.5), Part(path=f"{tmp_path}/b.jsonl")]
    args = DataArguments(datasets=parts, on_bad_rows="drop", test_fraction=0.3)
    train, test = load_splits(args, 3, ("messages",))
    assert test is not None
    for row in [*train.shuffle(seed=1), *test]:
        name, number = row["source"][0], int(row["source"][1:])
        assert row[PLACE] == f"line {number + 1} of {tmp_path}/{name}.jsonl"
    assert len(train) + len(test) == 14 + 27


ANSWER = {"role": "assistant", "content": "yes"}


def test_a_place_stays_with_both_sides_of_a_pair_under_kto(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(9)]
    path = write(tmp_path / "rows.jsonl", rows)
    found = load_unpaired(KTOArguments(dataset_name=str(path)), 0).train
    assert len(found) == 18
    for row in found:
        assert row[PLACE] == f"line {int(row['completion'].split()[1]) + 1} of {path}"


def test_a_bad_row_of_a_mixture_or_of_a_folder_is_named_with_its_file(tmp_path: Path) -> None:
    good, bad = {"prompt": "a"}, {"prompt": " "}
    one, two = write(tmp_path / "one.jsonl", [good]), write(tmp_path / "two.jsonl", [good, bad])
    args = DataArguments(datasets=[Part(path=str(one)), Part(path=str(two))])
    with pytest.raises(UserError, match=rf"in 1 of 3 rows, first in line 2 of {two}; mend"):
        load_splits(args, 0, ("prompt",))
    (tmp_path / "both").mkdir()
    write(tmp_path / "both/train.jsonl", [{"prompt": "c"}])
    test = write(tmp_path / "both/test.jsonl", [good, good, bad])
    with pytest.raises(UserError, match=rf"first in line 3 of {test}; mend"):
        load(tmp_path / "both", "prompt")


ASK = [{"role": "user", "content": "a"}]
ALL = "ppo, rloo, grpo, feedback"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a", "completion": "b", "label": True},
            [
                f"prompt-completion: prompt, completion alone, for sft, {ALL}",
                f"prompt-only: prompt alone, for {ALL}",
            ],
        ),
        (
            {"messages": [*ASK, ANSWER], "label": True},
            [
                "unpaired preference: the last turn has the label, for kto",
                f"prompts, for {ALL}: set columns: {{prompt: messages}}",
            ],
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            [
                f"prompt-only: prompt alone, for {ALL}",
                "what was chosen, for sft: set columns: {completion: chosen}",
            ],
        ),
        (
            {"chosen": [*ASK, ANSWER], "rejected": ASK},
            ["what was chosen, for sft: set columns: {messages: chosen}"],
        ),
        (
            {"instruction": "a", "output": "b", "text": "a b"},
            [f"prompts, for {ALL}: set columns: {{prompt: text}}", "set dataset_format=alpaca"],
        ),
        ({"prompt": "a"}, []),
    ],
)
def test_what_else_a_file_could_be_is_said(row: dict[str, Any], said: list[str]) -> None:
    assert other_readings(list(row), row) == said


def test_what_was_chosen_can_be_learned_as_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    rows, _ = load(path, "prompt", "completion", columns={"completion": "chosen"})
    assert (rows["prompt"][:], rows["completion"][:]) == (["a"], ["b"])
