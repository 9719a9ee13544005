"""Rounds: what one leaves is what the next begins from, and a kill anywhere changes nothing."""

import functools
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import feedback, quickstart, rounds
from recipes.lib.errors import UserError
from recipes.lib.feedback.rows import make_row
from recipes.lib.feedback.store import Store
from recipes.lib.recipe.main import parse
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.files import read_jsonl, write_json
from tests.conftest import ROOT
from tests.helpers.kills import import_libraries, run_in_fork
from tests.helpers.length_judge import prepare
from tests.helpers.tiny_rounds import outcome, write_configs


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return prepare(tmp_path, tiny_model, tiny_tokenizer, 80)


def play(values: dict[str, Any]) -> dict[str, Any]:
    return rounds.run(parse("rounds", [], values))


def decide(monkeypatch: pytest.MonkeyPatch, *verdicts: bool) -> None:
    """Promote as is said, whatever the win rates of two updates of a tiny model."""
    said = iter(verdicts)
    monkeypatch.setattr(rounds, "reasons_against", lambda *_: [] if next(said) else ["a reason"])
    monkeypatch.setattr(rounds, "is_worse", lambda *_: False)


def test_each_round_learns_from_all_answers_and_goes_on_from_the_newest_policy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = write_configs(folder)
    decide(monkeypatch, False, True, False)
    summary = play(values)
    root = folder / "rounds"
    told = [read_json(root / f"round-{n}/summary.json") for n in (1, 2, 3)]
    assert [one["promoted"] for one in told] == [False, True, False]
    assert summary["promoted"] == str(root / "round-2/ppo")
    begun = [values["model_name_or_path"], *(str(root / f"round-{n}/ppo") for n in (1, 2))]
    assert [one["start"] for one in told] == begun
    gates = [yaml.safe_load((root / f"round-{n}/evaluate/config.yaml").read_text()) for n in (2, 3)]
    assert [one["baseline"] for one in gates] == [begun[0], str(root / "round-2/ppo")]
    assert [one["num_answers"] for one in told] == [20, 20, 20]
    keys = [yaml.safe_load((root / f"round-{n}/reward/config.yaml").read_text()) for n in (1, 2, 3)]
    learned = [[Path(part["path"]) for part in one["datasets"]] for one in keys]
    assert learned[0] == [root / "round-1/simulated"]
    assert learned[2] == [
        root / f"round-{n}/{name}"
        for n in (1, 2, 3)
        for name in (("simulated", "gate-simulated") if n < 3 else ("simulated",))
    ]
    assert [one["seed"] for one in keys] == [1, 2, 3]
    ppo = yaml.safe_load((root / "round-3/ppo/config.yaml").read_text())
    assert ppo["model_name_or_path"] == str(root / "round-2/ppo")
    assert ppo["reward_funcs"] == [str(root / "round-3/reward")]
    # The gate asked about the two policies, on prompts that no round had asked about before.
    items = read_jsonl(root / "round-3/gate-select/final/items.jsonl")
    runs = {one["run"] for item in items for one in item["completions"]}
    assert runs == {str(root / "round-3/ppo"), str(root / "round-2/ppo")}
    asked = [file for file in root.glob("round-*/*select/final/items.jsonl")]
    prompts = [
        {item["prompt"][0]["content"] for item in read_jsonl(file)} for file in sorted(asked)
    ]
    assert len(prompts) == 6
    assert not prompts[-2] & prompts[0] & {item["prompt"][0]["content"] for item in items}
    # A quarter of what is asked in later rounds was asked before, of the same pairs.
    again = {item["id"] for item in read_jsonl(root / "round-2/select/final/items.jsonl")}
    first = {
        item["id"]
        for name in ("select", "gate-select")
        for item in read_jsonl(root / f"round-1/{name}/final/items.jsonl")
    }
    assert len(again & first) == 3
    # Nothing that is tested on was trained on.
    answers = [root / f"round-{n}/simulated/final" for n in (1, 2, 3)]
    tests = {row["prompt"][0]["content"] for f in answers for row in read_jsonl(f / "test.jsonl")}
    trained = {
        row["prompt"][0]["content"] for f in answers for row in read_jsonl(f / "ranks.jsonl")
    }
    assert tests
    assert not tests & trained
    page = (root / "report.html").read_text()
    assert "Round 2 of 3 brought a better policy" in page
    assert "round 1: a reason." in page
    capsys.readouterr()
    decide(monkeypatch, False, True, False)
    before = outcome(root)
    play(values)
    assert capsys.readouterr().out.count("finished before") == 21
    assert outcome(root) == before


