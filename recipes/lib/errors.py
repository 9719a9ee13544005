"""What a user is told in one sentence: mistakes, remarks, and lack of memory or disk."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# What libraries say in exceptions that carry no number.
DISK_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "iostream error",
    "inline_container.cc",
)
SAMPLING_WORDS = "probability tensor contains"  # PyTorch's multinomial, under RLOO and GRPO
MEMORY_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class UserError(ValueError):
    """A mistake in configuration, data or files, told in one sentence: key, value, remedy.

    The command line prints the sentence and ends with exit code 2; anything else that is raised
    is a fault of the program and keeps its traceback.

    Args:
        text: The sentence; `on_one_line` is applied to it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(on_one_line(text))


class FaultError(UserError):
    """A reward model has a fault that its check found; the command line ends with exit code 3."""

    summary: dict[str, Any] | None = None  # of the run that made it, which is whole


def on_one_line(text: str) -> str:
    """Spell out what would move the cursor or break a line, such as in a value that is quoted.

    Args:
        text: Any text.

    Returns:
        The same with control characters, separators and halves of characters as escapes.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def visible(text: str) -> str:
    """Control characters as escapes, lines as they are: data must not steer the terminal."""
    return "\n".join(map(on_one_line, text.split("\n")))


def note(text: str) -> None:
    """Prints a remark, once for all processes of a run.

    Args:
        text: One sentence.
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {on_one_line(text)}", file=sys.stderr, flush=True)


def one_sentence(error: BaseException) -> str:
    """What a library says, on one line without its full stop; its type where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what a library says; the type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of the machine or of the accelerator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(
        words in str(error) for words in MEMORY_WORDS
    )


def sentence(error: BaseException) -> str | None:
    """What went wrong in a training for which its last steps need not be lost.

    Args:
        error: What was raised.

    Returns:
        The sentence without its end; None for a fault of the program.
    """
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    if isinstance(error, RuntimeError) and SAMPLING_WORDS in str(error):
        return (
            "the policy's logits were NaN or infinite while completions were sampled: its weights "
            "or its number format overflowed; load it with dtype=float32 or bfloat16, or start "
            "anew with a lower learning_rate"
        )
    return None


def is_disk(error: BaseException) -> bool:
    """Whether an exception says that a file could not be written: no space, or read-only."""
    if isinstance(error, OSError) and error.errno in DISK:
        return True
    return any(words in str(error) for words in DISK_WORDS)
