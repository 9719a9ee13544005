"""Switching roles leaves PEFT's layers as PEFT's own switches would, without its walk each time."""

import copy
import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from recipes.lib.models.adapters import POLICY, REFERENCE, VALUE, Adapters
from tests.helpers import tiny

ROLES = [POLICY, REFERENCE, VALUE, None]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


def config_of(kind: str) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **KINDS[kind])


def roles(kind: str = "lora", **sizes: Any) -> Adapters:
    """Policy and value are trained, the reference is frozen."""
    adapters = Adapters(get_peft_model(tiny.llama(**sizes), config_of(kind)))
    adapters.add(REFERENCE, config_of(kind), trainable=False)
    adapters.add(VALUE, config_of(kind), trainable=True)
    return adapters


def by_peft(model: PeftModel, name: str | None) -> None:
    """The same switch with PEFT's functions alone."""
    if name is None:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(name)


def reported(model: PeftModel) -> list[Any]:
    """What PEFT says of a model and of each of its layers."""
    layers = [
        (name, module.active_adapters, module.disable_adapters)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    ]
    assert len(layers) >= 4
    return [model.active_adapter, model.active_adapters, model.base_model.active_adapters, *layers]


def flags(adapters: Adapters) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in adapters.model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reports_what_its_own_switches_would_make(kind: str) -> None:
    ours = roles(kind)
    twin, before, drawn = copy.deepcopy(ours.model), flags(ours), random.Random(0)
    for _ in range(60):
        outer, inner = drawn.choice(ROLES), drawn.choice(ROLES)
        with ours.role(outer):
            by_peft(twin, outer)
            assert reported(ours.model) == reported(twin)
            with ours.role(inner):
                by_peft(twin, inner)
                assert reported(ours.model) == reported(twin)
                assert flags(ours) == before
            by_peft(twin, outer)
            assert reported(ours.model) == reported(twin)
        by_peft(twin, POLICY)
        assert reported(ours.model) == reported(twin)
    assert flags(ours) == before
    trained = {name for name, is_trained in before.items() if is_trained}
    assert {name.split(".")[-2] for name in trained if "lora_A" in name} == {POLICY, VALUE}


@pytest.mark.parametrize("kind", ["lora", "modules_to_save"])
def test_an_adapter_that_comes_later_is_switched_to_like_the_others(kind: str) -> None:
    ours = roles(kind)
    twin = copy.deepcopy(ours.model)
    for name in ROLES:
        with ours.role(name):
            pass
    before = flags(ours)
    ours.add("reward", config_of(kind), trainable=False)
    twin.add_adapter("reward", dataclasses.replace(config_of(kind)))
    after = flags(ours)
    assert {name: after[name] for name in before} == before
    assert not any(flag for name, flag in after.items() if name not in before)
    for name in ["reward", VALUE, None, "reward", POLICY, "reward"]:
        with ours.role(name):
            by_peft(twin, name)
            assert reported(ours.model) == reported(twin)
            assert flags(ours) == after
        by_peft(twin, POLICY)
        assert reported(ours.model) == reported(twin)


def test_an_error_inside_a_role_brings_the_one_before_back() -> None:
    ours = roles("modules_to_save")
    untouched, before = reported(ours.model), flags(ours)
    for names in ([VALUE], [VALUE, None], [None, REFERENCE, VALUE]):
        with pytest.raises(RuntimeError, match="in the middle"):
            enter(ours, names)
        assert ours.active == POLICY
        assert reported(ours.model) == untouched
        assert flags(ours) == before


def enter(adapters: Adapters, names: list[str | None]) -> None:
    if not names:
        raise RuntimeError("in the middle")
    with adapters.role(names[0]):
        enter(adapters, names[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_role_computes_is_what_peft_computes(kind: str) -> None:
    ours = roles(kind)
    tiny.shake(ours.model, 0.3)
    twin, ids = copy.deepcopy(ours.model).eval(), torch.tensor([[4, 5, 6, 7]])
    ours.model.eval()
    seen = []
    for name in [VALUE, None, REFERENCE, POLICY, None, VALUE]:
        by_peft(twin, name)
        with torch.no_grad(), ours.role(name):
            seen.append(ours.model(ids).logits)
            assert torch.equal(seen[-1], twin(ids).logits)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert torch.equal(seen[0], seen[-1])


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often anything walked through a model or let PEFT do it."""
    counted: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args: Any, **named: Any) -> Any:
            counted[name] += 1
            return real(*args, **named)

        monkeypatch.setattr(owner, name, counting)

    count(nn.Module, "named_modules")  # modules() and named_parameters() go through it
    count(PeftModel, "set_adapter")
    return counted


def test_a_role_that_was_entered_once_costs_no_walk_through_the_model(
    walks: Counter[str],
) -> None:
    ours = roles()
    for name in ROLES:
        with ours.role(name):
            pass
    assert walks["named_modules"] > 0
    assert walks["set_adapter"] > 0
    walks.clear()
    for _ in range(50):
        for name in ROLES:
            with ours.role(name):
                pass
    assert walks == Counter()


@pytest.mark.parametrize("number", [2, 6])
def test_activation_checkpointing_enters_a_role_in_every_layer_without_a_walk(
    number: int, walks: Counter[str]
) -> None:
    ours = roles(num_hidden_layers=number)
    of_base = ours.model.get_base_model()
    of_base.gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": ours.checkpoint_contexts}
    )
    of_base.enable_input_require_grads()
    of_base.train()
    entered: list[str | None] = []
    real = ours._switch

    def noted(name: str | None) -> None:
        entered.append(name)
        real(name)

    ours._switch = noted  # type: ignore[method-assign]

    def step() -> None:
        with ours.role(VALUE):
            loss = ours.model(torch.tensor([[4, 5, 6, 7]])).logits.sum()
        loss.backward()

    step()
    walks.clear()
    entered.clear()
    step()
    # The role and back; in the backward pass again for each layer.
    assert entered == [VALUE, POLICY] * (1 + number)
    assert walks["set_adapter"] == 0
    first = walks["named_modules"]
    entered.clear()
    step()
    assert walks["named_modules"] == 2 * first
    assert first <= 2