def test_what_follows_from_a_step_that_changed_is_moved_aside_before_it_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = write_configs(folder) | {"num_rounds": 2}
    decide(monkeypatch, True, True)
    play(values)
    root = folder / "rounds"
    write_configs(folder, ppo={"learning_rate": 1e-3})
    seen: list[set[str]] = []

    def stopped(config: Any) -> Any:
        seen.append({path.parent.name for path in root.glob("round-*/*/config.yaml")})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recipes.ppo.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            play(values)
    steps = {name.split(".")[0] for name in seen[0] if ".old-" not in name}
    assert steps == {"select", "simulated", "reward"}
    assert not (root / "round-2/select").exists()
    decide(monkeypatch, True, True)
    assert play(values)["num_rounds"] == 2
    assert yaml.safe_load((root / "round-2/ppo/config.yaml").read_text())["learning_rate"] == 1e-3


def test_a_fault_of_the_reward_model_ends_a_round_and_not_the_rounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = {"skip_check": None}
    values = write_configs(folder, reward=checked, ppo=checked) | {"num_rounds": 2}

    def stopped(config: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recipes.ppo.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            play(values)
    weights = folder / "rounds/round-1/reward/final/model.safetensors"
    kept = load_file(weights)
    save_file(kept | {"score.weight": -kept["score.weight"]}, weights, {"format": "pt"})
    decide(monkeypatch, False)
    summary = play(values)
    told = read_json(folder / "rounds/round-1/summary.json")
    assert not told["promoted"]
    assert "round-1/reward" in told["reasons"][0]
    assert not (folder / "rounds/round-1/ppo").exists()
    assert read_json(folder / "rounds/round-2/summary.json")["reasons"] == ["a reason"]
    decide(monkeypatch, False)
    assert play(values) == summary
    assert read_json(folder / "rounds/round-1/summary.json") == told


@pytest.mark.parametrize("strategy", ["disagreement", "diversity"])
def test_a_strategy_reads_the_newest_reward_model_as_soon_as_there_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    select = {"strategy": strategy, "candidates_per_item": 2, "num_completions": 3}
    values = write_configs(folder, select=select, reward={"ensemble": 3})
    decide(monkeypatch, False, False)
    play(values | {"num_rounds": 2})
    keys = [
        yaml.safe_load((folder / f"rounds/round-{n}/select/config.yaml").read_text())
        for n in (1, 2)
    ]
    read = [one.get("reward_model_name_or_path") for one in keys]
    if strategy == "diversity":
        assert read == [None, None]
        return
    assert [one["strategy"] for one in keys] == ["random", "disagreement"]
    assert read == [None, str(folder / "rounds/round-1/reward")]
    numbers = read_json(folder / "rounds/round-2/select/summary.json")
    assert (numbers["num_items"], numbers["num_repeated"]) == (12, 3)
    assert numbers["num_candidates"] > 12


@pytest.mark.slow  # what a page and its people do is tested in test_people.py, too
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_people_and_a_simulated_rater_share_what_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER", f"{sys.executable} -m tests.helpers.browsing %s")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    values = write_configs(folder, people={"action": "serve", "port": 0})
    values |= {"num_rounds": 1, "num_answers": 12, "gate_answers": 4}
    values["raters"] = {"people": 1, "simulated": 1}
    decide(monkeypatch, True)
    play(values)
    told = read_json(folder / "rounds/round-1/summary.json")
    sources = [
        [row["source"] for row in read_jsonl(folder / f"rounds/round-1/{name}/answers.jsonl")]
        for name in ("people", "simulated", "gate-people", "gate-simulated")
    ]
    assert {*sources[0], *sources[2]} == {"human"}
    assert {*sources[1], *sources[3]} == {"simulated"}
    assert told["num_answers"] == sum(map(len, sources)) == 12
    decide(monkeypatch, True)
    play(values)
    assert read_json(folder / "rounds/round-1/summary.json") == told


def test_other_raters_or_shares_are_asked_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"action": "simulate", "judge": f"{folder / 'judge.py'}:judge", "seed": 1}
    values = write_configs(folder, other=other) | {"num_rounds": 1}
    for raters in ({"simulated": 1}, {"simulated": 1, "other": 1}, {"other": 1}):
        decide(monkeypatch, False)
        play(values | {"raters": raters})
        told = read_json(folder / "rounds/round-1/summary.json")
        assert told["num_answers"] == 20
        keys = yaml.safe_load((folder / "rounds/round-1/reward/config.yaml").read_text())
        assert {Path(part["path"]).name for part in keys["datasets"]} <= {*raters}


