"""The conductor: every stage once, skipped when finished, run again when its YAML changed."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes import chat, quickstart
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse
from recipes.lib.recipe.summary import print_closing
from recipes.lib.runs.files import read_jsonl

ROOT = Path(__file__).parents[2]
QUIET = {"disable_tqdm": True}
# The YAMLs of the quickstart with these changes: a model of 30 thousand parameters, a few rows.
SMALL: dict[str, dict[str, Any]] = {
    "base": QUIET
    | {
        "trained": None,
        "num_texts": 64,
        "num_sft_train": 32,
        "num_sft_test": 8,
        "num_feedback_prompts": 40,
        "num_ppo_prompts": 16,
        "num_eval_prompts": 8,
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 2,
        "max_steps": 4,
    },
    "sft": QUIET | {"max_steps": 4, "num_samples": 1, "max_new_tokens": 8},
    "feedback": {"max_completion_length": 8},
    "reward": QUIET | {"max_steps": 4},
    "ppo": QUIET
    | {
        "total_episodes": 32,
        "rollout_batch_size": 16,
        "num_ppo_epochs": 1,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "save_steps": 1,
    },
    "evaluate": {"max_completion_length": 8},
}
ASKED = {"max_train_rows": 16, "max_completion_length": 8, "port": 0}
WITH_PEOPLE = {
    "people": ASKED | {"num_answers": 3},
    "reward_people": SMALL["reward"],
    "blind": ASKED | {"num_answers": 2},
}
KEYS = (
    "base_perplexity sft_perplexity reward_accuracy reward_accuracy_ceiling gold_sft gold_ppo "
    "win_rate win_rate_ci95 kl seconds peak_rss_mb"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "configs").mkdir()
    for name, changes in SMALL.items():
        write(folder, name, changes)
    return folder


def write(folder: Path, name: str, changes: dict[str, Any]) -> None:
    text = (ROOT / "configs/quickstart" / f"{name}.yaml").read_text(encoding="utf-8")
    values = {k: v for k, v in (yaml.safe_load(text) | changes).items() if v is not None}
    first = text.splitlines()[0]
    (folder / "configs" / f"{name}.yaml").write_text(f"{first}\n{yaml.safe_dump(values)}")


def run(folder: Path, **more: Any) -> dict[str, Any]:
    values = {"output_dir": str(folder / "runs"), "configs": str(folder / "configs")}
    return quickstart.run(parse("quickstart", [], values | more))


def finished_at(folder: Path) -> dict[str, int]:
    stages = [folder / "runs" / name / "summary.json" for name in quickstart.STAGES]
    return {path.parent.name: path.stat().st_mtime_ns for path in stages}


@pytest.mark.usefixtures("without_feedback_extra")
def test_all_stages_run_and_are_summed_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(folder)
    assert list(summary) == KEYS
    assert summary == json.loads((folder / "runs/summary.json").read_text())
    assert list(summary["seconds"]) == list(quickstart.STAGES)
    low, high = summary["win_rate_ci95"]
    assert 0 <= low <= summary["win_rate"] <= high <= 1
    assert summary["kl"] == pytest.approx(0, abs=1.0)  # two rollouts move a policy little
    assert (folder / "runs/report.html").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "[6/6] evaluate" in shown
    assert shown.count("SFT (gold") == 5
    prompts = [
        {row["prompt"][0]["content"] for row in read_jsonl(folder / f"runs/base/data/{name}.jsonl")}
        for name in ("sft_train", "sft_test", "feedback_prompts", "ppo_prompts", "eval_prompts")
    ]
    assert sum(map(len, prompts)) == len(set().union(*prompts))


@pytest.mark.slow  # what a page and its people do is tested in test_people.py, too
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_people_are_asked_before_the_reward_model_and_at_the_end(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, changes in WITH_PEOPLE.items():
        write(folder, name, changes)
    monkeypatch.setenv("BROWSER", f"{sys.executable} -m tests.helpers.browsing %s")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    root = folder / "runs-people"
    summary = run(folder, people=True, output_dir=str(root))
    assert list(summary["seconds"]) == list(quickstart.WITH_PEOPLE)
    assert 0 <= summary["preferred_ppo"] <= summary["preferred_of"] == 2
    shown = capsys.readouterr().out
    assert "[8/8] blind" in shown
    assert f"You preferred the trained model in {summary['preferred_ppo']} of 2." in shown
    lineage = json.loads((root / "reward/lineage.json").read_text())
    pairs = read_jsonl(root / "people/final/preference.jsonl")
    assert [data["name"] for data in lineage["data"]] == [f"{root}/feedback", f"{root}/people"]
    assert 3 <= len(pairs) <= 4  # one more where it came before the page had closed
    assert len(lineage["data"][1]["files"]["preference.jsonl"]) == 64
    run(folder, people=True, output_dir=str(root))
    assert capsys.readouterr().out.count("finished before") == 8


def test_its_last_words_name_the_command_that_talks_to_its_model(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse("quickstart", [], {"output_dir": str(folder / "runs")})
    print_closing(config, {"recipe": "quickstart"})
    said = next(line for line in capsys.readouterr().out.splitlines() if "rlhf chat" in line)
    words = shlex.split(said)
    assert words == ["rlhf", "chat", str(folder / "runs/ppo")]
    monkeypatch.setattr("sys.stdin", io.StringIO("Write a story.\n"))
    summary = chat.run(parse("chat", [*words[2:], "--max_completion_length", "8"]))
    assert summary["answers"] == 1
    assert capsys.readouterr().out.strip()


STORED: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("evaluate", {"run": "a", "max_new_tokens": 8}, {"run": "a", "max_completion_length": 8}, True),
    (
        "evaluate",
        {"run": "a", "max_new_tokens": 8},
        {"run": "b", "max_completion_length": 8},
        False,
    ),
    (
        "sft",
        {"dataset_name": "d", "max_steps": 3, "use_cpu": True},
        {"test_fraction": 8, "eval_strategy": "steps", "eval_steps": 0.25},
        True,
    ),
    ("sft", {"dataset_name": "d", "max_steps": 3, "use_cpu": True}, {"max_steps": 4}, False),
]


@pytest.mark.parametrize(("recipe", "yaml_values", "stored", "holds"), STORED)
def test_a_run_holds_whose_keys_were_translated_or_filled_up(
    recipe: str, yaml_values: dict[str, Any], stored: dict[str, Any], holds: bool, tmp_path: Path
) -> None:
    (tmp_path / f"{recipe}.yaml").write_text(yaml.safe_dump(yaml_values))
    stage = quickstart.Stage(recipe, tmp_path / f"{recipe}.yaml", str(tmp_path / "runs"))
    stage.folder.mkdir(parents=True)
    kept = stored if recipe == "evaluate" else yaml_values | stored
    (stage.folder / "config.yaml").write_text(yaml.safe_dump(kept))
    assert quickstart.is_of(stage) == holds


def test_finished_stages_are_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished_at(folder)
    run(folder)
    assert finished_at(folder) == before
    assert capsys.readouterr().out.count("finished before") == 6


def test_a_changed_yaml_runs_its_stage_and_those_after_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = finished_at(folder)
    write(folder, "reward", SMALL["reward"] | {"max_steps": 5})

    def killed(_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recipes.ppo.run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    # What followed from the old one is gone by then, or the next time would take it for finished.
    assert not (folder / "runs/evaluate").exists()
    run(folder)
    after = finished_at(folder)
    assert [name for name in after if after[name] != before[name]] == ["reward", "ppo", "evaluate"]
    shown = capsys.readouterr().out
    for stage in ("reward", "ppo", "evaluate"):
        assert f"what was there is now {folder}/runs/{stage}.old-1" in shown
        assert (folder / f"runs/{stage}.old-1/summary.json").is_file()


def test_what_followed_from_a_stage_that_is_gone_runs_again(folder: Path) -> None:
    before = finished_at(folder)
    shutil.rmtree(folder / "runs/ppo")
    run(folder)
    after = finished_at(folder)
    assert [name for name in after if after[name] != before[name]] == ["ppo", "evaluate"]
    shutil.rmtree(folder / "runs/evaluate.old-2")


def test_an_interrupted_stage_goes_on_and_ends_as_if_it_had_not_been(
    folder: Path, tmp_path: Path
) -> None:
    unbroken = (folder / "runs/ppo/final/model.safetensors").read_bytes()
    write(folder, "ppo", SMALL["ppo"] | {"log_completions": False})
    command = [sys.executable, "-m", "recipes.quickstart", "--output_dir", str(folder / "runs")]
    child = subprocess.Popen(
        [*command, "--configs", str(folder / "configs")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mark = folder / "runs/ppo/checkpoint-1/manifest.json"
    deadline = time.monotonic() + 600
    # the folder of the changed stage is moved aside first, so the mark is that of the new run
    while not (mark.is_file() and (folder / "runs/ppo.old-2").is_dir()):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "runs/ppo/summary.json").exists()
    run(folder)
    assert (folder / "runs/ppo/final/model.safetensors").read_bytes() == unbroken


def test_fresh_moves_everything_aside(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "runs/base").mkdir(parents=True)
    (tmp_path / "runs/base/note.txt").write_text("mine")
    with pytest.raises(UserError, match="is not there"):
        run(tmp_path, fresh=True)
    assert (tmp_path / "runs/base/note.txt").exists()  # a mistake changes nothing


def test_fresh_moves_no_folder_that_holds_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter").write_text("one")
    with pytest.raises(UserError, match="holds no quickstart; choose another folder"):
        quickstart.run(parse("quickstart", [], {"output_dir": str(thesis), "fresh": True}))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
    monkeypatch.chdir(thesis)
    for fresh in (True, False):
        with pytest.raises(UserError, match="is the folder you are in; name one of its own"):
            quickstart.run(parse("quickstart", [], {"output_dir": ".", "fresh": fresh}))
    assert [path.name for path in thesis.iterdir()] == ["chapter"]


def test_what_steers_a_terminal_is_printed_as_what_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {"prompt": "\x1b[2Ja", "baseline": "\x1b]0;b\x07", "completion": "c\rd"}
    quickstart.print_samples([said | {"score": 1.0, "score_baseline": 0.0}])
    printed = capsys.readouterr().out
    assert "\x1b]" not in printed
    assert "\x1b[2J" not in printed
    assert "\\x1b]0;b\\x07" in printed
    assert "\\x1b[2Ja" in printed
