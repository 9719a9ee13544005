"""What transformers' Trainer lacks for a run that loses nothing: a mixin before any of its classes.

Its checkpoints are whole (runs.checkpoints). They also hold what Trainer and TRL's trainers
forget between two logs, so that the metrics after a resume are those of the unbroken run. A signal
or a failure ends a run with a checkpoint (trainers.interruption). A run that is resumed makes the
steps of the run that was stopped, however they are cut up.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import Trainer

from recipes.lib.distributed.launch import Launch
from recipes.lib.distributed.mixed_precision import keep_outputs_fp32
from recipes.lib.distributed.processes import broadcast_from_main
from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import save_base_quantization
from recipes.lib.models.reward_heads import save_heads
from recipes.lib.runs.checkpoints import PARTIAL, PREFIX, keep_newest, make_empty, publish, seal
from recipes.lib.runs.files import write_json
from recipes.lib.runs.lock import refuse_if_locked
from recipes.lib.trainers.energy import EnergyMeter
from recipes.lib.trainers.interruption import OF_TRL, Stoppable

REMEDY = "set it, gradient_accumulation_steps and the number of processes so that it does"


CARRIED = "carried"  # carried_0.json of the first process, and so on


class Resumable(Stoppable):
    """Mixin for a Trainer; `class SFT(Resumable, SFTTrainer)`."""

    # Under FSDP2, as DDP does it. Not for all: torch 2.13 fails then in KTO with an adapter, where
    # gradients are accumulated (an FSDPParam without _unsharded_param).
    sums_in_fp32 = False
    start: float | None = None  # when this process began the run, by time.monotonic
    seconds_before = 0.0  # that earlier processes took
    meter: EnergyMeter | None = None
    _writes_into: Path | None = None
    _loads_from: str | None = None
    # Trainer's own; here for one that is saved before it has trained.
    _globalstep_last_logged, _total_loss_scalar = 0, 0.0

    # --- checkpoints that are whole

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)  # type: ignore[misc]
        return str(self._writes_into) if self._writes_into else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run, step = Path(super()._get_output_dir(trial)), self.state.global_step  # type: ignore[misc]
        name = f"{PREFIX}{step}"
        broadcast_from_main(lambda: refuse_if_locked(run))  # it may have been moved
        self._writes_into = run / PARTIAL
        best = self.state.best_model_checkpoint
        try:
            if self.args.should_save:
                make_empty(run / PARTIAL / name)
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
        self._written = run / name

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if not self.args.should_save:  # of one process that saved nothing
            return
        # A pickle of the arguments that nothing reads; config.yaml says them in plain text.
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / "README.md").unlink(missing_ok=True)  # peft's, with the path of the base
        save_base_quantization(self.accelerator.unwrap_model(self.model), folder)
        save_heads(self.accelerator.unwrap_model(self.model), folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: Trainer's and TRL's speak of None where they know no name."""

    def _push_from_checkpoint(self, folder: str) -> None:
        """Push nothing: what leaves is looked through first, and that is the finished run."""

    def _put_in_place(self, partial: Path, target: Path) -> None:
        self.state.save_to_json(str(partial / "trainer_state.json"))
        seal(partial, self.state.global_step, launch=Launch.here(self.args).as_dict())
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
            "total_loss": self._total_loss_scalar,
            "seconds": self.seconds_before + time.monotonic() - (self.start or time.monotonic()),
            "energy": [self.meter.card, self.meter.joules()] if self.meter else ["", None],
            "last_logged": self._globalstep_last_logged,
            "owes_evaluation": self._owes_evaluation,
            "skipped": [self._skipped, self._in_a_row],
            "batch": batch_of(self),
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
        if self.meter is not None and self.args.process_index == 0:  # for all, of however many
            texts = [path.read_text(encoding="utf-8") for path in folder.glob(f"{CARRIED}_*.json")]
            used = dict(json.loads(text).get("energy", ["", None]) for text in texts)
            self.meter.before = None if None in used.values() else sum(used.values())
        # What all processes have to agree on is read from the first one's.
        shared = json.loads(paths[0].read_text(encoding="utf-8"))
        refuse_other_batch(self, shared.get("batch") or batch_of(self))
        self._globalstep_last_logged = shared["last_logged"]
        self.seconds_before = shared.get("seconds", 0.0)
        if "total_loss" in shared:  # of all steps, so the mean is over all of them, too
            self._total_loss_scalar, self._initial_global_step = shared["total_loss"], 0
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

    def _load_from_checkpoint(self, folder: str, *args: Any, **kwargs: Any) -> None:
        self._loads_from = folder
        super()._load_from_checkpoint(folder, *args, **kwargs)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        self._loads_from = self.state.best_model_checkpoint
        super()._load_best_model()  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Classes such as LLaVA save weights under older names. Trainer leaves those out, with no
        # more than a warning, and would go on from the first model. Theirs is the way back.
        if load_result.unexpected_keys and self._loads_from:
            kind, dtype = type(self.model), self.model.dtype
            stored = kind.from_pretrained(self._loads_from, dtype=dtype)
            load_result = self.model.load_state_dict(stored.state_dict())
        super()._issue_warnings_after_load(load_result)  # type: ignore[misc]

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        keep_outputs_fp32(self, getattr(self.model, "value_head", None))
        return super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]

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
        self._moment, self._written, self._moves, self._last_step = None, None, False, -1
        return super()._init_training_state(*args, **kwargs)  # type: ignore[misc]


def batch_of(trainer: Trainer) -> dict[str, int]:
    """What an optimizer step of a trainer is made of.

    Args:
        trainer: A transformers Trainer.

    Returns:
        Rows of a step and of a micro-batch, the number of processes, and completions that are
        generated together (0 where that is not TRL's to say).
    """
    args = trainer.args
    micro_batch, processes = args.per_device_train_batch_size, args.world_size
    return {
        "rows": micro_batch * args.gradient_accumulation_steps * processes,
        "micro_batch": micro_batch,
        "processes": processes,
        "generated": getattr(args, "generation_batch_size", None) or 0,
    }


def refuse_other_batch(trainer: Trainer, before: dict[str, int]) -> None:
    """Refuse to go on with steps that are not those of the run before.

    Args:
        trainer: A transformers Trainer.
        before: `batch_of` the trainer that wrote the checkpoint.

    Raises:
        UserError: A step, a generation, or what KTO's KL is estimated from would be another one.
    """
    now = batch_of(trainer)
    key = f"per_device_train_batch_size={now['micro_batch']}"
    if now["rows"] != before["rows"]:
        raise UserError(
            f"{key} makes {now['rows']} rows of a step, and the run to resume has "
            f"{before['rows']}; {REMEDY}."
        )
    if now["generated"] != before["generated"]:
        raise UserError(
            f"{key} makes {now['generated']} completions of a generation, and the run to resume "
            f"has {before['generated']}; set steps_per_generation so that it does."
        )
    cut = [now[name] != before[name] for name in ("micro_batch", "processes")]
    if getattr(trainer, "calculate_KL", False) and any(cut):
        raise UserError(
            f"{key} on {now['processes']} processes: KTO estimates its KL within a micro-batch, "
            f"and the run to resume has {before['micro_batch']} on {before['processes']}; keep "
            "them."
        )
    if now["generated"] and cut[1]:
        raise UserError(
            f"{now['processes']} processes: TRL samples with the noise of each process, and the "
            f"run to resume has {before['processes']}; keep them."
        )
