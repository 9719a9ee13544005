"""Sampling completions with noise that belongs to the episode.

Every episode has its own row of uniform numbers, a function of (seed, episode, position) alone. A
token is the inverse of the cumulative distribution at that number. So what an episode says does not
depend on the batch it is in, on the number of processes, or on where a run was resumed.

Shapes: B episodes, P prompt tokens (padded left), C completion tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache

from recipes.lib.generation.numerics import check_sampled


def episode_uniforms(seed: int, episodes: Sequence[int], num_tokens: int, turn: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of each episode and position.

    Args:
        seed: Seed of the run.
        episodes: Number of each episode in the run.
        num_tokens: Positions.
        turn: Turn of the episodes, each of which has noise of its own.

    Returns:
        float64 of shape (B, C).

    Source:
        Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox, NumPy's own).
    """
    rows = [
        np.random.Generator(
            np.random.Philox(key=[seed % 2**64, episode], counter=[0, turn, 0, 0])
        ).random(num_tokens)
        for episode in episodes
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, num_tokens).double()


def invert_cdf(logits_BV: Tensor, uniforms_B: Tensor, temperature: float) -> Tensor:
    """Token at which the cumulative distribution passes each uniform number.

    Args:
        logits_BV: Logits.
        uniforms_B: Numbers in [0, 1).
        temperature: Temperature of the distribution.

    Returns:
        Token ids of shape (B,); never one of probability 0.
    """
    probs_BV = (logits_BV.double() / temperature).softmax(-1)
    cdf_BV = probs_BV.cumsum(-1)
    total_B = cdf_BV[:, -1]  # differs from 1 by rounding
    below_total_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    target_B = torch.minimum(uniforms_B.to(cdf_BV.device) * total_B, below_total_B)
    tokens_B = torch.searchsorted(cdf_BV, target_B.unsqueeze(-1), right=True).squeeze(-1)
    return tokens_B.clamp(max=cdf_BV.shape[-1] - 1)  # of NaN it would be none


class EpisodeNoise(LogitsProcessor):
    """Leaves to generate's greedy choice only the token that the episode's noise picks.

    Args:
        uniforms_BC: Uniform numbers of the batch.
        prompt_width: Columns of the prompts.
        temperature: Temperature of sampling.
    """

    def __init__(self, uniforms_BC: Tensor, prompt_width: int, temperature: float) -> None:
        self.uniforms_BC = uniforms_BC
        self.prompt_width = prompt_width
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask all tokens but one."""
        position = input_ids.shape[1] - self.prompt_width
        tokens_B = invert_cdf(scores, self.uniforms_BC[:, position], self.temperature)
        only_BV = torch.full_like(scores, float("-inf"))
        return only_BV.scatter(1, tokens_B.unsqueeze(1), 0.0)


class FiniteLogits(LogitsProcessor):
    """Notes for which episodes logits are NaN or infinite; looked at once, when all is sampled."""

    def __init__(self) -> None:
        self.faulty_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave the logits as they are."""
        faulty_B = ~scores.amax(-1).isfinite()
        self.faulty_B = faulty_B if self.faulty_B is None else self.faulty_B | faulty_B
        return scores


@dataclass(frozen=True)
class Decoding:
    """How completions are decoded.

    Args:
        max_new_tokens: Most tokens of a completion.
        temperature: Temperature of sampling.
        stop_token_id: Token that ends a completion.
        pad_token_id: Token behind the end.
        other_stop_token_ids: Further tokens that end a completion.
    """

    max_new_tokens: int
    temperature: float
    stop_token_id: int
    pad_token_id: int
    other_stop_token_ids: tuple[int, ...] = ()

    @property
    def stops(self) -> list[int]:
        """All tokens that end a completion."""
        return [self.stop_token_id, *self.other_stop_token_ids]

    def generation_config(self) -> GenerationConfig:
        """Settings for generate: greedy, because the noise leaves one token to choose from."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=self.stops if self.other_stop_token_ids else self.stop_token_id,
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )


def further_stops(model: Any, stop_token_id: int) -> tuple[int, ...]:
    """Tokens that end a completion beside the tokenizer's own, as a model's folder lists them.

    Args:
        model: Causal language model, with or without adapters.
        stop_token_id: The tokenizer's eos token.

    Returns:
        The other eos ids of the model's generation_config; none where the tokenizer's is not among
        them, because then the list is not this tokenizer's.
    """
    stored = getattr(model.generation_config, "eos_token_id", None)
    if not isinstance(stored, list) or stop_token_id not in stored:
        return ()
    return tuple(token for token in stored if token != stop_token_id)


@contextmanager
def own_generation_config(
    model: PreTrainedModel, config: GenerationConfig
) -> Iterator[GenerationConfig]:
    """Hide the model's generation_config, whose set fields would fill the unset ones of ours."""
    stored = model.generation_config
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = stored


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    uniforms_BC: Tensor | None,
    decoding: Decoding,
    streamer: Any = None,
    *,
    cache: Cache | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample one completion for each prompt with transformers' generate.

    Args:
        model: Causal language model (of a PeftModel its base model, with the adapter in it).
        prompt_ids_BP: Prompts, padded left.
        prompt_mask_BP: 1 where a prompt token is.
        uniforms_BC: The episodes' noise; None takes the most probable token.
        decoding: Length, temperature and the tokens at the end.
        streamer: A transformers streamer, which is given the tokens as they come.
        cache: Keys and values of the first columns; those of the others are added to it.

    Returns:
        Completion ids of shape (B, C) and their mask, 1 up to and including the stop token.

    Raises:
        NotFiniteError: Logits were NaN or infinite.
    """
    logits = FiniteLogits()
    processors = LogitsProcessorList([logits])
    if uniforms_BC is not None:
        uniforms_BC = uniforms_BC.to(prompt_ids_BP.device)
        processors.append(EpisodeNoise(uniforms_BC, prompt_ids_BP.shape[1], decoding.temperature))
    past = {} if cache is None else {"past_key_values": cache}  # a word that some do not take
    was_training = model.training
    model.eval()
    with own_generation_config(model, decoding.generation_config()) as config:
        sequences = model.generate(
            input_ids=prompt_ids_BP,
            attention_mask=prompt_mask_BP,
            generation_config=config,
            logits_processor=processors,
            streamer=streamer,
            **past,
            synced_gpus=False,  # shards are gathered before: recipes.lib.distributed.shards
        )
    model.train(was_training)
    check_sampled(logits.faulty_B)
    ids_BC = sequences[:, prompt_ids_BP.shape[1] :]
    mask_BC = mask_through_stop(ids_BC, *decoding.stops)
    return torch.where(mask_BC.bool(), ids_BC, decoding.pad_token_id), mask_BC


def mask_through_stop(ids_BC: Tensor, *stop_token_ids: int) -> Tensor:
    """Mask that is 1 up to and including the first stop token, wherever padding has that id too."""
    stops_BC = torch.isin(ids_BC, torch.tensor(stop_token_ids, device=ids_BC.device)).long()
    return ((stops_BC.cumsum(1) - stops_BC) == 0).long()


def pad_left(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of tokens, aligned at their ends."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)
