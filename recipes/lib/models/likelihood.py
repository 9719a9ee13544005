"""Log-probabilities of given completions: the ground of perplexity and of KL between models.

Shapes: B sequences, T tokens, C completion tokens, V vocabulary. Units: nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from recipes.lib.models.forward import length_batches, pad_right

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
    progress = tqdm(total=len(rows), desc="log-probabilities", unit="text", leave=False)
    for batch in length_batches(list(map(len, rows)), batch_size):
        logps_BT = _batch_logps(model, [rows[row] for row in batch], temperature)
        for row, row_logps in zip(batch, logps_BT, strict=True):
            counted = torch.tensor(labels[row][1:], dtype=torch.long) != -100
            logps[row] = row_logps[: len(counted)][counted]
        progress.update(len(batch))
    progress.close()
    model.train(was_training)
    return logps


def perplexity(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    labels: Sequence[list[int]],
    batch_size: int = 32,
) -> float:
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
    # A diverged model: what is beyond a float is as bad as the largest one.
    return math.exp(min(-float(logps.mean()), LARGEST_EXPONENT))


def _batch_logps(
    model: PreTrainedModel, rows: Sequence[list[int]], temperature: float
) -> torch.Tensor:
    # The mask hides the padding and nothing after a token can change it, so any id will do.
    ids_BT, mask_BT = pad_right(list(rows), 0, model.device)
    with torch.no_grad():
        outputs = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        logits_BTV = outputs.logits[:, :-1]
        # One row at a time: in float32 the logits of a whole batch can be larger than the model.
        logps_BT = [
            (logits_TV.float() / temperature).log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0]
            for logits_TV, ids_T in zip(logits_BTV, ids_BT, strict=True)
        ]
    return torch.stack(logps_BT).cpu()
