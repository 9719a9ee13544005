"""The phases of a run that samples (PPO, RLOO, GRPO), on paper.

Of sampling these are the pass over the prompts and the last, longest step of decoding.

Shapes: B sequences, P prompt tokens, C completion tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipes.lib.config.parse import Config
from recipes.lib.models.forward import base_model
from recipes.lib.plan import passes
from recipes.lib.plan.breakdown import CACHE, WORKSPACE, MemoryPhase
from recipes.lib.plan.measure import FakeModels, MemoryMeasure, Pass
from recipes.lib.plan.meta_models import num_bytes
from recipes.lib.plan.target import Target


@dataclass(frozen=True)
class Sizes:
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


def sampling_bytes(fakes: FakeModels, what: Sizes) -> dict[str, int]:
    """Bytes at the fullest moment of sampling.

    Args:
        fakes: The models.
        what: The batch.

    Returns:
        Bytes by kind, the cache of keys and values apart.
    """
    begin, end = fakes.peak(_decode(fakes, what, 0, what.prompt)), _last_step(fakes, what)
    if what.is_graph:
        whole = {CACHE: _filled(fakes, what)}
        begin, end = begin | whole, end | whole
    return max(begin, end, key=lambda kinds: sum(kinds.values()))


def _decode(fakes: FakeModels, what: Sizes, cached: int, tokens: int) -> Pass:
    """The pass over so many tokens of each row, behind those that are in the cache."""
    model = base_model(fakes.models.policy)

    def run(measure: MemoryMeasure) -> None:
        with passes.evaluating(model), fakes.autocast():
            cache = _full_cache(measure, model, what.rows, cached) if cached else None
            if not tokens:
                return
            ids, mask = _ids(what.rows, tokens), _ids(what.rows, cached + tokens)
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=torch.zeros_like(ids),  # of each row its own, as generate has them
                past_key_values=cache,
                use_cache=True,
                **({} if cached else {"logits_to_keep": 1}),
            )
            size = num_bytes(_tensors(out.past_key_values))
            _choose(out.logits)
        _rename(measure, size)

    return run


def _last_step(fakes: FakeModels, what: Sizes) -> dict[str, int]:
    return fakes.peak(_decode(fakes, what, what.prompt + what.completion - 1, 1))


def _filled(fakes: FakeModels, what: Sizes) -> int:
    return fakes.peak(_decode(fakes, what, what.prompt + what.completion, 0))[CACHE]


def _full_cache(measure: MemoryMeasure, model: Any, rows: int, length: int) -> Any:
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
        measure.label(tensor, CACHE)
    # From here on: filling the cache at once is not what a run does.
    measure.peak, measure.at_peak = measure.total, dict(measure.now)
    return cache


def _tensors(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _rename(measure: MemoryMeasure, size: int) -> None:
    """Of what the fullest moment held, call the cache what it is."""
    held = measure.at_peak
    moved = min(size - held.get(CACHE, 0), held.get(WORKSPACE, 0))
    held[WORKSPACE] = held.get(WORKSPACE, 0) - moved
    held[CACHE] = held.get(CACHE, 0) + moved


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


def sampling_peaks(config: Config, target: Target, fakes: FakeModels) -> dict[str, dict[str, int]]:
    """Bytes of what comes and goes, by phase and by thing.

    Args:
        config: The parsed Config of the recipe.
        target: What it is planned for.
        fakes: The models.

    Returns:
        Sampling, scoring and training, each at its fullest moment.
    """
    args, models = config.training, fakes.models
    prompt, completion = prompt_length(config, target), args.max_completion_length
    rows, width = args.per_device_train_batch_size, prompt + completion
    processes = target.launch.num_processes
    if config.recipe == "ppo":
        scored = min(args.scoring_batch_size, max(1, args.rollout_batch_size // processes))
        loss = passes.ppo_loss(fakes, args, rows)
        scoring = [fakes.peak(passes.ppo_scoring(fakes, args, scored))]
    else:
        scored = rows
        loss = passes.fused_loss(fakes, rows, width, scored=completion)
        run = passes.fused_scoring(fakes, rows, width, completion)
        scoring = [fakes.peak(run)] if args.beta != 0 else [{}]
    for model in models.rewards:
        scoring.append(fakes.peak(passes.classifier_scoring(fakes, model, scored, width)))
    return {
        "sampling": sampling_bytes(fakes, _sizes(config, target)),
        "scoring": max(scoring, key=lambda kinds: sum(kinds.values())),
        "training": passes.training_pass(fakes, config, loss, target.launch),
    }


def add_captured_graphs(
    config: Config, target: Target, fakes: FakeModels, phases: list[MemoryPhase]
) -> list[MemoryPhase]:
    """The phases, where steps of sampling stay captured during all others."""
    if getattr(config.training, "sampler", None) != "graph" or not target.on_card:
        return phases
    what = _sizes(config, target)
    # The cache is kept whole, with what a step computes in, which no other may use.
    cache, kept = _filled(fakes, what), _last_step(fakes, what).get(WORKSPACE, 0)
    return [
        phase
        if phase.name == "sampling"
        else MemoryPhase(phase.name, {**phase.parts, CACHE: cache}, kept)
        for phase in phases
    ]


def _sizes(config: Config, target: Target) -> Sizes:
    """What one process samples together."""
    args = config.training
    if config.recipe == "ppo":
        share = max(1, args.rollout_batch_size // target.launch.num_processes)
        rows, is_graph = min(args.sampling_batch_size, share), args.sampler == "graph"
    else:
        rows, is_graph = args.per_device_train_batch_size * args.steps_per_generation, False
    return Sizes(rows, prompt_length(config, target), args.max_completion_length, is_graph)
