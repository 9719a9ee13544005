"""A chat template that stands in the configuration itself, as in alignment-handbook's files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from recipes.lib.errors import UserError


@dataclass(kw_only=True)
class TemplateArguments:
    """The chat template of a recipe that renders messages."""

    chat_template: str | None = field(
        default=None,
        metadata={"help": "Chat template (Jinja source) instead of the tokenizer's own."},
    )


def use_template(tokenizer: Any, template: str | None, path: str | None = None) -> None:
    """Give a tokenizer the chat template of the configuration; it is saved with the model.

    Args:
        tokenizer: The tokenizer.
        template: Jinja source; None leaves the tokenizer as it is.
        path: chat_template_path, where the recipe has it.

    Raises:
        UserError: The source is empty or no Jinja, or the path is set, too.
    """
    from jinja2 import Environment
    from jinja2.exceptions import TemplateError

    if template is None:
        return
    if path is not None:
        raise UserError(
            f"chat_template and chat_template_path={path} exclude each other; leave one out."
        )
    if not template.strip():
        raise UserError("chat_template='': holds no template; write one, or leave it out.")
    try:
        # As transformers reads templates, with the tags of loops and of what is generated.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_marks(template))
    except TemplateError as error:
        raise UserError(
            f"chat_template: is no Jinja template ({' '.join(str(error).split())}); mend it."
        ) from error
    tokenizer.chat_template = template


def _without_marks(template: str) -> str:
    # The tag of transformers' own, around what the assistant said.
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
