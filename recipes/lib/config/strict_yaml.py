"""Reads a configuration file strictly: what YAML would silently accept or alter is an error here.

Plain scalars follow the core schema of YAML 1.2, so `1e-5` is a number and `no` is a word.
Duplicate keys, anchors, aliases, tags and second documents are refused: a configuration says each
thing once, in plain sight.
"""

import re
import stat
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.lib.errors import UserError

MAX_BYTES = 200_000  # a hand-written configuration has a few kilobytes; this is some other file
NULLS = {"", "~", "null", "Null", "NULL"}
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INT = re.compile(r"[-+]?[0-9]+")
HEX_OR_OCTAL = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INF_OR_NAN = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class YamlFile:
    """The keys of a configuration file and the line on which each one stands."""

    values: dict[str, Any]
    lines: dict[str, int]


def read_yaml(path: Path) -> YamlFile:
    """Reads a mapping of keys to plain values.

    Args:
        path: The configuration file, UTF-8.

    Returns:
        The values and their line numbers, counted from 1.

    Raises:
        UserError: The file is absent, unreadable, no mapping, does not parse, or uses something
            that a configuration may not (duplicate key, anchor, alias, tag, second document).
    """
    text = _read_text(path)
    try:
        node = _Loader(text, path).get_single_node()
        if not isinstance(node, yaml.MappingNode):
            kinds = {type(None): "nothing", yaml.SequenceNode: "a list"}
            kind = kinds.get(type(node), "a single value")
            raise UserError(f"{path}: must hold `key: value` lines; it holds {kind}.")
        values = _value(node, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(
            f"{path}, line {line}: is not valid YAML ({_one_line(error.problem)})."
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({_one_line(str(error))}).") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply; a configuration is flat.") from error
    return YamlFile(values, {key.value: key.start_mark.line + 1 for key, _ in node.value})


def parse_scalar(text: str) -> Any:
    """Reads one unquoted YAML 1.2 scalar: null, bool, int, float, or else the text itself.

    Args:
        text: The scalar without surrounding white space.

    Returns:
        The plain Python value.

    Raises:
        ValueError: The number has more digits than Python converts.
    """
    if text in NULLS:
        return None
    if text in BOOLS:
        return BOOLS[text]
    if INT.fullmatch(text):
        return int(text)
    if HEX_OR_OCTAL.fullmatch(text):
        return int(text, 0)
    if FLOAT.fullmatch(text):
        return float(text)
    if INF_OR_NAN.fullmatch(text):
        return float(text.replace(".", ""))
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with anchors, aliases and tags refused where they stand."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.path = path

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        place = f"{self.path}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{place}: anchors and aliases are not used here; write the value out.")
        if getattr(event, "tag", None):
            raise UserError(f"{place}: the tag {event.tag} is refused; write a plain value.")
        return super().compose_node(parent, index)


def _read_text(path: Path) -> str:
    try:
        status = path.stat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    except FileNotFoundError as error:
        raise UserError(
            f"--config {path}: there is no such file; `rlhf configs` lists those that are shipped."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--config {str(path)!r}: cannot be read ({reason}).") from error
    if content is None:
        raise UserError(f"--config {path}: is not a file; name a YAML file.")
    if len(content) > MAX_BYTES:
        raise UserError(
            f"--config {path}: has {len(content)} bytes; a configuration is a short file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config {path}: is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error


def _value(node: yaml.Node, path: Path) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, path) for item in node.value]
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return _joined(node.value)
    try:
        return parse_scalar(node.value)
    except ValueError as error:
        line = node.start_mark.line + 1
        raise UserError(
            f"{path}, line {line}: the number is too long; write it shorter."
        ) from error


def _joined(text: str) -> str:
    # YAML takes the two halves of a character that JSON writes as escapes for two characters.
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return text


def _mapping(node: yaml.MappingNode, path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    first_lines: dict[Hashable, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{path}, line {line}: a key must be a word, not a list or a mapping.")
        key = key_node.value
        if key in first_lines:
            raise UserError(
                f"{path}, line {line}: {key} is already set on line {first_lines[key]}; "
                "remove one of the two."
            )
        first_lines[key] = line
        result[key] = _value(value_node, path)
    return result


def _one_line(text: str | None) -> str:
    return " ".join((text or "no reason given").split())
