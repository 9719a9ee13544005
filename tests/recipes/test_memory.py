"""Memory that really runs out in a run: it says where, saves, and goes on as it says."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.errors import UserError, is_memory
from recipes.lib.runs.checkpoints import checkpoint_fault, list_checkpoints
from recipes.lib.runs.files import read_jsonl
from recipes.lib.trainers import progress
from recipes.lib.trainers.out_of_memory import PLACES, place_of, smaller_run_flags
from tests.helpers.memory_limit import Hungry, HungryBackward, room_for, take
from tests.helpers.stopped_runs import SAMPLING, assert_same_runs, furnish, train


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return furnish(tmp_path, tiny_model, tiny_tokenizer)


# What a step moves is in proportion to its gradient, which another micro-batch may not change.
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
SFT = {"num_samples": 2}  # completed at the end, all at a time
ROLLOUTS = {"eval_strategy": "no", "sampling_batch_size": 4, "scoring_batch_size": 4}
CASES = [  # recipe, where memory is taken, rows that fit, settings, what is said
    (
        "ppo",
        Hungry,
        4,
        ROLLOUTS | {"sampling_batch_size": 8},
        "while completions were sampled (sampling_batch_size=8)",
        "--sampling_batch_size 4",
    ),
    (
        "ppo",
        Hungry,
        4,
        ROLLOUTS | {"scoring_batch_size": 8},
        "while completions were scored (scoring_batch_size=8)",
        "--scoring_batch_size 4",
    ),
    (
        "ppo",
        HungryBackward,
        2,
        ROLLOUTS | {"per_device_train_batch_size": 4},
        "in the backward pass (per_device_train_batch_size=4)",
        "--per_device_train_batch_size 2, or --gradient_checkpointing true",
    ),
    (
        "sft",
        Hungry,
        2,
        SFT | {"per_device_eval_batch_size": 2},
        "in the forward pass (per_device_train_batch_size=4)",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4, "
        "or --gradient_checkpointing true",
    ),
    (
        "sft",
        Hungry,
        4,
        SFT | {"per_device_eval_batch_size": 8},
        "in an evaluation (per_device_eval_batch_size=8)",
        "--per_device_eval_batch_size 4",
    ),
    (
        "dpo",
        HungryBackward,
        4,
        {},
        "in the backward pass (per_device_train_batch_size=4)",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4, "
        "or --gradient_checkpointing true",
    ),
    (
        "grpo",  # in the middle of a generation
        HungryBackward,
        2,
        {},
        "in the backward pass (per_device_train_batch_size=4)",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 "
        "--steps_per_generation 8, or --gradient_checkpointing true",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[4].partition(' (')[0]}")
def test_a_run_without_memory_says_what_fits_and_goes_on_as_it_says(
    monkeypatch: pytest.MonkeyPatch, folder: Path, case: tuple[Any, ...]
) -> None:
    recipe, hungry, rows, more, where, remedy = case
    more = SGD | more
    train(recipe, folder, "whole", **more)
    begins = 3 if recipe == "grpo" else 4
    monkeypatch.setattr(progress, "RunCallback", type("Asking", (hungry,), {"begins": begins}))
    with room_for(rows), pytest.raises(UserError) as refused:
        train(recipe, folder, "broken", **more)
    checkpoint = folder / f"broken/checkpoint-{begins}"
    assert str(refused.value) == (
        f"memory ran out {where}; {checkpoint} holds where it stands; go on with --resume {remedy}."
    )
    assert checkpoint_fault(checkpoint) is None
    words = dict(re.findall(r"--(\w+) (\d+)", remedy))
    changed = {key: int(value) for key, value in words.items()}
    with room_for(rows):  # still no more of it
        train(recipe, folder, "broken", **(more | changed), resume=True)
    expected = load_file(folder / "whole/final/model.safetensors")
    start = load_file(folder / "tiny/model.safetensors")
    assert max((start[name] - w).abs().max().item() for name, w in expected.items()) > 1e-3
    got = load_file(folder / "broken/final/model.safetensors")
    off = {name: (got[name] - w).abs().max().item() for name, w in expected.items()}
    assert max(off.values()) <= 1e-5, off
    if recipe in SAMPLING:
        assert completions(folder / "broken") == completions(folder / "whole") != []


def completions(run: Path) -> list[tuple[str, str]]:
    """What was said in a run."""
    return [(row["prompt"], row["completion"]) for row in read_jsonl(run / "samples.jsonl")]


def test_half_an_update_is_not_saved_and_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    saved = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    train("ppo", folder, "whole", **saved)

    class HalfAnUpdate(progress.RunCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            super().on_train_begin(args, state, control, **given)
            weight = next(p for p in given["model"].parameters() if p.requires_grad)

            def hook(*_: Any) -> None:
                if state.global_step == 4:
                    weight.data += 1.0
                    take(8)

            given["optimizer"].optimizer.register_step_pre_hook(hook)

    said = (
        "memory ran out in the optimizer step; .*checkpoint-3 is the newest checkpoint; to need "
        r"less, train an adapter \(use_peft\) or take an optimizer of 8 bits"
    )
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", HalfAnUpdate)
        with room_for(1), pytest.raises(UserError, match=said):
            train("ppo", folder, "broken", **saved)
    assert [step for step, _ in list_checkpoints(folder / "broken")] == [3]
    train("ppo", folder, "broken", **saved, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")


def test_before_the_first_step_the_folder_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(progress, "RunCallback", Hungry)
    said = "; no step was made since the start; go on with --resume --per_device_train_batch_size 2"
    with room_for(2), pytest.raises(UserError, match=said):
        train("sft", folder, "run", per_device_eval_batch_size=2)
    assert not (folder / "run").exists()
    monkeypatch.undo()
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    train("sft", folder, "run", **small, resume=True)
    assert (folder / "run/final").exists()


def test_a_step_of_other_rows_is_refused_and_so_is_another_kl_of_kto(folder: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 4, "max_steps": 5, "eval_strategy": "no"}
    for recipe, other, said in (
        ("sft", {}, "=2 makes 4 rows of a step, and the run to resume has 8; set it, grad"),
        ("kto", {"gradient_accumulation_steps": 4}, "KTO estimates its KL within a micro-batch"),
    ):
        train(recipe, folder, recipe, **saved)
        for name in ("summary.json", "report.html"):
            (folder / recipe / name).unlink()
        with pytest.raises(UserError, match=said):
            train(
                recipe, folder, recipe, **saved, resume=True, per_device_train_batch_size=2, **other
            )


def test_what_pytorch_raises_on_a_cpu_is_known_as_memory() -> None:
    with room_for(1), pytest.raises(RuntimeError) as raised:
        take(4)
    assert is_memory(raised.value)
    assert is_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_memory(MemoryError())
    assert place_of(raised.value).where == "in the middle of the run"


ACCUMULATED = "--per_device_train_batch_size {} --gradient_accumulation_steps {}"


@pytest.mark.parametrize(
    ("name", "size", "more", "said"),
    [
        ("Stoppable.training_step", 12, {}, [ACCUMULATED.format(6, 4)]),
        ("Stoppable.training_step", 9, {}, [ACCUMULATED.format(3, 6)]),
        ("Stoppable.training_step", 7, {"rollout_batch_size": 7}, ["--{key} 1"]),
        ("Stoppable.training_step", 1, {}, []),
        ("Stoppable.training_step", 8, {"fixed": True}, []),
        ("Collector.score", 1, {}, []),
        ("Collector.score", 3, {}, ["--{key} 1"]),
        ("GRPOTrainer._generate", 0, {}, []),
    ],
)
def test_what_fits_divides_the_micro_batch(
    name: str, size: int, more: dict[str, int], said: list[str]
) -> None:
    key = PLACES[name].key
    given = more | {key: size, "gradient_accumulation_steps": 2}
    fixed = bool(given.pop("fixed", False))
    said = [words.format(key=key) for words in said]
    args = SimpleNamespace(gradient_checkpointing=True, **given)
    assert list(smaller_run_flags(args, PLACES[name], fixed=fixed)) == said
    args.gradient_checkpointing = False
    last = ["--gradient_checkpointing true"] if name == "Stoppable.training_step" else []
    assert list(smaller_run_flags(args, PLACES[name], fixed=fixed)) == said + last
