"""Log-probabilities of given completions: the ground of perplexity and of KL between models.

Shapes: B sequences, T tokens, C completion tokens, V vocabulary. Units: nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from recipes.lib.models.forward import (
    MAX_CHUNK_LOGITS,
    has_plain_head,
    length_batches,
    pad_right,
)

Ids = Sequence[list[int]]
LARGEST_EXPONENT = 700.0  # whose power of e a float holds


def completion_logps(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    temperature: float = 1.0,
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Log-probability of every completion token, given all tokens before it.

    Args:
        model: A causal language model; evaluated without dropout.
        prompts: Token ids before the completion, at least one each.
        completions: Token ids of the completions, same order.
        temperature: Divides the logits, as it did in sampling.
        batch_size: Sequences at a time.

    Returns:
        One float32 tensor of shape C per completion, nats per token.
    """
    labels = [
        [-100] * len(prompt) + list(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    rows = [list(p) + list(c) for p, c in zip(prompts, completions, strict=True)]
    return label_logps(model, rows, labels, temperature=temperature, batch_size=batch_size)


def label_logps(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    labels: Sequence[list[int]],
    *,
    temperature: float = 1.0,
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Log-probability of the labelled tokens of each row; the first token of a row has none.

    Args:
        model: A causal language model; evaluated without dropout.
        rows: Token ids.
        labels: The same ids, -100 where a token does not count.
        temperature: Divides the logits.
        batch_size: Sequences at a time.

    Returns:
        One float32 tensor per row with its labelled tokens' log-probabilities, nats per token.
    """
    logps: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    was_training = model.training
    model.eval()
    head = model.get_output_embeddings() if has_plain_head(model, of_trunk=False) else None
    progress = tqdm(total=len(rows), desc="log-probabilities", unit="text", leave=False)
    for batch in length_batches(list(map(len, rows)), batch_size):
        chosen = [rows[row] for row in batch], [labels[row] for row in batch]
        for row, logps_C in zip(
            batch, _batch_logps(model, head, *chosen, temperature), strict=True
        ):
            logps[row] = logps_C
        progress.update(len(batch))
    progress.close()
    model.train(was_training)
    return logps


def perplexity(model: PreTrainedModel, rows: Ids, labels: Ids, batch_size: int = 32) -> float:
    """Perplexity: exp of the mean negative log-probability over all labelled tokens together.

    Every token has the same weight, in whatever batch or row it stands.

    Args:
        model: A causal language model.
        rows: Token ids.
        labels: The same ids, -100 where a token does not count.
        batch_size: Sequences at a time.

    Returns:
        The perplexity, 1 or more, no unit.
    """
    logps = torch.cat(label_logps(model, rows, labels, batch_size=batch_size)).double()
    return perplexity_of(-float(logps.mean()))


def perplexity_of(nats: float) -> float:
    """The perplexity of a mean negative log-probability, nats per token."""
    # A diverged model: what is beyond a float is as bad as the largest one.
    return math.exp(min(nats, LARGEST_EXPONENT))


def _batch_logps(
    model: Any, head: Any, rows: Ids, labels: Ids, temperature: float
) -> Sequence[torch.Tensor]:
    """As label_logps, of a batch: by pieces of logits with a head, without it by all of them."""
    # The mask hides the padding and nothing after a token can change it, so any id will do.
    ids_BT, mask_BT = pad_right(list(rows), 0, model.device)
    labels_BT = pad_right(list(labels), -100, model.device)[0][:, 1:]
    found: list[torch.Tensor] = []

    def pieces(head: Any, hidden_BTH: torch.Tensor, labels_BT: torch.Tensor) -> None:
        counts_BT = labels_BT != -100
        before_NH, ids_N = hidden_BTH[:, :-1][counts_BT], labels_BT[counts_BT]
        size = max(1, MAX_CHUNK_LOGITS // model.config.get_text_config().vocab_size)
        for piece_NH, piece_N in zip(before_NH.split(size), ids_N.split(size), strict=True):
            logits_NV = head(piece_NH).float().div_(temperature)
            found.append(logits_NV.log_softmax(-1).gather(-1, piece_N[:, None])[:, 0])

    def instead(head: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        pieces(head.forward, inputs[0], labels_BT)  # within the model's mixed precision
        return (inputs[0][:, :1],)

    with torch.no_grad(), head.register_forward_pre_hook(instead) if head else nullcontext():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        for row in range(0 if head else len(rows)):
            pieces(nn.Identity(), logits_BTV[row : row + 1], labels_BT[row : row + 1])
    numbers = [sum(label != -100 for label in row[1:]) for row in labels]
    return torch.cat(found).cpu().split(numbers)
