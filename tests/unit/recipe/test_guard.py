"""Memory of a card is taken in segments that grow, unless the user or vLLM wants it otherwise."""

from typing import Any

import pytest
import torch

from recipes.lib.recipe.guard import _prepare_card, set_expandable_segments
from recipes.lib.recipe.main import parse
from tests.helpers.tiny_runs import flags

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PyTorch is asked for on a machine that seems to have a card."""
    found: list[str] = []
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", found.append)
    return found


def test_pytorch_takes_it_and_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_expandable_segments()  # a warning is an error here
    assert "expandable_segments:True" in torch._C._accelerator_getAllocatorSettings()
    set_expandable_segments(False)
    assert "expandable_segments:False" in torch._C._accelerator_getAllocatorSettings()


def test_segments_grow_where_nobody_wishes_otherwise(asked: list[str]) -> None:
    set_expandable_segments()
    assert asked == ["expandable_segments:True"]


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("wish", ["expandable_segments:False", "max_split_size_mb:128"])
def test_a_wish_of_the_user_is_left_alone(
    name: str, wish: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, wish)
    set_expandable_segments()
    assert asked == []


def test_an_empty_wish_is_none(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    set_expandable_segments()
    assert len(asked) == 1


def test_nothing_is_asked_without_a_card(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_expandable_segments()
    assert asked == []


@pytest.mark.parametrize(
    ("recipe", "keys", "grows"),
    [
        ("sft", {}, True),
        ("ppo", {"reward_funcs": "r.py:f"}, True),
        ("ppo", {"reward_funcs": "r.py:f", "sampler": "graph"}, True),
        ("ppo", {"reward_funcs": "r.py:f", "sampler": "vllm"}, False),
        ("ppo", {"reward_funcs": "r.py:f", "vllm_server_base_url": "http://node:8000"}, True),
        ("grpo", {"reward_funcs": "r.py:f"}, True),
        ("grpo", {"reward_funcs": "r.py:f", "use_vllm": True}, False),
        ("rloo", {"reward_funcs": "r.py:f", "use_vllm": True}, False),
    ],
)
def test_a_recipe_asks_for_it_but_beside_vllm(
    recipe: str, keys: dict[str, Any], grows: bool, asked: list[str]
) -> None:
    words = flags({"dataset_name": "rows.jsonl"} | keys)
    with pytest.MonkeyPatch.context() as patch:  # the defaults of this machine have no card
        patch.setattr(torch.cuda, "is_available", lambda: False)
        config = parse(recipe, words)
    _prepare_card(config)
    assert asked == [f"expandable_segments:{grows}"]
