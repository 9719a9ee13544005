"""What transformers' Trainer lacks for a run that loses nothing: a mixin before any of its classes.

Its checkpoints are whole (recipes.lib.checkpoints). They also hold what Trainer and TRL's trainers
forget between two logs, so that the metrics after a resume are those of the unbroken run. A signal
ends a run with a checkpoint (recipes.lib.stopping).
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.lib.checkpoints import PARTIAL, PREFIX, clear, fault, keep_newest, publish, seal
from recipes.lib.errors import UserError
from recipes.lib.failures import is_memory
from recipes.lib.faults import dump
from recipes.lib.runs import write_json
from recipes.lib.stopping import Stop, Stopped, asked, disarm, interruptible, listening

MOST_IN_A_ROW = 3  # steps without finite gradients
CARRIED = "carried"  # carried_0.json of the first process, and so on
# Sums of TRL's trainers since the last log, and of transformers'.
OF_TRL = ("_metrics", "_total_train_tokens")


class Resumable:
    """Mixin for a Trainer; `class SFT(Resumable, SFTTrainer)`."""

    args: Any
    state: Any
    control: Any
    accelerator: Any
    callback_handler: Any
    listens = False  # whether signals end a training with a checkpoint; recipes set it
    _writes_into: Path | None = None
    _moment: dict[str, Any] | None = None  # after the last finished step
    # Trainer's own; here for a trainer that is saved before it has trained.
    _tr_loss: Any = torch.tensor(0.0)
    _globalstep_last_logged = 0
    _owes_evaluation = False
    _skipped = 0  # steps whose gradients were not finite
    _in_a_row = 0

    # --- checkpoints that are whole

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)  # type: ignore[misc]
        return str(self._writes_into) if self._writes_into else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, step = Path(super()._get_output_dir(trial)), self.state.global_step  # type: ignore[misc]
        name = f"{PREFIX}{step}"
        self._writes_into = run / PARTIAL
        best = self.state.best_model_checkpoint
        try:
            if self.args.should_save:
                clear(run / PARTIAL / name)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except Exception:
            shutil.rmtree(run / PARTIAL, ignore_errors=True)  # it may be what fills the disk
            raise
        finally:
            self._writes_into = None
        # Trainer looked for the best one beside the partial one.
        newer = run / f"{PREFIX}{self.state.best_global_step}"
        is_there = newer.name == name or newer.exists()
        self.state.best_model_checkpoint = str(newer) if is_there else best
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._put_in_place(run / PARTIAL / name, run / name)
        self.accelerator.wait_for_everyone()

    def _put_in_place(self, partial: Path, target: Path) -> None:
        self.state.save_to_json(str(partial / "trainer_state.json"))
        # A pickle of the arguments that nothing reads; config.yaml says them in plain text.
        (partial / "training_args.bin").unlink(missing_ok=True)
        seal(partial, self.state.global_step)
        publish(partial, target)
        best = Path(self.state.best_model_checkpoint or "").name
        keep_newest(target.parent, self.args.save_total_limit, {target.name, best})

    # --- what Trainer forgets

    def save_state_into(self, folder: Path) -> None:
        """Write into a checkpoint what the next log needs of the steps before it.

        Args:
            folder: The checkpoint.
        """
        carried = {name: getattr(self, name) for name in OF_TRL if hasattr(self, name)}
        carried |= {
            "loss": self._tr_loss.item(),
            "last_logged": self._globalstep_last_logged,
            "owes_evaluation": self._owes_evaluation,
            "skipped": [self._skipped, self._in_a_row],
        }
        if "_metrics" in carried:
            carried["_metrics"] = dict(carried["_metrics"]["train"])
        write_json(folder / f"{CARRIED}_{self.args.process_index}.json", carried)

    def load_state_from(self, folder: Path) -> None:
        """Take on what a checkpoint holds beside Trainer's own.

        Args:
            folder: The checkpoint; one of plain Trainer has nothing more.
        """
        path = folder / f"{CARRIED}_{self.args.process_index}.json"
        if not path.is_file():
            return
        carried = json.loads(path.read_text(encoding="utf-8"))
        self._tr_loss = self._tr_loss + carried["loss"]
        self._globalstep_last_logged = carried["last_logged"]
        self._owes_evaluation = carried["owes_evaluation"]
        self._skipped, self._in_a_row = carried["skipped"]
        if self.state.best_model_checkpoint:  # the run may have been moved since
            best = Path(self.state.best_model_checkpoint).name
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / best)
        if "_metrics" in carried:
            self._metrics["train"].update(carried["_metrics"])  # type: ignore[attr-defined]
            self._total_train_tokens = carried["_total_train_tokens"]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        self.save_state_into(Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        self.load_state_from(Path(checkpoint))
        if self._owes_evaluation:
            self._owes_evaluation = False
            metrics = self._evaluate(None, None)
            self._determine_best_metric(metrics=metrics, trial=None)  # type: ignore[attr-defined]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]
            return
        # Trainer would make a step before it sees that the checkpoint is of the last one.
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_training_stop = True

    # --- signals

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as Trainer does.

        Raises:
            Stopped: A signal asked for it; a checkpoint holds where the run stands.
        """
        if not self.listens:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        self._moment = None
        with listening():
            try:
                return super().train(*args, **kwargs)  # type: ignore[misc]
            except Stop as stop:
                raise Stopped(f"stopped by {stop}; {self._save_where_it_stands()}") from None
            except UserError as error:
                self._refuse_but_keep(error)
                raise
            except Exception as error:
                if is_memory(error):
                    with suppress(Exception):  # there may be too little for that, too
                        self._save_where_it_stands()
                raise

    def _refuse_but_keep(self, error: UserError) -> None:
        # What a reward function did must not cost the steps since the last checkpoint.
        if self._moment is not None:
            told = str(error).rstrip(".")
            raise UserError(f"{told}; {self._save_where_it_stands()}, --resume goes on.") from error

    def _save_where_it_stands(self) -> str:
        folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self._moment is None:
            return "no step was made since the start"
        if fault(folder) is not None:
            self.go_back_to(self._moment)
            self._save_checkpoint(self.model_wrapped, None)  # type: ignore[attr-defined]
            self.callback_handler.on_save(self.args, self.state, self.control)
        return f"{folder} holds where it stands"

    def moment(self) -> dict[str, Any]:
        """What changes within a step and is part of a checkpoint, as it is now."""
        return {
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "loss": self._tr_loss.clone(),
            "flos": self.current_flos,
            "tokens": self.state.num_input_tokens_seen,
            "owes_evaluation": self._owes_evaluation,
            "of_trl": {n: copy.deepcopy(getattr(self, n)) for n in OF_TRL if hasattr(self, n)},
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
        self._tr_loss = moment["loss"]
        self.current_flos = moment["flos"]
        self.state.num_input_tokens_seen = moment["tokens"]
        self._owes_evaluation = moment["owes_evaluation"]
        for name, value in moment["of_trl"].items():
            setattr(self, name, value)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of a step; a signal abandons that, in PPO with it a rollout."""
        with self._cut_short():
            batches = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._batches = batches[0]
        return batches

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward pass of a micro-batch; a signal abandons the step."""
        with self._cut_short():
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # A signal abandons an evaluation, and the resumed run begins with it.
        if self.listens:
            self._moment = self.moment() | {"owes_evaluation": True}
        with self._cut_short():
            return super()._evaluate(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; what was logged counts, and is not abandoned any more."""
        disarm()
        if self._skipped and "loss" in logs:
            logs["skipped_steps"] = self._skipped
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        stops = self.listens and self._all_stop()
        if stops:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        if self.listens:
            self._moment = self.moment()
        if stops:
            raise Stop(asked() or "a signal to another process")

    # --- gradients that are not finite

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        # With fp16 the scaler looks after it. Gradients are summed, so all processes see the same.
        if norm is None or self.accelerator.scaler is not None or math.isfinite(float(norm)):
            self._in_a_row = 0
            return norm
        self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
        folder = Path(self.args.output_dir) / "faults"
        path = dump(self._batches, folder, self.state.global_step + 1, self.args.process_index)
        told = f"step {self.state.global_step + 1}: gradients are not finite, so it is skipped"
        if self.args.process_index == 0:
            print(f"{told}; its batch is in {path}.", file=sys.stderr)
        if self._in_a_row == MOST_IN_A_ROW:
            raise UserError(
                f"the gradients of {MOST_IN_A_ROW} steps in a row were not finite, the last batch "
                f"is in {path}; lower learning_rate, or leave bf16 and fp16 out."
            )
        model.zero_grad(set_to_none=True)  # an optimizer leaves alone what has no gradient
        return norm

    def _cut_short(self) -> Any:
        # Several processes wait for each other, so they stop together, at the end of a step.
        alone = self.args.world_size == 1
        return interruptible() if alone and self.listens else nullcontext()

    def _all_stop(self) -> bool:
        if self.args.world_size == 1:
            return bool(asked())
        here = torch.tensor(int(bool(asked())), device=self.args.device)
        return bool(self.accelerator.reduce(here, "sum").item())
