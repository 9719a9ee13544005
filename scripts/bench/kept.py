"""What a long bench has run before, so that it goes on where it was stopped."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.lib.runs.files import read_jsonl


def kept(file: Path, key: list[Any], work: Callable[[], Any]) -> Any:
    """What was run before under a key, or is run now and kept.

    Args:
        file: JSON lines of key and result.
        key: Names the work.
        work: Does it; what it prints is left out.

    Returns:
        The result, as JSON holds it.
    """
    for row in read_jsonl(file) if file.is_file() else []:
        if row["key"] == key:
            return row["result"]
    with contextlib.redirect_stdout(io.StringIO()):
        result = work()
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps({"key": key, "result": result}) + "\n")
    print(*key, flush=True)
    return result
