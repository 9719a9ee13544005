"""Chat templates in Go's words, rendered by a small reading of that language for this test."""

import re
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.publishing.modelfile import begins_with_bos, find_template, modelfile
from recipes.lib.tasks.tales.tokenizer import train_tokenizer
from tests.helpers.gguf_models import CHATML, byte_level

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else "
    "m['role']) + '\n' + (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + m['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '[' + m['role'] + ']{{' + m['content'] + '}}' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]{{' }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
# Counts the turns, which text around messages cannot.
COUNTS = "{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}"
# Leaves out what was thought before, as reasoning models' templates do.
THINKS = CHATML.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}")
TALKS = [
    [("user", "What is 2 + 2?")],
    [("user", "x\ny"), ("assistant", "{{ z }}"), ("user", "a  b")],
    [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
]


def in_go(template: str, talk: list[tuple[str, str]]) -> str:
    """What Go's text/template makes of these templates: if, else, else if, range, fields, texts."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    out, _ = _run(parts, 0, {"talk": talk}, live=True)
    return out


def _holds(test: str, scope: dict[str, Any]) -> bool:
    talk = scope["talk"]
    if test == ".System":
        return talk[0][0] == "system"
    if role := re.fullmatch(r'eq \.Role "(\w+)"', test):
        return scope["message"][0] == role[1]
    assert test == "gt (len (slice $.Messages $i)) 1"
    return len(talk) - scope["number"] > 1


def _run(parts: list[str], at: int, scope: dict[str, Any], live: bool) -> tuple[str, int]:
    """Text up to the `end` or `else` that belongs to this block, and its place."""
    out = ""
    while at < len(parts):
        if at % 2 == 0:
            out += parts[at] if live else ""
            at += 1
            continue
        word = parts[at]
        if word == "end" or word.startswith("else"):
            return out, at
        if word.startswith("if "):
            text, at = _choose(parts, at, scope, live)
            out += text
        elif word.startswith("range "):
            assert word == "range $i, $_ := .Messages"
            _, end = _run(parts, at + 1, scope | {"message": ("", ""), "number": 0}, False)
            for number, message in enumerate(scope["talk"]):
                own = scope | {"message": message, "number": number}
                out += _run(parts, at + 1, own, live)[0]
            at = end + 1
        else:
            values = {
                ".System": scope["talk"][0][1],
                ".Content": scope.get("message", ("", ""))[1],
                '"{{"': "{{",
            }
            out += values[word] if live else ""
            at += 1
    return out, at


def _choose(parts: list[str], at: int, scope: dict[str, Any], live: bool) -> tuple[str, int]:
    out, is_done, word = "", False, parts[at]
    while word != "end":
        test = word.removeprefix("else").strip().removeprefix("if ")
        is_taken = live and not is_done and (not test or _holds(test, scope))
        text, at = _run(parts, at + 1, scope, is_taken)
        out, is_done, word = out + text, is_done or is_taken, parts[at]
    return out, at + 1


def with_template(template: str, kind: str = "gpt-2") -> PreTrainedTokenizerFast:
    tokenizer = byte_level(kind)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "kind", "has_system"),
    [
        (CHATML, "gpt-2", True),
        (DEFAULT, "gpt-2", True),
        (LLAMA3, "llama-bpe", True),
        (GEMMA, "llama-bpe", True),
        (ZEPHYR, "gpt-2", True),
        (ALPACA, "gpt-2", True),
        (NO_SYSTEM, "gpt-2", False),
    ],
)
def test_the_template_in_go_says_the_same(template: str, kind: str, has_system: bool) -> None:
    tokenizer = with_template(template, kind)
    found = find_template(tokenizer)
    assert found is not None
    assert (found.system is not None) is has_system
    for talk in TALKS + [[("system", "Be\n{brief}."), *talk] for talk in TALKS if has_system]:
        messages = [{"role": role, "content": content} for role, content in talk]
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if kind == "llama-bpe":  # llama.cpp puts the BOS token there
            wanted = wanted.removeprefix("<|endoftext|>")
        assert in_go(found.in_go(), talk) == wanted == found.render(talk)


@pytest.mark.parametrize("template", [COUNTS, THINKS, CHATML + '{{ \'"""\' }}'])
def test_a_template_that_does_more_is_left_out(template: str, tiny_model: LlamaForCausalLM) -> None:
    tokenizer = with_template(template)
    assert find_template(tokenizer) is None
    text = modelfile(tiny_model, tokenizer)
    assert "TEMPLATE " not in text.replace("No TEMPLATE", "")
    assert "# No TEMPLATE: the chat template does more than one of Ollama's can." in text


def test_the_file_of_the_quickstarts_tokenizer(tiny_model: LlamaForCausalLM) -> None:
    tokenizer = train_tokenizer(["a fox and a hen"], 300)
    tiny_model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert modelfile(tiny_model, tokenizer) == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ if .System }}<|system|>{{ .System }}<|end|><|user|>{{ else }}<|user|>'
        '{{ end }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ .Content }}'
        '<|end|><|assistant|>{{ else if eq .Role "assistant" }}{{ .Content }}'
        "{{ if gt (len (slice $.Messages $i)) 1 }}<|end|><|user|>{{ end }}{{ end }}{{ end }}"
        '"""\n'
        'PARAMETER stop "<|end|>"\n'
    )


def test_what_ends_a_turn_is_a_stop(tiny_model: LlamaForCausalLM) -> None:
    tokenizer = with_template(CHATML)
    tokenizer.eos_token = "<|endoftext|>"
    tiny_model.generation_config.eos_token_id = [0, 2]
    text = modelfile(tiny_model, tokenizer)
    assert text.count("PARAMETER") == 2
    assert text.endswith('PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n')
    tokenizer.chat_template = ALPACA.replace(" + eos_token", "")
    tiny_model.generation_config.eos_token_id = 0
    assert 'PARAMETER stop "### Instruction:"\n' in modelfile(tiny_model, tokenizer)


def test_a_bos_token_comes_from_one_side_alone() -> None:
    """Where the template writes none, training saw none in front of a conversation."""
    tokenizer = with_template(LLAMA3, "llama-bpe")
    assert begins_with_bos(tokenizer)
    assert not find_template(tokenizer).head.startswith("<|endoftext|>")
    tokenizer.chat_template = LLAMA3.replace("{{ bos_token }}", "")
    assert not begins_with_bos(tokenizer)
    tokenizer.chat_template = None
    assert begins_with_bos(tokenizer)
    other = with_template(LLAMA3.replace("bos_token", "pad_token"))
    assert not begins_with_bos(other)  # it writes one that the tokenizer does not put there
    assert find_template(other).head.startswith("<|endoftext|>")
