"""Which of TRL's formats rows have, who can use them, and other projects' files as one of them.

The others are alpaca, sharegpt, and hh's raw transcripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from recipes.lib.data.file_rows import BrokenRowError, Row, keep_good, row_or_fault, to_dataset
from recipes.lib.data.messages import join_parts
from recipes.lib.data.problems import named_columns, places_of, refuse_or_drop
from recipes.lib.data.row_checks import brief
from recipes.lib.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLING = ("ppo", "rloo", "grpo", "feedback")


Message = dict[str, Any]

TURN = re.compile(r"\n\n(Human|Assistant):")  # of hh's transcripts
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def to_trl(dataset: Dataset, name: str, source: str, on_bad_rows: str = "refuse") -> Dataset:
    """Bring rows of a named format into TRL's formats.

    Args:
        dataset: The rows as they stand in the file.
        name: A name of `FORMATS`.
        source: What the messages call the data.
        on_bad_rows: "refuse" or "drop" rows that do not have this format.

    Returns:
        prompt and completion, messages, prompt with chosen and rejected, or text; columns that the
        format does not know are handed on.

    Raises:
        UserError: Rows do not have this format.
    """
    made = (row_or_fault(FORMATS[name], dict(row)) for row in dataset)
    rows, problems, places = keep_good(zip(places_of(dataset), made, strict=True))
    refuse_or_drop(f"dataset_format={name}: {source}", problems, places, on_bad_rows)
    return to_dataset(rows)


def drop_repeated_prompt(dataset: Dataset) -> Dataset:
    """Leave out a prompt as text beside conversations that begin with it.

    Some sets of pairs keep the first question in a column of its own; TRL would put it in front of
    the conversations once more, and text does not go with messages.

    Args:
        dataset: Rows, perhaps with prompt and chosen.

    Returns:
        The rows; without the column prompt where the first row's chosen begins with it.
    """
    if not {"prompt", "chosen"} <= set(dataset.column_names) or not len(dataset):
        return dataset
    prompt, chosen = dataset[0]["prompt"], dataset[0]["chosen"]
    if not isinstance(prompt, str) or not isinstance(chosen, list):
        return dataset
    asked = [turn.get("content") for turn in chosen if isinstance(turn, dict)][:2]  # with a system
    return dataset.remove_columns("prompt") if prompt in asked else dataset


def split_labelled(row: Row) -> Row:
    """A conversation with a label as prompt and completion: what is labelled is the last turn."""
    messages = row.get("messages")
    if not isinstance(messages, list) or type(row.get("label")) is not bool:
        return row
    others = {name: value for name, value in row.items() if name != "messages"}
    return others | {"prompt": messages[:-1], "completion": messages[-1:]}


def is_transcript(row: Row) -> bool:
    """Whether a row of pairs holds transcripts as hh's files do."""
    sides = [row.get("chosen"), row.get("rejected")]
    return all(isinstance(side, str) and TURN.match("\n\n" + side.lstrip()) for side in sides)


def with_template_kwargs(rows: Dataset) -> Dataset:
    """Give rows without chat_template_kwargs, where others have some, empty ones, as TRL needs.

    Args:
        rows: The rows, checked.

    Returns:
        The same rows.
    """
    column = "chat_template_kwargs"
    if column not in rows.column_names or None not in rows[column]:
        return rows
    return to_dataset([row | {column: row[column] or {}} for row in rows.to_list()])


def from_alpaca(row: Row) -> Row:
    """Instruction, input and output; with history, system, chosen and rejected, or kto_tag.

    Args:
        row: A row of an alpaca file.

    Returns:
        prompt and completion as messages (with label where there is a kto_tag), or prompt, chosen
        and rejected; a row that only has text is handed on.

    Raises:
        BrokenRowError: It has no instruction, or neither output nor chosen and rejected.
    """
    if "instruction" not in row and isinstance(row.get("text"), str):
        return row
    history = row.pop("history", None) or []
    if not isinstance(history, list):
        raise BrokenRowError(f"history of {brief(history)}, which is no list,")
    question = "\n".join(
        part for part in (_text(row, "instruction"), _text(row, "input", "")) if part
    )
    prompt = _system(row)
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise BrokenRowError(f"history of {brief(turn)}, which is no question with its answer,")
        prompt += [_message("user", turn[0]), _message("assistant", turn[1])]
    row["prompt"] = [*prompt, _message("user", question)]
    if row.get("chosen") is not None and row.get("rejected") is not None:
        row.pop("output", None)
        return row | {side: [_message("assistant", row[side])] for side in ("chosen", "rejected")}
    row["completion"] = [_message("assistant", _text(row, "output"))]
    return _with_label(row)


