"""The plan of sampling, scoring and evaluation against the real ones, every tensor counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recipes.lib.distributed.launch import Launch
from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate, pad_left
from recipes.lib.models.likelihood import label_logps
from recipes.lib.plan import passes
from recipes.lib.plan.breakdown import CACHE
from recipes.lib.plan.measure import FakeModels, MemoryMeasure
from recipes.lib.plan.meta_models import tensors_of
from recipes.lib.plan.run_models import make_run_models
from recipes.lib.plan.sampling_phases import Sizes, sampling_bytes
from recipes.lib.recipe.main import parse
from tests.helpers.plan_reality import ALIKE
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags

ROWS, PROMPT, COMPLETION = 16, 20, 20
NO_STOP = -1  # so that every completion has its full length


def weighed(module: Any, run: Any) -> MemoryMeasure:
    """Count what a real pass takes beside the weights."""
    measure = MemoryMeasure()
    measure.forget(tensors_of(module))
    with measure:
        run()
    return measure


def scale_of(folder: Path, recipe: str, **values: Any) -> tuple[FakeModels, Any]:
    """The models of a recipe on paper, on the paths of the CPU."""
    given = {"model_name_or_path": str(folder), "dataset_name": "rows.jsonl"} | values
    config = parse(recipe, flags(given))
    fakes = FakeModels(make_run_models(config, None, None), None, on_card=False)
    with fakes.mode:
        passes.prepare(fakes, config)
    return fakes, config


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sampling_takes_what_the_plan_says(
    name: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path, tiny_tokenizer, name, **({} if name == "gpt2" else ALIKE))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [[5] * (PROMPT - row % 2) for row in range(ROWS)]
    noise = episode_uniforms(1, range(ROWS), COMPLETION)
    decoding = Decoding(COMPLETION, 1.0, NO_STOP, 0)
    real = weighed(model, lambda: generate(model, *pad_left(prompts, 0, "cpu"), noise, decoding))
    fakes, _ = scale_of(tmp_path, "sft")
    planned = sampling_bytes(fakes, Sizes(ROWS, PROMPT, COMPLETION))
    assert sum(planned.values()) == pytest.approx(real.peak, rel=0.05)


def test_a_cache_of_full_size_has_all_positions_from_the_start(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path, tiny_tokenizer, "llama", **ALIKE)
    fakes, _ = scale_of(tmp_path, "sft")
    planned = sampling_bytes(fakes, Sizes(ROWS, PROMPT, COMPLETION, is_graph=True))
    assert planned[CACHE] == 2 * 2 * ROWS * 1 * (PROMPT + COMPLETION) * 32 * 4


def test_scoring_takes_what_the_plan_says(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path, tiny_tokenizer, "llama", **ALIKE)
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "critic": "adapter"}
    lengths = {"max_prompt_length": PROMPT, "max_completion_length": COMPLETION}
    more = lora | lengths | {"reward_funcs": ["accuracy_reward"]}
    fakes, config = scale_of(tmp_path, "ppo", **more)
    planned = fakes.peak(passes.ppo_scoring(fakes, config.training, ROWS))

    from recipes.lib.models.forward import Batch
    from recipes.lib.models.policies import load_policy, lora_config
    from recipes.lib.ppo.actor_critic import reference_logps
    from recipes.lib.ppo.roles import make_roles

    adapter = lora_config(config.model, "CAUSAL_LM")
    model, reference = make_roles(load_policy(config.model), config.training, adapter)
    ids = torch.full((ROWS, PROMPT + COMPLETION), 5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0

    def score() -> None:
        with torch.no_grad():
            model.eval()
            kept = model(ids, mask, COMPLETION, 1.0)
            reference_logps(model, reference, Batch(ids, mask, COMPLETION), 1.0)
            del kept

    real = weighed(model, score)
    assert sum(planned.values()) == pytest.approx(real.peak, rel=0.02)


def test_evaluation_takes_what_the_plan_says(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path, tiny_tokenizer, "qwen3", **ALIKE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    rows = [[5] * (12 + row % 2) for row in range(ROWS)]
    real = weighed(model, lambda: label_logps(model, rows, rows, batch_size=ROWS))
    fakes, _ = scale_of(tmp_path, "sft")
    scored = passes.evaluation_pass(fakes, ROWS, 13, lambda _: torch.zeros(()))
    planned = fakes.peak(scored)
    assert sum(planned.values()) == pytest.approx(real.peak, rel=0.05)


def test_a_deep_stack_weighs_what_two_shallow_ones_tell(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    layers = {"num_hidden_layers": 9, "layer_types": None}
    for name, checkpointing in (("llama", True), ("gemma3", False)):
        folder = tmp_path / name
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 3
        more = layers | ({"layer_types": kinds} if name == "gemma3" else {})
        if name == "llama":
            more.pop("layer_types")
            more["num_hidden_layers"] = 7
        save_model(folder, tiny_tokenizer, name, **(ALIKE | more))
        lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
        fakes, config = scale_of(folder, "reward", **lora, gradient_checkpointing=checkpointing)
        loss = passes.answer_loss(fakes, ROWS, 2, 12)
        shallow = passes.training_pass(fakes, config, loss, Launch())
        fakes.is_deep = True
        deep = passes.training_pass(fakes, config, loss, Launch())
        assert sum(shallow.values()) == pytest.approx(sum(deep.values()), rel=0.005)
