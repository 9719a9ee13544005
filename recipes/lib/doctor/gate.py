"""The gate: what is at fault teaches no policy, and a training says what became of its own."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config


@dataclass(kw_only=True)
class CheckArguments:
    """Whether a recipe looks at reward models, its own or those that a policy learns from."""

    skip_check: bool = option(
        False, "Do not ask whether a reward model is sound, and go on with one that is not."
    )


def check_rewards(config: Config) -> None:
    """Refuse reward models at fault; a run that is resumed has been here before.

    Args:
        config: The parsed Config of a recipe that samples.

    Raises:
        FaultError: A reward model is at fault.
    """
    from recipes.lib.distributed.processes import broadcast_from_main
    from recipes.lib.doctor.checkup import refuse
    from recipes.lib.rewards.loading import is_function_reference, is_judge
    from recipes.lib.runs.folder import folder_of, is_run

    script, named = config.script, config.training.resume_from_checkpoint

    def looked() -> dict[str, Any]:
        resumes = named or (script.resume and is_run(folder_of(config)))
        names = [] if resumes else [*script.reward_funcs, *script.eval_reward_funcs]
        models = (name for name in names if not (is_function_reference(name) or is_judge(name)))
        return {name: examined(config, name) for name in models}

    for name, report in broadcast_from_main(looked).items():
        refuse(report, name, ", or go on with --skip_check true")


def examined(config: Config, name: str, pairs: Any = None) -> dict[str, Any]:
    """What the check says of a reward model, without a trace in the numbers of the run.

    Args:
        config: The parsed Config of a recipe that trains.
        name: Run, folder or Hub id; a check of these very weights that is there holds.
        pairs: Training and test pairs; None for those of its run.

    Returns:
        What check.json holds; nothing where it cannot or may not be asked.
    """
    import torch

    from recipes.lib.distributed.shards import load_unsharded
    from recipes.lib.doctor.checkup import look
    from recipes.lib.errors import UserError, is_memory, note, one_sentence

    if config.script.skip_check:
        return {}
    gc.collect()  # a model that was trained here may still take its place
    training = config.training
    cards = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with load_unsharded(training), torch.random.fork_rng(cards):
            return look(name, pairs, trusted=training.trust_remote_code, anew=False)
    except Exception as error:
        # What is wrong with a model is told better where it is loaded.
        if not isinstance(error, UserError) or is_memory(error.__cause__ or error):
            note(f"reward model {name} is not checked ({one_sentence(error)[:200]}).")
    return {}
