"""Each mistake with a model, a reward or a place is one sentence, exit code 2, and no new file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from recipes.lib.recipe.main import launch
from tests.helpers import spoiled
from tests.helpers.mistakes import attempt, within
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import flags, snapshot, write

STEP = {"max_steps": 1, "per_device_train_batch_size": 2}
SFT = {"dataset_name": "rows.jsonl", **STEP}
RLOO = {"dataset_name": "rows.jsonl", "num_generations": 2, "max_completion_length": 4, **STEP}
PPO = {
    "dataset_name": "rows.jsonl",
    "total_episodes": 4,
    "rollout_batch_size": 4,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
}
REWARDS = """
def raises(completions, **_):
    return [1 / 0 for _ in completions]
def short(completions, **_):
    return [0.5]
def nan(completions, **_):
    return [float("nan") for _ in completions]
def text(completions, **_):
    return ["good" for _ in completions]
def none(completions, **_):
    return [None for _ in completions]
"""


ADAPTER = {"model_name_or_path": "adapter"}
QUANTIZED = {"load_in_4bit": True}
Case = tuple[str, Callable[[Path], None], dict[str, Any], str]
# id: recipe, what is prepared, keys, what is said (a part)
MISTAKES: dict[str, Case] = {
    "name that is neither a folder nor a Hub id": (
        "ppo",
        spoiled.nothing,
        PPO | {"model_name_or_path": "my model", "reward_funcs": ["rewards.py:short"]},
        "model_name_or_path=my model: no model can be loaded from it (",
    ),
    "adapter of a base of another width": (
        "sft",
        spoiled.of_another_width,
        SFT | ADAPTER,
        "model_name_or_path=adapter: the adapter does not fit its base model (",
    ),
    "adapter of a deeper base": (
        "sft",
        spoiled.of_another_depth,
        SFT | ADAPTER,
        "does not fit its base model (4 weights find no counterpart, first ",
    ),
    "adapter of another class": (
        "sft",
        spoiled.of_another_class,
        SFT | ADAPTER,
        "does not fit its base model (Target modules ",
    ),
    "adapter whose base is gone": (
        "sft",
        spoiled.without_its_base,
        SFT | ADAPTER,
        "model_name_or_path=adapter: its base model: no tokenizer can be loaded from it (",
    ),
    "adapter on itself": (
        "sft",
        spoiled.on_itself,
        SFT | ADAPTER,
        "adapter_config.json names the adapter itself as its base; put the base model under",
    ),
    "language model as a reward": (
        "rloo",
        spoiled.nothing,
        RLOO | {"reward_funcs": ["model"]},
        "model_name_or_path=model: its files do not hold score.weight, which would come up random;"
        " train it as a reward model first (rlhf reward), or name one.",
    ),
    "reward model with two labels": (
        "rloo",
        spoiled.with_two_labels,
        RLOO | {"reward_funcs": ["two"]},
        "model_name_or_path=two: it has 2 labels and a reward model has one; name a model with one"
        " label.",
    ),
    "prompt over the limit": (
        "ppo",
        spoiled.with_a_long_prompt,
        PPO | {"max_prompt_length": 8, "reward_funcs": ["rewards.py:short"]},
        "max_prompt_length=8: the prompt of line 2 of rows.jsonl has 10",
    ),
    "tokenizer with tokens of its own": (
        "sft",
        spoiled.with_more_tokens,
        SFT,
        "model_name_or_path=model: its tokenizer has 63 tokens (the last is 'yak') and the model "
        "61; use the tokenizer that the model was trained with, or resize the model's embeddings.",
    ),
    "tokenizer with tokens of its own, in PPO": (
        "ppo",
        spoiled.with_more_tokens,
        PPO | {"reward_funcs": ["rewards.py:short"]},
        "its tokenizer has 63 tokens (the last is 'yak') and the model 61",
    ),
    "embeddings that the configuration denies": (
        "sft",
        spoiled.with_a_wider_head,
        SFT | {"model_name_or_path": "wide"},
        "model_name_or_path=wide: weights in its files have other shapes than its config.json "
        "says; use the two that belong together.",
    ),
    "weights that are cut short": (
        "sft",
        spoiled.with_weights_cut_short,
        SFT,
        "model_name_or_path=model: no causal language model can be loaded from it (",
    ),
    "tokenizer that is broken": (
        "sft",
        spoiled.with_a_broken_tokenizer,
        SFT,
        "model_name_or_path=model: no tokenizer can be loaded from it (",
    ),
    "configuration that is broken": (
        "ppo",
        spoiled.with_a_broken_configuration,
        PPO | {"reward_funcs": ["rewards.py:short"]},
        "model_name_or_path=model: no ",
    ),
    "adapter that is broken": (
        "sft",
        spoiled.with_a_broken_adapter,
        SFT | ADAPTER,
        "model_name_or_path=adapter: adapter_model.safetensors is broken (",
    ),
    "reward that raises": (
        "rloo",
        spoiled.nothing,
        RLOO | {"reward_funcs": ["rewards.py:raises"]},
        "reward function raises raised ZeroDivisionError: division by zero (rewards.py, line 3); ",
    ),
    "reward of the wrong count": (
        "rloo",
        spoiled.nothing,
        RLOO | {"reward_funcs": ["rewards.py:short"]},
        "reward function short returned 1 values for 2 completions; return a list with one number "
        "for each.",
    ),
    "reward that is NaN": (
        "rloo",
        spoiled.nothing,
        RLOO | {"reward_funcs": ["rewards.py:nan"]},
        "reward function nan returned nan for line 2 of rows.jsonl; return a finite number, or "
        "None where it does not apply.",
    ),
    "reward that is NaN, in PPO": (
        "ppo",
        spoiled.nothing,
        PPO | {"reward_funcs": ["rewards.py:nan"]},
        "reward function nan returned nan for line 4 of rows.jsonl; return a finite number",
    ),
    "reward that is text": (
        "rloo",
        spoiled.nothing,
        RLOO | {"reward_funcs": ["rewards.py:text"]},
        "reward function text returned 'good' for line 2 of rows.jsonl; return a finite number",
    ),
    "reward that never applies": (
        "rloo",
        spoiled.nothing,
        RLOO | {"reward_funcs": ["rewards.py:none"]},
        "every reward function returned None for line 2 of rows.jsonl; one has to apply to each "
        "row.",
    ),
    "batch that does not divide": (
        "sft",
        spoiled.nothing,
        SFT | {"global_batch_size": 3},
        "global_batch_size=3: not a multiple of 2 (per_device_train_batch_size 2 on 1 processes); "
        "change one of them.",
    ),
    "rollout that does not divide": (
        "ppo",
        spoiled.nothing,
        PPO | {"rollout_batch_size": 3, "reward_funcs": ["rewards.py:short"]},
        "total_episodes=4 is no multiple of rollout_batch_size=3; change one of them.",
    ),
    "folder of another run": (
        "sft",
        spoiled.with_a_run,
        SFT,
        "output_dir=run holds a run; continue it with --resume, move it aside with --overwrite, or "
        "choose another output_dir.",
    ),
    "folder of something else": (
        "reward",
        spoiled.with_other_files,
        SFT | {"test_fraction": 0.5},
        "output_dir=run is not empty and holds no run; choose another folder.",
    ),
    "file where the folder should be": (
        "sft",
        spoiled.with_a_file_in_its_place,
        SFT,
        "output_dir=run cannot be written: run is a file, not a folder.",
    ),
    "chat template that is not there": (
        "sft",
        spoiled.nothing,
        SFT | {"chat_template_path": "mine.jinja"},
        "chat_template_path=mine.jinja: there is no such file; check the path.",
    ),
    "chat template of no model": (
        "reward",
        spoiled.nothing,
        SFT | {"test_fraction": 0.5, "chat_template_path": "elsewhere/mine"},
        "chat_template_path=elsewhere/mine: no tokenizer can be loaded from it (",
    ),
    "quantized weights without an adapter": (
        "sft",
        spoiled.nothing,
        SFT | QUANTIZED,
        "load_in_4bit=true: quantized weights cannot be trained; set use_peft to train an adapter "
        "on them.",
    ),
    "full fine-tuning in half precision": (
        "sft",
        spoiled.nothing,
        SFT | {"dtype": "float16"},
        "dtype=float16: steps of a full fine-tuning vanish or overflow",
    ),
    "mixture with dropout on its experts": (
        "sft",
        spoiled.by_a_mixture,
        SFT | {"use_peft": True, "lora_target_modules": "all-linear"},
        "lora_dropout: lora.ParamWrapper does not work with lora_dropout != 0; set lora_dropout=0",
    ),
    "adapter without known places": (
        "sft",
        spoiled.by_a_mixture,
        SFT | {"use_peft": True, "lora_dropout": 0.0},
        "lora_target_modules is missing: peft knows no default for this class of models; name the "
        "layers, or all-linear.",
    ),
}


def furnish(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A tiny model, rows for every recipe, and reward functions."""
    save_model(folder / "model", tokenizer)
    write(
        folder / "rows.jsonl",
        [
            {"prompt": f"the {w}", "completion": " sat .", "chosen": " ran", "rejected": " is"}
            for w in ("cat", "dog", "bird", "child")
        ],
    )
    (folder / "rewards.py").write_text(REWARDS)


