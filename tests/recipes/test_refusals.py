"""What only a library refuses, before or in the first step, is one sentence and leaves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.helpers.mistakes import attempt
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, write

SAMPLED = {
    "reward_funcs": "rewards.py:good",
    "max_completion_length": 4,
    "per_device_train_batch_size": 4,
}
GRPO = SAMPLED | {"max_steps": 1, "num_generations": 2}
PPO = SAMPLED | {"total_episodes": 4, "rollout_batch_size": 4}
NO_TEST = "eval_strategy: there are no test rows to evaluate on; set test_fraction or "

# What is wrong: recipe, flags, how the sentence begins.
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "optimizer not installed": ("sft", {"optim": "galore_adamw"}, "optim='galore_adamw': You need"),
    "tracker not installed": (
        "sft",
        {"report_to": "wandb"},
        "report_to=wandb: it is not installed; pip install 'rlhf-recipes[track]'.",
    ),
    "tracker unknown": ("sft", {"report_to": "nothing"}, "report_to=nothing: there is no such tra"),
    "schedule without its value": (
        "sft",
        {"lr_scheduler_type": "cosine_with_min_lr"},
        "lr_scheduler_type='cosine_with_min_lr': One of min_lr or min_lr_rate should be set",
    ),
    "schedule with an unknown value": (
        "sft",
        {"lr_scheduler_kwargs": '{"bogus": 1}'},
        "lr_scheduler_kwargs={'bogus': 1}: get_linear_schedule_with_warmup() got an unexpected",
    ),
    "no Hub to push to": ("sft", {"push_to_hub": True}, "push_to_hub=true: the Hub refused or can"),
    "checkpointing with an unknown value": (
        "sft",
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": '{"bogus": 1}'},
        "gradient_checkpointing_kwargs={'bogus': 1}: Unexpected keyword arguments: bogus.",
    ),
    "kernels not installed": ("sft", {"use_liger_kernel": True}, "use_liger_kernel=true: You have"),
    "loss of DPO": (
        "dpo",
        {"loss_type": "bogus"},
        "loss_type=['bogus']: Unknown loss type: bogus.",
    ),
    "loss of GRPO": ("grpo", GRPO | {"loss_type": "bogus"}, "loss_type='bogus': Unknown loss type"),
    "vLLM not installed": (
        "grpo",
        GRPO | {"use_vllm": True},
        "use_vllm=true: vLLM is not available",
    ),
    "nothing to evaluate on": ("sft", {"eval_strategy": "steps", "eval_steps": 1}, NO_TEST),
    "nothing to evaluate on in PPO": ("ppo", PPO | {"eval_strategy": "steps"}, NO_TEST),
    "greedy sampling in GRPO": ("grpo", GRPO | {"temperature": 0.0}, "temperature=0.0: must be ab"),
    "rewards that do not parse": (
        "grpo",
        GRPO | {"reward_funcs": "broken.py:good"},
        "broken.py cannot be imported (SyntaxError: ",
    ),
    "rewards that exit": (
        "grpo",
        GRPO | {"reward_funcs": "exits.py:good"},
        "exits.py cannot be imported (SystemExit: 3); mend the file.",
    ),
}


def furnish(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A tiny model, rows for every recipe, and reward functions."""
    save_model(folder / "model", tokenizer)
    sides = {"completion": " sat", "chosen": " a", "rejected": " b"}
    write(folder / "rows.jsonl", [{"prompt": f"the {word}"} | sides for word in "xy"])
    (folder / "rewards.py").write_text("def good(prompts, **_):\n    return [1.0] * len(prompts)\n")
    (folder / "broken.py").write_text("def good(:\n")
    (folder / "exits.py").write_text("raise SystemExit(3)\n")


def prepare(name: str) -> tuple[str, list[str]]:
    """The recipe and the words of the command that a library refuses."""
    recipe, values, _ = CASES[name]
    steps = {} if recipe == "ppo" else {"max_steps": 1}
    return recipe, flags({"dataset_name": "rows.jsonl"} | steps | values)


@pytest.fixture
def place(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    furnish(tmp_path, tiny_tokenizer)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_with_its_key_and_leaves_nothing(name: str, place: Path) -> None:
    answer = attempt(*prepare(name), place)
    assert answer.sentence().startswith(CASES[name][2])
    assert (answer.code, answer.changed) == (2, [])


TALK = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": "[{broken"}, "column 'tools' has '[{broken', which is no list of tools, in 1"),
        ({"tools": 3}, "column 'tools' has 3, which is no list of tools, in 1 of 2 rows"),
        (
            {"chat_template_kwargs": "x"},
            "column 'chat_template_kwargs' has 'x', which is no mapping",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_no_chat_template_can_take_is_a_bad_row(
    more: dict[str, Any], said: str, streaming: bool, place: Path
) -> None:
    write(place / "rows.jsonl", [{"messages": TALK}, {"messages": TALK} | more])
    values = {"dataset_name": "rows.jsonl", "max_steps": 1, "max_length": 32}
    answer = attempt("sft", flags(values | {"streaming": streaming}), place)
    assert said in answer.sentence()
    assert (answer.code, answer.changed) == (2, [])


@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_rows_without_template_arguments_train_beside_those_with_some(
    recipe: str, place: Path
) -> None:
    other = [{"role": "assistant", "content": "ran"}]
    rows: list[dict[str, Any]] = [
        {"messages": TALK},
        {"messages": TALK[:1] + other, "chat_template_kwargs": {"is_short": True}},
        {"messages": TALK[:1] + other * 2},
    ]
    if recipe == "dpo":
        rows = [
            {"prompt": row.pop("messages")[:1], "chosen": TALK[1:], "rejected": other} | row
            for row in rows
        ]
    write(place / "rows.jsonl", rows)
    template = (
        "{% for turn in messages %}{{ turn.content }} {{ eos_token }} {% endfor %}"
        "{% if is_short is defined %}cat {{ eos_token }}{% endif %}"
    )
    values = {"dataset_name": "rows.jsonl", "max_steps": 1, "chat_template": template}
    answer = attempt(recipe, flags(values), place)
    assert (answer.code, json.loads((place / "run/summary.json").read_text())["recipe"]) == (
        0,
        recipe,
    )
