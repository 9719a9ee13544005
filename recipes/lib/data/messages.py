"""Messages as chat templates for text read them: content is text, arguments of calls are objects.

Files of chat services write content as a list of parts, and the arguments of a tool's call as JSON
text. Templates would print the parts as Python writes lists, and encode the arguments once more.
"""

from __future__ import annotations

import json
from typing import Any


def plain_messages(row: dict[str, Any]) -> dict[str, Any]:
    """One row with its messages in the form that templates read.

    Args:
        row: A row.

    Returns:
        The row with text in place of parts of text, and objects in place of arguments in JSON;
        what cannot be read so stays, and is for the checks of rows to tell.
    """
    spoken = {
        name: list(map(_plain, value))
        for name, value in row.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]
    }
    return row | spoken if spoken else row


def join_parts(content: Any) -> Any:
    """The text of content in parts; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    spoken = [text for text in texts if isinstance(text, str)]
    return "".join(spoken) if len(spoken) == len(texts) else content


def odd_part(content: Any) -> Any:
    """The first part of content that is no text, such as a picture; what has no parts, itself."""
    parts = content if isinstance(content, list) and content else [content]
    return next((part for part in parts if not isinstance(join_parts([part]), str)), content)


def _plain(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    made = dict(message)
    if "content" in made:
        made["content"] = join_parts(made["content"])
    if isinstance(made.get("tool_calls"), list):
        made["tool_calls"] = list(map(_with_object, made["tool_calls"]))
    return made


def _with_object(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        found = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(found, dict):
        return call
    made = function | {"arguments": found}
    return call | {"function": made} if "function" in call else made
