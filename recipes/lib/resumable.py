"""What transformers' Trainer lacks for a run that loses nothing: a mixin before any of its classes.

Its checkpoints are whole (recipes.lib.checkpoints). They also hold what Trainer and TRL's trainers
forget between two logs, so that the metrics after a resume are those of the unbroken run. A signal
ends a run with a checkpoint (recipes.lib.stopping).
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.lib.checkpoints import PARTIAL, PREFIX, clear, fault, keep_newest, publish, seal
from recipes.lib.errors import UserError
from recipes.lib.failures import is_memory
from recipes.lib.faults import FiniteSteps
from recipes.lib.processes import Launch
from recipes.lib.runs import write_json
from recipes.lib.stopping import Stop, Stopped, asked, disarm, interruptible, listening

CARRIED = "carried"  # carried_0.json of the first process, and so on
# Sums of TRL's trainers since the last log, and of transformers'.
OF_TRL = ("_metrics", "_total_train_tokens")


class Resumable(FiniteSteps):
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
    _resumes_from: str | None = None  # a checkpoint whose state is not taken on yet
    _last_step = -1  # at which it was asked whether to stop

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
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(run / name))  # type: ignore[misc]

    def _push_from_checkpoint(self, folder: str) -> None:
        # Later, from where it stays: an upload in the background would miss what is renamed.
        if self._writes_into is None:
            super()._push_from_checkpoint(folder)  # type: ignore[misc]

    def _put_in_place(self, partial: Path, target: Path) -> None:
        self.state.save_to_json(str(partial / "trainer_state.json"))
        # A pickle of the arguments that nothing reads; config.yaml says them in plain text.
        (partial / "training_args.bin").unlink(missing_ok=True)
        seal(partial, self.state.global_step, launch=Launch.here(self.args).told())
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
        best = Path(self.args.output_dir) / f"{PREFIX}{self.state.best_global_step}"
        if best.is_dir():  # the run may have been moved since
            self.state.best_model_checkpoint = str(best)
        paths = [folder / f"{CARRIED}_{n}.json" for n in (0, self.args.process_index)]
        if not paths[0].is_file():
            return
        # What all processes have to agree on is read from the first one's.
        shared = json.loads(paths[0].read_text(encoding="utf-8"))
        self._globalstep_last_logged = shared["last_logged"]
        self._owes_evaluation = shared["owes_evaluation"]
        self._skipped, self._in_a_row = shared["skipped"]
        if not paths[1].is_file():
            return
        carried = json.loads(paths[1].read_text(encoding="utf-8"))
        self._tr_loss = self._tr_loss + carried["loss"]
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
        self._resumes_from = None
        self.load_state_from(Path(checkpoint))
        if self._owes_evaluation:
            self._owes_evaluation = False
            metrics = self._evaluate(None, None)
            if self._determine_best_metric(metrics=metrics, trial=None):  # type: ignore[attr-defined]
                self.state.best_model_checkpoint = str(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]
            return
        # Trainer would make a step before it sees that the checkpoint is of the last one.
        self.control.should_training_stop = True

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._resumes_from is not None:
            self._load_rng_state(self._resumes_from)
        return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        self._moment, self._last_step = None, -1
        return super()._init_training_state(*args, **kwargs)  # type: ignore[misc]

    # --- signals

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
            except UserError as error:
                self._refuse_but_keep(error)
                raise
            except Exception as error:
                if is_memory(error) and self.args.world_size == 1:
                    with suppress(Exception):  # there may be too little for that, too
                        self._save_where_it_stands()
                raise

    def _refuse_but_keep(self, error: UserError) -> None:
        # What a reward function did must not cost the steps since the last checkpoint.
        # One process of several cannot save: the others may be anywhere.
        if self._moment is not None and self.args.world_size == 1:
            told = str(error).rstrip(".")
            raise UserError(f"{told}; {self._save_where_it_stands()}, --resume goes on.") from error

    def _save_where_it_stands(self) -> str:
        folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        if self._moment is None:
            return "no step was made since the start"
        # A checkpoint of this step may be from before an evaluation that is now owed.
        if self._moment["owes_evaluation"] or fault(folder) is not None:
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
            "loss": self._tr_loss.clone(),
            "flos": self.current_flos,
            "tokens": self.state.num_input_tokens_seen,
            "owes_evaluation": self._owes_evaluation,
            "skipped": (self._skipped, self._in_a_row),
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
        self._skipped, self._in_a_row = moment["skipped"]
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
        stops = self.listens and self.args.world_size > 1 and self._all_stop()
        # A first call at the end of an epoch is followed by that of the epoch, which logs.
        ends_epoch = float(self.state.epoch or 0.0).is_integer()
        stops = stops and (not ends_epoch or self._last_step == self.state.global_step)
        self._last_step = self.state.global_step
        if stops:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        if self.listens:
            self._moment = self.moment()
        if stops:
            raise Stop(asked() or "a signal to another process")

    def _cut_short(self) -> Any:
        # Several processes wait for each other, so they stop together, at the end of a step.
        alone = self.args.world_size == 1
        return interruptible() if alone and self.listens else nullcontext()

    def _all_stop(self) -> bool:
        here = torch.tensor(int(bool(asked())), device=self.args.device)
        return bool(self.accelerator.reduce(here, "sum").item())
