"""What a plan is put together from: shapes of a model, parts of a batch, bytes of tensors."""

from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from recipes.lib.distributed.launch import Launch
from recipes.lib.errors import UserError
from recipes.lib.plan.breakdown import ACTIVATIONS
from recipes.lib.plan.measure import MemoryMeasure
from recipes.lib.plan.model_shapes import find_source
from recipes.lib.plan.options import _divide
from recipes.lib.plan.planner import _gathered
from recipes.lib.plan.sampling_phases import _full_cache
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import parse


def test_a_run_to_come_whose_file_names_no_model_has_no_shapes(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/mine.yaml").write_text("learning_rate: 1.0e-5\n")
    with pytest.raises(UserError, match=r"no such run yet, and mine\.yaml does not say from which"):
        find_source("runs/sft/mine", "main", tmp_path)


def test_two_processes_do_half_of_the_steps_of_one_generation_each() -> None:
    values = {"gradient_accumulation_steps": 8, "steps_per_generation": 8, "bf16": False}
    config = parse("grpo", [], values | {"reward_funcs": ["my/reward"], "use_cpu": True})
    _divide(config, 2)
    training = config.training
    assert (training.gradient_accumulation_steps, training.steps_per_generation) == (4, 4)


def test_a_tensor_of_before_is_not_counted_whatever_it_becomes() -> None:
    before = torch.zeros(600)
    with MemoryMeasure() as measure:
        made = torch.zeros(600)  # 2,400 bytes in blocks of 512
        for tensor in (before, made):
            measure.label(tensor, ACTIVATIONS)
    assert {kind: size for kind, size in measure.now.items() if size} == {ACTIVATIONS: 2560}


def test_two_layers_and_what_is_no_layer_are_whole_at_a_time() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(10, 4)})
    model["layers"] = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(3))
    model["value_head"] = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False))
    on_two = Target(Launch("fsdp2", 2))
    assert _gathered(model, on_two, whole=False) == 4 * (10 * 4 + 4 + 2 * 16)
    assert _gathered(model, on_two, whole=True) == 4 * (10 * 4 + 4 + 3 * 16)
    assert _gathered(model, Target(), whole=True) == 0


def test_a_full_cache_holds_no_more_than_the_window_of_a_layer() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = MistralForCausalLM(MistralConfig(vocab_size=61, sliding_window=8, **sizes, **heads))
    with MemoryMeasure() as measure:
        cache = _full_cache(measure, model, 2, 24)
    assert cache.layers[0].keys.shape == (2, 1, 7, 16)  # the eighth is the token in hand