def test_a_rater_all_of_whose_items_are_held_out_is_left_out_of_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = {"random_share": 1.0}
    values = write_configs(folder, select=select, reward={"test_fraction": None}) | {
        "num_rounds": 1
    }
    with pytest.raises(UserError, match="no answer is left to learn from"):
        play(values)
    write_configs(folder, other={"action": "simulate", "judge": f"{folder / 'judge.py'}:judge"})
    decide(monkeypatch, False)
    play(values | {"raters": {"simulated": 20, "other": 1}})
    keys = yaml.safe_load((folder / "rounds/round-1/reward/config.yaml").read_text())
    for part in keys["datasets"]:
        assert list((Path(part["path"]) / "final").glob("ranks.jsonl"))


RATE = {"win_rate": 0.6, "win_rate_ci95": [0.52, 0.7]}


@pytest.mark.parametrize(
    ("evaluated", "keys", "cost", "reason"),
    [
        (RATE, {}, None, ""),
        (RATE | {"win_rate_ci95": [0.5, 0.7]}, {}, None, "does not lie above 0.5"),
        (RATE, {"cost_limit": 2.0}, 2.2, ""),
        (RATE, {"cost_limit": 2.0}, 2.3, "mean cost is 2.3"),
        (RATE, {"cost_limit": -2.0}, -1.7, "mean cost is -1.7"),
    ],
)
def test_a_policy_is_promoted_that_wins_and_keeps_its_costs(
    tmp_path: Path, evaluated: Any, keys: Any, cost: float | None, reason: str
) -> None:
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(keys))
    write_json(tmp_path / "summary.json", {"cost": cost} if cost is not None else {})
    stage = quickstart.Stage("ppo", tmp_path / "ppo.yaml", "runs", {"output_dir": str(tmp_path)})
    found = rounds.reasons_against(evaluated, stage)
    assert len(found) == bool(reason)
    assert reason in "".join(found)


def test_a_round_after_a_worse_policy_begins_from_the_last_promoted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = write_configs(folder)
    decide(monkeypatch, False, False)
    monkeypatch.setattr(rounds, "is_worse", lambda *_: True)
    play(values | {"num_rounds": 2})
    told = [read_json(folder / f"rounds/round-{n}/summary.json") for n in (1, 2)]
    assert [one["start"] for one in told] == [values["model_name_or_path"]] * 2


@pytest.mark.parametrize(
    ("interval", "cost", "worse"),
    [([0.3, 0.5], 2.0, False), ([0.3, 0.49], 2.0, True), ([0.52, 0.7], 2.3, True)],
)
def test_a_policy_is_worse_that_surely_loses_or_costs_too_much(
    tmp_path: Path, interval: list[float], cost: float, worse: bool
) -> None:
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump({"cost_limit": 2.0}))
    write_json(tmp_path / "summary.json", {"cost": cost})
    stage = quickstart.Stage("ppo", tmp_path / "ppo.yaml", "runs", {"output_dir": str(tmp_path)})
    assert rounds.is_worse({"win_rate_ci95": interval}, stage) == worse


