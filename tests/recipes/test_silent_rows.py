"""Rows that SFT cannot learn from are refused or dropped with a word, never left out in silence."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.helpers.mistakes import attempt
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, write

ASK = [{"role": "user", "content": "tell me"}]
ANSWER = [{"role": "assistant", "content": "the cat"}]
LONG = "the cat and the dog and the bird and the child"
ROWS = [
    {"prompt": "the cat", "completion": " sat ."},
    {"prompt": LONG, "completion": " ran ."},
    {"prompt": "the dog", "completion": " was happy ."},
    {"prompt": LONG + " was", "completion": " ran ."},
]
STEP = {"dataset_name": "rows.jsonl", "max_steps": 1, "per_device_train_batch_size": 2}


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"), tiny_tokenizer)
    return tmp_path


@pytest.mark.parametrize("values", [{}, {"assistant_only_loss": True}])
def test_a_conversation_without_an_answer_is_a_bad_row(values: dict[str, Any], place: Path) -> None:
    rows = [{"messages": ASK + ANSWER}, {"messages": ASK}, {"messages": ANSWER}]
    write(Path("rows.jsonl"), rows)
    answer = attempt("sft", flags(STEP | values), place)
    assert answer.sentence() == (
        "dataset_name=rows.jsonl (train): column 'messages' has no turn of the assistant in 1 of 3 "
        "rows, first in row 1 (counted from 0); mend or remove them, or set on_bad_rows=drop."
    )
    assert (answer.code, answer.changed) == (2, [])
    dropped = attempt("sft", flags(STEP | values | {"on_bad_rows": "drop"}), place)
    assert dropped.code == 0
    assert "note: dataset_name=rows.jsonl (train): 1 of 3 rows dropped" in dropped.err


def test_a_completion_that_is_not_the_assistants_is_a_bad_row(place: Path) -> None:
    write(Path("rows.jsonl"), [{"prompt": ASK, "completion": ASK}])
    answer = attempt("sft", flags(STEP | {"assistant_only_loss": True}), place)
    assert "column 'completion' has no turn of the assistant in 1 of 1 rows" in answer.sentence()


def test_rows_whose_completion_is_cut_off_are_told(place: Path) -> None:
    write(Path("rows.jsonl"), ROWS)
    values = STEP | {"max_length": 8}
    answer = attempt("sft", flags(values), place)
    assert answer.sentence() == (
        "max_length=8: no token to learn from is left in 2 of 4 training rows, first in row 1 "
        "(counted from 0); raise it, or set on_bad_rows=drop."
    )
    assert (answer.code, answer.changed) == (2, [])
    dropped = attempt("sft", flags(values | {"on_bad_rows": "drop"}), place)
    assert dropped.code == 0
    assert (
        "note: max_length=8: no token to learn from is left in 2 of 4 training rows, first in row "
        "1 (counted from 0); they are dropped." in dropped.err
    )


def test_test_rows_whose_completion_is_cut_off_are_told(place: Path) -> None:
    write(Path("rows.jsonl"), ROWS[:1])
    write(Path("test.jsonl"), ROWS[1:3])
    answer = attempt(
        "sft", flags(STEP | {"max_length": 8, "test_dataset_name": "test.jsonl"}), place
    )
    assert "left in 1 of 2 test rows, first in row 0" in answer.sentence()


def test_without_a_limit_rows_without_loss_do_not_train_either(place: Path) -> None:
    # A template that leaves out what the assistant says in one word.
    template = (
        "{% for turn in messages %}{% if turn.role == 'user' or ' ' in turn.content %}"
        "{{ turn.content }} {{ eos_token }} {% endif %}{% endfor %}"
    )
    short = [{"role": "assistant", "content": "cat"}]
    rows = [{"prompt": ASK, "completion": ANSWER}, {"prompt": ASK, "completion": short}]
    write(Path("rows.jsonl"), rows)
    values = STEP | {"max_length": "None", "chat_template": template}
    answer = attempt("sft", flags(values), place)
    assert answer.sentence() == (
        "dataset_name: no token to learn from is left in 1 of 2 training rows, first in row 1 "
        "(counted from 0); mend them, or set on_bad_rows=drop."
    )


def test_rows_that_all_have_loss_are_as_before(place: Path) -> None:
    write(Path("rows.jsonl"), ROWS)
    done = attempt("sft", flags(STEP | {"max_length": 32, "test_fraction": 1}), place)
    assert done.code == 0
    assert "no token to learn from" not in done.err


@pytest.mark.parametrize(
    ("kwargs", "row", "bos", "sentence"),
    [
        ('{"add_special_tokens": false}', "messages", True, ""),
        ('{"add_special_tokens": true}', "text", True, ""),
        ('{"add_special_tokens": false}', "text", False, ""),
        (
            '{"add_special_tokens": false, "append_concat_token": false}',
            "text",
            True,
            "dataset_kwargs: add_special_tokens=false is no longer in TRL, and text gets the "
            "tokens of its tokenizer, such as <system>; leave it out, or write the rows as "
            "messages.",
        ),
        (
            '{"add_specials": false}',
            "text",
            True,
            "dataset_kwargs: add_specials is not known; TRL knows skip_prepare_dataset alone.",
        ),
    ],
)
def test_what_trl_ignores_in_dataset_kwargs_is_told(
    kwargs: str, row: str, bos: bool, sentence: str, place: Path, tiny_tokenizer: Any
) -> None:
    from tests.helpers.tiny_models import with_bos

    if bos:
        with_bos(tiny_tokenizer, "<system>").save_pretrained("model")
    rows: dict[str, Any] = {"messages": {"messages": ASK + ANSWER}, "text": {"text": "the cat sat"}}
    write(Path("rows.jsonl"), [rows[row]] * 2)
    answer = attempt("sft", flags(STEP | {"dataset_kwargs": kwargs}), place)
    if sentence:
        assert answer.sentence() == sentence
        assert answer.code == 2
    else:
        assert answer.code == 0
        assert "note: dataset_kwargs: add_special_tokens is left out: " in answer.err
