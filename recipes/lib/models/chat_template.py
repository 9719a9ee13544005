"""Whether a chat template fits what a model is trained on and how it will be asked.

A policy is asked with the prompt rendered alone. What it is trained on has to begin with the same
text, has to end with the token at which sampling stops, and has to have one beginning-of-sequence
token and no second one. A template may also stand in the configuration itself.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import adapter_base
from recipes.lib.models.folders import fetch_adapter, is_adapter, resolve_model
from recipes.lib.models.tokenizers import load_tokenizer

TEMPLATE_KEY = "chat_template_path"


def read_template(path: str) -> str:
    """The chat template that chat_template_path names; no code is run to have it.

    Args:
        path: A .jinja file, or a model whose tokenizer has the template.

    Raises:
        UserError: There is none.
    """
    if path.endswith((".jinja", ".j2")):
        if not Path(path).is_file():
            raise UserError(f"{TEMPLATE_KEY}={path}: there is no such file; check the path.")
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{TEMPLATE_KEY}={path}: cannot be read as text; name a .jinja file."
            ) from error
    try:
        tokenizer = load_tokenizer(path)
    except UserError as error:
        raise UserError(str(error).replace("model_name_or_path", TEMPLATE_KEY, 1)) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"{TEMPLATE_KEY}={path}: its tokenizer has no chat template; name one that has."
        )
    return str(tokenizer.chat_template)


def refuse_new_tokens(
    model_args: Any, tokenizer: Any, path: str, *, trust_remote_code: bool = False
) -> None:
    """Refuse a template whose tokens are new where an adapter cannot learn them.

    Args:
        model_args: TRL's model keys.
        tokenizer: The model's.
        path: chat_template_path; a .jinja file brings no tokens.
        trust_remote_code: Whether code beside the model may run.

    Raises:
        UserError: The model shares its input and output embeddings, or these are to be trained by
            another key.
    """
    if not model_args.use_peft or path.endswith((".jinja", ".j2")):
        return
    from transformers import AutoConfig

    known = tokenizer.get_vocab()
    new = [token for token in load_tokenizer(path).get_added_vocab() if token not in known]
    if not new:
        return
    folder = fetch_adapter(resolve_model(model_args.model_name_or_path))
    while is_adapter(folder):
        folder, _ = adapter_base(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    saved = set(model_args.lora_modules_to_save or ()) & {"embed_tokens", "lm_head"}
    told = f"{TEMPLATE_KEY}={path}: brings the tokens {', '.join(new[:3])}, "
    if saved:
        raise UserError(
            f"{told}whose embeddings are trained by themselves; leave {', '.join(sorted(saved))} "
            "out of lora_modules_to_save."
        )
    if config.get_text_config().tie_word_embeddings:
        raise UserError(
            f"{told}which an adapter cannot learn on a model whose input and output embeddings "
            "are one; leave out use_peft, or name a template without new tokens."
        )


def check_conversation(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    template: str | None,
    kwargs: dict[str, Any],
    model_name: str | None,
) -> None:
    """Check a chat template on one conversation that a policy is trained on.

    Args:
        tokenizer: With its chat template.
        messages: The conversation; one that does not end with the assistant is let through.
        template: Used instead of the tokenizer's, where the trainer has one of its own.
        kwargs: Further arguments of the template.
        model_name: The model to name where the recipe has no chat_template_path.

    Raises:
        UserError: The prompt alone is rendered otherwise (thinking templates do that), the answer
            does not end with the EOS token, or the BOS token is there twice.
    """
    whole = _render(tokenizer, messages, template, kwargs)
    check_bos(tokenizer, tokenizer(whole, add_special_tokens=False)["input_ids"], model_name)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return
    prompt = _render(tokenizer, messages[:-1], template, kwargs | {"add_generation_prompt": True})
    if not whole.startswith(prompt):
        raise UserError(
            f"{_whose(model_name)} chat template renders a prompt alone as "
            f"...{prompt[-40:]!r} but not so before its answer, and the model would be trained on "
            f"something else than it is asked; {_give(model_name)} a template that renders both "
            "alike."
        )
    answer = whole[len(prompt) :]
    if tokenizer.eos_token not in answer:
        raise UserError(
            f"eos_token={tokenizer.eos_token}: the chat template does not end an answer with it, "
            f"so the model would not learn to stop; {_remedy(tokenizer, answer, model_name)}."
        )


def check_bos(tokenizer: Any, ids: list[int], model_name: str | None) -> None:
    """Refuse a second BOS token at the start of a rendered conversation; tell where none is.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids of the conversation.
        model_name: The model to name where the recipe has no chat_template_path.

    Raises:
        UserError: There are two.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    if ids[:2] == [bos, bos]:
        raise UserError(
            f"{_whose(model_name)} chat template begins with {tokenizer.bos_token} twice; "
            f"{_give(model_name)} a template that writes it once."
        )
    adds_bos = list(tokenizer("a")["input_ids"])[:1] == [bos]
    if adds_bos and bos not in ids:
        tqdm.write(
            f"Warning: the chat template writes no {tokenizer.bos_token}, which the tokenizer puts "
            f"before plain text; if the model was trained with it, {_give(model_name)} a template "
            "that writes it.",
            file=sys.stderr,
        )


