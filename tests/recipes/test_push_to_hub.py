"""Pushing: the real client against a Hub on this machine, and an honest failure without one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub.errors import OfflineModeIsEnabled

from recipes.lib.config.library_checks import check_training
from recipes.lib.errors import UserError
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.recipe.main import run
from tests.helpers.loopback_hub import Fault, LoopbackHub
from tests.helpers.mistakes import attempt

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


def words(**more: str) -> list[str]:
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
        "hub_strategy": "every_save",
        "hub_revision": "trial",
    } | more
    return [part for key, value in given.items() for part in (f"--{key}", str(value))]


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


NAME = "someone/tiny"


def pushed(hub: LoopbackHub) -> dict[str, dict[str, bytes]]:
    """Files of each commit by its message, but for the one that the repository begins with."""
    repo = hub.model(NAME)
    return {row["message"]: repo.files[row["commit"]] for row in repo.log[1:]}


def test_a_training_ends_with_one_commit_of_the_whole_run_and_no_secret(folder: Path) -> None:
    with LoopbackHub() as hub:
        online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
        online |= {"HF_HUB_DISABLE_XET": "1"}  # which the loopback Hub does not speak
        done = subprocess.run(
            [sys.executable, "-m", "recipes.ppo", *words()],
            cwd=folder,
            env=os.environ | online,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["name"] == "tiny"
    assert hub.tokens == {TOKEN}
    (commit,) = hub.model(NAME).log[1:]
    assert commit["branch"] == "trial"
    assert "note: hub_strategy=every_save: the run is pushed once, whole" in done.stderr
    assert f"note: {NAME} is whole at commit {commit['commit']}." in done.stderr
    files = pushed(hub)["Model save"]
    final = folder / "run/final"
    model = {path.name: path.read_bytes() for path in final.iterdir()}
    assert files | model == files
    assert files["model.safetensors"] != (folder / "model/model.safetensors").read_bytes()
    # The critic is no part of the policy, and nothing else of the run is there.
    others = {"README.md", "lineage.json", "report.html", ".gitattributes"}
    assert set(files) == {*model, *others}
    assert b"trained by `rlhf ppo`" in files["README.md"]
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


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_pushed(strategy: str, tmp_path: Path) -> None:
    training = PPOConfig(output_dir=str(tmp_path), use_cpu=True, push_to_hub=True)
    with pytest.raises(UserError, match=f"hub_strategy={strategy}: checkpoints hold pickles"):
        check_training(training, {"hub_strategy": strategy})


def test_an_adapter_on_a_base_that_nobody_else_has_does_not_begin(
    folder: Path, online: Callable[[LoopbackHub], None]
) -> None:
    lora = {"use_peft": "true", "lora_target_modules": "all-linear"}
    with LoopbackHub() as hub:
        online(hub)
        done = attempt("ppo", words(**lora), folder)
    assert done.code == 2, done.err
    assert done.err.splitlines()[-1] == (
        "rlhf ppo: error: push_to_hub=true: the adapter's base model is a folder of this machine, "
        "and nobody else could load it; leave it out, and push what rlhf merge makes."
    )
    assert not (folder / "run").exists()


def test_a_hub_that_refuses_does_not_cost_the_run_which_is_pushed_later(
    folder: Path, online: Callable[[LoopbackHub], None]
) -> None:
    with LoopbackHub() as hub:
        online(hub)
        hub.faults = [Fault("/commit/", 403)]
        done = attempt("ppo", words(), folder)
        assert done.code == 2
        told = done.err.splitlines()[-1]
        start = "rlhf ppo: error: push_to_hub=true: the run is whole in run and not on the Hub ("
        assert told.startswith(f"{start}repo={NAME}: the token may not write there")
        assert told.endswith(f"then rlhf push run --repo {NAME} --private false.")
        assert of_a_run(folder / "run")
        assert pushed(hub) == {}
        later = {"run": str(folder / "run"), "repo": NAME, "private": False}
        summary = run("push", **later, verify="checksums")
        assert summary["commit"] == hub.model(NAME).head
        weights = (folder / "run/final/model.safetensors").read_bytes()
        assert pushed(hub)["Push with rlhf"]["model.safetensors"] == weights
