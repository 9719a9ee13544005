"""A short kill sweep: SIGKILL at moments and at file operations of a save, then resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import ROOT
from tests.helpers.tiny_runs import FAST, write


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


def test_runs_that_are_killed_anywhere_end_as_the_unbroken_one(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    (tmp_path / "values.json").write_text(json.dumps(values))
    done = subprocess.run(  # a process with threads cannot be forked
        [sys.executable, "-m", "tests.helpers.kills", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tallies = json.loads(done.stdout.splitlines()[-1])
    for tally in tallies.values():
        assert tally["wrong"] == []
        assert tally["equal"] == tally["kills"]
    assert tallies["moments"]["kills"] == 3
    assert tallies["saving"]["kills"] >= 4
    assert tallies["saving"]["lost"] == tallies["saving"]["before_the_first"] == 0
