"""A language model as the reward of two processes: what it was asked is the sum over both."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.distributed import runs_on_two as two
from tests.helpers.judge_server import Call, serving, words

SAMPLED: dict[str, Any] = {"max_completion_length": 5, "per_device_train_batch_size": 4}
SAMPLED |= {"model_name_or_path": "model", "dataset_name": "prompts.jsonl"}
SAMPLED |= {"reward_funcs": "judge.yaml", "report_to": "none", "save_strategy": "no"}
GROUPS = SAMPLED | {"max_steps": 2, "num_generations": 4}
NAMES = {
    "ppo": SAMPLED | {"total_episodes": 16, "rollout_batch_size": 8},
    "rloo": GROUPS,
    "grpo": GROUPS,
}


def test_counts_are_summed_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two, "RUNS", NAMES)
    monkeypatch.setattr(two, "RESUMED", {})
    folder = tmp_path / "two"
    two.fill(folder)

    def behave(call: Call) -> None:
        """The first is lost, and the second answered without a verdict."""
        if call.number == 0:
            call.drop()
        else:
            call.verdict("none" if call.number == 1 else words(call))

    with serving(behave) as server:
        server.file(folder / "judge.yaml", price_in=1.0, price_out=2.0, unparsable_score=1)
        done = two.on_two(folder, "cpu")
        assert done.returncode == 0, done.stderr[-3000:]
        num_calls = len(server.calls)
    found = {name: json.loads((folder / name / "summary.json").read_text()) for name in NAMES}
    for summary in found.values():
        assert summary["judge_questions"] == 16  # 8 of either process
        assert summary["judge_unparsable"] == 0  # asked again, there was one
        asked = summary["judge_asked"]
        assert (summary["judge_tokens_in"], summary["judge_tokens_out"]) == (
            100 * asked,
            10 * asked,
        )
        assert summary["judge_cost"] == pytest.approx(asked * 120 / 1e6)
    assert [summary["judge_retried"] for summary in found.values()] == [1, 0, 0]
    assert sum(summary["judge_asked"] for summary in found.values()) == num_calls - 1
