"""Somebody who answers on the page without a browser: prefers the longer text, as fast as it goes.

BROWSER="python -m tests.helpers.answering" rlhf feedback serve ...
"""

import json
import sys
import time
import urllib.request
from typing import Any

PATIENCE = 300.0  # seconds for completions to come


def post(page: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post as the page does."""
    origin = page.rstrip("/")
    request = urllib.request.Request(
        origin + path, json.dumps(body).encode(), {"Origin": origin}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


def value_of(asked: dict[str, Any]) -> Any:
    """The index of the longer completion, in stored order."""
    lengths = [
        sum(len(part) for one in said for part in one["parts"]) for said in asked["completions"]
    ]
    return asked["shown_order"][lengths.index(max(lengths))]


def answer_all(page: str, most: float = float("inf")) -> int:
    """Answer pairs until the page says that it is done.

    Args:
        page: Its address.
        most: Answers after which it stops.

    Returns:
        How many were answered.
    """
    tab = {"tab": f"t{time.time_ns()}", "holding": [], "number": 1}
    given, end = 0, time.monotonic() + PATIENCE
    said = post(page, "/next", tab)
    while not said["progress"]["done"] and given < most and time.monotonic() < end:
        if not said["asked"]:
            time.sleep(0.2)
            said = post(page, "/next", tab)
            continue
        asked = said["asked"][0]
        answers = [{"kind": asked["kind"], "value": value_of(asked)}]
        more = {"claim": asked["claim"], "answers": answers, "seconds": 1.0, "reason": ""}
        said = post(page, "/answer", tab | more)
        given += 1
    return given


if __name__ == "__main__":
    answer_all(sys.argv[1])
