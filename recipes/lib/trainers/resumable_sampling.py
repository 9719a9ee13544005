"""What TRL's RLOO and GRPO lack for a resume that is exact: the completions in hand, the order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import split_tensor_dict

from recipes.lib.errors import note
from recipes.lib.rewards.held_out import parting
from recipes.lib.trainers.resumable import Resumable, batch_of

BUFFER = "completions"  # completions_0.pt of the first process, and so on


def resplit(in_hand: list[dict[str, Any]] | None, number: int) -> list[dict[str, Any]] | None:
    """Completions in as many micro-batches as asked for, in the order that they were in.

    Args:
        in_hand: The micro-batches; None where no completions are in hand.
        number: Micro-batches to make.

    Returns:
        The micro-batches, as TRL's trainers keep them.
    """
    if in_hand is None or len(in_hand) == number:
        return in_hand
    whole: dict[str, Any] = {}
    for name, first in in_hand[0].items():
        parts = [batch[name] for batch in in_hand]
        if isinstance(first, list):
            whole[name] = [row for part in parts for row in part]
        else:  # a number of the whole generation is the same in each of them
            is_of_rows = first is not None and first.ndim > 0
            whole[name] = torch.cat(parts) if is_of_rows else first
    cut: list[dict[str, Any]] = split_tensor_dict(whole, number)
    return cut


class ResumableSampling(Resumable):
    """Mixin for a trainer that uses a batch of completions for several steps."""

    rewards: Any = None  # the SampledRewards, of a recipe
    _sampler: Any = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The sampler draws one permutation after the other. A resumed run has to draw those of
        # the passes before, too, or each pass would begin with the order of the first one.
        generator = getattr(self._sampler, "generator", None)
        if generator is not None:
            generator.manual_seed(self._sampler.seed)
            for _ in range(kwargs["epoch"]):
                torch.randperm(self._sampler.num_samples, generator=generator)
        super()._run_epoch(*args, **kwargs)

    def save_state_into(self, folder: Path) -> None:
        """With what Trainer forgets, keep the completions that are not used up."""
        super().save_state_into(folder)
        every = self.args.steps_per_generation * self.num_iterations  # type: ignore[attr-defined]
        in_hand = self._buffered_inputs if self._step % every else None
        path = folder / f"{BUFFER}_{self.args.process_index}.pt"
        samples = self.rewards.samples() if self.rewards else []
        state = {"step": self._step, "in_hand": in_hand, "samples": samples} | batch_of(self)
        torch.save(state, path)

    def load_state_from(self, folder: Path) -> None:
        """Take them up again; of another number of processes they would not be the right ones."""
        super().load_state_from(folder)
        path = folder / f"{BUFFER}_{self.args.process_index}.pt"
        if path.is_file():
            # Several processes on the CPU number it, and torch.load knows numbers of cards alone.
            device = "cpu" if self.args.device.type == "cpu" else self.args.device
            state = torch.load(path, weights_only=True, map_location=device)
            args, before = self.args, state["micro_batch"]
            self._step = state["step"] * before // args.per_device_train_batch_size
            self._buffered_inputs = resplit(state["in_hand"], args.steps_per_generation)
            if self.rewards:
                self.rewards.take_up(state["samples"])

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL does; the completions in hand go on to be used, and samples.jsonl with them."""
        if not self.rewards:
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]
        samples, self.rewards.evaluated = self.rewards.samples(), []
        try:
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.rewards.evaluated = None
            self.rewards.take_up(samples)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; an evaluation with what held-out rewards say, and where they part, once."""
        is_asked = self.rewards and self.rewards.evaluated is not None and self.rewards.held_out
        logs |= self.rewards.held_out_metrics() if is_asked else {}
        super().log(logs, *args, **kwargs)
        found = parting(self.state.log_history) if is_asked else None
        if found and found["step"] == self.state.global_step and self.state.is_world_process_zero:
            note(found["message"])

    def _faulty_batches(self) -> Any:
        return self._buffered_inputs or []  # the completions; a batch of TRL's is rows of the data

    def moment(self) -> dict[str, Any]:
        """What changes within a step, with the completions in hand."""
        return super().moment() | {"completions": (self._step, self._buffered_inputs)}

    def go_back_to(self, moment: dict[str, Any]) -> None:
        """Undo what an abandoned step sampled."""
        super().go_back_to(moment)
        self._step, self._buffered_inputs = moment["completions"]
