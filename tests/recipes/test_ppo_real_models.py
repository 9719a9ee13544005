"""The PPO recipe on real weights and prompts: a Python reward, a reward model, and both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from recipes import ppo, reward
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl

WORDS = Path(__file__).parents[2] / "scripts/bench/happy_words.py"
FAST = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "seed": 1}


@pytest.fixture(scope="module")
def reward_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    values = {
        "model_name_or_path": str(shared / "models/stories260K"),
        "dataset_name": str(shared / "data/preference/sentence_polarity_pairs.jsonl"),
        "test_fraction": 0.01,
        "max_train_rows": 160,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "skip_check": True,  # it does not learn enough in so few steps
        "output_dir": str(folder),
    }
    reward.run(parse("reward", [], FAST | values))
    return folder


def train(shared: Path, folder: Path, rewards: list[str], **more: Any) -> dict[str, Any]:
    values = {
        "model_name_or_path": str(shared / "models/stories260K"),
        "dataset_name": str(shared / "data/prompt/tinystories.jsonl"),
        "reward_funcs": rewards,
        "skip_check": True,
        "total_episodes": 32,
        "rollout_batch_size": 16,
        "num_ppo_epochs": 1,
        "num_mini_batches": 2,
        "max_completion_length": 24,
        "learning_rate": 1e-4,
        "log_completions": True,
        "output_dir": str(folder),
    }
    return ppo.run(parse("ppo", [], FAST | values | more))


def test_ppo_with_a_python_reward_writes_a_model_that_loads(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = train(shared, folder, [f"{WORDS}:happy_words"])
    assert summary["episodes"] == 32
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    start = AutoModelForCausalLM.from_pretrained(shared / "models/stories260K")
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)
    )
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "lineage.json",
        "summary.json",
        "report.html",
        "final",
    }
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "objective/kl" in row]
    assert [row["episode"] for row in rows] == [16, 32]
    assert rows[0]["objective/kl"] == 0.0


def test_scores_of_a_reward_model_equal_an_independent_pipeline_on_the_text(
    shared: Path, tmp_path: Path, reward_run: Path
) -> None:
    folder = tmp_path / "run"
    train(shared, folder, [str(reward_run)])
    model = AutoModelForSequenceClassification.from_pretrained(reward_run / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_run / "final")
    samples = read_jsonl(folder / "samples.jsonl")
    assert len(samples) == 8
    for sample in samples:
        text = sample["prompt"] + sample["completion"] + tokenizer.eos_token
        with torch.no_grad():
            score = model(**tokenizer(text, return_tensors="pt")).logits.item()
        # one sequence alone against a padded batch: fp32 rounding
        assert sample["score"] == pytest.approx(score, abs=1e-4)


def test_a_function_and_a_reward_model_add_up_with_their_weights(
    shared: Path, tmp_path: Path, reward_run: Path
) -> None:
    folder = tmp_path / "run"
    train(shared, folder, [f"{WORDS}:happy_words", str(reward_run)], reward_weights=[1.0, 0.25])
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "objective/kl" in row]
    for row in rows:
        parts = row["rewards/happy_words"] + 0.25 * row["rewards/reward"]
        assert row["objective/scores"] == pytest.approx(parts, abs=1e-5)
        assert row["rewards/reward"] != 0.0


def test_lora_trains_an_adapter_whose_base_is_named(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "critic": "head"}
    train(shared, folder, [f"{WORDS}:happy_words"], **more)
    assert (folder / "final/adapter_model.safetensors").is_file()
    assert not (folder / "final/model.safetensors").exists()
