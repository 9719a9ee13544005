"""Sums with a calculator: the policy may ask it, and then says the number.

A call is `calc: 12+34`, or what chat templates write between <tool_call> and </tool_call>:
`{"name": "calculator", "arguments": {"expression": "12+34"}}`. Calls are answered, wrong ones too.
A text without a call is the answer: 1 where it ends with the right number, 0 otherwise.
"""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.tasks.gsm8k import last_number

OPERATORS = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "Div": operator.truediv,
}
# No letters, and a length that bounds depth and numbers: Python's parser reads nothing else.
EXPRESSION = re.compile(r"[0-9 .+*/()-]{1,100}")
CALL = re.compile(r'(?:\bcalc:|<tool_call>.*?"expression"\s*:\s*"|<tool_call>)([^"\n]*)', re.DOTALL)


def calculator(expression: str) -> str:
    """Calculate.

    Args:
        expression: Numbers, + - * / and parentheses, such as "12+3*4".
    """
    value = calculate(expression)
    if value is None:
        return "error: write numbers, + - * / and parentheses"
    return str(value) if value.denominator == 1 else f"{float(value):.6g}"


def calculate(expression: str) -> Fraction | None:
    """The exact value of an expression; None where it has none."""
    try:
        if EXPRESSION.fullmatch(expression):
            return _of_node(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        pass
    return None


def _of_node(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub()):
            return -_of_node(node.operand)
        case ast.BinOp() if operate := OPERATORS.get(type(node.op).__name__):
            return operate(_of_node(node.left), _of_node(node.right))
    raise SyntaxError


class Sums:
    """A sum to be answered, with a calculator or without."""

    def reset(self, sum: str, calculator: bool = True, **_: Any) -> str:
        """Ask.

        Args:
            sum: Such as "47*83+65".
            calculator: Calls are answered; otherwise they are told that there is none.

        Returns:
            The question, which says where there is no calculator.

        Raises:
            UserError: The sum has no value.
        """
        right = calculate(sum)
        if right is None:
            raise UserError(f"sum={sum}: write numbers, + - * / and parentheses.")
        self.right, self.has_calculator = right, calculator
        return f"{sum}=?" if calculator else f"{sum}=? no calc"

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        """Answer a call, or judge an answer."""
        if call := CALL.search(text):
            said = calculator(call[1]) if self.has_calculator else "no calc"
            return said, 0.0, False, False
        number = last_number(text)
        right = number is not None and Fraction(number) == self.right
        return "right" if right else "wrong", float(right), True, False
