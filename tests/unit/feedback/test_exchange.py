import json
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.feedback.arguments import ExchangeArguments
from recipes.lib.feedback.exchange import read_answers, training_rows, write_answers
from recipes.lib.feedback.rows import KINDS, current, item_id, make_row
from recipes.lib.runs.files import read_jsonl

TURNS = [{"role": "system", "content": "be short"}, {"role": "user", "content": 'hello?\n\r"x"'}]
SAID = ["=1+1", "12", "null", " two\nlines, a\ttab and \u4e16\u754c \U0001f600"]
FORMATS = ExchangeArguments.__dataclass_fields__["format"].metadata["choices"]
VALUES: dict[str, list[Any]] = {
    "pair": [0, 1, None],
    "rank": [[2, 1, 1, 4], [1, 2, 3, 4]],
    "rating": [4, 2.5],
    "thumb": [True, False],
    "edit": ["yes", "true"],
    "text": ["0", [{"role": "assistant", "content": "in turns"}]],
}
NUMBERS = {"pair": 2, "rank": 4, "text": 0}


def row_of(kind: str, value: Any, prompt: Any = "which?", said: Any = SAID, **fields: Any) -> Any:
    said = said[: NUMBERS.get(kind, 1)]
    item = {"id": item_id(prompt, said), "prompt": prompt}
    completions = [{"content": one, "run": f"runs/{n}"} for n, one in enumerate(said)]
    given = {"kind": kind, "value": value, "annotator": "anna", "source": "human"}
    return make_row(item | {"completions": completions}, **given | fields)


def every_kind() -> list[dict[str, Any]]:
    rows = [
        row_of(kind, value, prompt, aspect="overall" if kind != "rating" else "tone")
        for kind, values in VALUES.items()
        for value in values
        for prompt in ("which?", "[1]", TURNS)
    ]
    more = {"shown_order": [1, 0], "strength": 2, "weight": 0.5, "noise": 0.1, "seconds": 3.25}
    rows.append(row_of("pair", 1, **more, annotator="7", reason="-1 is wrong", supersedes="12"))
    return [*rows, row_of("thumb", True, source="implicit", weight=0.0, said=[TURNS[1:]])]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_exported_comes_back_as_it_was(format: str, tmp_path: Path) -> None:
    rows = every_kind()
    gone = row_of("thumb", None, weight=0.0)
    numbers = write_answers([*rows, gone], tmp_path, format)
    assert numbers["answers"] == len(rows)
    path = tmp_path if format == "trl" else next(tmp_path.glob("answers.*"))
    assert read_answers(path) == rows
    assert write_answers([gone], tmp_path, format) == {"answers": 0}
    assert read_answers(path) == []


def test_an_answer_that_another_tool_changed_is_a_new_one(tmp_path: Path) -> None:
    row = row_of("pair", 0)
    for format in ("argilla", "label-studio"):
        write_answers([row], tmp_path, format)
        path = tmp_path / f"answers.{format}.json"
        text = path.read_text().replace('"value": "completion_1"', '"value": "completion_2"')
        path.write_text(text.replace('"selected": "left"', '"selected": "right"'))
        (found,) = read_answers(path)
        assert (found["value"], found["annotator"]) == (1, "anna")
        assert found["id"] != row["id"]


def test_spreadsheets_find_no_formula_in_a_completion(tmp_path: Path) -> None:
    row = row_of("edit", "@SUM(A1)", "-2+3")
    write_answers([row], tmp_path, "csv")
    assert '"""@SUM' in (text := (tmp_path / "answers.csv").read_text())
    assert ",-2" not in text
    assert ",=" not in text


