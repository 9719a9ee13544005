"""The phases of a run that samples (PPO, RLOO, GRPO), on paper.

Of sampling these are the pass over the prompts and the last, longest step of decoding.

Shapes: B sequences, P prompt tokens, C completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recipes.lib.config.parse import Config
from recipes.lib.plan import passes
from recipes.lib.plan.breakdown import CACHE, WORKSPACE, Phase
from recipes.lib.plan.measure import Meter, Scale

if TYPE_CHECKING:
    from recipes.lib.plan.target import Target


@dataclass(frozen=True)
class Sampling:
    """What is sampled at a time.

    Args:
        rows: B.
        prompt: P.
        completion: C.
        is_graph: Whether the cache has its full size from the start (`sampler: graph`).
    """

    rows: int
    prompt: int
    completion: int
    is_graph: bool = False


def sampling_bytes(scale: Scale, what: Sampling) -> dict[str, int]:
    """Bytes at the fullest moment of sampling.

    Args:
        scale: The models.
        what: The batch.

    Returns:
        Bytes by kind, the cache of keys and values apart.
    """
    begin = scale.weigh(_prefill(scale, what))
    end = scale.weigh(_last_step(scale, what))
    if what.is_graph:
        whole = scale.weigh(_filled(scale, what))[CACHE]
        begin, end = begin | {CACHE: whole}, end | {CACHE: whole}
    return max(begin, end, key=lambda kinds: sum(kinds.values()))


def captured_bytes(scale: Scale, what: Sampling) -> dict[str, int]:
    """Bytes that captured steps keep while others compute.

    Args:
        scale: The models.
        what: The batch.

    Returns:
        The cache of keys and values, whole, and what a step computes in, which no other may use.
    """
    cache = scale.weigh(_filled(scale, what))[CACHE]
    return {CACHE: cache, WORKSPACE: scale.weigh(_last_step(scale, what)).get(WORKSPACE, 0)}


def _model(scale: Scale) -> Any:
    from peft import PeftModel

    policy = scale.cast.policy
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def _prefill(scale: Scale, what: Sampling) -> Callable[[Meter], None]:
    model = _model(scale)

    def run(meter: Meter) -> None:
        ids, mask = _ids(what.rows, what.prompt), _ids(what.rows, what.prompt)
        with passes.evaluating(model), scale.autocast():
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=torch.zeros_like(ids),  # of each row its own, as generate has them
                use_cache=True,
                logits_to_keep=1,
            )
            size = _size(out.past_key_values)
            _choose(out.logits)
        _rename(meter, size)

    return run


def _last_step(scale: Scale, what: Sampling) -> Callable[[Meter], None]:
    model = _model(scale)

    def run(meter: Meter) -> None:
        with passes.evaluating(model), scale.autocast():
            cache = _full_cache(meter, model, what.rows, what.prompt + what.completion - 1)
            ids = _ids(what.rows, 1)
            mask = _ids(what.rows, what.prompt + what.completion)
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=torch.zeros_like(ids),
                past_key_values=cache,
                use_cache=True,
            )
            _choose(out.logits)
            size = _size(out.past_key_values)
        _rename(meter, size)

    return run


def _filled(scale: Scale, what: Sampling) -> Callable[[Meter], None]:
    model = _model(scale)

    def run(meter: Meter) -> None:
        with passes.evaluating(model), scale.autocast():
            _full_cache(meter, model, what.rows, what.prompt + what.completion)

    return run


def _full_cache(meter: Meter, model: Any, rows: int, length: int) -> Any:
    """A cache of keys and values as it stands after so many tokens."""
    from transformers import DynamicCache

    ids = _ids(rows, 1)
    short = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache = DynamicCache(config=model.config)
    for number, layer in enumerate(short.layers):
        keys, values = (
            torch.empty((*t.shape[:2], length, t.shape[3]), dtype=t.dtype)
            for t in (layer.keys, layer.values)
        )
        cache.update(keys, values, number)
    for tensor in _tensors(cache):
        meter.label(tensor, CACHE)
    # From here on: filling the cache at once is not what a run does.
    meter.peak, meter.at_peak = meter.total, dict(meter.now)
    return cache


def _tensors(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _rename(meter: Meter, size: int) -> None:
    """Of what the fullest moment held, call the cache what it is."""
    held = meter.at_peak
    moved = min(size - held.get(CACHE, 0), held.get(WORKSPACE, 0))
    held[WORKSPACE] = held.get(WORKSPACE, 0) - moved
    held[CACHE] = held.get(CACHE, 0) + moved


def _size(cache: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(cache))


def _choose(logits: Tensor) -> None:
    """Choose tokens as `recipes.lib.generation.sampling` does."""
    from recipes.lib.generation.sampling import EpisodeNoise

    scores = logits[:, -1, :].to(torch.float32, copy=True)
    rows = scores.shape[0]
    noise = EpisodeNoise(torch.empty(rows, 1, dtype=torch.float64), 1, 1.0)
    noise(torch.empty(rows, 1, dtype=torch.long), scores).argmax(-1)


def _ids(rows: int, width: int) -> Tensor:
    return torch.ones(rows, width, dtype=torch.long)


def prompt_length(config: Config, target: Target) -> int:
    """Tokens of a prompt, P."""
    return int(getattr(config.training, "max_prompt_length", None) or target.prompt_length)


def sampled(config: Config, target: Target, scale: Scale) -> dict[str, dict[str, int]]:
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
        loss = passes.fused_loss(scale, rows, width, scored=completion)
        run = passes.fused_scoring(scale, rows, width, completion)
        scoring = [scale.weigh(run)] if args.beta != 0 else [{}]
    for model in cast.rewards:
        scoring.append(scale.weigh(passes.classifier_scoring(scale, model, scored, width)))
    sampling = Sampling(at_once, prompt, completion, _is_graph(config))
    return {
        "sampling": sampling_bytes(scale, sampling),
        "scoring": max(scoring, key=lambda kinds: sum(kinds.values())),
        "training": passes.training_pass(scale, config, loss, target.launch),
    }


def beside_captured(
    config: Config, target: Target, scale: Scale, phases: list[Phase]
) -> list[Phase]:
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


def _is_graph(config: Config) -> bool:
    return getattr(config.training, "sampler", "transformers") == "graph"


def _sampled_at_once(config: Config, target: Target) -> int:
    """Episodes of PPO that one process samples together."""
    args = config.training
    return min(
        args.sampling_batch_size, max(1, args.rollout_batch_size // target.launch.num_processes)
    )
