"""The reward of GSM8K, worked by hand, and on the real test set."""

import runpy
from decimal import Decimal
from pathlib import Path

import pytest

from recipes.lib.errors import UserError
from recipes.lib.rewards.loading import load_function
from recipes.lib.runs.files import read_jsonl
from recipes.lib.tasks.gsm8k import correct_number, last_number

ROOT = Path(__file__).parents[3]
prompt_rows = runpy.run_path(str(ROOT / "scripts/gsm8k_prompts"))["prompt_rows"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("The answer is 18.", "18"),
        ("She pays $1,234.50.", "1234.5"),
        ("1,450,000 dollars", "1450000"),
        ("first 10,000, then 3", "3"),
        ("a list: 1,23", "23"),
        ("a list: 1, 2, 3", "3"),
        ("It costs 25%.", "25"),
        ("It costs 25 % more", "25"),
        ("3.0", "3"),
        ("of a cup: .5", "0.5"),
        ("(-4)", "-4"),
        ("x = -3.", "-3"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("\u22125 degrees", "-5"),
        ("5 - -3", "-3"),
        ("16-3", "3"),  # a difference
        ("16 - 3 - 4 = 9", "9"),
        ("- 7 apples", "7"),  # an item of a list
        ("pages 3-5", "5"),
        ("**42**", "42"),
        (r"\boxed{72}", "72"),
        ("= <<16-3-4=9>>9 eggs", "9"),
        ("$5/hour", "5"),
        ("007", "7"),
        ("9!", "9"),
        ("9?\n\n", "9"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number here", "-", "$", "...", "####"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    assert last_number(text) is None


def test_right_is_one_wrong_is_zero_and_no_answer_does_not_apply() -> None:
    completions = ["So 2,125.", "So 2125.00", "So 2124", "I do not know", "So 7", ""]
    solution = "She has 2000 + 125 = <<2000+125=2125>>2,125.\n#### 2,125"
    answers = [solution] * 4 + ["no number", "3"]
    assert correct_number(completions, answer=answers) == [1.0, 1.0, 0.0, 0.0, None, 0.0]


def test_messages_are_read_too() -> None:
    said = [[{"role": "assistant", "content": "4 + 4 is 8, so $8."}]]
    assert correct_number(said, answer=["#### 8"], completion_ids=[[1]], prompts=["p"]) == [1.0]


def test_the_reward_is_found_by_its_name() -> None:
    assert load_function("recipes.lib.tasks.gsm8k:correct_number") is correct_number
    assert load_function("recipes.lib.tasks.gsm8k.correct_number") is correct_number


def test_prompts_are_messages_with_the_bare_answer() -> None:
    rows = [{"question": "How many? ", "answer": "2 * 500 = 1000.\n#### 1,000"}]
    (made,) = prompt_rows(rows)
    assert made["answer"] == "1000"
    (message,) = made["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("How many? Think step by step")
    with pytest.raises(UserError, match=r"row 0 \(counted from 0\): a question and an answer"):
        prompt_rows([{"question": "How many?", "answer": "none"}])


def test_the_published_solutions_of_the_test_set_are_all_right(shared: Path) -> None:
    solutions = read_jsonl(shared / "data/sft/gsm8k_test.jsonl")
    answers = [row["answer"] for row in read_jsonl(shared / "data/prompt/gsm8k_test.jsonl")]
    texts = [row["completion"] for row in solutions]
    assert len(texts) == len(answers) == 1319
    assert correct_number(texts, answer=answers) == [1.0] * 1319
    assert correct_number(texts, answer=texts) == [1.0] * 1319
    # The last number of the question is rarely the answer, and never counts for another one.
    questions = [row["prompt"] for row in solutions]
    by_chance = sum(map(float, correct_number(questions, answer=answers)))
    print(f"by repeating the question's last number: {by_chance:.0f} of 1319")
    assert by_chance < 0.1 * 1319
    shifted = answers[1:] + answers[:1]
    same = sum(one == other for one, other in zip(answers, shifted, strict=True))
    assert sum(map(float, correct_number(texts, answer=shifted))) == same
