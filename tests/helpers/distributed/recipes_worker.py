"""Runs recipes one after the other on as many processes as were started, and notes how they ran.

Arguments: a JSON file with lists of words, a recipe and its flags, or `cut` with a run and a new
name: a copy as if it had been killed before its last checkpoint; a name for the notes.
"""

import gc
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from recipes.lib.distributed.processes import choose_device
from recipes.lib.models.quick_import import import_quickly
from recipes.lib.verbosity import hush

hush()  # as the command line does it
import_quickly()
choose_device()

if os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
    from tests.helpers.distributed import gloo_shim  # noqa: F401

import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from recipes.lib.distributed.process_exit import end, leave_group  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.trainers import progress  # noqa: E402
from tests.helpers.distributed.row_noise import with_row_noise  # noqa: E402

NOTES: list[dict[str, Any]] = []
SAID: dict[str, list[dict[str, Any]]] = {}  # by run, what each loss of PPO was made of


class Note(TrainerCallback):
    """Keeps what the launcher made of the model, as it is in the middle of a training."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        NOTES.append(
            {
                "run": args.output_dir,
                "step": state.global_step,
                "processes": trainer.accelerator.num_processes,
                "wrapped": type(trainer.model_wrapped).__name__,
                "kinds": sorted({type(p).__name__ for p in trainer.model_wrapped.parameters()}),
                "is_in_shards": any(hasattr(p, "ds_id") for p in trainer.model.parameters()),
                "kind": str(trainer.accelerator.distributed_type.value),
                "accumulation": args.gradient_accumulation_steps,
            }
        )


def keep_said() -> None:
    """Keep what PPO's loss is given, and how many pairs a reward model scores at the end."""
    from recipes.lib.evaluation import pair_scores
    from recipes.lib.ppo import trainer as of_ppo

    trainer: Any = of_ppo

    plain_scores = pair_scores.scores_of

    def scores(scorer: Any, test: Any) -> Any:
        SAID.setdefault("scored", []).append({"pairs": len(test)})
        return plain_scores(scorer, test)

    pair_scores.scores_of = scores
    plain = trainer.micro_batch_loss

    def loss(args: Any, inputs: Any, logps: Any, entropy: Any, values: Any) -> Any:
        kept = {"logps": logps.detach().clone(), "values": values.detach().clone()}
        SAID.setdefault(args.output_dir, []).append(dict(inputs) | kept)
        return plain(args, inputs, logps, entropy, values)

    trainer.micro_batch_loss = loss


def cut(run: Path, copy: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "final")
        shutil.rmtree(max(copy.glob("checkpoint-*")))
        (copy / "summary.json").unlink()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def main(runs: str, name: str) -> None:
    plain = with_row_noise(progress.add_run_callbacks)

    def watch(trainer: Any, *more: Any) -> None:
        plain(trainer, *more)
        trainer.add_callback(Note(trainer))

    progress.add_run_callbacks = watch  # type: ignore[assignment]
    keep_said()
    gc.freeze()
    for recipe, *words in json.loads(Path(runs).read_text()):
        if recipe == "cut":
            cut(*map(Path, words))
            continue
        importlib.import_module(f"recipes.{recipe}").run(parse(recipe, words))
    here = name + os.environ.get("RANK", "0")
    Path(f"{here}.json").write_text(json.dumps(NOTES))
    torch.save(SAID, f"{here}.pt")
    leave_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    end(0)
