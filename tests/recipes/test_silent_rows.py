"""Rows that cannot be learned from are refused or dropped with a word, never in silence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.lib.runs.files import read_jsonl
from tests.helpers.mistakes import attempt
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import LORA, flags, write

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


PAIR = {"prompt": "the cat", "chosen": " sat .", "rejected": " ran ."}
LABELLED = {"prompt": "the cat", "completion": " sat .", "label": True}
# By recipe: a row that fits eight tokens, one that is cut, one that loses what it is about.
TOO_LONG: dict[str, list[dict[str, Any]]] = {
    "sft": [ROWS[0], ROWS[0] | {"completion": f" {LONG}"}, ROWS[1]],
    "dpo": [PAIR, PAIR | {"chosen": f" {LONG}"}, PAIR | {"prompt": LONG}],
    "kto": [LABELLED, LABELLED | {"completion": f" {LONG}", "label": False}, LABELLED | ROWS[1]],
}


@pytest.mark.parametrize("recipe", TOO_LONG)
def test_rows_that_are_cut_or_left_out_are_told_and_counted(recipe: str, place: Path) -> None:
    write(Path("rows.jsonl"), TOO_LONG[recipe])
    values = STEP | {"max_length": 8}
    assert "no token to learn from is left in 1 of 3" in attempt(recipe, flags(values), place).err
    done = attempt(recipe, flags(values | {"on_bad_rows": "drop"}), place)
    assert done.code == 0, done.err
    assert "max_length=8: 1 of 3 training rows are cut, first row 1 (from 0)" in done.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["num_rows_cut"], summary["num_rows_left_out"]) == (1, 1)


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated")
@pytest.mark.parametrize(
    ("kept", "chosen", "rejected"),
    [("keep_start", f" {LONG} sat", f" {LONG} ran"), ("keep_end", f" sat {LONG}", f" ran {LONG}")],
)
def test_pairs_that_are_cut_to_the_same_are_bad_rows(
    kept: str, chosen: str, rejected: str, place: Path
) -> None:
    same = {"prompt": "the cat", "chosen": chosen, "rejected": rejected}
    write(Path("rows.jsonl"), [PAIR, same])
    values = STEP | {"max_length": 8, "truncation_mode": kept}
    answer = attempt("dpo", flags(values), place)
    assert "max_length=8: no token to learn from is left in 1 of 2" in answer.sentence()


def test_a_reward_models_rows_that_are_too_long_are_told_and_counted(place: Path) -> None:
    rows = [PAIR, PAIR | {"chosen": f" {LONG}"}, PAIR | {"rejected": " was ."}]
    write(Path("rows.jsonl"), rows)
    write(Path("test.jsonl"), [PAIR | {"rejected": " slept ."}])
    values = STEP | {"max_length": 8, "test_dataset_name": "test.jsonl"}
    done = attempt("reward", flags(values), place)
    assert "a side is longer in 1 of 3 training rows, first in row 1" in done.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["num_rows_cut"], summary["num_rows_left_out"]) == (0, 1)


@pytest.mark.parametrize("more", [{"packing": True}, {"streaming": True}])
def test_rows_that_are_cut_while_they_are_packed_or_streamed_are_told(
    more: dict[str, Any], place: Path
) -> None:
    write(Path("rows.jsonl"), [ROWS[0], ROWS[0] | {"completion": f" {LONG}"}])
    done = attempt("sft", flags(STEP | {"max_length": 8, "max_steps": 1} | more), place)
    assert "max_length=8: 1 of the first 2 training rows are cut, first row 1" in done.err


def test_ordinary_rows_are_not_said_to_be_cut(place: Path) -> None:
    write(Path("rows.jsonl"), [ROWS[0], {"prompt": "the cat", "completion": " sat on the sun ."}])
    done = attempt("sft", flags(STEP | {"max_length": 8}), place)  # which fills the eight
    assert "are cut" not in done.err
    assert json.loads(Path("run/summary.json").read_text())["num_rows_cut"] == 0


TEMPLATE_THAT_REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% endif %}<{{ m.role }}> {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SYSTEM = [{"role": "system", "content": "old"}]
SAMPLED = {"reward_funcs": "rewards.py:one", "max_completion_length": 3}


@pytest.mark.parametrize("recipe", ["sft", "dpo", "kto", "reward", "ppo", "grpo"])
def test_rows_that_the_template_refuses_are_told_with_their_number(
    recipe: str, place: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.chat_template = TEMPLATE_THAT_REFUSES
    save_model(Path("model"), tiny_tokenizer)
    other = [{"role": "assistant", "content": "the dog"}]
    columns: dict[str, dict[str, Any]] = {
        "sft": {"messages": ASK + ANSWER},
        "dpo": {"prompt": ASK, "chosen": ANSWER, "rejected": other},
        "kto": {"prompt": ASK, "completion": ANSWER, "label": True},
        "reward": {"prompt": ASK, "chosen": ANSWER, "rejected": other},
        "ppo": {"prompt": ASK},
        "grpo": {"prompt": ASK},
    }
    row = columns[recipe]
    first = next(iter(row))
    rows = [row] * 5 + [row | {first: SYSTEM + row[first]}]
    write(Path("rows.jsonl"), rows)
    (place / "rewards.py").write_text("def one(prompts, **_):\n    return [1.0] * len(prompts)\n")
    others: dict[str, dict[str, Any]] = {
        "reward": {"test_dataset_name": "test.jsonl"},
        "ppo": SAMPLED | {"total_episodes": 4, "rollout_batch_size": 4, "max_steps": -1},
        "grpo": SAMPLED | {"num_generations": 2},
    }
    more = others.get(recipe, {})
    write(Path("test.jsonl"), [row | {"rejected": [{"role": "assistant", "content": "a"}]}])
    told = attempt(recipe, flags(STEP | more), place)
    assert told.code == 2
    if recipe != "kto":  # whose rows are shuffled first
        assert re.search(r"row 5\b", told.sentence()), told.sentence()
    assert "no system here" in told.sentence()
    done = attempt(recipe, flags(STEP | more | {"on_bad_rows": "drop"}), place)
    assert done.code == 0, done.err
    assert "the chat template cannot render (no system here) in 1, first in row" in done.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary.get("num_rows_left_out", 0) == 0  # of those that were good


def test_a_row_that_the_tokenizer_loses_is_a_bad_row(place: Path, shared: Path) -> None:
    rows = [
        {"prompt": "Once", "completion": f" {text}"}
        for text in ("there was a \u732b .", "\u4e00\u4e8c\u4e09\u56db")
    ]
    write(Path("rows.jsonl"), rows)
    own = {"model_name_or_path": shared / "models/TinyStories-656K"}
    told = attempt("sft", flags(STEP | own), place)
    assert "no token for most characters of column 'completion' in 1 of 2 rows" in told.sentence()
    done = attempt("sft", flags(STEP | own | {"on_bad_rows": "drop"}), place)
    assert done.code == 0, done.err
    shown = ["--model_name_or_path", str(own["model_name_or_path"]), "--max_rows", "2"]
    page = attempt("data", ["rows.jsonl", *shown], place).out
    assert "has no token for 5 of the" in page
    assert "most characters of column 'completion': 1 bad" in " ".join(page.split())
    assert "has no token for 5 of the characters ('\u4e00', '\u4e09', '\u4e8c', " in done.err


def test_special_tokens_without_training_are_found_in_any_row(
    place: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    save_model(Path("model"), tiny_tokenizer, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained("model")
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = 0.0
    model.save_pretrained("model")
    write(Path("rows.jsonl"), [*ROWS, ROWS[0] | {"completion": " <new> ."}])
    told = attempt("sft", flags(STEP | LORA), place)
    assert "the data uses <new>, whose embeddings were never trained" in told.sentence()


@pytest.mark.parametrize(("recipe", "code"), [("ppo", 0), ("rloo", 2), ("grpo", 2)])
def test_a_prompt_that_opens_the_assistants_turn_is_gone_on_with_or_refused(
    recipe: str, code: int, place: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    opened = [*ASK, {"role": "assistant", "content": "the cat"}]
    write(Path("rows.jsonl"), [{"prompt": ASK}, {"prompt": opened}])
    (place / "rewards.py").write_text(
        "import json\n"
        "def one(prompts, completions, **_):\n"
        "    open('seen', 'a').write(json.dumps(prompts) + chr(10))\n"
        "    return [1.0] * len(prompts)\n"
    )
    more = {"num_generations": 2} if recipe != "ppo" else {"max_steps": -1}
    if recipe == "ppo":
        more |= {"total_episodes": 4, "rollout_batch_size": 4, "log_completions": True}
    answer = attempt(recipe, flags(STEP | SAMPLED | more), place)
    assert answer.code == code, answer.err
    if code:
        assert (
            "the prompt of row 1 ends with an assistant's turn (1 such rows)" in answer.sentence()
        )
    else:
        prompts = {row["prompt"] for row in read_jsonl(Path("run/samples.jsonl"))}
        assert prompts == {"<user> tell me <assistant>", "<user> tell me <assistant> the cat"}


def test_the_best_ppo_checkpoint_is_the_one_with_the_best_score_if_nothing_else_is_said(
    place: Path,
) -> None:
    write(Path("rows.jsonl"), [{"prompt": f"the {word}"} for word in ("cat", "dog", "sun", "moon")])
    (place / "rewards.py").write_text(
        "def one(completion_ids, **_):\n    return [ids[0] / 9 for ids in completion_ids]\n"
    )
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    steps = {"eval_steps": 1, "save_steps": 1, "test_fraction": 2, "max_steps": -1}
    more = best | steps | {"total_episodes": 8, "rollout_batch_size": 4, "num_ppo_epochs": 1}
    answer = attempt("ppo", flags(STEP | SAMPLED | more), place)
    assert answer.code == 0, answer.err
    scores = [row for row in read_jsonl(Path("run/metrics.jsonl")) if "eval_scores" in row]
    assert len(scores) == 2
    state = json.loads(next(Path("run").glob("checkpoint-2/trainer_state.json")).read_text())
    assert state["best_metric"] == max(row["eval_scores"] for row in scores)
