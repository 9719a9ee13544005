"""Messages of chat services as templates for text read them, and columns that mean something."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.kto import KTOArguments, load_unpaired
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.file_rows import to_dataset
from recipes.lib.data.formats import format_of
from recipes.lib.data.loading import BESIDE, load_splits
from recipes.lib.data.prompts import completion_text, prompt_token_ids
from recipes.lib.data.streaming import load_rows
from recipes.lib.errors import UserError
from tests.helpers.tiny_runs import write

PARTS = [{"type": "text", "text": "who "}, {"type": "text", "text": "sat ?"}]
ASKED, SAID = {"role": "user", "content": PARTS}, {"role": "assistant", "content": "the cat"}
PLAIN = [{"role": "user", "content": "who sat ?"}, SAID]
SIDES = {"chosen": "a", "rejected": "b"}


def load(path: Path, needed: tuple[str, ...], streaming: bool, **values: Any) -> list[Any]:
    """Rows as training takes them, read before the run or while it trains."""
    args = DataArguments(dataset_name=str(path), streaming=streaming, **values)

    class Training:
        seed, max_steps, dataloader_num_workers, ignore_data_skip = 0, 3, 0, False

    rows = load_rows(args, Training, lambda _: needed)
    return sorted(rows.train, key=json.dumps)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_content_in_parts_is_text(tmp_path: Path, streaming: bool, late: bool) -> None:
    rows = [{"messages": PLAIN}, {"messages": [ASKED, SAID]}]
    path = write(tmp_path / "rows.jsonl", rows if late else rows[::-1])
    assert load(path, ("messages",), streaming) == [{"messages": PLAIN}] * 2


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "completion"])
def test_content_in_parts_is_text_in_every_column(tmp_path: Path, column: str) -> None:
    others = {"prompt": PLAIN[:1], "chosen": PLAIN[1:], "rejected": PLAIN[:1], "completion": [SAID]}
    row = others | {column: [{"role": "assistant", "content": PARTS}]}
    train, _ = load_splits(
        DataArguments(dataset_name=str(write(tmp_path / "a.jsonl", [row]))), 0, (column,)
    )
    assert train[0][column] == [{"role": "assistant", "content": "who sat ?"}]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_picture_is_refused(tmp_path: Path, streaming: bool) -> None:
    row = {"messages": [{"role": "user", "content": [*PARTS, {"type": "image"}]}, SAID]}
    path = write(tmp_path / "rows.jsonl", [{"messages": PLAIN}, row])
    with pytest.raises(UserError, match=r"'image'.* as content, which is no text, in"):
        load(path, ("messages",), streaming)


def test_arguments_of_a_call_are_encoded_once(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "sun", "arguments": '{"day": 0}'}}]
    row = {"messages": [PLAIN[0], {"role": "assistant", "content": "", "tool_calls": calls}]}
    path = write(tmp_path / "rows.jsonl", [row, {"messages": PLAIN}])
    train, _ = load_splits(DataArguments(dataset_name=str(path)), 0, ("messages",))
    made = train[0]["messages"][1]["tool_calls"][0]["function"]
    assert made == {"name": "sun", "arguments": {"day": 0}}


@pytest.mark.parametrize("text", ["42", "null", "true", '"q"', '{"a": 1}', "[1]", "plain"])
@pytest.mark.parametrize("other", [5, [{"role": "user", "content": "x"}], {"a": "1"}])
def test_a_text_that_reads_like_json_stays_text_beside_other_types(text: str, other: Any) -> None:
    rows = [{"prompt": text}, {"prompt": other}, {"prompt": None}]
    assert to_dataset(rows).to_list() == rows
    picture = [{"type": "image", "text": None}]
    turns = [{"role": "user", "content": text}, {"role": "user", "content": picture}]
    rows = [{"messages": turns[:1]}, {"messages": turns[1:]}]
    assert to_dataset(rows).to_list() == rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("row", "columns", "reserved"),
    [
        ({"text": "once"}, ("text",), {"input_ids": [4], "attention_mask": [1]}),
        ({"text": "once"}, ("text",), {"labels": 0}),
        ({"prompt": "a", "completion": "b"}, ("prompt", "completion"), {"completion_mask": [1]}),
        (SIDES, ("chosen", "rejected"), {"chosen_ids": [1], "rejected_ids": [2]}),
        (SIDES, ("chosen", "rejected"), {"ref_chosen_logps": 0.5}),
    ],
)
def test_columns_that_mean_tokens_to_trl_are_left_out_and_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    streaming: bool,
    row: dict[str, Any],
    columns: tuple[str, ...],
    reserved: dict[str, Any],
) -> None:
    path = write(tmp_path / "rows.jsonl", [row | reserved | {"source": "x", "noise": 0.1}])
    assert load(path, columns, streaming) == [row | {"noise": 0.1}]
    told = capsys.readouterr().err
    assert f"left out {', '.join(reserved)}: a row is learned by its text" in told
    assert "source" not in told


def test_a_reward_is_given_what_the_policy_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "a", "completions": "file's", "prompts": "file's", "answer": "42"}
    path = write(tmp_path / "rows.jsonl", [row])
    train, _ = load_splits(DataArguments(dataset_name=str(path)), 0, ("prompt",))
    assert train.to_list() == [{"prompt": "a", "answer": "42"}]
    assert "left out completions, prompts: rewards get what is sampled" in capsys.readouterr().err


@pytest.mark.parametrize("margin", ["much", None, True, [1.0]])
def test_a_margin_has_to_be_a_number(tmp_path: Path, margin: Any) -> None:
    rows = [SIDES | {"margin": 1}, SIDES | {"margin": margin}]
    path = write(tmp_path / "rows.jsonl", rows)
    args = DataArguments(dataset_name=str(path))
    with pytest.raises(UserError, match=r"'margin' has .*, which is no number, in 1 of 2 rows"):
        load_splits(args, 0, ("chosen", "rejected"), ("margin",))
    train, _ = load_splits(args, 0, ("chosen", "rejected"), BESIDE)  # dpo reads none
    assert train.to_list() == [SIDES] * 2


def test_a_conversation_with_a_label_is_what_kto_learns_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": PLAIN, "label": False}])
    made = {"prompt": PLAIN[:1], "completion": PLAIN[1:], "label": False}
    rows = load_unpaired(KTOArguments(dataset_name=str(path)), 0).train
    assert rows.remove_columns("row_number").to_list() == [made]
    row = {"messages": PLAIN, "label": None}
    unlabelled = write(tmp_path / "unlabelled.jsonl", [{"messages": PLAIN, "label": True}, row])
    with pytest.raises(UserError, match="in 1 of 2 rows, first in row 1"):
        load_unpaired(KTOArguments(dataset_name=str(unlabelled)), 0)
    capsys.readouterr()
    assert load(path, ("messages",), False) == [{"messages": PLAIN}]  # as sft takes them
    assert "left out label: rows with false are learned, too" in capsys.readouterr().err


def test_transcripts_are_recognised_and_one_without_an_answer_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "\n\nHuman: who sat?\n\nAssistant:"
    path = write(tmp_path / "rows.jsonl", [{"chosen": f"{asked} A cat.", "rejected": asked}])
    args = DataArguments(dataset_name=str(path))
    with pytest.raises(UserError, match="'rejected' ends with Assistant: and no answer in 1 of 1"):
        load_splits(args, 0, ("chosen", "rejected"))
    assert "dataset_format=hh reads them as messages" in capsys.readouterr().err
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": asked}])
    load_splits(DataArguments(dataset_name=str(prompts)), 0, ("prompt",))


def test_the_turn_that_a_prompt_opens_is_gone_on_with(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = prompt_token_ids(tiny_tokenizer, [{"role": "user", "content": "who sat"}, SAID])
    assert tiny_tokenizer.decode(ids) == "<user> who sat <assistant> the cat"


def test_special_tokens_in_a_completion_are_text(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    prompt, said = (tiny_tokenizer(text)["input_ids"] for text in ("the", "<think> cat <eos>"))
    assert completion_text(tiny_tokenizer, prompt, said).strip() == "<think> cat"


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_other_names_are_read_as_what_they_are(tmp_path: Path, streaming: bool) -> None:
    rows = [{"question": "a", "answer": "b", "prompt": "not this one", "id": 3}]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = {"prompt": "question", "completion": "answer"}
    made = load(path, ("prompt", "completion"), streaming, columns=columns)
    assert made == [{"prompt": "a", "completion": "b"}]
    train, _ = load_splits(DataArguments(dataset_name=str(path), columns=columns), 0, ("prompt",))
    assert train.to_list() == [{"prompt": "a", "completion": "b", "id": 3}]
    with pytest.raises(UserError, match=r"columns names asked, but .* has question, answer"):
        load(path, ("prompt",), streaming, columns={"prompt": "asked"})


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ("instruction output", "dataset_format=alpaca"),
        ("instruction response", "{prompt: instruction, completion: response}"),
        ("question answer", "{prompt: question, completion: answer}"),
        ("question response_j response_k", "chosen: response_j, rejected: response_k}"),
        ("a b", "say which is which with columns"),
    ],
)
def test_files_of_other_columns_are_told_what_to_set(names: str, remedy: str) -> None:
    rows = to_dataset([dict.fromkeys(names.split(), "x")])
    with pytest.raises(UserError, match="none of TRL's formats") as told:
        format_of(rows)
    assert remedy in str(told.value)
