"""Whether an exported model says what the trained one says: layer by layer, and on prompts.

A layer is asked with noise: what the adapter adds to it has to be there in the merged layer, whole
and once. On prompts the logits and the greedy texts of both are compared.

Shapes: N rows of noise, T tokens, C completion tokens, V vocabulary. KL in nats a token.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.lib.generation.completions import complete
from recipes.lib.models.forward import base_model
from recipes.lib.models.merging import dequantized
from recipes.lib.rewards.reward_models import RewardModel

NUM_ROWS = BATCH_SIZE = 16


@dataclass
class Recording:
    """What a model said.

    Args:
        layers: By name, what a layer says to noise without its adapter, and what that adds.
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


def record(model: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int) -> Recording:
    """Let a model speak: its layers, its greedy completions and their logits, or its scores.

    Args:
        model: The trained policy or reward model, its adapter unmerged.
        tokenizer: Its tokenizer.
        prompts: Texts or messages.
        max_new_tokens: Longest completion, in tokens.
    """
    if not model.can_generate():
        return Recording(_layers(model), scores=_scores(model, tokenizer, prompts))
    said = _complete(model, tokenizer, prompts, max_new_tokens)
    # On disk: the logits of 64 texts may be larger than the model.
    folder = Path(tempfile.mkdtemp(prefix="logits-"))
    recording = Recording(_layers(model), *said, folder=folder)
    weakref.finalize(recording, shutil.rmtree, folder, ignore_errors=True)
    for row, logits_CV in enumerate(_logits(model, recording)):
        torch.save(logits_CV, folder / str(row))
    return recording


def compare(
    recording: Recording, merged: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int
) -> dict[str, Any]:
    """Let the merged model speak to the same prompts.

    Args:
        recording: What the trained one said.
        merged: The merged model, as it is loaded from its folder.
        tokenizer: As it is loaded from there.
        prompts: As for the recording, and so the rest.
        max_new_tokens: Longest completion, in tokens.

    Returns:
        The shares of prompts with the same tokens and with the same greedy text, what `distance`
        says, and the share of each layer's adapter that arrived; of a reward model the largest
        difference of scores, beside their spread.
    """
    if recording.scores:
        before, after = torch.tensor([recording.scores, _scores(merged, tokenizer, prompts)])
        gap, spread = float((before - after).abs().max()), float(before.std(correction=0))
        told = {"scores_max_difference": gap, "scores_spread": spread}
        return told | arrived(recording, merged)
    ids, again = _complete(merged, tokenizer, prompts, max_new_tokens)
    kept = (torch.load(recording.folder / str(row)) for row in range(len(ids)))
    equal = {
        "prompts_equal": _equal(ids, recording.prompts),
        "greedy_equal": _equal(again, recording.completions),
    }
    said = distance(zip(kept, _logits(merged, recording), strict=True))
    return equal | said | arrived(recording, merged)


def rounded(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a model with its weights, and nothing else, in another number format."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def kl_between(model: Any, other: Any, recording: Recording) -> float:
    """KL of a model from another, nats a token, on what was recorded."""
    pairs = zip(_logits(model, recording), _logits(other, recording), strict=True)
    return distance(pairs)["kl_per_token"]


def distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """How far a model is from another, by their logits of the same tokens.

    Args:
        pairs: Logits (T, V) of the trained model and of the other, text by text.

    Returns:
        `kl_per_token` from the trained model, `same_next_token` (share of the tokens),
        `logits_spread` and `logits_max_difference`; NaN where a logit is.
    """
    rows = []
    for before_TV, after_TV in pairs:
        ours_TV, theirs_TV = (one.double().log_softmax(-1) for one in (before_TV, after_TV))
        numbers = [
            (ours_TV.exp() * (ours_TV - theirs_TV)).sum(-1),
            (before_TV.argmax(-1) == after_TV.argmax(-1)).double(),
            before_TV.double().var(-1, correction=0),
            (before_TV - after_TV).abs().amax(-1).double(),
        ]
        rows.append(torch.stack(numbers))
    kl, same, square, gap = torch.cat(rows, 1)
    return {
        "kl_per_token": float(kl.mean()),
        "same_next_token": float(same.mean()),
        "logits_spread": float(square.mean() ** 0.5),
        "logits_max_difference": float(gap.max()),
    }


def _equal(ours: list[list[int]], theirs: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / max(len(ours), 1)


def arrived(recording: Recording, merged: Any) -> dict[str, Any]:
    """The least and the largest share of what an adapter adds that is there in a merged layer."""
    shares = {}
    for name, (without, added) in recording.layers.items():
        said = _ask(merged.get_submodule(name), name)
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
    """Adapted layers; experts and trained tokens are left to what the model says to prompts."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, module in base_model(model).named_modules():
        inner = getattr(module, "base_layer", None)
        is_asked = isinstance(module, BaseTunerLayer) and type(module) is not TrainableTokensLayer
        if is_asked and isinstance(inner, (nn.Linear, nn.Embedding, Conv1D)):
            added = _ask(module, name) - _ask(inner, name)
            found[name] = (_ask(dequantized(inner), name), added)
    return {name: pair for name, pair in found.items() if bool(pair[1].any())}


@torch.no_grad()
def _ask(layer: Any, name: str) -> Any:
    """What a layer says to noise in 32 bits, or an embedding to some tokens."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    inner = getattr(layer, "base_layer", layer)
    device = inner.weight.device
    if isinstance(inner, nn.Embedding):
        ids_N = torch.randint(inner.num_embeddings, (NUM_ROWS,), generator=generator)
        return layer(ids_N.to(device)).float().cpu()
    layer = copy.deepcopy(layer).float()  # 16 bits would round away what a light adapter adds
    for part in layer.modules():
        if hasattr(part, "compute_dtype"):  # of 4-bit weights
            part.compute_dtype = torch.float32
    # GPT-2's layers have their weights the other way round.
    width = getattr(inner, "in_features", None) or inner.weight.shape[0]
    noise_ND = torch.randn(NUM_ROWS, width, generator=generator)
    return layer(noise_ND.to(device)).float().cpu()


def _complete(
    model: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    length, size = max_new_tokens, BATCH_SIZE
    made = complete(
        model, tokenizer, prompts, max_new_tokens=length, temperature=0.0, batch_size=size
    )
    return [one.prompt_ids for one in made], [one.ids for one in made]


@torch.no_grad()
def _logits(model: Any, recording: Recording) -> Iterator[Tensor]:
    for prompt, said in zip(recording.prompts, recording.completions, strict=True):
        ids = torch.tensor([prompt + said], device=model.device)
        kept = len(said) + 1
        logits_CV = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0, -kept:-1]
        yield logits_CV.float().cpu()


def _scores(model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[float]:
    empty: Any = "" if prompts and isinstance(prompts[0], str) else []
    return RewardModel(model, tokenizer, "reward", BATCH_SIZE)(prompts, [empty] * len(prompts))
