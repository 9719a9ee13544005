"""An Ollama Modelfile: the file of weights, the chat template in Go's words, what ends a turn.

Ollama does not read the Jinja template that a GGUF file carries. Where a template is five pieces of
text around the messages, as most are, the pieces are found by rendering, and what they render has
to be what the template renders; a template that does more is left out and said to be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Talk = Sequence[tuple[str, str]]  # role and content of each message

WORDS = ("Seventeen", "larks", "fly", "south")
ROLES = ("system", "user", "assistant", "user")
TALK = [("user", "Hi {you}!"), ("assistant", "One\n\ntwo."), ("user", "a"), ("assistant", "b c")]
TALKS: list[Talk] = [TALK[:1], TALK[:3], [*TALK, ("user", "d")]]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that is text around the messages.

    Args:
        head: In front of a conversation that has no system prompt.
        system: In front of a system prompt and behind it; None where there may be none.
        answer: Between a question and its answer.
        question: Between an answer and the next question.
    """

    head: str
    system: tuple[str, str] | None
    answer: str
    question: str

    def render(self, talk: Talk) -> str:
        """What `in_go` makes of a conversation that ends with a question."""
        (role, content), *rest = talk
        is_system = self.system is not None and role == "system"
        text = content.join(self.system) if self.system and is_system else self.head
        behind = {"user": self.answer, "assistant": self.question}
        return text + "".join(said + behind[who] for who, said in (rest if is_system else talk))

    def in_go(self) -> str:
        """The template in the language of Go's text/template, with Ollama's names."""
        pieces = (self.head, self.answer, self.question, *(self.system or ()))
        head, answer, question, *system = (one.replace("{{", '{{ "{{" }}') for one in pieces)
        if system:
            around = "{{ .System }}".join(system)
            head = "{{ if .System }}" + around + "{{ else }}" + head + "{{ end }}"
        asked = '{{ if eq .Role "user" }}{{ .Content }}' + answer
        said = '{{ else if eq .Role "assistant" }}{{ .Content }}'
        more = "{{ if gt (len (slice $.Messages $i)) 1 }}" + question + "{{ end }}"
        return head + "{{ range $i, $_ := .Messages }}" + asked + said + more + "{{ end }}{{ end }}"


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether llama.cpp is to put a BOS token in front: as the tokenizer does, and chats begin."""
    if tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    told = _render(tokenizer, TALKS[0]) if tokenizer.chat_template else ""
    return not told or told.startswith(tokenizer.bos_token)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion, the tokenizer's EOS token first."""
    ends = model.generation_config.eos_token_id
    ids = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
    return list(dict.fromkeys(number for number in ids if number is not None))


def find_template(tokenizer: Any) -> ChatTemplate | None:
    """The chat template of a tokenizer, without the BOS token that llama.cpp puts in front.

    Args:
        tokenizer: The tokenizer; it has a template.

    Returns:
        Its pieces; None where it does more than put text around the messages.
    """
    bos = tokenizer.bos_token if begins_with_bos(tokenizer) else ""
    around = []
    for words, roles in ((WORDS[1:], ROLES[1:]), (WORDS, ROLES)):
        text = _render(tokenizer, list(zip(roles, words, strict=True))).removeprefix(bos)
        around.append(re.split("|".join(words), text))
    plain, whole = around
    if len(plain) != 4:
        return None
    system = (whole[0], whole[1]) if len(whole) == 5 else None
    found = ChatTemplate(plain[0], system, plain[1], plain[2])
    talks = TALKS + [[("system", "Be\nkind."), *talk] for talk in TALKS if system]
    is_same = all(_render(tokenizer, t).removeprefix(bos) == found.render(t) for t in talks)
    return found if is_same and '"""' not in found.in_go() else None


def _render(tokenizer: Any, talk: Talk) -> str:
    messages = [{"role": role, "content": content} for role, content in talk]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except Exception:  # a template is a program, and says no in its own ways
        return ""


def modelfile(model: Any, tokenizer: Any) -> str:
    """The text of an Ollama Modelfile beside model.gguf; it says so where TEMPLATE is left out."""
    lines = ["FROM ./model.gguf"]
    stops = [tokenizer.convert_ids_to_tokens(number) for number in end_ids(model, tokenizer)]
    template = find_template(tokenizer) if tokenizer.chat_template else None
    if template:
        lines.append(f'TEMPLATE """{template.in_go()}"""')
        behind = template.question.strip()
        added = map(str, tokenizer.added_tokens_decoder.values())
        stops += [one for one in added if behind.startswith(one)] or behind.splitlines()[:1]
    elif tokenizer.chat_template:
        lines.append("# No TEMPLATE: the chat template does more than one of Ollama's can.")
    lines += [f"PARAMETER stop {json.dumps(stop)}" for stop in dict.fromkeys(stops)]
    return "\n".join(lines) + "\n"