def test_what_is_trained_on_follows_from_the_answers() -> None:
    said = ["a", "b", "c", "d"]
    two = {"prompt": "which?", "completions": ["a", "b"]}
    assert training_rows([row_of("pair", 1, said=said), row_of("pair", None, said=said)]) == {
        "preference": [{"prompt": "which?", "chosen": "b", "rejected": "a"}],
        "ranks": [two | {"ranks": [2, 1]}, two | {"ranks": [1, 1]}],
    }
    ranked = training_rows([row_of("rank", [2, 1, 2, 4], said=said)])
    sides = {one["chosen"] + one["rejected"] for one in ranked["preference"]}
    assert sides == {"ba", "bc", "ad", "cd", "bd"}
    assert ranked["ranks"] == [{"prompt": "which?", "completions": said, "ranks": [2, 1, 2, 4]}]
    edit, thumb = row_of("edit", "z", TURNS, said), row_of("thumb", False, TURNS, said, weight=0.5)
    turn = {name: [{"role": "assistant", "content": name}] for name in "az"}
    assert training_rows([edit, thumb, row_of("text", "z", TURNS)]) == {
        "preference": [{"prompt": TURNS, "chosen": turn["z"], "rejected": turn["a"]}],
        "ranks": [{"prompt": TURNS, "completions": [turn["z"], turn["a"]], "ranks": [1, 2]}],
        "unpaired_preference": [
            {"prompt": TURNS, "completion": turn["a"], "label": False, "weight": 0.5}
        ],
        "prompt_completion": [{"prompt": TURNS, "completion": turn["z"]}] * 2,
    }
    rated = training_rows([row_of("rating", 4, said=said, aspect="tone")])["ratings"]
    about = {"annotator": "anna", "aspect": "tone"}
    assert rated == [{"prompt": "which?", "completion": "a", "rating": 4, **about}]


def test_what_has_no_weight_or_no_text_or_another_aspect_is_not_trained_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    implicit = row_of("thumb", True, source="implicit", weight=0.0)
    empty, same = row_of("thumb", True, said=[""]), row_of("edit", "a", said=["a"])
    hollow = row_of("rank", [1, 3, 2, 2], said=["", "b", "c", "d"])
    about = row_of("pair", 0, aspect="tone", said=["a", "b"])
    found = training_rows([implicit, about, empty, same])
    two = {"prompt": "which?", "completions": ["a", "b"], "ranks": [1, 2], "aspect": "tone"}
    assert found == {
        "prompt_completion": [{"prompt": "which?", "completion": "a"}],
        "ranks": [two],
    }
    (rest,) = training_rows([hollow])["ranks"]
    assert (rest["completions"], rest["ranks"]) == (["b", "c", "d"], [3, 2, 2])
    assert "2 rows are not exported for training" in capsys.readouterr().err


def test_an_export_takes_the_files_of_earlier_ones_away(tmp_path: Path) -> None:
    for format in ("csv", "argilla", "trl"):
        write_answers([row_of("thumb", True), row_of("pair", 1)], tmp_path, format)
    write_answers([row_of("thumb", True)], tmp_path)
    names = {path.name for path in tmp_path.rglob("*.*")}
    assert names == {"answers.jsonl", "unpaired_preference.jsonl"}


def test_files_of_trl_are_imported_and_exported_again(tmp_path: Path) -> None:
    rows = [row for row in current(every_kind()) if row["prompt"] == TURNS and row["weight"] == 1]
    first, second = tmp_path / "one", tmp_path / "two"
    write_answers(rows, first)
    files = sorted((first / "final").iterdir())
    assert len(files) == 5
    for path in files:
        found = read_answers(path)
        assert {row["source"] for row in found} == {"human"}
        write_answers(found, second)
        assert read_jsonl(second / "final" / path.name) == read_jsonl(path)
        assert [row["id"] for row in read_answers(path)] == [row["id"] for row in found]


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_preferences_without_a_prompt_and_tables_of_others_are_read(tmp_path: Path) -> None:
    turns = [[*TURNS, {"role": "assistant", "content": one}] for one in ("a", "b")]
    path = write_json(tmp_path / "x.json", [{"chosen": turns[0], "rejected": turns[1]}])
    (row,) = read_answers(path)
    assert row["prompt"] == TURNS
    assert [one["content"][0]["content"] for one in row["completions"]] == ["a", "b"]
    table = tmp_path / "x.csv"
    table.write_text("prompt,completion,label\n12,null,True\n12,null,0\n")
    rows = read_answers(table)
    assert [(row["prompt"], row["value"]) for row in rows] == [("12", True), ("12", False)]


# As Argilla 2's `records.to_json` writes them.
ARGILLA = {
    "id": "1",
    "fields": {"response-1": "a", "instruction": "which?", "response-2": "b"},
    "metadata": {},
    "suggestions": {"better": {"value": "response-1", "score": None, "agent": "m"}},
    "responses": {
        "better": [
            {"value": "response-2", "user_id": "u1"},
            {"value": "tie", "user_id": "u2"},
            {"value": None, "user_id": "u3"},
        ],
        "ranking": [
            {"value": [{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 1}]},
            {"value": ["response-2", "response-1"], "user_id": "u1"},
        ],
        "rating_2": [{"value": 4, "user_id": "u1"}],
        "correction": [{"value": "c", "user_id": "u1"}],
    },
    "vectors": {},
    "_server_id": "2",
}


