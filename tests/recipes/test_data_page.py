"""`rlhf data` shows the tokens and the loss that the trainers make, on 80 columns."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.data.formats import TRL_FORMATS, format_of
from recipes.lib.data.lengths import (
    Length,
    LengthBin,
    length_bins,
    limit_effects,
    quantile,
    row_length,
)
from recipes.lib.data.tokenization import loss_segments, tokenize_row
from recipes.lib.recipe.main import launch, parse
from tests.helpers.tiny_runs import FAST, write

USER = [{"role": "user", "content": "what sat on the tree ?"}]
GOOD = [{"role": "assistant", "content": "the happy bird sat ."}]
BAD = [{"role": "assistant", "content": "the cat"}]
CHAT = {"prompt": USER, "chosen": GOOD, "rejected": BAD}
TEXT = {"prompt": "the cat sat", "chosen": " on the red book .", "rejected": " on it"}


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path


def ours(row: dict[str, Any], tokenizer: Any, **options: Any) -> list[tuple[list[int], list[bool]]]:
    shape = format_of(Dataset.from_list([row]))
    return [(seen.ids, seen.has_loss) for seen in tokenize_row(row, shape, tokenizer, **options)]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"text": "the cat sat on the tree ."}, {}),
        ({"messages": USER + GOOD}, {}),
        ({"messages": USER + GOOD + USER + BAD}, {"assistant_only_loss": True}),
        ({"prompt": "the cat sat", "completion": " on the tree ."}, {}),
        ({"prompt": USER, "completion": GOOD}, {}),
    ],
)
def test_tokens_and_loss_are_those_of_trls_sft(
    row: dict[str, Any],
    options: dict[str, Any],
    folder: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=tiny_model,
        args=SFTConfig(output_dir=str(folder / "run"), report_to="none", **FAST, **options),
        train_dataset=Dataset.from_list([row]),
        processing_class=tiny_tokenizer,
    )
    theirs = trainer.train_dataset[0]
    ((ids, has_loss),) = ours(row, tiny_tokenizer, **options)
    assert ids == theirs["input_ids"]
    assert has_loss == [label != -100 for label in theirs["labels"]]


@pytest.mark.parametrize(
    "row",
    [
        TEXT,
        CHAT,
        {"chosen": USER + GOOD, "rejected": USER + BAD},
        {"chosen": "the cat sat on it .", "rejected": "the cat sat with it ."},
    ],
)
def test_tokens_and_loss_are_those_of_trls_dpo(
    row: dict[str, Any], folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=str(folder / "tiny"),
        args=DPOConfig(output_dir=str(folder / "run"), report_to="none", **FAST),
        train_dataset=Dataset.from_list([row]),
        processing_class=tiny_tokenizer,
    )
    theirs = trainer.train_dataset[0]
    for side, (ids, has_loss) in zip(
        ("chosen", "rejected"), ours(row, tiny_tokenizer), strict=True
    ):
        assert ids == theirs["prompt_ids"] + theirs[f"{side}_ids"]
        assert has_loss.count(False) == len(theirs["prompt_ids"])
        assert has_loss == sorted(has_loss)


def test_a_prompt_is_what_a_model_samples_from(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    from recipes.lib.data.prompts import prompt_token_ids

    for prompt in ("the cat sat", USER):
        ((ids, has_loss),) = ours({"prompt": prompt}, tiny_tokenizer)
        assert ids == prompt_token_ids(tiny_tokenizer, prompt)
        assert not any(has_loss)


def test_pieces_part_where_the_loss_begins(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": USER, "completion": GOOD}
    shape = format_of(Dataset.from_list([row]))
    (seen,) = tokenize_row(row, shape, tiny_tokenizer)
    found = loss_segments(seen, tiny_tokenizer)
    assert [loss for _, loss in found] == [False, True]
    assert "".join(text for text, _ in found) == tiny_tokenizer.decode(seen.ids)
    assert found[1][0].strip() == "the happy bird sat . <eos>"


def test_a_pair_that_dpo_or_reward_drops_is_counted(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    from trl import DPOConfig, DPOTrainer

    rows = [TEXT, TEXT | {"prompt": "the cat " * 8}, TEXT | {"chosen": " the tree" * 6}]
    shape = format_of(Dataset.from_list(rows))
    lengths = [row_length(tokenize_row(row, shape, tiny_tokenizer)) for row in rows]
    trainer = DPOTrainer(
        model=str(folder / "tiny"),
        args=DPOConfig(output_dir=str(folder / "run"), report_to="none", max_length=12, **FAST),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    assert len(trainer.train_dataset) == 2
    assert limit_effects(lengths, 12, shape) == [
        "dpo: 1 rows are cut at 12 tokens; 1 are dropped, because their prompt alone fills it",
        "kto, which makes two rows of a pair: 1 of its rows are cut at 12 tokens; 2 are dropped, "
        "because their prompt alone fills it",
        "reward: 2 rows are dropped as too long",
    ]


def test_effects_of_a_limit_by_format() -> None:
    by_columns = {shape.columns: shape for shape in TRL_FORMATS}
    lengths = [Length(5, 2), Length(9, 9), Length(12, 3)]
    assert limit_effects(lengths, 12, by_columns["text",]) == ["no row is longer than 12"]
    assert limit_effects(lengths, 8, by_columns["prompt",]) == [
        "2 prompts are longer than 8: ppo refuses them (max_prompt_length)",
        "rloo, grpo: no prompt is cut; with its completion it has to fit the model's context",
    ]
    assert limit_effects(lengths, 8, by_columns["prompt", "completion"]) == [
        "1 rows are cut at 8 tokens; 1 are dropped, because their prompt alone fills it"
    ]


@pytest.mark.parametrize("lengths", [[7], [0, 3], [1, 1000], list(range(95)), [10**9, 3]])
def test_bins_hold_every_row_once(lengths: list[int]) -> None:
    bins = length_bins(lengths)
    assert len(bins) <= 11
    assert sum(one.count for one in bins) == len(lengths)
    for one in bins:
        assert one.count == sum(one.low <= length <= one.high for length in lengths)
    assert length_bins([20, 29, 30, 119])[:2] == [LengthBin(20, 29, 2), LengthBin(30, 39, 1)]


def test_quantiles_are_lengths() -> None:
    assert [quantile([5, 1, 3, 9], share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 3, 9, 9]


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert launch("data", list(argv)) == 0
    out = capsys.readouterr().out
    page, _, commands = out.partition("\nNext")
    assert commands  # a line each, to be copied
    assert max(map(len, page.splitlines())) <= 80
    return out


def test_the_page_with_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "the cat " * n, "completion": " sat .", "id": n} for n in range(1, 20)] + [
        {"prompt": " ", "completion": "x", "id": 0}
    ]
    path = str(write(folder / "rows.jsonl", [*rows, rows[0]]))
    before = sorted(folder.rglob("*"))
    argv = [path, "--model_name_or_path", str(folder / "tiny"), "--max_length", "20"]
    out = shown(capsys, *argv, "--num_samples", "1")
    assert "prompt-completion, text" in out
    assert "for sft, ppo, rloo, grpo, feedback" in out
    assert "prompt-only: prompt alone, for ppo, rloo, grpo, feedback" in out
    assert "and id" in out
    assert "20 to train on, 0 to test on" in out
    assert "1 of 21 " in out
    assert "column 'prompt' is empty: 1, first in line 20" in out
    assert "1 training rows repeat an earlier one" in out
    assert "1 rows are cut at 20 tokens; 10 are dropped" in out
    assert "line 1: 5 tokens, 3 with loss" in out
    assert "context |the cat\n" in out
    assert "LOSS # sat . <eos>\n" in out
    assert "-- max_length 20" in out
    assert sorted(folder.rglob("*")) == before


def test_the_page_without_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"messages": [{"role": "user", "content": "\x1b[31mred\u2028\u4f60\u597d" * 90}, *GOOD]}
    out = shown(capsys, str(write(folder / "rows.jsonl", [row])))
    assert "characters; --model_name_or_path counts tokens" in out
    assert "\x1b[31mred" not in out
    assert "\\x1b[31mred\\u2028\u4f60\u597d" in out
    assert "more lines ..." in out
    assert "assistant |the happy bird sat ." in out


def test_what_both_splits_share_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "both").mkdir()
    row = {"prompt": "p", "completion": "c"}
    write(folder / "both" / "train.jsonl", [row, row | {"prompt": "q"}])
    write(folder / "both" / "test.jsonl", [row, row | {"completion": "d"}])
    out = shown(capsys, str(folder / "both"))
    assert "1 test rows are also training rows" in out
    assert "2 test rows have the prompt of a training row" in out


@pytest.mark.parametrize(
    ("rows", "argv", "text"),
    [
        ([{"a": 1}], [], "the columns a are none of TRL's formats"),
        ([{"instruction": "a", "output": "b"}], [], "set dataset_format=alpaca."),
        ([{"text": "a"}], ["--max_length", "3"], "max_length=3: tokens are counted by a tokenizer"),
        ([{"text": "a"}], ["--num_samples", "-1"], "--num_samples -1: must be 0 or more."),
        ([{"text": "a"}], ["--dataset_format", "csv"], "must be one of trl, alpaca, sharegpt, hh."),
    ],
)
def test_mistakes(
    folder: Path,
    rows: list[dict[str, Any]],
    argv: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch("data", [str(write(folder / "rows.jsonl", rows)), *argv]) == 2
    assert text in capsys.readouterr().err


def test_a_template_that_refuses_the_messages_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(folder / "rows.jsonl", [{"messages": USER + GOOD}]))
    (folder / "strict.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    argv = [path, "--model_name_or_path", str(folder / "tiny")]
    assert launch("data", [*argv, "--chat_template_path", str(folder / "strict.jinja")]) == 2
    assert "refuses messages (roles must alternate)" in capsys.readouterr().err


def test_the_summary_has_the_numbers(folder: Path) -> None:
    from recipes.data import run

    path = str(write(folder / "rows.jsonl", [{"text": f"row {n}"} for n in range(10)]))
    summary = run(parse("data", [path], {"test_fraction": 0.2}))
    assert (summary["num_train"], summary["num_test"], summary["unit"]) == (8, 2, "characters")


def test_rows_without_a_turn_of_the_assistant_are_bad(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": USER + GOOD}, {"messages": USER}, {"messages": USER + BAD}]
    out = shown(capsys, str(write(folder / "rows.jsonl", rows)))
    assert "1 of 3 " in out
    assert "column 'messages' has no turn of the assistant: 1, first in line 2" in out


def test_rows_whose_loss_mask_is_empty_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A template that leaves out an answer of one word, and its end token with it.
    (folder / "own.jinja").write_text(
        "{% for turn in messages %}{% if turn.role == 'user' or ' ' in turn.content %}"
        "{{ turn.content }} {% endif %}{% endfor %}"
    )
    one_word = [{"role": "assistant", "content": "cat"}]
    rows = [{"prompt": USER, "completion": GOOD}, {"prompt": USER, "completion": one_word}]
    argv = [str(write(folder / "rows.jsonl", rows)), "--model_name_or_path", str(folder / "tiny")]
    out = shown(capsys, *argv, "--chat_template_path", str(folder / "own.jinja"))
    assert "1 rows have no token to learn from, first line 2" in out


@pytest.mark.parametrize(
    "argv", [["--max_rows", "3"], ["--streaming", "--max_rows", "3"], ["--streaming"]]
)
def test_of_large_data_the_first_rows_are_read_alone(
    argv: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.data import run
    from recipes.lib.data import streaming

    monkeypatch.setattr(streaming, "HEAD_ROWS", 3)
    path = write(folder / "rows.jsonl", [{"text": f"row {n}"} for n in range(3)])
    with path.open("a") as file:
        file.write("{broken\n")  # never read
    assert run(parse("data", [str(path), *argv]))["num_train"] == 3


def test_the_page_says_that_the_rows_are_the_first_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder / "rows.jsonl", [{"text": f"row {n}"} for n in range(9)])
    out = shown(capsys, str(path), "--max_rows", "4")
    assert "4 to train on, 0 to test on" in out
    assert "the first ones alone: what stands behind them was not read" in out


def test_a_mixture_is_looked_at_part_by_part(folder: Path) -> None:
    from recipes.data import run

    parts = [
        {"path": str(write(folder / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(5)]))}
        for name in ("a", "b")
    ]
    assert run(parse("data", [], {"datasets": parts, "max_rows": 2}))["num_train"] == 4


def test_a_large_file_is_read_whole_with_a_remark(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from recipes.lib.data import streaming

    monkeypatch.setattr(streaming, "LARGE_FILE", 20)
    path = write(folder / "rows.jsonl", [{"text": "row one"}, {"text": "row two"}])
    assert launch("data", [str(path)]) == 0
    assert "is read as a whole; --max_rows 10000 reads the first rows alone." in (
        " ".join(capsys.readouterr().err.split())
    )
