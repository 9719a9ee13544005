"""Tools: functions that a policy may call in the format of its chat template.

The conversation goes on while the policy calls, and ends with the turn that calls nothing. A call
of what is not there, with wrong arguments, or that cannot be read is answered with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recipes.lib.environments.worlds import Answer, as_worlds
from recipes.lib.errors import UserError, one_sentence
from recipes.lib.rewards.loading import load_function


class ToolWorld:
    """A conversation in which functions may be called; an environment.

    Args:
        functions: The functions by name.
        parse: Makes a message, with its `tool_calls`, of what the policy wrote.
    """

    def __init__(
        self, functions: dict[str, Callable[..., Any]], parse: Callable[[str], dict[str, Any]]
    ) -> None:
        self.functions, self.parse = functions, parse

    def reset(self, **row: Any) -> str:
        """Begin; the prompt of the row says all."""
        return ""

    def step(self, text: str) -> Answer:
        """Answer the calls of a turn; without any it is the last one."""
        try:
            calls = self.parse(text).get("tool_calls") or []
        except Exception as error:  # what a model writes is anything
            return f"error: the call cannot be read ({one_sentence(error)})", 0.0, False, False
        if not calls:
            return "", 0.0, True, False
        return "\n".join(self._said(call.get("function", {})) for call in calls), 0.0, False, False

    def _said(self, call: dict[str, Any]) -> str:
        name, arguments = call.get("name"), call.get("arguments")
        if name not in self.functions:
            return f"error: there is no tool {name}; there are {', '.join(self.functions)}"
        if not isinstance(arguments, dict):
            return f"error: {name} got no named arguments"
        try:
            return str(self.functions[name](**arguments))
        except Exception as error:
            return f"error: {name} raised {type(error).__name__}: {one_sentence(error)}"


def load_tools(references: Sequence[str]) -> list[Callable[..., Any]]:
    """Find functions to be called.

    Args:
        references: Each `file.py:function`, with type hints and a docstring with its arguments.

    Returns:
        The functions.

    Raises:
        UserError: One is not there, has no such description, or two have the same name.
    """
    found = [load_function(reference) for reference in references]
    names = [str(getattr(function, "__name__", function)) for function in found]
    for function, name in zip(found, names, strict=True):
        check_tool(function)
        if names.count(name) > 1:
            raise UserError(f"tools: two are named {name}; rename one.")
    return found


def check_tool(function: Callable[..., Any]) -> None:
    """Look whether a chat template can tell a model of a function.

    Raises:
        UserError: It lacks type hints, or a docstring with a line for each argument.
    """
    from transformers.utils import get_json_schema

    try:
        get_json_schema(function)
    except Exception as error:
        raise UserError(
            f"tools: {getattr(function, '__name__', function)}: {one_sentence(error)}; give it "
            "type hints and a docstring with Args."
        ) from error


def template_parser(tokenizer: Any) -> Callable[[str], dict[str, Any]]:
    """What reads calls in the format of a tokenizer's chat template.

    Raises:
        UserError: The template has no such format, or one that TRL does not know.
    """
    from trl.chat_template_utils import add_response_schema, supports_tool_calling

    if not supports_tool_calling(tokenizer):
        raise UserError(
            "tools: the model's chat template has no calls of tools; use a model with one that has."
        )
    try:
        add_response_schema(tokenizer)
    except ValueError as error:
        raise UserError(f"tools: {one_sentence(error)}.") from error

    def parse(text: str) -> dict[str, Any]:
        # Some formats end with the turn; what stands before it is the template's.
        message: dict[str, Any] = tokenizer.parse_response(text + tokenizer.eos_token, prefix="")
        return message

    return parse


def make_worlds(
    environment: Any, tools: Sequence[Callable[..., Any]], tokenizer: Any
) -> Callable[..., list[Answer]] | None:
    """What answers a policy.

    Args:
        environment: The class of an environment, `file.py:Class`, or what `load_worlds` made.
        tools: Functions that may be called instead.
        tokenizer: The policy's, whose template has the format of calls.

    Returns:
        What `Worlds` is; None where nobody answers.

    Raises:
        UserError: There are both, or a tool cannot be told to the model.
    """
    if not tools:
        return None if environment is None else as_worlds(environment)
    if environment is not None:
        raise UserError(
            "environment and tools exclude each other; let the environment read the calls, or "
            "leave it out."
        )
    by_name, parse = {tool.__name__: tool for tool in tools}, template_parser(tokenizer)
    for tool in tools:
        check_tool(tool)
    return as_worlds(lambda: ToolWorld(by_name, parse))
