"""What a configuration is planned for: processes, number format, and what is not in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from recipes.lib.distributed.launch import Launch


@dataclass(frozen=True)
class Target:
    """What a configuration is planned for.

    Args:
        launch: The processes.
        autocast: Number format of mixed precision, or None.
        prompt_length: Tokens of a prompt where the recipe has no limit (rloo, grpo).
        num_completions: Completions in a row of answers (reward); a pair has two.
        has_test: Whether there are rows to test on.
        on_card: Whether passes take the paths of CUDA; else those of the CPU, for tests.
        is_fixed_only: Leave out what a pass takes, which needs seconds on large models.
        configs: Folder with configurations of runs that are still to be made.
    """

    launch: Launch = field(default_factory=Launch)
    autocast: torch.dtype | None = None
    prompt_length: int = 512
    num_completions: int = 2
    has_test: bool = True
    on_card: bool = True
    is_fixed_only: bool = False
    configs: Path | None = None
