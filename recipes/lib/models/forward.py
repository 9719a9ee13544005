"""One forward pass over prompts with their completions: log-probabilities, entropies, values.

Log-probabilities come in pieces, without the logits of a whole batch in memory.

Shapes: B sequences, T tokens, C completion tokens, N tokens that count, H hidden units, V
vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

LOWEST = -1e30  # stands for log 0, so that 0 times it is 0
# Numbers in fp32 logits at a time: 256 MiB. Larger pieces bring no speed, smaller ones cost some.
MAX_CHUNK_LOGITS = 2**26


PROBE_SCALE = 64.0  # a power of two, which rounds nothing
# Keys of configurations by which models change what the head says.
LOGIT_SCALING_KEYS = (
    "final_logit_softcapping logit_scale logits_scaling output_multiplier "
    "lm_head_multiplier".split()
)


class Batch:
    """Prompts with their completions, as the models take them.

    Args:
        input_ids: Prompts and completions, (B, T).
        attention_mask: 1 where a token is, (B, T).
        num_completion_tokens: C, the columns of the completions at the end.
    """

    def __init__(
        self, input_ids: Tensor, attention_mask: Tensor, num_completion_tokens: int
    ) -> None:
        self.num_completion_tokens = num_completion_tokens
        self.completion_ids = input_ids[:, -num_completion_tokens:]
        self.completion_mask = attention_mask[:, -num_completion_tokens:]
        self.inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids(attention_mask),
            "use_cache": False,
        }

    def before(self, of_tokens: Tensor) -> Tensor:
        """Of something for every token, what stands before each completion token."""
        return of_tokens[:, -self.num_completion_tokens - 1 : -1]


def policy_outputs(
    policy: Any,
    batch: Batch,
    temperature: float,
    with_gradient: bool,
    plain_head: bool,
    contexts: Any = noop_context_fn,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a language model says of completions.

    Args:
        policy: The model.
        batch: Prompts and completions.
        temperature: Temperature that the completions were sampled at.
        with_gradient: Whether the entropies have a gradient.
        plain_head: What `has_plain_head` said of the model.
        contexts: As in `chunked_logps`.

    Returns:
        Log-probabilities and entropies (B, C), nats per token, and the trunk's output (B, C, H)
        before each completion token.
    """
    model, kept = base_model(policy), batch.num_completion_tokens + 1
    head = model.get_output_embeddings()
    if plain_head:
        hidden = batch.before(trunk_of(model)(**batch.inputs).last_hidden_state)
        from_hidden = hidden
    else:
        caught: list[Tensor] = []
        with head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])):
            from_hidden = model(**batch.inputs, logits_to_keep=kept).logits[:, :-1]
        hidden, head = batch.before(caught[0]), nn.Identity()
    logps, entropy = chunked_logps(
        head,
        from_hidden,
        batch.completion_ids,
        batch.completion_mask,
        temperature=temperature,
        with_gradient=with_gradient,
        vocab_size=model.config.get_text_config().vocab_size,
        contexts=contexts,
    )
    return logps, entropy, hidden


def base_model(model: Any) -> Any:
    """The model below PEFT's wrapper, its adapters in it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trunk_of(model: Any) -> Any:
    """The part of a model that comes before its head."""
    model = base_model(model)
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def has_plain_head(model: Any, *, of_trunk: bool = True) -> bool:
    """Whether logits are what the head makes of the trunk's output, with nothing done to them.

    Args:
        model: Causal language model.
        of_trunk: Whether the head has to be given the trunk's output; else whatever it is given.

    Returns:
        Whether that holds to the bit, for an output that is made large: what caps logits leaves
        small ones as they are, but for rounding.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if embeddings.weight.is_meta:  # a plan: there are no numbers to compare
        text = model.config.get_text_config()
        return all(getattr(text, key, None) in (None, 1.0) for key in LOGIT_SCALING_KEYS)
    last = model.config.get_text_config().vocab_size - 1
    # Several tokens: the embedding of padding is zero, and of zero every head makes zero.
    ids = torch.linspace(0, last, 8, device=embeddings.weight.device).long().unsqueeze(0)
    seen: list[Tensor] = []

    def enlarge(head: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        large = inputs[0] * PROBE_SCALE
        seen.extend((inputs[0], head.forward(large)))
        return (large,)

    with head.register_forward_pre_hook(enlarge):
        logits = model(input_ids=ids, use_cache=False).logits
    given, made = seen
    if of_trunk:
        hidden = trunk_of(model)(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.equal(given, hidden):
            return False
    # Behind mixed precision accelerate has made fp32 of the logits.
    return bool(given.any()) and torch.equal(made.float(), logits.float())


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count tokens and not padding: equal for a sequence in any batch."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def pad_right(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of tokens, aligned at their beginnings."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids.to(device), mask.to(device)


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of rows in batches of like length, the shortest first, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]


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


def chunked_logps(
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
    size = max(1, MAX_CHUNK_LOGITS // vocab_size)
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
