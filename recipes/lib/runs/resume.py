"""What a run that is resumed may change, and what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.lib.config.build import redacted
from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.errors import UserError, one_sentence

# Keys that say how a run is carried out and not what it computes: free to change on a resume.
FREE_ON_RESUME = frozenset(
    "resume overwrite trust_checkpoint output_dir resume_from_checkpoint "
    "per_device_train_batch_size "
    "gradient_accumulation_steps steps_per_generation gradient_checkpointing "
    "per_device_eval_batch_size sampling_batch_size scoring_batch_size logging_steps save_steps "
    "save_strategy save_total_limit report_to run_name log_level disable_tqdm log_completions "
    "reward_timeout reward_retries dataloader_num_workers dataset_num_proc push_to_hub "
    "hub_model_id hub_token skip_plan skip_check power_watts grid_intensity".split()
)


def refuse_links(path: Path) -> None:
    """Refuse a run folder that came from elsewhere and leads what is written out of it."""
    home = path.resolve()
    for entry in path.rglob("*"):
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise UserError(
                f"output_dir={path}: {entry.relative_to(path)} is a link that leads out of it; "
                "replace it by what it leads to."
            )


def refuse_other_config(path: Path, values: dict[str, Any]) -> None:
    """Refuse to resume a finished run, or one with other keys than those that may change."""
    if (path / "summary.json").exists():
        raise UserError(f"output_dir={path} holds a finished run: nothing is left to resume.")
    before, values = stored_values(path), redacted(values)
    keys = (set(before) | set(values)) - FREE_ON_RESUME
    for key in sorted(keys):
        if before.get(key) != values.get(key):
            raise UserError(
                f"{key}={values.get(key)!r} differs from {before.get(key)!r} of the run to resume "
                f"in {path}; set it back, or start another run."
            )


def stored_values(path: Path) -> dict[str, Any]:
    """The keys that a run was begun with."""
    try:
        return read_yaml(path / "config.yaml").values
    except UserError as error:  # the reader of plain values: tags and aliases are refused
        raise UserError(
            f"{path / 'config.yaml'} is not the configuration of a run ({one_sentence(error)}); "
            "restore it, or start another run."
        ) from error
