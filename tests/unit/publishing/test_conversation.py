"""A conversation says what the model says, as it comes, and keeps its turns."""

import contextlib
import io
from typing import Any

import pytest
import torch

from recipes.lib.errors import UserError
from recipes.lib.generation.completions import TextStreamer, complete
from recipes.lib.publishing.conversation import Conversation, print_piece


def talk(model: Any, tokenizer: Any, **more: Any) -> Conversation:
    return Conversation(model, tokenizer, **{"max_completion_length": 8} | more)


class Pieces(io.StringIO):
    """Standard output, print by print."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces += [text] if text else []
        return len(text)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_that_of_an_evaluation_and_comes_in_pieces(
    tiny_model: Any, tiny_tokenizer: Any, temperature: float
) -> None:
    conversation = talk(tiny_model, tiny_tokenizer, temperature=temperature, seed=3)
    with contextlib.redirect_stdout(Pieces()) as shown:
        said = conversation.say("the cat")
    prompts = [[user("the cat")]]
    (expected,) = complete(
        tiny_model, tiny_tokenizer, prompts, max_new_tokens=8, temperature=temperature, seed=3
    )
    assert said == expected.text == "".join(shown.pieces)
    assert len(shown.pieces) > 1  # not at the end alone
    assert conversation.turns == [user("the cat"), {"role": "assistant", "content": said}]


def test_turns_and_the_system_prompt_are_given_to_the_model(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    conversation = talk(tiny_model, tiny_tokenizer, temperature=0.0, system="a bird")
    first = conversation.say("the cat")
    second = conversation.say("rain")
    turns = [
        {"role": "system", "content": "a bird"},
        user("the cat"),
        {"role": "assistant", "content": first},
        user("rain"),
    ]
    (expected,) = complete(tiny_model, tiny_tokenizer, [turns], max_new_tokens=8, temperature=0.0)
    assert second == expected.text


def test_the_template_is_given_what_it_was_in_training(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    asked = "{% if short %}rain {% endif %}{{ messages[-1].content }} "
    tiny_tokenizer.chat_template = asked
    for kwargs, text in (({"short": True}, "rain the cat"), (None, "the cat")):
        conversation = talk(tiny_model, tiny_tokenizer, temperature=0.0, template_kwargs=kwargs)
        said = conversation.say("the cat")
        (expected,) = complete(
            tiny_model, tiny_tokenizer, [text], max_new_tokens=8, temperature=0.0
        )
        assert said == expected.text


def test_again_gives_another_answer_in_place_of_the_last(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    conversation = talk(tiny_model, tiny_tokenizer)
    with pytest.raises(UserError, match="nothing was said yet"):
        conversation.say(None)
    first = conversation.say("the cat")
    others = {conversation.say(None) for _ in range(4)}
    assert others - {first}
    assert len(conversation.turns) == 2
    repeated = talk(tiny_model, tiny_tokenizer)
    assert repeated.say("the cat") == first  # the same seed
    other = talk(tiny_model, tiny_tokenizer, seed=1)
    assert {other.say("the cat"), other.say(None), other.say(None)} - {first}


def test_without_a_template_each_text_is_gone_on_with(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = None
    conversation = talk(tiny_model, tiny_tokenizer, temperature=0.0)
    conversation.say("rain")
    said = conversation.say("the cat")
    (expected,) = complete(
        tiny_model, tiny_tokenizer, ["the cat"], max_new_tokens=8, temperature=0.0
    )
    assert said == expected.text


def test_a_full_context_is_said_and_costs_no_turn(tiny_model: Any, tiny_tokenizer: Any) -> None:
    conversation = talk(tiny_model, tiny_tokenizer)
    before = conversation.say("the cat")
    with pytest.raises(UserError, match="context is full; begin anew"):
        conversation.say("rain " * 2000)
    assert conversation.turns == [user("the cat"), {"role": "assistant", "content": before}]


def test_what_would_steer_the_terminal_is_spelled_out() -> None:
    class Tokenizer:
        bos_token_id = eos_token_id = pad_token_id = None

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    with contextlib.redirect_stdout(Pieces()) as shown:
        printer = TextStreamer(Tokenizer(), [], [], print_piece)
        printer.put(torch.tensor([[1]]))  # the prompt
        for byte in "\x1b[2Jn\u00e9".encode():
            printer.put(torch.tensor([byte]))
        printer.end()
    assert "".join(shown.pieces) == "\\x1b[2Jn\u00e9"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in shown.pieces)
