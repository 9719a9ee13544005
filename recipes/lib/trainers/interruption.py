"""Trainings that a signal or a failure ends: what was done is saved, the step in hand is redone.

A mixin before any of Trainer's classes; recipes.lib.distributed.signals has the signals.
"""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.lib.distributed.agreement import is_agreed
from recipes.lib.distributed.processes import broadcast_from_main, is_main_process
from recipes.lib.distributed.signals import Stop, Stopped, caught, disarm, interruptible, listening
from recipes.lib.errors import UserError, is_memory, sentence
from recipes.lib.runs.checkpoints import PREFIX, checkpoint_fault, list_checkpoints
from recipes.lib.runs.lock import refuse_if_locked
from recipes.lib.trainers.out_of_memory import memory_error
from recipes.lib.trainers.skipped_steps import FiniteSteps, has_finite_weights

# Sums of TRL's trainers since the last log.
OF_TRL = ("_metrics", "_total_train_tokens")
WITHIN_A_STEP = ("_tr_loss", "current_flos", "_skipped", "_in_a_row", *OF_TRL)


class Stoppable(FiniteSteps):
    """Mixin for a Trainer that knows where it stood after its last step."""

    args: Any
    state: Any
    control: Any
    accelerator: Any
    callback_handler: Any
    model: Any
    listens = False  # whether signals end a training with a checkpoint; recipes set it
    keeps_batches = False  # whether checkpoints keep what a step's batches are made of
    _moment: dict[str, Any] | None = None  # after the last finished step
    # Trainer's own; here for a trainer that is saved before it has trained.
    _tr_loss: Any = torch.tensor(0.0)
    _owes_evaluation = False
    _resumes_from: str | None = None  # a checkpoint whose state is not taken on yet
    _written: Path | None = None  # the checkpoint that this process saw come into its place
    _last_step = -1  # at which it was asked whether to stop

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as Trainer does.

        Raises:
            Stopped: A signal asked for it; a checkpoint holds where the run stands.
        """
        named = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        self._resumes_from = named if isinstance(named, str) else None
        if not self.listens:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        with listening():
            try:
                return super().train(*args, **kwargs)  # type: ignore[misc]
            except Stop as stop:
                raise Stopped(f"stopped by {stop}; {self._save_where_it_stands()}") from None
            except Exception as error:
                if is_main_process():  # where the folder was moved, nothing can be kept
                    refuse_if_locked(Path(self.args.output_dir))
                if is_memory(error):
                    raise memory_error(self, error) from None
                if (told := sentence(error)) is None or self._moment is None:
                    raise
                raise UserError(f"{told}; {self.keep(error)}, --resume goes on.") from error

    def keep(self, error: BaseException) -> str:
        """Save where a run stands that failed, so that no step is lost by what was not its fault.

        Args:
            error: What ended it.

        Returns:
            Words that name the checkpoint to go on from.
        """
        # One process of several cannot save: the others may be anywhere, unless they agreed.
        can_save = self.args.world_size == 1 or is_agreed(error)
        is_finite = not can_save or not self._any(not has_finite_weights(self.model))
        if self._moment is None or (can_save and is_finite and not self._moves):
            return self._save_where_it_stands()
        found = list_checkpoints(Path(self.args.output_dir))
        newest = f"{found[-1][1]} is the newest checkpoint" if found else "there is no checkpoint"
        return newest if is_finite else f"the weights themselves are NaN or infinite, and {newest}"

    def give_up_step(self) -> None:
        """Let go of the gradients and batches of the step in hand."""
        self.model.zero_grad(set_to_none=True)
        self._batches = ()

    def _save_where_it_stands(self) -> str:
        folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self._moment is None:
            return "no step was made since the start"
        # A checkpoint of this step may be from before an evaluation that is now owed.
        is_there = (
            folder == self._written or broadcast_from_main(lambda: checkpoint_fault(folder)) is None
        )
        if self._moment["owes_evaluation"] or not is_there:
            self.go_back_to(self._moment)
            self.args.save_only_model = False  # or nothing could go on from it
            self._save_checkpoint(self.model_wrapped, None)  # type: ignore[attr-defined]
            self.callback_handler.on_save(self.args, self.state, self.control)
        return f"{folder} holds where it stands"

    def moment(self) -> dict[str, Any]:
        """What changes within a step and is part of a checkpoint, as it is now."""
        return {
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "tokens": self.state.num_input_tokens_seen,
            "owes_evaluation": self._owes_evaluation,
            "own": {n: copy.deepcopy(getattr(self, n)) for n in WITHIN_A_STEP if hasattr(self, n)},
        }

    def go_back_to(self, moment: dict[str, Any]) -> None:
        """Undo what an abandoned step, rollout or evaluation changed.

        Args:
            moment: What `moment` returned before it.
        """
        python, numpy, cpu = moment["random"]
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if moment["cuda"]:
            torch.cuda.set_rng_state_all(moment["cuda"])
        self.state.num_input_tokens_seen = moment["tokens"]
        self._owes_evaluation = moment["owes_evaluation"]
        for name, value in moment["own"].items():
            setattr(self, name, value)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of a step; a signal abandons that, in PPO with it a rollout."""
        with self._cut_short():
            batches = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._batches = batches[0]
        if self.keeps_batches and self._moment is not None:
            self._moment = self.moment()
        return batches

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward pass of a micro-batch; a signal abandons the step."""
        # DeepSpeed makes the optimizer's step in here, which is not to be left half made.
        with nullcontext() if self.is_deepspeed_enabled else self._cut_short():
            steps = self.is_deepspeed_enabled and self.accelerator.sync_gradients
            self._moves = self._moves or steps
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # A signal abandons an evaluation, and the resumed run begins with it.
        if self.listens:
            self._moment, self._moves = self.moment() | {"owes_evaluation": True}, False
        with self._cut_short():
            return super()._evaluate(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; what was logged counts, and is not abandoned any more."""
        disarm()
        if self._skipped and "loss" in logs:
            logs["skipped_steps"] = self._skipped
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        is_whole = self.args.world_size > 1 or self.is_deepspeed_enabled  # steps are
        stops = self.listens and is_whole and self._any(bool(caught()))
        # A first call at the end of an epoch is followed by that of the epoch, which logs.
        ends_epoch = float(self.state.epoch or 0.0).is_integer()
        stops = stops and (not ends_epoch or self._last_step == self.state.global_step)
        self._last_step = self.state.global_step
        if stops:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        if self.listens:
            self._moment, self._moves = self.moment(), False
        if stops:
            raise Stop(caught() or "a signal to another process")

    def _cut_short(self) -> Any:
        # Several processes wait for each other, so they stop together, at the end of a step.
        alone = self.args.world_size == 1
        return interruptible() if alone and self.listens else nullcontext()

    def _any(self, here: bool) -> bool:
        """Whether something holds on any process; all of them ask, and get the same answer."""
        number = torch.tensor(int(here), device=self.args.device)
        return bool(self.accelerator.reduce(number, "sum").item())