def from_sharegpt(row: Row) -> Row:
    """Conversations of from and value; with system, tools, chosen and rejected, or kto_tag.

    Args:
        row: A row of a sharegpt file (`messages` of role and content are read too).

    Returns:
        messages; or prompt, chosen and rejected; or prompt, completion and label.

    Raises:
        BrokenRowError: The turns are none, or have a role that is not known.
    """
    turns = row.pop("conversations", None) or row.pop("messages", None)
    if not isinstance(turns, list) or not turns:
        raise BrokenRowError("no list of conversations")
    messages = _system(row) + [_turn(turn) for turn in turns]
    if isinstance(row.get("tools"), list):  # TRL reads text; a table would mix their parameters
        row["tools"] = json.dumps(row["tools"], ensure_ascii=False)
    if not row.get("tools"):
        row.pop("tools", None)
    if row.get("chosen") is not None and row.get("rejected") is not None:
        sides = {side: [_turn(row[side])] for side in ("chosen", "rejected")}
        return row | {"prompt": messages} | sides
    if "kto_tag" in row:
        return _with_label(row | {"prompt": messages[:-1], "completion": messages[-1:]})
    return row | {"messages": messages}


def from_hh(row: Row) -> Row:
    """Transcripts of Human and Assistant: chosen and rejected, or a prompt alone.

    Args:
        row: A row of hh-rlhf's files.

    Returns:
        prompt, chosen and rejected as messages; or prompt.

    Raises:
        BrokenRowError: A transcript does not begin with Human, or the two part before an
            Assistant's turn.
    """
    if "chosen" not in row or "rejected" not in row:
        turns = _transcript(row, "prompt")
        open_end = turns[-1]["role"] == "assistant" and not turns[-1]["content"]
        return row | {"prompt": turns[:-1] if open_end else turns}
    chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    for side in (chosen, rejected):
        if same == 0 or side[same]["role"] != "assistant" or side[-1]["role"] != "assistant":
            raise BrokenRowError("transcripts that do not part at an Assistant's turn")
    return row | {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


FORMATS: dict[str, Callable[[Row], Row]] = {
    "alpaca": from_alpaca,
    "sharegpt": from_sharegpt,
    "hh": from_hh,
}


def _transcript(row: Row, column: str) -> list[Message]:
    text = row.get(column)
    if not isinstance(text, str):
        raise BrokenRowError(f"no transcript in column {column!r}")
    head, *parts = TURN.split("\n\n" + text.lstrip("\n"))
    if head.strip() or not parts or parts[0] != "Human":
        raise BrokenRowError(f"a transcript in column {column!r} that does not begin with Human:")
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BrokenRowError(f"a turn of {brief(turn)}, which is not an object,")
    role = turn.get("from") or turn.get("role")
    value = turn.get("value") if turn.get("value") is not None else turn.get("content")
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(value)}
    if role not in ROLES:
        raise BrokenRowError(f"a turn from {brief(role)}, none of {', '.join(ROLES)},")
    return _message(ROLES[role], value)


def _calls(value: Any) -> list[dict[str, Any]]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
        calls = found if isinstance(found, list) else [found]
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BrokenRowError("a function_call without a name and arguments in JSON") from error
    return [{"type": "function", "function": function} for function in functions]


def _system(row: Row) -> list[Message]:
    text = row.pop("system", None)
    return [_message("system", text)] if text else []


def _message(role: str, content: Any) -> Message:
    text = join_parts(content)
    if not isinstance(text, str):
        raise BrokenRowError(f"a turn of {brief(content)}, which is no text,")
    return {"role": role, "content": text}


