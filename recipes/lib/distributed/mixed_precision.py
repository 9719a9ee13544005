"""Mixed precision of shards as fine as DDP's: what a model says is not rounded on its way out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FP32Linear(nn.Linear):
    """A linear layer that computes in fp32 whatever its weights were gathered in."""

    def forward(self, input: Tensor) -> Tensor:
        """Product with the weight, and the bias."""
        bias = self.bias.float() if self.bias is not None else None
        return functional.linear(input.float(), self.weight.float(), bias)


def keep_outputs_fp32(trainer: Any, head: nn.Module | None = None) -> None:
    """Keep what a model says in the format it says it in, and a head's products in fp32.

    Under FSDP2 accelerate rounds what comes out of a model to the 16 bits it computes in. Of
    log-probabilities that is up to 0.03 nats, which is no small part of what PPO clips a ratio at;
    of a loss in the logs, all but three digits. DeepSpeed turns all weights to 16 bits, those of a
    head too.

    Args:
        trainer: A Resumable trainer that has not wrapped its model yet.
        head: A module whose linear layers compute in fp32, on weights that were rounded on their
            way between processes; None for none.
    """
    accelerator = trainer.accelerator
    if accelerator.mixed_precision == "no":
        return
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin = accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=policy.param_dtype,
            reduce_dtype=torch.float32 if trainer.sums_in_fp32 else policy.reduce_dtype,
        )
    elif not trainer.is_deepspeed_enabled:
        return
    for module in head.modules() if head is not None else ():
        if isinstance(module, nn.Linear):
            module.__class__ = FP32Linear  # as it is: names and what is saved stay


def cast_like_trained(trainer: Any, model: nn.Module | None) -> None:
    """Turn a frozen model's weights to the format that the trained ones compute in.

    In 16 bits DeepSpeed turns the trained weights to them and FSDP2 gathers them so, where an
    autocast would leave some in fp32; a reference would differ from the first step on.

    Args:
        trainer: A transformers Trainer.
        model: The model, which goes to the trainer's device, too; its buffers, as those of
            positions, stay as fine as they are. None for none.
    """
    if model is None:
        return
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = formats.get(trainer.accelerator.mixed_precision)
    if (trainer.is_deepspeed_enabled or trainer.accelerator.is_fsdp2) and dtype is not None:
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)
    model.to(trainer.args.device)
