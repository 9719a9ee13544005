"""The first mini-batch of a rollout has ratio 1: policy and sampler agree before any update.

Shapes: B episodes, C completion tokens.
"""

from typing import Any

import torch
from torch import Tensor

from recipes.lib.models.forward import base_model

# Log ratio (nats) that rounding explains: of any token in fp32, of the mean token in 16 bits, where
# one token among many thousands can be far off.
IN_FP32 = 1e-3
MEAN_IN_16_BITS = {torch.bfloat16: 0.1, torch.float16: 0.02}


def check_unmoved(logps_BC: Tensor, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """Compare a mini-batch before the first update with what was said when it was sampled.

    Args:
        logps_BC: Log-probabilities of the forward pass of training, nats.
        inputs: The micro-batch, with `old_logps` and `completion_mask`.
        dtype: Number format of the forward pass.

    Raises:
        RuntimeError: They differ by more than rounding explains.
    """
    mask_BC = inputs["completion_mask"]
    difference_BC = ((logps_BC.detach() - inputs["old_logps"]) * mask_BC).abs()
    if dtype in MEAN_IN_16_BITS:
        off, allowed = (difference_BC.sum() / mask_BC.sum()).item(), MEAN_IN_16_BITS[dtype]
    else:
        off, allowed = difference_BC.max().item(), IN_FP32
    if off > allowed:  # what is not finite shows in the gradients, and the step is skipped
        raise RuntimeError(
            f"The first mini-batch of rollout {inputs['rollout_number']} has a log ratio of "
            f"{off:.3g} nats where no update was made; the model scores a sequence "
            "differently in another batch, or its weights moved between sampling and training."
        )


def forward_dtype(args: Any, policy: Any) -> torch.dtype:
    """How coarse the policy's forward pass in training is, as a number format.

    Args:
        args: The configuration.
        policy: The policy.

    Returns:
        The format.
    """
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    # int8 rounds activations by what stands beside them, as coarsely as bf16.
    is_int8 = getattr(base_model(policy), "is_loaded_in_8bit", False)
    return torch.bfloat16 if is_int8 else next(policy.parameters()).dtype
