"""Whether a merged model says what the trained one says: layer by layer, and on prompts.

A layer is asked with noise: what the adapter adds to it has to be there in the merged layer, whole
and once. On prompts the logits and the greedy texts of both are compared.

Shapes: N rows of noise, D inputs of a layer, C completion tokens, V vocabulary. KL in nats a token.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.lib.generation.completions import complete
from recipes.lib.models.forward import base_model
from recipes.lib.rewards.reward_models import RewardModel

NUM_ROWS = BATCH_SIZE = 16


@dataclass
class Recording:
    """What a model said.

    Args:
        layers: By name, what a layer says to noise without and with its adapter.
        prompts: Token ids of the prompts.
        completions: Token ids of the greedy completions.
        scores: What a reward model says of the prompts.
        folder: Where the logits lie, a file for each prompt.
    """

    layers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    completions: list[list[int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    folder: Path = Path()


def record_policy(
    model: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int
) -> Recording:
    """Let a policy speak: its layers, its greedy completions, and their logits.

    Args:
        model: The trained model, its adapter unmerged.
        tokenizer: Its tokenizer.
        prompts: Texts or messages.
        max_new_tokens: Longest completion, in tokens.
    """
    said = _complete(model, tokenizer, prompts, max_new_tokens)
    # On disk: the logits of 64 texts may be larger than the model.
    folder = Path(tempfile.mkdtemp(prefix="logits-"))
    recording = Recording(_layers(model), *said, folder=folder)
    weakref.finalize(recording, shutil.rmtree, folder, ignore_errors=True)
    for row, logits_CV in enumerate(_logits(model, recording)):
        torch.save(logits_CV, folder / str(row))
    return recording


def compare_policy(
    recording: Recording,
    merged: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Let the merged policy speak to the same prompts.

    Args:
        recording: What the trained one said.
        merged: The merged model, as it is loaded from its folder.
        tokenizer: As it is loaded from there.
        prompts: As for the recording, and so the rest.
        max_new_tokens: Longest completion, in tokens.

    Returns:
        The shares of prompts with the same tokens and with the same greedy text, the largest
        difference of logits and their spread, `kl_per_token` from the trained model, and the share
        of each layer's adapter that arrived.
    """
    ids, again = _complete(merged, tokenizer, prompts, max_new_tokens)
    largest, kl, count, square, numbers = 0.0, 0.0, 0, 0.0, 0
    for row, after_CV in enumerate(_logits(merged, recording)):
        before_CV = torch.load(recording.folder / str(row))
        largest = max(largest, float((after_CV - before_CV).abs().max()))
        ours, theirs = before_CV.double().log_softmax(-1), after_CV.double().log_softmax(-1)
        kl += float((ours.exp() * (ours - theirs)).sum())
        count += len(ours)
        square += float((before_CV - before_CV.mean(-1, keepdim=True)).square().sum())
        numbers += before_CV.numel()
    return {
        "prompts_equal": _equal(ids, recording.prompts),
        "logits_max_difference": largest,
        "logits_spread": (square / max(numbers, 1)) ** 0.5,
        "kl_per_token": kl / max(count, 1),
        "greedy_equal": _equal(again, recording.completions),
    } | arrived(recording, merged)


def _equal(ours: list[list[int]], theirs: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / max(len(ours), 1)


def record_reward(model: Any, tokenizer: Any, prompts: Sequence[Any], _: int) -> Recording:
    """Let a reward model score texts; as `record_policy`."""
    return Recording(_layers(model), scores=_scores(model, tokenizer, prompts))


def compare_reward(
    recording: Recording, merged: Any, tokenizer: Any, prompts: Sequence[Any], _: int
) -> dict[str, Any]:
    """Let the merged reward model score them; the largest difference, and the layers."""
    pairs = zip(recording.scores, _scores(merged, tokenizer, prompts), strict=True)
    largest = max((abs(a - b) for a, b in pairs), default=0.0)
    spread = float(torch.tensor(recording.scores).std(correction=0))
    return {"scores_max_difference": largest, "scores_spread": spread} | arrived(recording, merged)


def arrived(recording: Recording, merged: Any) -> dict[str, Any]:
    """The least and the largest share of what an adapter adds that is there in a merged layer."""
    shares = {}
    for number, (name, (without, added)) in enumerate(recording.layers.items()):
        said = _ask(merged.get_submodule(name), number, merged)
        shares[name] = float(((said - without) * added).sum() / added.square().sum())
    if not shares:
        return {}
    low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return {
        "layers": len(shares),
        "adapter_arrived": [shares[low], shares[high]],
        "adapter_arrived_at": [low, high],
    }


def _layers(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, tuple[Tensor, Tensor]] = {}
    layers = [
        (name, module)
        for name, module in base_model(model).named_modules()
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer")
    ]
    for number, (name, module) in enumerate(layers):
        without = _ask(module.base_layer, number, model)
        found[name] = (without, _ask(module, number, model) - without)
    return {name: pair for name, pair in found.items() if bool(pair[1].any())}


@torch.no_grad()
def _ask(layer: Any, seed: int, model: Any) -> Tensor:
    """What a layer says to noise, or an embedding to some tokens."""
    generator = torch.Generator().manual_seed(seed)
    inner = getattr(layer, "base_layer", layer)
    if isinstance(inner, nn.Embedding):
        ids_N = torch.randint(inner.num_embeddings, (NUM_ROWS,), generator=generator)
        return layer(ids_N.to(inner.weight.device)).float().cpu()  # type: ignore[no-any-return]
    # GPT-2's layers have their weights the other way round.
    width = getattr(inner, "in_features", None) or inner.weight.shape[0]
    noise_ND = torch.randn(NUM_ROWS, width, generator=generator)
    return layer(noise_ND.to(model.device, model.dtype)).float().cpu()  # type: ignore[no-any-return]


def _complete(
    model: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    made = complete(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        batch_size=BATCH_SIZE,
    )
    return [one.prompt_ids for one in made], [one.ids for one in made]


@torch.no_grad()
def _logits(model: Any, recording: Recording) -> Iterator[Tensor]:
    for prompt, said in zip(recording.prompts, recording.completions, strict=True):
        ids = torch.tensor([prompt + said], device=model.device)
        logits_CV = model(input_ids=ids, use_cache=False).logits[0, -len(said) - 1 : -1]
        yield logits_CV.float().cpu()


def _scores(model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[float]:
    empty: Any = "" if prompts and isinstance(prompts[0], str) else []
    return RewardModel(model, tokenizer, "reward", BATCH_SIZE)(prompts, [empty] * len(prompts))