def _text(row: Row, column: str, default: str | None = None) -> str:
    value = row.pop(column, None)
    value = default if value is None else value
    if not isinstance(value, str):
        raise BrokenRowError(f"column {column!r} of {brief(value)}, which is no text,")
    return value


def _with_label(row: Row) -> Row:
    return row | {"label": row.pop("kto_tag")} if "kto_tag" in row else row


@dataclass(frozen=True)
class Format:
    """One of TRL's formats."""

    name: str
    columns: tuple[str, ...]  # that make a row
    recipes: tuple[str, ...]


# In this order: rows with more columns come first.
TRL_FORMATS = (
    Format("preference", ("prompt", "chosen", "rejected"), ("reward", "dpo", "kto")),
    Format("preference, implicit prompt", ("chosen", "rejected"), ("reward", "dpo", "kto")),
    Format("ranks", ("prompt", "completions", "ranks"), ("reward",)),
    Format("ratings", ("prompt", "completion", "rating"), ("reward", "sft")),
    Format("unpaired preference", ("prompt", "completion", "label"), ("kto", "reward", "sft")),
    Format("prompt-completion", ("prompt", "completion"), ("sft", *SAMPLING)),
    Format("language modeling", ("messages",), ("sft",)),
    Format("language modeling", ("text",), ("sft",)),
    Format("prompt-only", ("prompt",), SAMPLING),
)


# What files of other columns want, by the columns that show it.
REMEDIES = {
    "conversations": "set dataset_format=sharegpt",
    "instruction output": "set dataset_format=alpaca",
    "instruction response": "set columns: {prompt: instruction, completion: response}",
    "question response_j response_k": (
        "set columns: {prompt: question, chosen: response_j, rejected: response_k}"
    ),
    "question answer": "set columns: {prompt: question, completion: answer}",
    "question response": "set columns: {prompt: question, completion: response}",
    "instruction": "set dataset_format=alpaca",
}


def format_of(dataset: Dataset) -> Format:
    """Find the format of rows by their columns.

    Args:
        dataset: The rows.

    Returns:
        The first of `TRL_FORMATS` whose columns are there.

    Raises:
        UserError: It is none of TRL's formats; the text says which dataset_format fits, if one
            does.
    """
    names = set(dataset.column_names)
    for shape in TRL_FORMATS:
        if names >= set(shape.columns):
            return shape
    remedy, *_ = *_remedies(names), "say which is which with columns, or rename them"
    raise UserError(
        f"dataset_name: the columns {', '.join(named_columns(dataset))} are none of TRL's formats "
        f"(text, messages, prompt with or without completion and label, chosen and rejected); "
        f"{remedy}."
    )


def _remedies(names: Collection[str]) -> list[str]:
    """What the columns of a file that is not TRL's want, if it is known."""
    fitting = (one for needed, one in REMEDIES.items() if {*names}.issuperset(needed.split()))
    return list(islice(fitting, 1))


def other_readings(names: Collection[str], row: Row) -> list[str]:
    """What rows could be beside the format that `format_of` finds, each with its recipes.

    Args:
        names: The columns.
        row: A row.

    Returns:
        One line for each reading, with the key that asks for it.
    """
    first, *others = [shape for shape in TRL_FORMATS if {*names}.issuperset(shape.columns)]
    found = [
        f"{one.name}: {', '.join(one.columns)} alone, for {', '.join(one.recipes)}"
        for one in others
        if "chosen" not in one.columns
    ]
    if {*names} >= {"messages", "label"}:
        found.insert(0, "unpaired preference: the last turn has the label, for kto")
    kind = "text" if isinstance(row[first.columns[-1]], str) else "messages"
    if "chosen" in first.columns:
        name = "completion" if "prompt" in names else kind
        found.append(f"what was chosen, for sft: set columns: {{{name}: chosen}}")
    elif first.columns == (kind,):
        found.append(f"prompts, for {', '.join(SAMPLING)}: set columns: {{prompt: {kind}}}")
    return found + _remedies(names)
