"""What stands between two turns, in the tokens of real chat templates; calls of tools."""

from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer
from transformers.utils import get_json_schema

from recipes.lib.environments.rendering import Rendering
from recipes.lib.environments.tools import ToolWorld, load_tools, template_parser
from recipes.lib.errors import UserError
from tests.conftest import ROOT
from tests.helpers import tiny

TALES = ROOT / "recipes/lib/tasks/tales/trained"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
STOPS = {"qwen3": "<|im_end|>", "qwen2_5": "<|im_end|>", "llama3_1": "<|eot_id|>"}
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QUESTION = [{"role": "user", "content": "What is 12 plus 30?"}]


def tokenizer(template: str) -> Any:
    """The quickstart's tokenizer with the template and the marks of another family."""
    made = AutoTokenizer.from_pretrained(TALES)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    made.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    made.eos_token = STOPS[template]
    return made


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


def rendered(some: Any, messages: list[dict[str, Any]], **more: Any) -> list[int]:
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True} | more
    return list(some.apply_chat_template(messages, **how)["input_ids"])


@pytest.mark.parametrize("template", ["qwen3", "qwen2_5", "llama3_1"])
def test_turns_are_what_the_template_makes_of_the_whole(template: str) -> None:
    some = tokenizer(template)
    rendering = Rendering(some, some.eos_token_id, None)
    asked, ids = rendering.begin(QUESTION, "Say it in words.")
    assert asked == [*QUESTION, {"role": "user", "content": "Say it in words."}]
    assert ids == rendered(some, asked)
    said = some("forty two", add_special_tokens=False)["input_ids"]
    for answer in ("warmer", "It is\nlate."):
        ids += [*said, some.eos_token_id]
        ids += rendering.answer_ids(answer, as_text=False, has_ended=True)
        asked += [{"role": "assistant", "content": "forty two"}]
        asked += [{"role": "user", "content": answer}]
    assert some.decode(ids) == some.decode(rendered(some, asked))
    assert ids == rendered(some, asked)


def test_a_turn_that_was_cut_off_is_closed() -> None:
    some = tokenizer("qwen2_5")
    rendering = Rendering(some, some.eos_token_id, None)
    whole = rendering.answer_ids("warmer", as_text=False, has_ended=True)
    cut = rendering.answer_ids("warmer", as_text=False, has_ended=False)
    assert cut == [some.eos_token_id, *whole]


def test_plain_text_goes_on_behind_the_stop_token() -> None:
    words = tiny.tokenizer()
    rendering = Rendering(words, 1, None)
    assert rendering.begin("a b ", "c") == ("a b c", words("a b c")["input_ids"])
    assert rendering.begin(None, "c") == ("c", words("c")["input_ids"])
    assert rendering.answer_ids("d e", as_text=True, has_ended=True) == words("d e")["input_ids"]
    with pytest.raises(UserError, match="an environment answered an empty text; let step return"):
        rendering.answer_ids("", as_text=True, has_ended=True)
    with pytest.raises(UserError, match="an episode begins with an empty prompt; let reset"):
        rendering.begin(None, "")


def test_a_template_that_changes_what_was_said_is_refused() -> None:
    some = AutoTokenizer.from_pretrained(TALES)
    some.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    with pytest.raises(UserError, match="context=all: where a turn ends cannot be told from"):
        Rendering(some, some.eos_token_id, None).answer_ids("b", as_text=False, has_ended=True)


CALLS = {
    "qwen3": '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>',
    "qwen2_5": '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>',
    "llama3_1": '{"name": "%s", "parameters": %s}',
}


TOOLS = """
def bare(a):
    return a


def add(a: int) -> int:
    '''Add.

    Args:
        a: One.
    '''
    return a
"""


def world(some: Any) -> ToolWorld:
    return ToolWorld({"add": add}, template_parser(some))


@pytest.mark.parametrize("template", ["qwen3", "qwen2_5", "llama3_1"])
def test_a_call_is_answered_in_the_format_of_the_template(template: str) -> None:
    some = tokenizer(template)
    call = CALLS[template] % ("add", '{"a": 12, "b": 30}')
    assert world(some).step(call) == ("42", 0.0, False, False)
    rendering = Rendering(some, some.eos_token_id, None, [add])
    asked, ids = rendering.begin(QUESTION, "")
    assert asked == QUESTION
    ids += [*some(call, add_special_tokens=False)["input_ids"], some.eos_token_id]
    ids += rendering.answer_ids("42", as_text=False, has_ended=True)
    called = {"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": 30}}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "42"},
    ]
    assert some.decode(ids) == some.decode(rendered(some, messages, tools=[get_json_schema(add)]))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("multiply", '{"a": 1, "b": 2}', "error: there is no tool multiply; there are add"),
        ("add", '{"a": 1}', "error: add raised TypeError: add() missing 1 required"),
        ("add", '{"a": 1, "b": {}}', "error: add raised TypeError: unsupported operand"),
        ("add", "[1, 2]", "error: "),
        ("add", '{"a": 1, ', "error: "),
    ],
)
def test_a_wrong_call_is_answered_and_not_fatal(name: str, arguments: str, words: str) -> None:
    answer, reward, is_over, _ = world(tokenizer("qwen3")).step(CALLS["qwen3"] % (name, arguments))
    assert answer.startswith(words)
    assert (reward, is_over) == (0.0, False)


def test_a_turn_without_a_call_is_the_last_one() -> None:
    assert world(tokenizer("qwen3")).step("It is 42.") == ("", 0.0, True, False)


def test_what_cannot_be_a_tool_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text(TOOLS, encoding="utf-8")
    assert [tool.__name__ for tool in load_tools([f"{file}:add"])] == ["add"]
    with pytest.raises(UserError, match=r"tools: bare: .*; give it type hints and a docstring"):
        load_tools([f"{file}:bare"])
    with pytest.raises(UserError, match="tools: two are named add; rename one"):
        load_tools([f"{file}:add", f"{file}:add"])
    with pytest.raises(UserError, match="the model's chat template has no calls of tools"):
        template_parser(AutoTokenizer.from_pretrained(TALES))
