"""The roles of a PPO run behind one module: policy, value and reference.

What is trained (policy and critic) is one module with one forward, so that DDP sees one model.
The critic is a head on the policy's trunk, an adapter with a head, or a model of its own; the
reference is a frozen copy, a frozen adapter, or the policy with its adapter off.

Shapes: B sequences, T tokens, C completion tokens, H hidden units.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from recipes.lib.errors import UserError
from recipes.lib.models.adapters import REFERENCE, VALUE, Adapters
from recipes.lib.models.forward import Batch, base_model, has_plain_head, policy_outputs, trunk_of
from recipes.lib.models.policies import disable_4bit_packing

ROUNDING = 1e-6  # relative, of equal fp32 numbers
MOST_UNITS = 1024  # of the value head's hidden layer, so that its optimizer stays small


class ActorCritic(nn.Module):
    """Policy and critic.

    Args:
        policy: Causal language model; a PeftModel with a `value` adapter brings its critic along.
        critic: A sequence classifier with one output; None for a value head on the policy's trunk,
            seen through the `value` adapter where there is one.
    """

    value_offset: Tensor
    value_scale: Tensor

    def __init__(self, policy: Any, critic: Any = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.adapters = Adapters(policy) if isinstance(policy, PeftModel) else None
        disable_4bit_packing(self)
        self.has_plain_head = has_plain_head(base_model(policy))
        self.value_head = None if critic is not None else make_value_head(policy, hidden=True)
        # What a critic that starts from nothing says is in these units: see `begin_values`.
        self.register_buffer("value_offset", torch.zeros(()))
        self.register_buffer("value_scale", torch.ones(()))
        self.config = policy.config  # Trainer looks here
        self._no_split_modules = policy._no_split_modules  # and FSDP here, for what it wraps

    @property
    def value_adapters(self) -> Adapters | None:
        """The adapters, where the critic is one of them."""
        has_value = self.adapters is not None and VALUE in self.adapters.model.peft_config
        return self.adapters if has_value else None

    @property
    def critic_module(self) -> nn.Module:
        """What of the critic is a module of its own: a model, or a head."""
        module = self.critic if self.critic is not None else self.value_head
        assert module is not None
        return module

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_completion_tokens: int,
        temperature: float,
        with_entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What policy and critic say of the completions.

        Args:
            input_ids: Prompts and completions, (B, T).
            attention_mask: 1 where a token is, (B, T).
            num_completion_tokens: C, the columns of the completions at the end.
            temperature: Temperature that the completions were sampled at.
            with_entropy_gradient: Whether the entropies have a gradient.

        Returns:
            Log-probability of each completion token and entropy of the policy before it (nats per
            token), and the value of the state before it, each (B, C) and in fp32.
        """
        batch = Batch(input_ids, attention_mask, num_completion_tokens)
        logps, entropy, hidden = policy_outputs(
            self.policy, batch, temperature, with_entropy_gradient, self.has_plain_head, self._again
        )
        if self.critic is not None:
            values = token_values(self.critic, input_ids, attention_mask)
            return logps, entropy, self._in_units(batch.before(values))
        if self.value_adapters is not None:
            with self.value_adapters.role(VALUE):
                hidden = batch.before(trunk_of(self.policy)(**batch.inputs).last_hidden_state)
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.critic_module(hidden.float()).squeeze(-1)
        return logps, entropy, self._in_units(values)

    @torch.no_grad()
    def pass_through(self) -> None:
        """Make a forward pass of next to nothing through policy and critic."""
        ids = torch.zeros((1, 2), dtype=torch.long, device=self.value_scale.device)
        self(ids, torch.ones_like(ids), 1, 1.0)

    def _again(self) -> Any:
        """Contexts of a checkpointed forward pass and of its recomputation."""
        return self.adapters.checkpoint_contexts() if self.adapters else noop_context_fn()

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
        self.value_scale.fill_(nonzero_std(scores))
        return plain * self.value_scale.cpu() + self.value_offset.cpu()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters that only the value loss moves."""
        yield from (p for p in self.critic_module.parameters() if p.requires_grad)
        if self.value_adapters is not None:
            yield from self.value_adapters.parameters(VALUE)

    def hold_policy(self) -> None:
        """Drop the gradients of all that the policy says its words with, and not of the critic."""
        of_critic = {id(parameter) for parameter in self.critic_parameters()}
        for parameter in self.parameters():
            if id(parameter) not in of_critic:
                # None and not 0: the value loss moves a shared trunk, and weight decay all there is
                parameter.grad = None

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Switch activation checkpointing on in both models (called by Trainer).

        Raises:
            UserError: It is reentrant and several adapters are trained.
        """
        how = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})
        if self.value_adapters is not None:
            if how["use_reentrant"]:
                raise UserError(
                    "gradient_checkpointing_kwargs={'use_reentrant': True} loses gradients where "
                    "several adapters are trained (critic=adapter); leave use_reentrant out."
                )
            how["context_fn"] = self._again
        for model in (self.policy, self.critic):
            if model is not None:
                base_model(model).activation_checkpointing_enable(how, **kwargs)
        if isinstance(self.policy, PeftModel):
            # The inputs of a frozen trunk need gradients, or a checkpoint cuts the adapters off.
            self.policy.enable_input_require_grads()


