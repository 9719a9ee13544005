"""Pushing: the real client against a Hub on this machine, and an honest failure without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub.errors import OfflineModeIsEnabled

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from tests.helpers.fake_hub import FakeHub

ROOT = Path(__file__).parents[2]
TOKEN = "hf_not_a_real_token"


def test_without_a_hub_a_run_that_has_to_push_does_not_begin(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    args = PPOConfig(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        total_episodes=8,
        rollout_batch_size=8,
        push_to_hub=True,
        hub_model_id="someone/tiny",
    )
    data = Dataset.from_list([{"prompt": "the cat"}])
    with pytest.raises(OfflineModeIsEnabled):
        PPOTrainer(tiny_model, lambda **_: [0.0], args, data, processing_class=tiny_tokenizer)


def recipe(folder: Path, address: str, **more: str) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": "prompts.jsonl",
        "reward_funcs": "reward.py:length",
        "output_dir": "run",
        "total_episodes": 16,
        "rollout_batch_size": 8,
        "num_ppo_epochs": 1,
        "max_completion_length": 4,
        "save_steps": 1,
        "use_cpu": "true",
        "dtype": "float32",
        "push_to_hub": "true",
        "hub_model_id": "someone/tiny",
        "hub_token": TOKEN,
        "hub_strategy": "end",
        "hub_revision": "trial",
    } | more
    flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "recipes.ppo", *flags]
    return subprocess.run(
        command, cwd=folder, env=os.environ | online, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def folder(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [json.dumps({"prompt": prompt}) + "\n" for prompt in ("the cat", "a bird", "rain")]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    reward = (
        "def length(completion_ids, **_):\n    return [float(len(i)) for i in completion_ids]\n"
    )
    (tmp_path / "reward.py").write_text(reward)
    return tmp_path


def test_the_recipe_pushes_the_trained_policy_and_no_secret(folder: Path) -> None:
    with FakeHub("someone/tiny") as hub:
        done = recipe(folder, hub.address)
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["name"] == "tiny"
    assert hub.tokens == {TOKEN}
    (commit,) = hub.commits
    assert commit["branch"] == "trial"
    files = commit["files"]
    final = folder / "run/final"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert files[name] == (final / name).read_bytes()
    assert files["model.safetensors"] != (folder / "model/model.safetensors").read_bytes()
    assert not {"README.md", "training_args.bin"} & set(files)  # no card that knows nothing
    assert [name for name in files if "partial" in name or "checkpoint" in name] == []
    assert "value.safetensors" not in files  # the critic is no part of the policy
    assert not any(TOKEN.encode() in content for content in files.values())
    assert of_a_run(folder / "run")
    assert all(
        TOKEN.encode() not in p.read_bytes() for p in (folder / "run").glob("*.*") if p.is_file()
    )


def of_a_run(run: Path) -> bool:
    """Whether a folder holds what a run folder is said to hold, and nothing else."""
    names = {path.name for path in run.iterdir() if not path.name.startswith("checkpoint-")}
    told = "config.yaml metrics.jsonl final lineage.json summary.json report.html"
    return names == set(told.split()) and not list(run.rglob("training_args.bin"))


def test_every_save_is_pushed_and_leaves_nothing_in_the_run_folder(folder: Path) -> None:
    with FakeHub("someone/tiny") as hub:
        done = recipe(folder, hub.address, hub_strategy="every_save", hub_always_push="true")
    assert done.returncode == 0, done.stderr
    assert of_a_run(folder / "run")
    assert (folder / "run/checkpoint-2/model.safetensors").is_file()  # behind a push, too
    pushed = {commit["message"]: commit["files"] for commit in hub.commits}
    assert {"Training in progress, step 1", "Model save"} <= set(pushed)
    first, last = (pushed[message] for message in ("Training in progress, step 1", "Model save"))
    saved = (folder / "run/checkpoint-1/model.safetensors").read_bytes()
    assert first["model.safetensors"] == saved != last["model.safetensors"]
    assert last["model.safetensors"] == (folder / "run/final/model.safetensors").read_bytes()
    assert not any(TOKEN.encode() in c for files in pushed.values() for c in files.values())


def test_a_hub_that_went_away_is_said_and_does_not_cost_the_model(folder: Path) -> None:
    class Closing(FakeHub):
        def reply(self, path: str, body: bytes) -> dict[str, Any]:
            if path.endswith("/repos/create"):
                return super().reply(path, body)
            raise ConnectionAbortedError  # the handler dies and the client gets no answer

    with Closing("someone/tiny") as hub:
        hub.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        done = recipe(folder, hub.address)
    assert done.returncode != 0
    assert (folder / "run/final/model.safetensors").is_file()
    assert not (folder / "run/summary.json").exists()
