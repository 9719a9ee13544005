"""Adapters on one frozen base: which of them speaks, copies, saved ones.

A role is an adapter by its name, or None for the bare base.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.lib.errors import UserError, one_sentence
from recipes.lib.models.adapter_folders import WEIGHTS, adapter_keys

POLICY, REFERENCE, VALUE = "default", "reference", "value"
# Where PEFT keeps which adapter speaks, in its layers and above them.
ADAPTER_SWITCHES = ("_active_adapter", "_disable_adapters", "active_adapter")
HEAD = (".score.weight", ".score.bias")
BASE_SWITCHES = ("_disable_adapters",)  # the bare base leaves alone which adapter would speak


class Adapters:
    """The adapters on a model. No module, so that what holds it does not hold the base as its own.

    PEFT changes `requires_grad` whenever it changes the active adapter; here that is put back at
    once, so gradients of several adapters meet in one backward pass. It also walks through the
    whole model, and activation checkpointing enters a role in every layer; so what it set for a
    role is noted the first time and written again from then on.

    Args:
        model: The model, with the policy's adapter active.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.active: str | None = POLICY
        self.noted: dict[str | None, list[tuple[nn.Module, dict[str, Any]]]] = {}

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Let an adapter speak, or the bare base; afterwards the one before, also on errors."""
        before = self.active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        if name == self.active:
            return
        if name not in self.noted:
            self._switch_by_peft(name)
            names = BASE_SWITCHES if name is None else ADAPTER_SWITCHES
            self.noted[name] = [
                pair for module in self.model.modules() if (pair := _switches(module, names))
            ]
        for module, values in self.noted[name]:
            vars(module).update(values)  # not by setattr, which for a module takes its time
        self.active = name

    def _switch_by_peft(self, name: str | None) -> None:
        with self._flags_kept():
            tuner = self.model.base_model
            if name is None:
                tuner.disable_adapter_layers()
            else:
                if self.active is None:
                    tuner.enable_adapter_layers()
                self.model.set_adapter(name)

    @contextmanager
    def _flags_kept(self) -> Iterator[None]:
        before = [(p, p.requires_grad) for p in self.model.parameters()]
        try:
            yield
        finally:
            for parameter, flag in before:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)

    def checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Contexts of a checkpointed forward pass and of its recomputation in the backward pass.

        The recomputation comes after the role was left, so it enters the role again.
        """
        return nullcontext(), self.role(self.active)

    def add(self, name: str, config: PeftConfig, *, trainable: bool) -> None:
        """Put a new adapter on the base, which changes nothing until it is trained.

        Args:
            name: Its name.
            config: Its configuration.
            trainable: Whether its weights get gradients.

        Raises:
            UserError: PEFT cannot have it beside the others.
        """
        self.noted.clear()  # the layers of a model may be others now
        try:
            with self._flags_kept():
                self.model.add_adapter(name, dataclasses.replace(config))
        except ValueError as error:
            reason = one_sentence(error)
            raise UserError(f"the {name} adapter does not fit the policy's: {reason}.") from error
        for parameter in self.parameters(name):
            parameter.requires_grad_(trainable)

    def copy(self, name: str, source: str, *, trainable: bool) -> None:
        """Put an adapter on the base that begins as a copy of another.

        Args:
            name: Its name.
            source: Name of the other.
            trainable: Whether its weights get gradients.
        """
        self.add(name, self.model.peft_config[source], trainable=trainable)
        self.load_state(name, self.state(source))

    def load(self, name: str, folder: str | Path, *, trainable: bool) -> dict[str, Tensor]:
        """Put a saved adapter on the base, one of a language model or of a reward model.

        Args:
            name: Its name here.
            folder: Where it lies.
            trainable: Whether its weights get gradients.

        Returns:
            The weights of its score head by name; empty where it has none.

        Raises:
            UserError: It has weights for which the base has no place, lacks some, or is broken.
        """
        adapter_keys(folder)
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(Path(folder) / WEIGHTS)
        head = {
            key.rpartition(".")[2]: weights.pop(key) for key in list(weights) if key.endswith(HEAD)
        }
        self.add(name, without_head(config), trainable=trainable)
        odd = set(weights) ^ set(self.state(name))
        if odd:
            raise UserError(
                f"{folder}: its weights do not fit the base ({sorted(odd)[0]} and "
                f"{len(odd) - 1} more); it was trained on a model of another shape."
            )
        self.load_state(name, weights)
        return head

    def parameters(self, name: str) -> Iterator[nn.Parameter]:
        """Parameters of one adapter."""
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                for kind in module.adapter_layer_names:
                    part = getattr(module, kind)
                    if name in part:
                        weight = part[name]
                        is_one = isinstance(weight, nn.Parameter)
                        yield from [weight] if is_one else weight.parameters()

    def state(self, name: str) -> dict[str, Tensor]:
        """Weights of one adapter, under names in which the adapter's does not occur."""
        state: dict[str, Tensor] = get_peft_model_state_dict(
            self.model, adapter_name=name, save_embedding_layers=False
        )
        return state

    def load_state(self, name: str, state: dict[str, Tensor]) -> None:
        """Set the weights of one adapter to those of `state`."""
        set_peft_model_state_dict(self.model, dict(state), adapter_name=name)


def without_head(config: Any) -> Any:
    """The configuration of a classifier's adapter as that of one on a policy's base."""
    others = [m for m in getattr(config, "modules_to_save", None) or [] if m != "score"]
    return dataclasses.replace(
        config, task_type="CAUSAL_LM", modules_to_save=others or None, inference_mode=False
    )


def _switches(module: nn.Module, names: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]] | None:
    """A module, and what of its attributes says which adapter speaks; None without any."""
    kind = type(module)
    values = {
        name: getattr(module, name)
        for name in names
        if hasattr(module, name) and not isinstance(getattr(kind, name, None), property)
    }
    return (module, values) if values else None
