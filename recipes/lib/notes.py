"""Remarks to the user that stop nothing: one sentence each on standard error."""

import os
import sys

from recipes.lib.errors import on_one_line


def note(text: str) -> None:
    """Prints a remark, once for all processes of a run.

    Args:
        text: One sentence.
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {on_one_line(text)}", file=sys.stderr, flush=True)
