"""PPO on the real sums of GSM8K: a checkable reward, one by TRL's name, an async one together."""

import json
import runpy
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import ppo
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from recipes.lib.tasks.gsm8k import correct_number

ROOT = Path(__file__).parents[2]
prompt_rows = runpy.run_path(str(ROOT / "scripts/gsm8k_prompts"))["prompt_rows"]
FAST = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "seed": 1}


ASYNC = """
import asyncio

async def length(completion_ids, **columns):
    await asyncio.sleep(0)
    return [float(len(ids)) for ids in completion_ids]
"""


def test_two_rollouts_are_scored_by_the_answers_of_their_own_prompts(
    shared: Path,
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    # Ten of the model's words become the answers of sums, so that a random model is right at times.
    rows = [
        row
        for row in prompt_rows(read_jsonl(shared / "data/prompt/gsm8k_test.jsonl"))
        if int(row["answer"]) in range(1, 11) and len(row["prompt"][0]["content"].split()) < 60
    ][:16]
    vocabulary = tiny_tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)[-10:]
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    for number, word in enumerate(words, start=1):
        state["model"]["vocab"][str(number)] = state["model"]["vocab"].pop(word)
    (tmp_path / "tiny").mkdir()
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny/tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(ASYNC)
    values = {
        "model_name_or_path": str(tmp_path / "tiny"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "reward_funcs": [
            "recipes.lib.tasks.gsm8k:correct_number",
            "get_soft_overlong_punishment",
            f"{tmp_path / 'mine.py'}:length",
        ],
        "reward_weights": [1.0, 5.0, 0.25],
        "total_episodes": 128,
        "rollout_batch_size": 64,
        "num_ppo_epochs": 1,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 32,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "log_completions": True,
        "output_dir": str(tmp_path / "run"),
    }
    summary = ppo.run(parse("ppo", [], FAST | values))
    assert summary["episodes"] == 128
    logged = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert all(0 < row["rewards/correct_number"] < 0.5 for row in logged)  # at times, and no more
    assert all(row["rewards/soft_overlong_punishment_reward"] == 0 for row in logged)  # 8 tokens
    samples = read_jsonl(tmp_path / "run/samples.jsonl")
    assert len(samples) == 8
    # The prompt of a sample is what the tiny model could read of it: find its row the same way.
    answers = {_read(tiny_tokenizer, tmp_path, row): row["answer"] for row in rows}
    assert len(answers) == len(rows)
    for sample in samples:
        answer = answers[sample["prompt"]]
        (right,) = correct_number([sample["completion"]], answer=[answer])
        assert right is not None
        assert sample["score"] == pytest.approx(right + 0.25 * sample["num_tokens"])


def _read(tokenizer: PreTrainedTokenizerFast, folder: Path, row: dict[str, object]) -> str:
    from transformers import AutoTokenizer

    from recipes.lib.data.prompts import prompt_token_ids

    saved = AutoTokenizer.from_pretrained(folder / "tiny")
    ids = prompt_token_ids(saved, row["prompt"])
    return str(saved.decode(ids, skip_special_tokens=True))
