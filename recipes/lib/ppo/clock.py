"""Where the time of a run goes: seconds and tokens of each phase, between one log and the next."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Phases that process tokens and are in every log; the others are logged when they took place.
COUNTED = ("sampling", "scoring", "training")
OTHERS = ("evaluation", "saving")


class Clock:
    """Adds up seconds by phase; a phase that is measured inside another one interrupts it."""

    def __init__(self) -> None:
        self.phase = ""  # outside of every phase nothing is added up
        self.since = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time inside the block as that of a phase, and of no other."""
        outer = self.phase
        self.begin(phase)
        try:
            yield
        finally:
            self.begin(outer)

    def begin(self, phase: str) -> None:
        """Count the time from now on as that of a phase, until another one begins."""
        now = time.monotonic()
        if self.phase:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.phase, self.since = phase, now

    def count(self, phase: str, tokens: int) -> None:
        """Note that a phase has processed so many tokens."""
        self.tokens[phase] = self.tokens.get(phase, 0) + tokens

    def take(self) -> dict[str, float]:
        """Metrics of the time since they were last taken.

        Returns:
            `time/<phase>` in seconds and `time/<phase>_tokens_per_second`.
        """
        self.begin(self.phase)
        happened = [phase for phase in OTHERS if self.seconds.get(phase)]
        metrics = {f"time/{p}": self.seconds.get(p, 0.0) for p in (*COUNTED, *happened)}
        for phase in COUNTED:
            seconds, tokens = self.seconds.get(phase, 0.0), self.tokens.get(phase, 0)
            if seconds and tokens:
                metrics[f"time/{phase}_tokens_per_second"] = tokens / seconds
        self.seconds, self.tokens = {}, {}
        return metrics

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the log after a resume covers its whole interval."""
        self.begin(self.phase)
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self.seconds, self.tokens = dict(state["seconds"]), dict(state["tokens"])
        self.since = time.monotonic()
