"""A row for people: as the tokens that a model sees, or as text where there is no tokenizer."""

from __future__ import annotations

from typing import Any

from recipes.lib.data.preview import Example
from recipes.lib.data.tokenization import Seen, pieces, seen_sequences
from recipes.lib.errors import UserError
from recipes.lib.models.chat_template import check_template
from recipes.lib.shapes import Row, Shape


def sequences(row: Row, shape: Shape, tokenizer: Any, assistant_only_loss: bool) -> list[Seen]:
    """Tokenize a row, with a chat template's complaint as a sentence.

    Args:
        row: A good row.
        shape: Its format.
        tokenizer: The model's.
        assistant_only_loss: Of messages: loss on the assistant's tokens alone.

    Returns:
        As `seen_sequences`.

    Raises:
        UserError: The tokenizer has no chat template, or its template refuses the messages.
    """
    from jinja2 import TemplateError

    check_template(row, shape.columns[0], tokenizer.chat_template is not None)
    try:
        return seen_sequences(row, shape, tokenizer, assistant_only_loss=assistant_only_loss)
    except TemplateError as error:
        raise UserError(
            f"chat_template_path: the chat template refuses {shape.columns[0]} ({error}); name "
            "another template, or bring the messages into the order that it wants."
        ) from error


def examples_of_row(
    number: int, row: Row, shape: Shape, tokenizer: Any, assistant_only_loss: bool
) -> list[Example]:
    """One row as people read it.

    Args:
        number: Of the row.
        row: A good row.
        shape: Its format.
        tokenizer: The model's, or None.
        assistant_only_loss: Of messages: loss on the assistant's tokens alone.

    Returns:
        One example for each sequence that the model sees; one for the row without a tokenizer.
    """
    if tokenizer is None:
        return [Example(f"row {number}", parts_of_row(row, shape))]
    found = []
    for seen in sequences(row, shape, tokenizer, assistant_only_loss):
        named = f", {seen.name}" if seen.name else ""
        title = f"row {number}{named}: {len(seen.ids):,} tokens, {sum(seen.has_loss):,} with loss"
        words = {True: "LOSS", False: "prompt" if shape.columns == ("prompt",) else "context"}
        found.append(
            Example(title, [(words[loss], text) for text, loss in pieces(seen, tokenizer)])
        )
    return found


def parts_of_row(row: Row, shape: Shape) -> list[tuple[str, str]]:
    """The texts of a row, each with its column or role.

    Args:
        row: A good row.
        shape: Its format.

    Returns:
        Names of at most nine characters, and texts.
    """
    found: list[tuple[str, str]] = []
    for column in shape.columns:
        value = row[column]
        if isinstance(value, list):
            mark = "" if column in ("prompt", "messages") else column[:8]
            found += [(mark or message["role"][:9], _content(message)) for message in value]
        else:
            found.append((column[:9], str(value)))
    return found


def _content(message: Row) -> str:
    content = message.get("content")
    calls = message.get("tool_calls")
    return "\n".join(str(part) for part in (content, calls) if part)