def reference_logps(
    actor_critic: ActorCritic, reference: Any, batch: Batch, temperature: float
) -> Tensor:
    """Log-probabilities of the model that the run started from.

    Args:
        actor_critic: Policy and critic.
        reference: A frozen copy of the policy; None where adapters are trained: then it is the
            `reference` adapter, or the bare base.
        batch: Prompts and completions.
        temperature: Temperature that the completions were sampled at.

    Returns:
        Log-probability of each completion token, (B, C), nats.
    """
    plain, adapters = actor_critic.has_plain_head, actor_critic.adapters
    if reference is not None:
        return policy_outputs(reference, batch, temperature, False, plain)[0]
    assert adapters is not None
    with adapters.role(REFERENCE if REFERENCE in adapters.model.peft_config else None):
        return policy_outputs(actor_critic.policy, batch, temperature, False, plain)[0]


def make_reference(policy: Any) -> Any:
    """Frozen copy of a policy; None where an adapter can be switched off instead."""
    if isinstance(policy, PeftModel):
        return None
    return copy.deepcopy(policy).eval().requires_grad_(False)


def nonzero_std(values: Tensor, if_equal: float = 1.0) -> float:
    """Standard deviation of numbers; another number where all are equal but for rounding."""
    deviation = values.double().std(correction=0).item()
    least = ROUNDING * max(1.0, abs(values.mean().item()))
    return deviation if deviation > least else if_equal


def token_values(critic: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Output of a sequence classifier's head at every token, (B, T), in fp32."""
    batch = Batch(input_ids, attention_mask, 1)
    hidden = trunk_of(critic)(**batch.inputs).last_hidden_state
    return base_model(critic).score(hidden).squeeze(-1).float()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: the modules, and the rates that attention code reads by itself."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def make_value_head(policy: Any, *, hidden: bool) -> nn.Sequential:
    """A value head whose first values are 0 and not noise, in fp32 whatever the trunk is.

    Args:
        policy: The model whose trunk it reads.
        hidden: Whether there is a hidden layer. A trunk that the policy owns is not moved far for
            the values' sake, so its head has to do more; a trunk of its own needs none.

    Returns:
        The head, from (..., H) to (..., 1).
    """
    size = policy.config.get_text_config().hidden_size
    last = nn.Linear(min(4 * size, MOST_UNITS) if hidden else size, 1, dtype=torch.float32)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if not hidden:
        return nn.Sequential(last)
    return nn.Sequential(nn.Linear(size, last.in_features, dtype=torch.float32), nn.GELU(), last)