def _render(
    tokenizer: Any, messages: list[dict[str, Any]], template: str | None, kwargs: dict[str, Any]
) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, **kwargs
            )
        )
    except TemplateError as error:
        raise UserError(
            f"{TEMPLATE_KEY} is missing: the model's chat template cannot render the data "
            f"({' '.join(str(error).split())}); name a template that can."
        ) from error


def _whose(model_name: str | None) -> str:
    if model_name is None:
        return f"{TEMPLATE_KEY} is missing: the model's"
    return f"model_name_or_path={model_name}: its"


def _give(model_name: str | None) -> str:
    return f"set {TEMPLATE_KEY} to" if model_name is None else "save the model with"


def _remedy(tokenizer: Any, answer: str, model_name: str | None) -> str:
    added = [str(token) for token in tokenizer.get_added_vocab() if str(token) in answer]
    if added:
        where = "" if model_name is None else f" in the tokenizer_config.json of {model_name}"
        return f"set eos_token={max(added, key=answer.rfind)}{where}, which it does write"
    return f"{_give(model_name)} a template that does"


def check_template(row: dict[str, Any], column: str, has_template: bool) -> None:
    """Refuse conversations for a tokenizer that cannot render them.

    Args:
        row: One row of the data.
        column: A column that holds text or messages.
        has_template: Whether there will be a chat template.

    Raises:
        UserError: The column holds messages and there is no chat template.
    """
    if isinstance(row[column], list) and not has_template:
        raise UserError(
            f"chat_template_path is missing: {column} holds messages, but the tokenizer has no "
            "chat template; name a .jinja file or a model that has one."
        )


@dataclass(kw_only=True)
class TemplateArguments:
    """The chat template of a recipe that renders messages."""

    chat_template: str | None = field(
        default=None,
        metadata={"help": "Chat template (Jinja source) instead of the tokenizer's own."},
    )


def set_chat_template(tokenizer: Any, template: str | None, path: str | None = None) -> None:
    """Give a tokenizer the chat template of the configuration; it is saved with the model.

    Args:
        tokenizer: The tokenizer.
        template: Jinja source; None leaves the tokenizer as it is.
        path: chat_template_path, where the recipe has it.

    Raises:
        UserError: The source is empty or no Jinja, the path is set, too, or has no template.
    """
    from jinja2 import Environment
    from jinja2.exceptions import TemplateError

    if template is None:
        if path is not None:
            read_template(path)
        return
    if path is not None:
        raise UserError(
            f"chat_template and chat_template_path={path} exclude each other; leave one out."
        )
    if not template.strip():
        raise UserError("chat_template='': holds no template; write one, or leave it out.")
    try:
        # As transformers reads templates, with the tags of loops and of what is generated.
        # Not the tag of transformers' own, around what the assistant said.
        plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateError as error:
        raise UserError(
            f"chat_template: is no Jinja template ({' '.join(str(error).split())}); mend it."
        ) from error
    tokenizer.chat_template = template
