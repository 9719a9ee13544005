"""alpaca, sharegpt and hh files become TRL's formats, or say which row is none of theirs."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.errors import UserError
from tests.helpers.tiny_runs import write


def load(path: Path, rows: list[dict[str, Any]], name: str, **values: Any) -> list[dict[str, Any]]:
    write(path / "rows.jsonl", rows)
    args = DataArguments(dataset_name=str(path / "rows.jsonl"), dataset_format=name, **values)
    return load_splits(args, 0, lambda data: data.column_names[:0])[0].to_list()


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_alpaca_is_a_prompt_with_its_completion(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "source": "a"},
        {
            "instruction": "And 3?",
            "input": "",
            "output": "6",
            "system": "Be brief.",
            "history": [["1 and 2?", "3"]],
        },
    ]
    first, second = load(tmp_path, rows, "alpaca")
    assert first["prompt"] == [said("user", "Add.\n1 and 2")]
    assert first["completion"] == [said("assistant", "3")]
    assert first["source"] == "a"
    assert second["prompt"] == [
        said("system", "Be brief."),
        said("user", "1 and 2?"),
        said("assistant", "3"),
        said("user", "And 3?"),
    ]


def test_alpaca_pairs_and_likes(tmp_path: Path) -> None:
    pair = {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "What"}
    assert load(tmp_path, [pair], "alpaca") == [
        {
            "prompt": [said("user", "Hi")],
            "chosen": [said("assistant", "Hello")],
            "rejected": [said("assistant", "What")],
        }
    ]
    liked = {"instruction": "Hi", "output": "Hello", "kto_tag": True}
    assert load(tmp_path, [liked], "alpaca")[0]["label"] is True
    assert load(tmp_path, [{"text": "only text"}], "alpaca") == [{"text": "only text"}]


def test_sharegpt_turns_become_messages_with_tools(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "rain", "arguments": {"day": 1}}'},
            {"from": "observation", "value": "no"},
            {"from": "tool", "value": "a cloud"},
            {"from": "gpt", "value": "It stays dry."},
        ],
        "system": "Be brief.",
        "tools": '[{"name": "rain"}]',
    }
    (found,) = load(tmp_path, [row], "sharegpt")
    roles = [message["role"] for message in found["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant"]
    call = found["messages"][2]["tool_calls"][0]["function"]
    assert (call["name"], call["arguments"]) == ("rain", {"day": 1})
    assert found["tools"] == '[{"name": "rain"}]'


def test_sharegpt_pairs_and_likes(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}]
    pair = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "What"},
    }
    (found,) = load(tmp_path, [pair], "sharegpt")
    assert found["prompt"] == [said("user", "Hi")]
    assert found["rejected"] == [said("assistant", "What")]
    liked = {"conversations": [*turns, {"from": "gpt", "value": "Ho"}], "kto_tag": False}
    assert load(tmp_path, [liked], "sharegpt") == [
        {
            "prompt": [said("user", "Hi")],
            "completion": [said("assistant", "Ho")],
            "label": False,
        }
    ]


def test_hh_transcripts_part_where_they_differ(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Human: is a word?\n\nAssistant:"
    (found,) = load(tmp_path, [{"chosen": f"{start} A", "rejected": f"{start} B"}], "hh")
    assert found == {
        "prompt": [
            said("user", "Hi"),
            said("assistant", "Yes?"),
            said("user", "Human: is a word?"),
        ],
        "chosen": [said("assistant", "A")],
        "rejected": [said("assistant", "B")],
    }
    assert load(tmp_path, [{"prompt": "\n\nHuman: Hi\n\nAssistant:"}], "hh") == [
        {"prompt": [said("user", "Hi")]}
    ]


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        ("alpaca", {"instruction": "a"}, "column 'output' of None, which is no text,"),
        ("alpaca", {"output": "a"}, "column 'instruction' of None"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history of ['x']"),
        ("sharegpt", {"text": "a"}, "no list of conversations"),
        ("sharegpt", {"conversations": ["a"]}, "a turn of 'a', which is not an object,"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]}, "a turn from 'bot'"),
        ("sharegpt", {"conversations": [{"from": "human", "value": 1}]}, "a turn of 1"),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "rain"}]},
            "a function_call without a name",
        ),
        ("hh", {"prompt": "Hi"}, "a transcript in column 'prompt' that does not begin with Human:"),
        ("hh", {"chosen": 1, "rejected": "b"}, "no transcript in column 'chosen'"),
        (
            "hh",
            {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
            "transcripts that do not part at an Assistant's turn",
        ),
    ],
)
def test_a_row_of_another_format_is_told_or_dropped(
    tmp_path: Path, name: str, row: dict[str, Any], text: str
) -> None:
    rows: dict[str, dict[str, Any]] = {
        "alpaca": {"instruction": "a", "output": "b"},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}]},
        "hh": {
            column: f"\n\nHuman: Hi\n\nAssistant: {column}"
            for column in ("prompt", "chosen", "rejected")
            if name != "hh" or column in row
        },
    }
    good = rows[name]
    with pytest.raises(UserError) as caught:
        load(tmp_path, [good, row], name)
    assert f"dataset_format={name}: " in str(caught.value)
    assert text in str(caught.value)
    assert "in 1 of 2 rows, first in row 1 (counted from 0)" in str(caught.value)
    assert len(load(tmp_path, [good, row], name, on_bad_rows="drop")) == 1


def test_what_a_format_does_not_know_is_handed_on(tmp_path: Path) -> None:
    row = {"instruction": "Sum?", "output": "3", "answer": 3, "tags": ["a", "b"]}
    (found,) = load(tmp_path, [row], "alpaca")
    assert (found["answer"], found["tags"]) == (3, ["a", "b"])
    assert json.dumps(found)