def prepare(name: str, folder: Path) -> tuple[str, list[str]]:
    """Spoil a furnished folder; the recipe and the words of the command that falls over it."""
    recipe, spoil, values, _ = MISTAKES[name]
    with within(folder):
        spoil(folder)
    return recipe, flags(values)


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, tiny_tokenizer)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Could not find a config file", "ignore:Found missing adapter")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_exit_code_2_and_nothing_on_disk(
    name: str, place: Path
) -> None:
    answer = attempt(*prepare(name, place), place)
    assert MISTAKES[name][3] in answer.sentence()
    assert answer.sentence().endswith(".")
    assert "Traceback" not in answer.err
    assert answer.code == 2
    assert answer.changed == []


def test_a_run_that_was_moved_aside_for_a_mistake_comes_back(place: Path) -> None:
    spoiled.with_a_run(place)
    before = snapshot(place)
    values = RLOO | {"reward_funcs": ["rewards.py:nan"], "overwrite": True}
    assert launch("rloo", flags(values)) == 2
    assert snapshot(place) == before


def test_an_empty_folder_that_was_there_stays_there(place: Path) -> None:
    (place / "run").mkdir()
    number = (place / "run").stat().st_ino
    assert launch("rloo", flags(RLOO | {"reward_funcs": ["rewards.py:nan"]})) == 2
    assert (place / "run").stat().st_ino == number
    assert list((place / "run").iterdir()) == []


def test_a_mistake_after_the_first_step_keeps_what_was_done(place: Path) -> None:
    Path("rewards.py").write_text(
        "calls = []\ndef later(completions, **_):\n    calls.append(1)\n"
        "    return ['' if len(calls) > 1 else 1.0 for _ in completions]\n"
    )
    values = RLOO | {"reward_funcs": ["rewards.py:later"], "max_steps": 2}
    assert launch("rloo", flags(values)) == 2
    assert (place / "run" / "metrics.jsonl").read_text().count("\n") == 1