def test_records_of_argilla_are_read(tmp_path: Path) -> None:
    rows = read_answers(write_json(tmp_path / "x.json", [ARGILLA]))
    assert {row["prompt"] for row in rows} == {"which?"}
    assert [(row["kind"], row["value"], row["annotator"]) for row in rows] == [
        ("pair", 1, "u1"),
        ("pair", None, "u2"),
        ("rank", [1, 1], "imported"),
        ("rank", [2, 1], "u1"),
        ("rating", 4, "u1"),
        ("text", "c", "u1"),
    ]
    assert [one["content"] for one in rows[4]["completions"]] == ["b"]


def task(data: dict[str, Any], tool: str, value: Any, **annotation: Any) -> dict[str, Any]:
    result = {"id": "r", "from_name": "x", "to_name": "y", "type": tool, "value": value}
    given = {"id": 1, "completed_by": 5, "was_cancelled": False, "lead_time": 4.2}
    return {"id": 1, "data": data, "annotations": [given | {"result": [result]} | annotation]}


def test_tasks_of_label_studio_are_read(tmp_path: Path) -> None:
    two, one = {"prompt": "which?", "a": "A", "b": "B"}, {"prompt": "which?", "a": "A"}
    items = {"prompt": "which?", "items": [{"id": "m1", "body": "A"}, {"id": "m2", "html": "B"}]}
    tasks = [
        task(two, "pairwise", {"selected": "right"}, completed_by={"id": 3, "email": "an@na"}),
        task(two, "pairwise", {"selected": "right"}, was_cancelled=True),
        task(items, "ranker", {"ranker": ["m2", "m1"]}),
        task(items, "ranker", {"ranker": {"good": ["m2"], "_": ["m1"]}}),
        task(one, "rating", {"rating": 3}),
        task(one, "choices", {"choices": ["Yes"]}),
        task(one, "textarea", {"text": ["better"]}),
    ]
    rows = read_answers(write_json(tmp_path / "x.json", tasks))
    assert [(row["kind"], row["value"], row["annotator"]) for row in rows] == [
        ("pair", 1, "an@na"),
        ("rank", [2, 1], "5"),
        ("rank", [2, 1], "5"),
        ("rating", 3, "5"),
        ("thumb", True, "5"),
        ("edit", "better", "5"),
    ]
    assert {row["seconds"] for row in rows} == {4.2}
    assert [said["content"] for said in rows[1]["completions"]] == ["A", "B"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.json", "[3]", "not a JSON object with keys in 1 of 1 rows"),
        ("x.json", '[{"a": 1}]', "the fields a are of no known format"),
        ("x.json", "[", "cannot be read"),
        ("x.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "compl', "cannot be read"),
        ("x.jsonl", '{"completion": "b"}', "prompt=None must be text"),
        ("x.jsonl", '{"prompt": "a", "completion": 3}', "value=3 must be text"),
        ("x.json", json.dumps([ARGILLA | {"responses": {"a": [3]}}]), "record 0"),
        ("x.json", json.dumps([row_of("thumb", True) | {"version": 2}]), "version=2 must be"),
        ("x.parquet", "no table", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told(
    name: str, text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_answers(tmp_path / name)
    assert told in str(error.value)
    assert "on_bad_rows" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_answers(tmp_path / "absent.json")


def test_a_mapping_makes_answers_of_any_record(tmp_path: Path) -> None:
    (tmp_path / "stars.py").write_text(
        "def answers(record):\n"
        "    for name, stars in record['stars'].items():\n"
        "        yield {'kind': 'rating', 'prompt': record['q'], 'completions': [record['a']],\n"
        "               'value': stars, 'annotator': name}\n"
    )
    path = write_json(tmp_path / "x.json", [{"q": "which?", "a": "b", "stars": {"bo": 3, "an": 5}}])
    rows = read_answers(path, f"{tmp_path / 'stars.py'}:answers")
    assert [(row["annotator"], row["value"]) for row in rows] == [("bo", 3), ("an", 5)]


def test_the_kinds_of_this_file_are_all_there_are() -> None:
    assert tuple(VALUES) == KINDS
