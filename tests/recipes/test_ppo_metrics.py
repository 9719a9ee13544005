"""What a PPO run logs is what docs/metrics.md says, and its times add up."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from recipes import ppo
from recipes.lib.ppo.health import RULES
from recipes.lib.ppo.metrics import Clock
from recipes.lib.report.times import REST, phase_times
from recipes.lib.runs.files import read_jsonl
from tests.helpers.report_html import Page

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
PROMPTS = ["the cat", "the dog sat", "a bird in the tree", "rain"]
REWARDS = """
def length(completion_ids, **_):
    return [len(ids) / 4 for ids in completion_ids]


def fifth(completion_ids, **_):
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]
"""


def run(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A run of the recipe with every option that logs something of its own."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS]
    (folder / "train.jsonl").write_text("".join(rows * 4))
    (folder / "test.jsonl").write_text('{"prompt": "the moon"}\n{"prompt": "old house"}\n')
    (folder / "rewards.py").write_text(REWARDS)
    given = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "train.jsonl",
        "test_dataset_name": folder / "test.jsonl",
        "output_dir": folder / "run",
        "reward_weights": "1 2",
        "total_episodes": 96,
        "rollout_batch_size": 32,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "num_generations": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "target_kl": 1.0,
        "normalize_rewards": "true",
        "reward_clip": 3.0,
        "missing_eos_penalty": 0.5,
        "entropy_coef": 0.01,
        "log_completions": "true",
        "use_cpu": "true",
        "dtype": "float32",
    }
    flags = [part for key, value in given.items() for part in (f"--{key}", *str(value).split(" "))]
    file = folder / "rewards.py"
    flags += ["--cost_funcs", f"{file}:fifth", "--cost_limit", "0.2"]
    flags += ["--eval_reward_funcs", f"{file}:fifth"]
    assert ppo.main([*flags, "--reward_funcs", f"{file}:length", f"{file}:fifth"]) == 0
    return folder / "run"


def documented(heading: str) -> set[str]:
    """The keys in the first column of the tables under some headings."""
    sections = re.split(r"^## ", METRICS, flags=re.MULTILINE)
    tables = [section for section in sections if re.match(heading, section)]
    assert tables, heading
    cells = re.findall(r"^\| (`[^|]*`) \|", "".join(tables), flags=re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def test_every_key_that_is_written_is_documented_and_the_other_way_round(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    folder = run(tmp_path, tiny_model, tiny_tokenizer)
    rows = read_jsonl(folder / "metrics.jsonl")
    written = {key for row in rows for key in row}
    assert {"rewards/length", "rewards/fifth"} <= written
    written = {"rewards/<name>" if key.startswith("rewards/") else key for key in written}
    assert {"eval_held_out/fifth", "eval_held_out/fifth_stderr"} <= written
    written = {key.replace("held_out/fifth", "held_out/<name>") for key in written}
    logged = "The objective|The policy|The critic|The optimizer|Place and time|Evaluation"
    # Nothing here calls for these; of people test_direct_feedback.py tells.
    others = {"skipped_steps", "feedback/rated", "time/people"}
    assert documented(logged) == written | others
    summary = json.loads((folder / "summary.json").read_text())
    # Of what was used test_energy.py tells.
    used = {"energy_kwh_measured", "energy_kwh_estimated", "co2_grams"}
    assert documented("The summary") == set(summary) | used
    samples = read_jsonl(folder / "samples.jsonl")
    assert documented("The samples") == {key for row in samples for key in row}
    assert documented("Warnings") == {*RULES, "held_out"}
    check_times(rows)
    check_the_report(folder, rows, summary)


def check_times(rows: list[dict[str, Any]]) -> None:
    """Tokens per second times seconds are the tokens of the rollout; phases fill the time."""
    updates = [row for row in rows if "loss" in row]
    assert len(updates) == 3
    prompt_tokens = 8 * sum(len(prompt.split()) for prompt in PROMPTS)  # 32 episodes of 4 prompts
    for row in updates:
        tokens = {
            phase: row[f"time/{phase}"] * row[f"time/{phase}_tokens_per_second"]
            for phase in ("sampling", "scoring", "training")
        }
        completion_tokens = 32 * row["completions/mean_length"]
        assert tokens["sampling"] == pytest.approx(completion_tokens)
        assert tokens["scoring"] == pytest.approx(completion_tokens + prompt_tokens)
        assert tokens["training"] == pytest.approx(2 * (completion_tokens + prompt_tokens))
    # an evaluation and a checkpoint follow the log of their step, and are in the next one
    assert [sorted(k for k in row if re.search("saving|evaluation", k)) for row in updates] == [
        [],
        ["time/evaluation", "time/saving"],
        ["time/evaluation", "time/saving"],
    ]
    phases = ("sampling", "scoring", "training", "evaluation", "saving")
    known = sum(row.get(f"time/{phase}", 0.0) for row in updates[1:] for phase in phases)
    whole = updates[-1]["seconds"] - updates[0]["seconds"]
    assert known == pytest.approx(whole, rel=0.1, abs=0.2)


def check_the_report(folder: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    page = Page(folder / "report.html")
    cells = [
        e.text for e in page.all("th", scope="row") if e.inside("table", **{"class": "plain times"})
    ]
    assert cells[0] == "Sampling completions"
    assert cells[-1] == REST
    shown = [
        float(e.attributes["value"])
        for e in page.all("data")
        if e.inside("table", **{"class": "plain times"}) and not e.attributes["data-key"]
    ]
    assert shown[0] == pytest.approx(sum(row.get("time/sampling", 0.0) for row in rows))
    assert sum(shown) == pytest.approx(summary["seconds"])


def test_a_phase_inside_another_interrupts_it() -> None:
    clock, start = Clock(), time.monotonic()
    clock.begin("training")
    time.sleep(0.02)
    with clock.measure("saving"):
        time.sleep(0.06)
    clock.count("training", 100)
    clock.begin("")
    wall = time.monotonic() - start
    time.sleep(0.05)
    taken = clock.take()
    assert taken["time/training"] >= 0.02
    assert taken["time/saving"] >= 0.06
    # nothing is counted twice, and nothing after the end
    assert taken["time/training"] + taken["time/saving"] <= wall
    assert taken["time/training_tokens_per_second"] == pytest.approx(100 / taken["time/training"])
    assert taken["time/sampling"] == 0.0
    assert "time/evaluation" not in taken
    assert clock.take() == {"time/sampling": 0.0, "time/scoring": 0.0, "time/training": 0.0}


def test_a_clock_goes_on_where_the_checkpoint_was_written() -> None:
    clock = Clock()
    clock.seconds, clock.tokens = {"sampling": 4.0}, {"sampling": 100}
    other = Clock()
    other.load(json.loads(json.dumps(clock.state())))
    other.count("sampling", 60)
    assert other.take()["time/sampling_tokens_per_second"] == 160 / 4


def test_the_table_of_times_adds_up_and_weighs_the_rates() -> None:
    name = "time/sampling_tokens_per_second"
    rows = [
        {"time/sampling": 1.0, name: 100.0, "time/training": 5.0},
        {"eval_scores": 1.0},
        {"time/sampling": 3.0, name: 20.0, "time/training": 6.0, "time/saving": 1.0},
    ]
    table = phase_times(rows, 20.0)
    assert [(line.label, float(line.seconds.value), line.share) for line in table] == [
        ("Sampling completions", 4.0, "20\u00a0%"),
        ("Updates", 11.0, "55\u00a0%"),
        ("Saving checkpoints", 1.0, "5\u00a0%"),
        (REST, 4.0, "20\u00a0%"),
    ]
    assert table[0].rate is not None
    assert float(table[0].rate.value) == 40.0  # 160 tokens in 4 seconds
    assert table[1].rate is None
    # the summary of a resumed run knows only its last part: no rest then
    assert [line.label for line in phase_times(rows, 10.0)][-1] == "Saving checkpoints"
    assert phase_times([{"loss": 1.0}], 10.0) == []
