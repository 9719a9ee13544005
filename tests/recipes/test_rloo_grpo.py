"""RLOO and GRPO learn a reward that is easy to see, write a whole run, and go on from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recipes import grpo, reward, rloo
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import launch, parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers.tiny_runs import FAST

RECIPES = {"rloo": rloo, "grpo": grpo}
REWARDS = """
import asyncio
import json

def colours(completions, **columns):
    words = [text.split() for text in completions]
    return [sum(word in ("red", "blue") for word in said) / 8 for said in words]

async def length(completion_ids, **columns):
    await asyncio.sleep(0)
    return [float(len(ids)) for ids in completion_ids]

def only_dogs(prompts, completions, **columns):
    return [1.0 if "dog" in prompt else None for prompt in prompts]

def seen(completions, completion_ids, **columns):
    with open("seen.jsonl", "a") as file:
        for row in zip(completion_ids, completions):
            print(json.dumps(row), file=file)
    return [float(len(ids)) for ids in completion_ids]

def starts(completions, **columns):
    return [float(text.startswith(" ")) for text in completions]
"""


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    prompts = [f"the {noun} {verb} the" for noun in ("cat", "dog") for verb in ("saw", "found")]
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def values_of(folder: Path, name: str, *rewards: str, **more: Any) -> dict[str, Any]:
    tiny = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "rows.jsonl"),
        "reward_funcs": [f"{folder / 'rewards.py'}:{reward}" for reward in rewards or ["colours"]],
        "max_steps": 3,
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "max_completion_length": 8,
        "beta": 0.01,
        "learning_rate": 2e-2,
        "log_completions": True,
        "output_dir": str(folder / name),
    }
    return FAST | tiny | more


def train(recipe: str, folder: Path, name: str, *rewards: str, **more: Any) -> dict[str, Any]:
    return RECIPES[recipe].run(parse(recipe, [], values_of(folder, name, *rewards, **more)))


def colour_probability(path: Path) -> float:
    """Of a colour after "the cat saw the", by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = model(**tokenizer("the cat saw the", return_tensors="pt")).logits[0, -1]
    ids = tokenizer.convert_tokens_to_ids(["red", "blue"])
    return float(logits.softmax(-1)[ids].sum())


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_reward_rises_and_what_was_learned_lies_in_final(recipe: str, folder: Path) -> None:
    summary = train(recipe, folder, "run", max_steps=24)
    run = folder / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "lineage.json",
        "summary.json",
        "report.html",
        "final",
    }
    assert summary["episodes"] == 24 * 16
    assert summary["scores"] > 0.2 > 0.1 > summary["first_scores"]
    assert 0 < summary["kl_per_token"] < 5
    # The two colours are 2 of 60 tokens, and the model is random.
    assert colour_probability(folder / "tiny") < 0.05
    assert colour_probability(run / "final") > 0.2
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"The mean score rose from {summary['first_scores']:.2f}" in page
    for title in ("Reward", "Distance from the start", "Prompts without a signal", "Samples"):
        assert f">{title}<" in page
    assert json.loads((run / "lineage.json").read_text())["reward_funcs"] == [
        f"{folder / 'rewards.py'}:colours"
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_samples_are_what_the_rewards_saw_with_their_weighted_sum(
    recipe: str, folder: Path
) -> None:
    train(recipe, folder, "run", "colours", "length", "only_dogs", reward_weights=[8.0, 0.5, 3.0])
    rows = read_jsonl(folder / "run/samples.jsonl")
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    for row in rows:
        words = row["completion"].split()
        colours = sum(word in ("red", "blue") for word in words)
        dog = 3.0 if "dog" in row["prompt"] else 0.0
        assert row["score"] == pytest.approx(colours + 0.5 * row["num_tokens"] + dog)
        assert not words or row["completion"].startswith(" ")
        assert len(words) <= row["num_tokens"] <= 8
    logged = read_jsonl(folder / "run/metrics.jsonl")[0]
    parts = 8 * logged["rewards/colours/mean"] + 0.5 * logged["rewards/length/mean"]
    # Both prompts of a step are about a dog, one is, or none; the function says 1 where it applies.
    assert any(logged["reward"] == pytest.approx(parts + 3 * share) for share in (0, 0.5, 1))


def test_a_reward_reads_the_text_that_continues_the_prompt(shared: Path, tmp_path: Path) -> None:
    # This tokenizer drops the space in front of a completion that is decoded by itself.
    (tmp_path / "rewards.py").write_text(REWARDS)
    values = {
        "model_name_or_path": str(shared / "models/stories260K"),
        "dataset_name": str(shared / "data/prompt/tinystories.jsonl"),
        "max_train_rows": 4,
        "max_steps": 1,
    }
    summary = train("rloo", tmp_path, "run", "starts", **values)
    assert summary["scores"] > 0.5


def test_a_run_of_the_reward_recipe_scores_as_it_does_by_itself(folder: Path) -> None:
    from recipes.lib.models.classifiers import load_reward_model

    pairs = [{"prompt": "the cat", "chosen": " was red .", "rejected": " was old ."}] * 8
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs))
    small = {"dataset_name": str(folder / "pairs.jsonl"), "test_fraction": 0.0, "max_steps": 2}
    small |= {"model_name_or_path": str(folder / "tiny"), "learning_rate": 1e-2}
    small |= {"test_dataset_name": str(folder / "test.jsonl"), "output_dir": str(folder / "judge")}
    test = {"prompt": "the dog", "chosen": " is blue .", "rejected": " is cold ."}
    (folder / "test.jsonl").write_text(json.dumps(test))
    reward.run(parse("reward", [], FAST | small))
    funcs = [str(folder / "judge"), f"{folder / 'rewards.py'}:length"]
    train("grpo", folder, "run", reward_funcs=funcs, reward_weights=[2.0, 0.5], max_steps=1)
    model, tokenizer = load_reward_model(str(folder / "judge"))
    for row in read_jsonl(folder / "run/samples.jsonl"):
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        with torch.no_grad():
            score = model(input_ids=torch.tensor([ids])).logits.item()
        assert row["score"] == pytest.approx(2 * score + 0.5 * row["num_tokens"], abs=1e-4)