def test_a_rater_whose_taste_changes_is_told_of_within_a_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = write_configs(folder, select={"repeat": 0.5}, simulated={"rater_temperature": 0.5})
    values |= {"num_rounds": 2, "num_answers": 48, "gate_answers": 0}
    judged = {
        "judge": f"{folder / 'judge.py'}:judge",
        "dataset_name": str(folder / "prompts.jsonl"),
    }
    write_configs(
        folder, simulated={"rater_temperature": 0.5}, select={"repeat": 0.5}, evaluate=judged
    )
    decide(monkeypatch, False, False)
    play(values)
    assert "answered" not in capsys.readouterr().out
    judge = (folder / "judge.py").read_text()
    (folder / "judge.py").write_text(judge.replace("float(len", "-float(len"))
    decide(monkeypatch, False, False, False)
    play(values | {"num_rounds": 3})
    hints = read_json(folder / "rounds/round-3/summary.json")["hints"]
    assert any("repeated items as before" in hint for hint in hints)
    assert "repeated items as before" in (folder / "rounds/report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"raters": {"simulated": 0.0}}, "give each rater a share above 0"),
        ({"raters": {"nobody": 1.0}}, "nobody.yaml is not there"),
        ({"gate_answers": 19}, "leave 2 or more to learn from"),
        ({"gate_answers": 1}, "no gate or one of 2 answers"),
        ({"raters": {"evaluate": 1.0}}, "action=None: must be serve or simulate"),
        ({"gate_answers": 0}, "who decides?"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    folder: Path, changes: dict[str, Any], told: str
) -> None:
    values = write_configs(folder) | changes
    with pytest.raises(UserError, match=told.replace("?", r"\?")):
        play({key: value for key, value in values.items() if value is not None})
    assert not (folder / "rounds").exists()


@pytest.mark.parametrize(
    ("changes", "method", "told"),
    [
        ({"strategy": "widest"}, "dpo", "method=dpo trains no reward model"),
        ({"strategy": "disagreement"}, "ppo", "set ensemble: 5"),
    ],
)
def test_a_strategy_that_has_nothing_to_read_is_refused(
    folder: Path, changes: dict[str, Any], method: str, told: str
) -> None:
    values = write_configs(folder, select=changes, dpo={}) | {"method": method}
    with pytest.raises(UserError, match=told):
        play(values)


def person(project: Path, number: int, passes: int = 0) -> None:
    """Answer items of a project, and pass some."""
    store = Store(project / "feedback.db")
    store.add_annotator("anna")
    for place, asked in enumerate(store.claim("anna", number)):
        value: dict[str, Any] = {"value": 0}
        given = {"value": None, "weight": 0.0} if place < passes else value
        row = make_row(asked["item"], kind="pair", annotator="anna", source="human", **given)
        store.answer(asked["claim"], "anna", [row])


def test_people_who_pass_and_exports_meanwhile_neither_stop_a_step_nor_end_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = write_configs(folder, people={"action": "serve", "port": 0})
    values |= {"num_rounds": 1, "num_answers": 12, "gate_answers": 2, "raters": {"people": 1}}
    asked: list[int] = []

    def page(project: Any, script: Any) -> None:
        asked.append(len(asked))
        person(project.path, 3 if len(asked) == 1 else 99, passes=1)

    monkeypatch.setattr("recipes.lib.annotation.hosting.host", page)
    with pytest.raises(KeyboardInterrupt):
        play(values)
    project = folder / "rounds/round-1/people"
    feedback.run(parse("feedback", ["export"], {"output_dir": str(project)}))
    assert (project / "summary.json").is_file()
    rounds.run(parse("rounds", [], values | {"status": True}))
    decide(monkeypatch, True)
    play(values)  # goes on with the page, though there is an export; two are passed in the end
    told = read_json(folder / "rounds/round-1/summary.json")
    assert (len(asked), told["num_answers"]) == (3, 12 - 3)
    assert "anna" not in (folder / "rounds/round-1/gate.jsonl").read_text()
    # Another address of the page is no other question.
    write_configs(folder, people={"action": "serve", "port": 8123})
    decide(monkeypatch, True)
    play(values)
    assert len(asked) == 3
    assert not [*folder.glob("rounds/round-1/*.old-*")]


@pytest.mark.slow
def test_rounds_that_are_killed_twenty_times_end_as_unbroken_ones(folder: Path) -> None:
    values, log = write_configs(folder), folder / "log.txt"
    import_libraries()
    begun = time.monotonic()
    assert run_in_fork(functools.partial(play, values), log) == 0, log.read_text()[-3000:]
    seconds = time.monotonic() - begun
    killed = values | {"output_dir": str(folder / "killed")}
    kills, draw = 0, random.Random(0)
    while True:
        # So soon that it is not done after fewer.
        after = seconds * draw.uniform(0.02, 0.12) if kills < 20 else None
        code = run_in_fork(functools.partial(play, killed), log, after)
        if code != -signal.SIGKILL:
            break
        kills += 1
    assert (code, kills) == (0, 20), log.read_text()[-3000:]
    assert outcome(folder / "killed") == outcome(folder / "rounds")
