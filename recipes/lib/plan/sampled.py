"""The phases of a run that samples: PPO, RLOO and GRPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.lib.plan import passes
from recipes.lib.plan.breakdown import CACHE, WORKSPACE, Phase
from recipes.lib.plan.sampling_phases import Sampling, captured_bytes, sampling_bytes
from recipes.lib.plan.scale import Scale

if TYPE_CHECKING:
    from recipes.lib.plan.target import Target


def prompt_length(config: Any, target: Target) -> int:
    """Tokens of a prompt, P."""
    return int(getattr(config.training, "max_prompt_length", None) or target.prompt_length)


def training_bytes(config: Any, target: Target, scale: Scale, loss: Any) -> dict[str, int]:
    """Bytes of a micro-batch's forward and backward pass, by thing."""
    sharded = target.launch.shards_optimizer > 1
    return passes.training_pass(scale, config, loss, shards_gradients=sharded)


def sampled(config: Any, target: Target, scale: Scale) -> dict[str, dict[str, int]]:
    """Bytes of what comes and goes, by phase and by thing.

    Args:
        config: The parsed Config of the recipe.
        target: What it is planned for.
        scale: The models.

    Returns:
        Sampling, scoring and training, each at its fullest moment.
    """
    args, cast = config.training, scale.cast
    prompt, completion = prompt_length(config, target), args.max_completion_length
    rows, width = args.per_device_train_batch_size, prompt + completion
    processes = target.launch.num_processes
    if config.recipe == "ppo":
        at_once = _sampled_at_once(config, target)
        scored = min(args.scoring_batch_size, max(1, args.rollout_batch_size // processes))
        loss = passes.ppo_loss(scale, args, rows)
        scoring = [scale.weigh(passes.ppo_scoring(scale, args, scored))]
    else:
        at_once, scored = rows * args.steps_per_generation, rows
        judged = 0
        loss = passes.fused_loss(scale, rows, width, judged=judged, scored=completion)
        is_held = args.beta != 0
        run = passes.fused_scoring(scale, rows, width, completion)
        scoring = [scale.weigh(run)] if is_held else [{}]
    for model in cast.rewards:
        scoring.append(scale.weigh(passes.classifier_scoring(scale, model, scored, width)))
    sampling = Sampling(at_once, prompt, completion, _is_graph(config))
    return {
        "sampling": sampling_bytes(scale, sampling),
        "scoring": max(scoring, key=lambda kinds: sum(kinds.values())),
        "training": training_bytes(config, target, scale, loss),
    }


def beside_captured(config: Any, target: Target, scale: Scale, phases: list[Phase]) -> list[Phase]:
    """The phases, where steps of sampling stay captured during all others."""
    if not _is_graph(config) or not target.on_card:
        return phases
    args, rows = config.training, _sampled_at_once(config, target)
    what = Sampling(rows, prompt_length(config, target), args.max_completion_length, is_graph=True)
    kept = captured_bytes(scale, what)
    return [
        phase
        if phase.name == "sampling"
        else Phase(phase.name, {**phase.parts, CACHE: kept[CACHE]}, kept[WORKSPACE])
        for phase in phases
    ]


def _is_graph(config: Any) -> bool:
    return getattr(config.training, "sampler", "transformers") == "graph"


def _sampled_at_once(config: Any, target: Target) -> int:
    """Episodes of PPO that one process samples together."""
    args = config.training
    return min(
        args.sampling_batch_size, max(1, args.rollout_batch_size // target.launch.num_processes)
    )
