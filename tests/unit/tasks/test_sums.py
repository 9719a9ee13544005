"""Sums with a calculator, worked by hand, and the calculator beside Python's own arithmetic."""

import random
from fractions import Fraction

import pytest

from recipes.lib.errors import UserError
from recipes.lib.tasks.environments.sums import Sums, calculate, calculator

CANNOT = "error: write numbers, + - * / and parentheses"
TOOL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "47*83"}}\n</tool_call>'


def asked(**row: object) -> Sums:
    world = Sums()
    world.reset(**{"sum": "47*83+65", "seed": 0, **row})
    return world


def test_the_question_says_whether_there_is_a_calculator() -> None:
    assert Sums().reset(sum="47*83+65", seed=1) == "47*83+65=?"
    assert Sums().reset(sum="47*83+65", calculator=False) == "47*83+65=? no calc"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("calc:47*83+65", "3966"),
        ("I ask: calc: 47*83 \nand so on", "3901"),
        (TOOL, "3901"),
        (TOOL.replace("47*83", "(1+2)*3"), "9"),
        (TOOL.replace("47*83", "__import__('os')"), CANNOT),
        ('<tool_call>{"name": "calculator"}</tool_call>', CANNOT),
        ("<tool_call>47*83</tool_call>", CANNOT),
        ("calc:", CANNOT),
        ("calc: 47 * x", CANNOT),
    ],
)
def test_a_call_is_answered_and_the_game_goes_on(text: str, said: str) -> None:
    assert asked().step(text) == (said, 0.0, False, False)
    assert asked(calculator=False).step(text) == ("no calc", 0.0, False, False)


@pytest.mark.parametrize("text", ["3966", "It is 3,966.", "47*83 is 3901, so 3966", "3966.0"])
def test_the_right_number_at_the_end_pays(text: str) -> None:
    world = asked()
    world.step("calc:1/0")
    assert world.step(text) == ("right", 1.0, True, False)
    assert asked(calculator=False).step(text)[1] == 1.0


@pytest.mark.parametrize("text", ["", "3967", "-3966", "3966 or 3967", "no number"])
def test_anything_else_ends_with_nothing(text: str) -> None:
    assert asked().step(text) == ("wrong", 0.0, True, False)


def expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return str(rng.randint(0, 99))
    inner = expression(rng, depth - 1), expression(rng, depth - 1)
    text = rng.choice("+-*/").join(inner)
    return rng.choice(("{}", "({})", "-({})")).format(text)


def test_the_calculator_calculates_as_python_does() -> None:
    rng = random.Random(3)
    for _ in range(300):
        text = expression(rng, 3)
        exact = "".join(f"Fraction({part})" if part.isdigit() else part for part in split(text))
        try:
            expected = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            expected = None
        assert calculate(text) == (expected if len(text) <= 100 else None), text


def split(text: str) -> list[str]:
    parts: list[str] = []
    for char in text:
        if parts and char.isdigit() and parts[-1].isdigit():
            parts[-1] += char
        else:
            parts.append(char)
    return parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("7/2", "3.5"),
        ("1/3", "0.333333"),
        ("1.5*2", "3"),
        (" 12 + 34 ", "46"),
        ("-3--4", "1"),
        ("2**9", CANNOT),
        ("7//2", CANNOT),
        ("1/0", CANNOT),
        ("...", CANNOT),
        ("()", CANNOT),
        ("1,2", CANNOT),
        ("012", CANNOT),
        ("\u0661+1", CANNOT),
        ("True", CANNOT),
        ("1e9", CANNOT),
        ("(" * 100, CANNOT),
        ("-" * 99 + "1", "-1"),
        ("1+" * 50 + "1", CANNOT),  # 101 characters
        ("9" * 100, "9" * 100),
    ],
)
def test_what_the_calculator_says(text: str, said: str) -> None:
    assert calculator(text) == said


@pytest.mark.parametrize("given", ["", "1/0", "twelve"])
def test_a_sum_without_a_value_is_refused(given: str) -> None:
    with pytest.raises(UserError) as caught:
        Sums().reset(sum=given)
    assert str(caught.value) == f"sum={given}: write numbers, + - * / and parentheses."
