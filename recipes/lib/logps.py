"""Log-probabilities and entropies of given tokens, without the logits of a whole batch in memory.

Shapes: B sequences, C completion tokens, N tokens that count, H hidden units, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, noop_context_fn

LOWEST = -1e30  # stands for log 0, so that 0 times it is 0
# Numbers in fp32 logits at a time: 256 MiB. Larger pieces bring no speed, smaller ones cost some.
MOST_LOGITS = 2**26


def logps_and_entropy(
    logits_BCV: Tensor, ids_BC: Tensor, temperature: float, with_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of each distribution, in fp32.

    Args:
        logits_BCV: Logits that predict each token.
        ids_BC: The tokens.
        temperature: Temperature they were sampled at.
        with_gradient: Whether the entropies have one, which only an entropy bonus needs.

    Returns:
        Log-probabilities and entropies, nats per token.
    """
    scaled_BCV = logits_BCV.float()
    if temperature != 1.0:  # a pass over all logits, and another one backward
        scaled_BCV = scaled_BCV / temperature
    log_probs_BCV = scaled_BCV.log_softmax(-1)
    with torch.set_grad_enabled(with_gradient and torch.is_grad_enabled()):
        entropy_BC = -(log_probs_BCV.exp() * log_probs_BCV.clamp(min=LOWEST)).sum(-1)
    return log_probs_BCV.gather(-1, ids_BC.unsqueeze(-1)).squeeze(-1), entropy_BC


def in_pieces(
    head: Callable[[Tensor], Tensor],
    hidden_BCH: Tensor,
    ids_BC: Tensor,
    mask_BC: Tensor,
    *,
    temperature: float,
    with_gradient: bool,
    vocab_size: int,
    contexts: Callable[[], Any] = noop_context_fn,
) -> tuple[Tensor, Tensor]:
    """The same from what goes into the language model's head, a piece at a time.

    The head sees only the tokens that count. Where there are several pieces, the backward pass
    makes the logits of each again instead of keeping them.

    Args:
        head: Makes logits of hidden states.
        hidden_BCH: Hidden states that predict each token.
        ids_BC: The tokens.
        mask_BC: 1 where a token counts; somewhere it does.
        temperature: Temperature they were sampled at.
        with_gradient: Whether the entropies have one.
        vocab_size: V.
        contexts: Makes the contexts of a forward pass and of its recomputation.

    Returns:
        Log-probabilities and entropies, nats per token; 0 where a token does not count.
    """

    def piece(hidden_NH: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden_NH)
        with torch.autocast(logits_NV.device.type, enabled=False):
            return logps_and_entropy(logits_NV, ids_N, temperature, with_gradient)

    counts_BC = mask_BC.bool()
    hidden_NH, ids_N = hidden_BCH[counts_BC], ids_BC[counts_BC]
    size = max(1, MOST_LOGITS // vocab_size)
    parts = list(zip(hidden_NH.split(size), ids_N.split(size), strict=True))
    if len(parts) == 1:
        said = [piece(*parts[0])]
    else:
        again: dict[str, Any] = {"preserve_rng_state": False, "context_fn": contexts}
        said = [checkpoint(piece, *part, use_reentrant=False, **again) for part in parts]
    nothing_BC = torch.zeros(ids_BC.shape, dtype=torch.float32, device=ids_BC.device)
    logps_BC, entropy_BC = (
        nothing_BC.masked_scatter(counts_BC, torch.cat(column))
        for column in zip(*said, strict=True)
    )
    return logps_BC, entropy_BC