def test_prompts_of_messages_give_messages_and_held_out_prompts_are_evaluated(folder: Path) -> None:
    (folder / "rewards.py").write_text(
        "def spoken(prompts, completions, fact, **columns):\n"
        "    assert all(p[-1]['role'] == 'user' for p in prompts)\n"
        "    assert all(c[0]['role'] == 'assistant' and len(c) == 1 for c in completions)\n"
        "    return [f + len(c[0]['content'].split()) / 8 for f, c in zip(fact, completions)]\n"
    )
    rows = [
        {"prompt": [{"role": "user", "content": f"tell me {word}"}], "fact": 10.0}
        for word in ("cat", "dog", "sun", "moon", "rain", "tree")
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = {"test_fraction": 0.3, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    summary = train("rloo", folder, "run", "spoken", **more)
    assert 10 < summary["scores"] <= 11
    logs = read_jsonl(folder / "run/metrics.jsonl")
    assert [10 < row["eval_reward"] <= 11 for row in logs if "eval_reward" in row] == [True]
    samples = read_jsonl(folder / "run/samples.jsonl")
    assert len(samples) == 4
    assert "tell me" in samples[0]["prompt"]


def test_a_generation_that_serves_twice_is_counted_once(folder: Path) -> None:
    # 3 steps of 16 rows, each generation for 2: two generations, the second half used.
    summary = train("grpo", folder, "run", num_iterations=2)
    assert summary["episodes"] == 32
    rows = read_jsonl(folder / "run/samples.jsonl")
    said = [[row["completion"] for row in rows if row["step"] == step] for step in (1, 2, 3)]
    assert said[0] == said[1] != said[2]


def test_samples_are_of_the_training_where_an_evaluation_came_between(folder: Path) -> None:
    (folder / "test.jsonl").write_text(json.dumps({"prompt": "the sun kept the"}))
    more = {"test_dataset_name": str(folder / "test.jsonl"), "per_device_eval_batch_size": 8}
    more |= {"eval_strategy": "steps", "eval_steps": 1, "num_iterations": 2}
    train("grpo", folder, "run", max_steps=2, **more)
    rows = read_jsonl(folder / "run/samples.jsonl")
    said = [[row["completion"] for row in rows if row["step"] == step] for step in (1, 2)]
    assert said[0] == said[1]
    assert not any("sun" in row["prompt"] for row in rows)


def test_the_stated_batch_sets_accumulation_and_generation(folder: Path) -> None:
    config = parse(
        "grpo",
        [],
        values_of(folder, "run", per_device_train_batch_size=4, global_batch_size=32),
    )
    training = config.training
    assert training is not None
    assert (training.gradient_accumulation_steps, training.generation_batch_size) == (8, 32)
    summary = train(
        "grpo", folder, "run", per_device_train_batch_size=4, global_batch_size=32, max_steps=2
    )
    assert summary["episodes"] == 64


def test_the_reference_of_a_merged_adapter_is_the_merged_model(folder: Path) -> None:
    lora = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4}
    train("rloo", folder, "lora", **lora)
    assert (folder / "lora/final/adapter_config.json").is_file()
    # TRL would take the base, from which the merged adapter is far away from the first step on.
    train("rloo", folder, "next", model_name_or_path=str(folder / "lora"), max_steps=1)
    assert read_jsonl(folder / "next/metrics.jsonl")[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_goes_on_and_in_its_first_epoch_ends_where_the_whole_one_does(
    recipe: str, folder: Path
) -> None:
    # One epoch: 2 prompts a step of 4. Later epochs and half-used generations are not exact.
    keep = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    train(recipe, folder, "whole", **keep)
    train(recipe, folder, "cut", **keep)
    for name in ("checkpoint-2", "final"):
        shutil.rmtree(folder / "cut" / name)
    (folder / "cut/summary.json").unlink()
    train(recipe, folder, "cut", **keep, resume=True)
    steps = [row["step"] for row in read_jsonl(folder / "cut/metrics.jsonl")]
    assert steps == [1, 2]
    whole, again = (
        AutoModelForCausalLM.from_pretrained(folder / name / "final") for name in ("whole", "cut")
    )
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"reward_funcs": []}, r"reward_funcs=\[\] names no reward"),
        ({"reward_funcs": ["rewards.py:colours"]}, r"reward function file rewards\.py is not"),
        ({"reward_weights": [1.0, 2.0]}, r"reward_weights=\[1\.0, 2\.0\] has 2 entries for 1"),
        ({"dataset_name": "nothing.jsonl"}, "there is no such file"),
        ({"global_batch_size": 24}, "global_batch_size=24: not a multiple of 16"),
        ({"num_generations": 5}, "must be evenly divisible|must be divisible"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_run(
    folder: Path, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        train("rloo", folder, "run", **values)
    assert "\n" not in str(caught.value)
    assert not list((folder / "run").glob("*"))


def test_a_row_without_any_reward_ends_the_run_with_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values_of(folder, "run", "only_dogs")))
    assert launch("grpo", ["--config", str(path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rlhf grpo: error: every reward function returned None for line")


@pytest.mark.parametrize("recipe", RECIPES)
def test_completions_end_with_each_end_token_of_the_model_and_are_read_without_it(
    recipe: str,
    folder: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    words = ["<eos>", "cat", "dog", "sat", "ran", "red", "blue", "?"]
    ends = tiny_tokenizer.convert_tokens_to_ids(words)
    file = folder / "tiny/generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
    train(recipe, folder, "run", "seen", max_steps=2)
    rows = read_jsonl(folder / "seen.jsonl")
    assert len(rows) == 32
    last = {ids[-1] for ids, _ in rows}
    assert len(last & set(ends)) > 1
    for ids, text in rows:
        assert not set(ids[:-1]) & set(ends)
        assert len(ids) == 8 or ids[-1] in ends
        said = ids[:-1] if ids[-1] in ends else ids
        kept = [token for token in map(int, said) if token > 1]
        assert text.split() == str(tiny_tokenizer.decode(kept)).split()
