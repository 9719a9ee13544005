"""For tests only: noise of TRL's samplers that belongs to the row, where it is of the process.

Process k of N holds the k-th part of what is sampled at once, so a row knows its number in it.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessorList

from recipes.lib.generation.sampling import EpisodeNoise, episode_uniforms

MOST_ROWS = 1000  # sampled at one step


class RowNoise:
    """Takes the place of a policy's `generate`; a row's noise follows from its step and number."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.generate = trainer.model.generate
        self.at: tuple[int, bool] | None = None
        self.sampled = 0

    def __call__(self, **given: Any) -> torch.Tensor:
        config, (rows, width) = given["generation_config"], given["input_ids"].shape
        at = (self.trainer.state.global_step, self.trainer.model.training)
        self.at, self.sampled = at, self.sampled if at == self.at else 0
        first = self.sampled + int(os.environ.get("RANK", "0")) * rows
        self.sampled += int(os.environ.get("WORLD_SIZE", "1")) * rows
        first += (2 * at[0] + at[1]) * MOST_ROWS
        uniforms = episode_uniforms(1, range(first, first + rows), config.max_new_tokens)
        noise = EpisodeNoise(uniforms, width, config.temperature)
        return self.generate(**given, logits_processor=LogitsProcessorList([noise]))


def with_row_noise(watch: Callable[..., None]) -> Callable[..., None]:
    """What recipes call on every trainer (`progress.add_run_callbacks`), and then RowNoise."""

    def watched(trainer: Any, *more: Any) -> None:
        watch(trainer, *more)
        if hasattr(trainer, "num_generations"):
            trainer.model.generate = RowNoise(trainer)

    return watched
