"""Completions for evaluation and feedback: batched, left-padded, seeded, from a clean config.

Shapes: B sequences, T tokens (padded prompt), C completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.lib.data.prompts import Prompt, completion_text, context_length, prompt_token_ids
from recipes.lib.errors import UserError
from recipes.lib.generation.decoder import Decoder, is_faster
from recipes.lib.generation.sampling import Decoding, episode_uniforms, further_stops, pad_left
from recipes.lib.generation.sampling import generate as sample_tokens
from recipes.lib.models.forward import base_model, length_batches

NO_TOKEN = -1  # of a tokenizer without an EOS: nothing stops a completion but its length


@dataclass(frozen=True)
class Completion:
    """One sampled completion; `ids` ends with an EOS token if the model ended by itself."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    has_ended: bool


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Completion]:
    """Complete prompts with plain sampling over the whole vocabulary, or greedily.

    The model's own `generation_config` has no say: it is set aside and put back. Only where it
    lists several eos ids, and the tokenizer's among them, each of them ends a completion. Prompts
    are batched by length, so that little is padded; texts come back in the order of the prompts.
    The same seed gives the same texts for any batch size, up to rounding; the caller's random
    state is untouched.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer; neither its padding side nor its pad token is used or changed.
        prompts: texts, or lists of messages (rendered with the generation prompt).
        max_new_tokens: longest completion, tokens.
        temperature: divides the logits; 0 means greedy.
        seed: of the sampling.
        batch_size: prompts at a time.

    Returns:
        One completion per prompt, in the order of the prompts.

    Raises:
        UserError: prompt and completion are longer than the model's context, or messages come
            to a tokenizer without a chat template.
    """
    rows = [prompt_token_ids(tokenizer, prompt) for prompt in prompts]
    _check_context(model, rows, max_new_tokens)
    decoding = decoding_of(model, tokenizer, max_new_tokens, temperature)
    ids = _sample_ids(model, rows, decoding, seed, batch_size)
    completions = []
    for index, row in enumerate(rows):
        said, has_ended = ids[index], ids[index][-1] in decoding.stops
        text = completion_text(tokenizer, row, said, decoding.stops)
        completions.append(Completion(row, said, text, has_ended))
    return completions


def decoding_of(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float) -> Decoding:
    """How a model completes by itself: what ends a completion, and what stands behind the end."""
    stop = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else NO_TOKEN
    # Any id does as padding: the attention mask hides it and completions are cut at the stop.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else max(stop, 0)
    return Decoding(max_new_tokens, temperature, stop, pad, further_stops(model, stop))


def _sample_ids(
    model: PreTrainedModel, rows: list[list[int]], decoding: Decoding, seed: int, batch_size: int
) -> dict[int, list[int]]:
    uniforms_BC = episode_uniforms(seed, range(len(rows)), decoding.max_new_tokens)
    base = base_model(model)
    ids: dict[int, list[int]] = {}
    is_own = is_faster(base)
    progress = tqdm(total=len(rows), desc="completions", unit="text", leave=False)
    for batch in length_batches(list(map(len, rows)), batch_size):
        noise_BC = uniforms_BC[batch] if decoding.temperature > 0 else None
        prompts_BT = pad_left([rows[row] for row in batch], decoding.pad_token_id, model.device)
        if is_own:
            slots = prompts_BT[0].shape[1] + decoding.max_new_tokens
            decoder = Decoder(base, decoding, len(batch), slots)
            ids_BC, mask_BC = decoder.sample(*prompts_BT, noise_BC)
        else:
            ids_BC, mask_BC = sample_tokens(base, *prompts_BT, noise_BC, decoding)
        for row, tokens_C, length in zip(batch, ids_BC, mask_BC.sum(1).tolist(), strict=True):
            ids[row] = tokens_C[:length].tolist()
        progress.update(len(batch))
    progress.close()
    return ids


def fits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_new_tokens: int
) -> bool:
    """Whether a prompt leaves room for a completion in the model's context."""
    context = context_length(model.config)
    length = len(prompt_token_ids(tokenizer, prompt))
    return context is None or length + max_new_tokens <= context


def _check_context(model: PreTrainedModel, rows: list[list[int]], max_new_tokens: int) -> None:
    context = context_length(model.config)
    longest = max(map(len, rows), default=0)
    if context is not None and longest + max_new_tokens > context:
        raise UserError(
            f"max_completion_length={max_new_tokens}: the longest prompt has {longest} tokens and "
            f"the model's context {context}; lower it or shorten the prompts."
        )
