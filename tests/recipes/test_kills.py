"""A short kill sweep: SIGKILL at moments and at file operations of a save, then resumed."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests import kills
from tests.tiny_runs import FAST, write


@pytest.fixture
def values(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    write(tmp_path / "rows.jsonl", [{"prompt": f"the {w}"} for w in ("cat", "dog", "sun", "rain")])
    (tmp_path / "rewards.py").write_text(
        "def ends(completion_ids, **_):\n"
        "    return [sum(i % 5 == 0 for i in ids) / 3 for ids in completion_ids]\n"
    )
    return FAST | {
        "model_name_or_path": str(tmp_path / "tiny"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "reward_funcs": [f"{tmp_path / 'rewards.py'}:ends"],
        "total_episodes": 24,
        "rollout_batch_size": 8,
        "num_ppo_epochs": 1,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 6,
        "log_completions": True,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
        "learning_rate": 1e-2,
    }


@pytest.mark.skipif(threading.active_count() > 1, reason="threads do not survive a fork")
def test_runs_that_are_killed_anywhere_end_as_the_unbroken_one(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    whole = values | {"output_dir": str(tmp_path / "whole")}
    start = time.monotonic()
    assert kills.run_in_fork(lambda: kills.train(whole), tmp_path / "whole.log") == 0
    seconds = time.monotonic() - start
    expected = kills.result(tmp_path / "whole")
    moments = kills.sweep_moments(values, tmp_path, expected, seconds, 3)
    saving = kills.sweep_operations(values, tmp_path, expected, 4, every=17)
    assert (moments.wrong, saving.wrong) == ([], [])
    assert moments.equal == moments.kills == 3
    assert saving.equal == saving.kills >= 4
    assert saving.lost == saving.before_the_first == 0
