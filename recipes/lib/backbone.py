"""The roles of a PPO run behind one module: policy, value and reference.

What is trained (policy and critic) is one module with one forward, so that DDP sees one model.
Today the critic is a head on the policy's trunk or a model of its own; the reference is a frozen
copy, or the policy with its adapter off. Roles that share one frozen base enter here.

Shapes: B sequences, T tokens, C completion tokens, H hidden units, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

ROUNDING = 1e-6  # relative, of equal fp32 numbers


class ActorCritic(nn.Module):
    """Policy and critic.

    Args:
        policy: Causal language model.
        critic: None for a head on the policy's trunk; else a sequence classifier with one output.
    """

    value_offset: Tensor
    value_scale: Tensor

    def __init__(self, policy: Any, critic: Any = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.value_head = None if critic is not None else _zero_head(policy)
        # What a critic that starts from nothing says is in these units: see `begin_values`.
        self.register_buffer("value_offset", torch.zeros(()))
        self.register_buffer("value_scale", torch.ones(()))
        self.config = policy.config  # Trainer looks here

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, num_completion_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of the completions.

        Args:
            input_ids: Prompts and completions, (B, T).
            attention_mask: 1 where a token is, (B, T).
            num_completion_tokens: C, the columns of the completions at the end.

        Returns:
            Logits (B, C, V) that predict each completion token and values (B, C) of the state
            before each, in fp32.
        """
        inputs = _inputs(input_ids, attention_mask, num_completion_tokens)
        if self.critic is not None:
            logits = self.policy(**inputs).logits[:, :-1]
            values = token_values(self.critic, input_ids, attention_mask)
            return logits, self._in_units(values[:, -num_completion_tokens - 1 : -1])
        with _head_input(self.policy) as caught:
            logits = self.policy(**inputs).logits[:, :-1]
        assert self.value_head is not None
        hidden = caught[0][:, :-1].to(self.value_head.weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return logits, self._in_units(self.value_head(hidden).squeeze(-1).float())

    def _in_units(self, values: Tensor) -> Tensor:
        return values * self.value_scale + self.value_offset

    def begin_values(self, scores: Tensor, values: Tensor) -> Tensor:
        """Let a critic of zeros begin at the mean of the first scores, in units of their spread.

        So it learns as fast whatever the centre and the scale of the rewards. A critic from a
        reward model keeps the units of that model, and takes time to find others.

        Args:
            scores: Scores of a rollout.
            values: What the critic said of it in its units until now, on the CPU.

        Returns:
            The same in the units from now on.
        """
        plain = (values - self.value_offset.cpu()) / self.value_scale.cpu()
        self.value_offset.fill_(scores.mean())
        self.value_scale.fill_(spread(scores))
        return plain * self.value_scale.cpu() + self.value_offset.cpu()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters that only the value loss moves."""
        module = self.critic if self.critic is not None else self.value_head
        assert module is not None
        return (p for p in module.parameters() if p.requires_grad)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Switch activation checkpointing on in both models (called by Trainer)."""
        for model in (self.policy, self.critic):
            if model is not None:
                base = model.get_base_model() if isinstance(model, PeftModel) else model
                base.activation_checkpointing_enable(**kwargs)
        if isinstance(self.policy, PeftModel):
            # The inputs of a frozen trunk need gradients, or a checkpoint cuts the adapters off.
            self.policy.enable_input_require_grads()


def reference_logits(
    policy: Any,
    reference: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_completion_tokens: int,
) -> Tensor:
    """Logits of the model that the run started from.

    Args:
        policy: The policy.
        reference: A frozen copy, or None to switch the policy's adapter off.
        input_ids: Prompts and completions, (B, T).
        attention_mask: 1 where a token is, (B, T).
        num_completion_tokens: C, the columns of the completions at the end.

    Returns:
        Logits (B, C, V) that predict each completion token.
    """
    inputs = _inputs(input_ids, attention_mask, num_completion_tokens)
    if reference is not None:
        return reference(**inputs).logits[:, :-1]
    with policy.disable_adapter():
        return policy(**inputs).logits[:, :-1]


def make_reference(policy: Any) -> Any:
    """Frozen copy of a policy; None where an adapter can be switched off instead."""
    if isinstance(policy, PeftModel):
        return None
    return copy.deepcopy(policy).eval().requires_grad_(False)


def spread(values: Tensor, if_equal: float = 1.0) -> float:
    """Standard deviation of numbers; another number where all are equal but for rounding."""
    deviation = values.double().std(correction=0).item()
    least = ROUNDING * max(1.0, abs(values.mean().item()))
    return deviation if deviation > least else if_equal


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count tokens and not padding: equal for a sequence in any batch."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def token_values(critic: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Output of a sequence classifier's head at every token, (B, T), in fp32."""
    model = critic.get_base_model() if isinstance(critic, PeftModel) else critic
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
    ).last_hidden_state
    return model.score(hidden).squeeze(-1).float()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: the modules, and the rates that attention code reads by itself."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def keep_unpacked(model: Any) -> None:
    """Stop bitsandbytes from packing 4-bit weights for evaluation, which lets no gradient through.

    On CPUs with AVX512-BF16 it packs at the first evaluation and does not undo it for training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _inputs(
    input_ids: Tensor, attention_mask: Tensor, num_completion_tokens: int
) -> dict[str, Any]:
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids(attention_mask),
        "logits_to_keep": num_completion_tokens + 1,
        "use_cache": False,
    }


def _zero_head(policy: Any) -> nn.Linear:
    # Zero, so that the first values are 0 and not noise; fp32 whatever the trunk is.
    head = nn.Linear(policy.config.get_text_config().hidden_size, 1, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


@contextmanager
def _head_input(policy: Any) -> Iterator[list[Tensor]]:
    """Catch what goes into the language model's head: the trunk's output at the kept positions."""
    caught: list[Tensor] = []
    handle = policy.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0])
    )
    try:
        yield caught
    finally:
        handle.remove()
