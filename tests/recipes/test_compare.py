"""Methods on equal budgets, runs over each other on one page, and the tree of all runs."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import cli, compare, evaluate, runs
from recipes.lib.errors import UserError
from recipes.lib.evaluation.contest import Side
from recipes.lib.feedback.rows import make_row
from recipes.lib.generation.completions import complete
from recipes.lib.recipe.main import parse
from recipes.lib.report.compared import aligned, curves
from recipes.lib.report.run_files import RunFiles
from recipes.lib.runs.files import read_jsonl, write_jsonl
from tests.conftest import word_tokenizer
from tests.helpers.report_html import Page
from tests.helpers.report_runs import write_run
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import FAST, write

PROMPTS = [f"the {noun} {verb} the" for noun in ("cat", "dog", "sun") for verb in ("saw", "found")]
REWARD = """
def colours(completions, **columns):
    return [float(sum(word in ("red", "blue") for word in text.split())) for text in completions]
"""
MODEL = FAST | {"model_name_or_path": "sft", "per_device_train_batch_size": 16}
SAMPLED: dict[str, Any] = {"dataset_name": "prompts.jsonl", "reward_funcs": ["rewards.py:colours"]}
SAMPLED |= {"max_completion_length": 6, "learning_rate": 2e-2}
GROUPS = MODEL | SAMPLED | {"num_generations": 4, "num_iterations": 2, "beta": 0.01}
PPO = {"rollout_batch_size": 32, "num_ppo_epochs": 1, "num_mini_batches": 2, "kl_coef": 0.02}
PAIRS = {"dataset_name": "pairs.jsonl", "test_fraction": 0}
YAMLS: dict[str, dict[str, Any]] = {
    "ppo": MODEL | SAMPLED | PPO | {"total_episodes": 64},
    "rloo": GROUPS | {"max_steps": 1},
    "grpo": GROUPS | {"max_steps": 1, "steps_per_generation": 2, "global_batch_size": 16},
    "dpo": MODEL | PAIRS | {"max_steps": 1},
    "kto": MODEL | PAIRS | {"max_steps": 1, "global_batch_size": 32},
    "evaluate": {
        "run": "runs/x",
        "baseline": "sft",
        "dataset_name": "prompts.jsonl",
        "judge": "rewards.py:colours",
        "max_completion_length": 6,
        "seed": 3,
    },
}
FOLDER = Path("runs/compare/ppo-rloo-dpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three methods that were trained and judged; the working directory of the tests."""
    folder = tmp_path_factory.mktemp("compare")
    with contextlib.chdir(folder):
        save_model(Path("sft"), word_tokenizer())
        write(Path("prompts.jsonl"), [{"prompt": prompt} for prompt in PROMPTS])
        rows = [{"prompt": p, "chosen": " red .", "rejected": " sad ."} for p in PROMPTS * 12]
        write(Path("pairs.jsonl"), rows)
        Path("rewards.py").write_text(REWARD)
        Path("task").mkdir()
        for name, values in YAMLS.items():
            Path(f"task/{name}.yaml").write_text(f"# A {name}: tiny.\n{yaml.safe_dump(values)}")
        run(methods=["ppo,rloo", "dpo"], budget=128)
        yield folder


def run(**values: Any) -> dict[str, Any]:
    return compare.run(parse("compare", [], {"configs": "task"} | values))


def summary_of(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return told


def test_each_method_gets_the_same_completions(folder: Path) -> None:
    assert [summary_of(Path(f"runs/task-128/{name}"))["episodes"] for name in ("ppo", "rloo")] == [
        128,
        128,
    ]
    # Worked by hand, of 128 completions: a step of DPO takes 16 pairs, one of KTO 32 texts; GRPO
    # samples 32 at a time and takes 4 steps on them.
    script = parse("compare", [], {"methods": ["grpo", "kto"], "configs": "task"}).script
    script.budget = 128
    keys = {name: compare.stage_of(name, script).keys for name in compare.METHODS}
    assert [one.get("total_episodes", one.get("max_steps")) for one in keys.values()] == [
        *(128, 16, 16, 4, 4)
    ]
    assert read_jsonl(Path("runs/task-128/dpo/metrics.jsonl"))[-1]["step"] == 4
    file = Path("task/grpo.yaml")
    text = file.read_text()
    three = text.replace("steps_per_generation: 2", "steps_per_generation: 3")
    file.write_text(three.replace("global_batch_size: 16", "global_batch_size: 64"))
    with pytest.raises(UserError, match=r"which end within a generation"):
        compare.stage_of("grpo", script)
    file.write_text(text)
    script.budget = 136
    with pytest.raises(UserError, match=r"budget=136: rloo takes 16 completions at a time"):
        compare.stage_of("rloo", script)


def test_the_numbers_follow_from_the_samples(folder: Path) -> None:
    told, rows = summary_of(FOLDER), read_jsonl(FOLDER / "samples.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    names = ["ppo", "rloo", "dpo", "sft"]
    for name in names:
        counted = [
            sum(word in ("red", "blue") for word in row["completions"][name].split())
            for row in rows
        ]
        assert [row["scores"][name] for row in rows] == counted
        assert told["score"][name] == pytest.approx(fmean(counted))
        low, high = told["score_ci95"][name]
        assert low <= told["score"][name] <= high
        # The bootstrap's error of a mean has the plug-in variance; its ends lie on a grid of 1/6.
        assert high - low == pytest.approx(2 * 1.96 * pstdev(counted) / 6**0.5, abs=1 / 3)
    for one, other in permutations(names, 2):
        scores = [(row["scores"][one], row["scores"][other]) for row in rows]
        rate, low, high = told["win_rates"][one][other]
        assert rate == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in scores) / 6)
        assert low <= rate <= high
    assert told["win_rate"] == {name: told["win_rates"][name]["sft"] for name in names[:3]}
    assert told["runs"] == {name: f"runs/task-128/{name}" for name in names[:3]}
    assert told["seconds"] < 1000


def test_each_is_judged_as_by_an_evaluation_of_its_own(folder: Path) -> None:
    values = YAMLS["evaluate"] | {"run": "runs/task-128/rloo", "output_dir": "alone"}
    alone, told = evaluate.run(parse("evaluate", [], values)), summary_of(FOLDER)
    assert told["score"]["rloo"] == alone["score"]
    assert told["score"]["sft"] == alone["score_baseline"]
    assert told["win_rate"]["rloo"] == [alone["win_rate"], *alone["win_rate_ci95"]]
    assert told["kl"]["rloo"] == pytest.approx(alone["kl"], abs=1e-6)
    assert told["kl_stderr"]["rloo"] == pytest.approx(alone["kl_stderr"], abs=1e-6)
    assert told["kl"].keys() == {"ppo", "rloo", "dpo"}


def test_scores_of_a_judge_that_compares_are_shares_of_the_win_over_the_last() -> None:
    def both(*shares: float) -> tuple[Side, Side]:
        return Side([], [*shares], []), Side([], [1 - share for share in shares], [])

    said = {"judge": {(0, 1): both(1, 1, 0.5), (0, 2): both(1, 0, 0.5), (1, 2): both(0, 0, 1)}}
    script = parse("compare", ["a", "b", "--seed", "1"]).script
    told, scores = compare.judged_numbers(script, ["a", "b", "c"], said, [{}, {}])
    assert scores == {"a": [1, 0, 0.5], "b": [0, 0, 1], "c": [0.5, 0.5, 0.5]}
    assert told["score"] == {"a": 0.5, "b": pytest.approx(1 / 3), "c": 0.5}
    assert told["win_rates"]["a"]["b"][0] == pytest.approx(5 / 6)
    assert told["win_rates"]["c"]["b"][0] == pytest.approx(2 / 3)
    assert [*told["ranking"]] == ["a", "c", "b"]
    assert "kl" not in told


def test_the_page_shows_them_over_each_other(folder: Path) -> None:
    page = Page(FOLDER / "report.html")
    titles = ["Score against KL", "Reward", "Reward over time", "Reward against KL"]
    assert page.figures[:4] == titles
    assert {"Distance from the reference", "Completion length"} <= {*page.figures}
    cells = [element.text for element in page.all("td") + page.all("th")]
    assert {"kl_coef", "beta", "Ran into"} & {*cells} == {"kl_coef", "beta"}
    assert "output_dir" not in cells
    rate, low, high = (100 * one for one in summary_of(FOLDER)["win_rates"]["ppo"]["rloo"])
    assert f"{rate:.0f}\u00a0% ({low:.0f} to {high:.0f})" in cells


def test_the_largest_gains_and_losses_are_those_of_the_scores(folder: Path) -> None:
    rows = read_jsonl(FOLDER / "samples.jsonl")
    page = Page(FOLDER / "report.html")
    for name, sign in (("gains", 1), ("losses", -1)):
        best = [
            max(sign * (row["scores"][run] - row["scores"]["sft"]) for run in row["scores"])
            for row in rows
        ]
        expected = sorted((gain for gain in best if gain > 0), reverse=True)[:3]
        shown = [
            [
                float(text)
                for text in re.findall(r"score (\S+)", element.text.replace("\u2212", "-"))
            ]
            for element in page.all("tr", role="row")
            if element.inside("section", id=f"section-{name}")
        ]
        assert [sign * (run - start) for start, run in filter(None, shown)] == expected


def test_finished_methods_are_kept_and_named_runs_need_no_judge(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="holds a run; continue it with --resume"):
        run(methods=["ppo,rloo", "dpo"], budget=128)
    capsys.readouterr()
    before = (FOLDER / "samples.jsonl").read_text()
    run(methods=["ppo", "rloo", "dpo"], budget=128, overwrite=True)
    assert capsys.readouterr().out.count("finished before") == 3
    assert (FOLDER / "samples.jsonl").read_text() == before
    assert cli.main(["compare", "task-128/ppo", "runs/task-128/rloo"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    page = Page(Path("runs/compare/task-128-ppo-task-128-rloo/report.html"))
    assert page.figures[0] == "Reward"
    assert page.headings[0] == "Over each other"


def test_the_start_is_what_the_others_began_from_or_none(folder: Path) -> None:
    dpo, others = "runs/task-128/dpo", []
    for name, start in (("next", f"{dpo}/final"), ("far", "Some/Model")):
        shutil.copytree(dpo, f"runs/on/{name}")
        file = Path(f"runs/on/{name}/config.yaml")
        keys = yaml.safe_load(file.read_text()) | {"model_name_or_path": start}
        file.write_text(yaml.safe_dump(keys))
        others.append(f"runs/on/{name}")
    assert compare.start_of(["runs/task-128/ppo", dpo]) == "sft"
    assert compare.start_of([dpo, others[0]]) == dpo
    assert compare.start_of([*others, dpo]) is None
    judged = {key: YAMLS["evaluate"][key] for key in ("dataset_name", "judge")}
    told = run(runs=others, output_dir="apart", max_completion_length=4, **judged)
    assert told["baseline"] is None
    assert "kl" not in told
    assert "Score against KL" not in Page(Path("apart/report.html")).figures


def test_an_automatic_baseline_is_asked_by_the_template_of_the_runs(folder: Path) -> None:
    places = json.loads((FOLDER / "summary.json").read_text())["runs"]
    for name in ("ppo", "rloo"):
        shutil.copytree(places[name], f"spoken/{name}")
        tokenizer = AutoTokenizer.from_pretrained(f"spoken/{name}/final")
        tokenizer.chat_template = "{{ messages[0].content }}"
        tokenizer.save_pretrained(f"spoken/{name}/final")
    write(Path("spoken.jsonl"), [{"prompt": [{"role": "user", "content": p}]} for p in PROMPTS])
    given: dict[str, Any] = {"runs": ["spoken/ppo", "spoken/rloo"], "max_completion_length": 6}
    given |= {"dataset_name": "spoken.jsonl", "judge": "judge.py:letters"}
    Path("judge.py").write_text(
        "def letters(prompts, completions):\n"
        "    return [float(len(said[0]['content'])) for said in completions]\n"
    )
    said = []
    # a baseline that the user names is asked by its own template
    for place, more in (("spoken/ppo/final", {}), ("sft", {"baseline": "sft"})):
        assert run(**given, **more, output_dir="of-spoken", overwrite=True)["baseline"] == "sft"
        asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained("sft")
        expected = complete(model, tokenizer, asked, max_new_tokens=6)
        rows = read_jsonl(Path("of-spoken/samples.jsonl"))
        said.append([row["completions"]["sft"] for row in rows])
        assert said[-1] == [one.text for one in expected]
    assert said[0] != said[1]


def test_methods_whose_start_was_made_anew_run_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below, pairs = write_run(tmp_path / "below", {}, config={"seed": 1}), tmp_path / "pairs.jsonl"
    save_model(below / "final", word_tokenizer())
    shutil.copy("pairs.jsonl", pairs)
    configs = tmp_path / "anew"
    configs.mkdir()
    for name, data in (("dpo", "pairs.jsonl"), ("kto", str(pairs))):
        keys = YAMLS[name] | {"model_name_or_path": str(below), "dataset_name": data}
        (configs / f"{name}.yaml").write_text(f"# A {name}: tiny.\n{yaml.safe_dump(keys)}")

    def ran() -> list[bool]:
        capsys.readouterr()
        values = {"methods": ["dpo", "kto"], "configs": str(configs), "output_dir": "of-anew"}
        run(budget=32, overwrite=True, **values)
        said = capsys.readouterr().out.splitlines()
        return [any(f"{name}: tiny." in line for line in said) for name in ("dpo", "kto")]

    assert ran() == [True, True]
    assert ran() == [False, False]
    trained = Path("runs/anew-32/dpo/final/model.safetensors")
    before = trained.read_bytes()
    save_model(below / "final", word_tokenizer(), initializer_range=0.5)
    (below / "summary.json").write_text('{"seconds": 2.0}')
    assert ran() == [True, True]
    assert trained.read_bytes() != before
    assert Path("runs/anew-32/dpo.old-1/final/model.safetensors").read_bytes() == before
    pairs.touch()  # what KTO alone reads
    assert ran() == [False, True]
    Path("runs/anew-32/dpo/summary.json").unlink()  # as one that was interrupted
    (below / "summary.json").write_text('{"seconds": 3.0}')
    assert ran() == [True, True]
    assert Path("runs/anew-32/dpo.old-2").is_dir()


def test_people_who_compared_the_runs_alone_judge_without_a_baseline(folder: Path) -> None:
    names = ["runs/task-128/ppo", "runs/task-128/dpo"]
    rows = []
    for prompt, value in zip(PROMPTS, (0, 0, 0, 1), strict=False):
        said = [{"content": f"{name} said", "run": name} for name in names]
        item = {"id": prompt, "prompt": prompt, "completions": said}
        rows.append(make_row(item, kind="pair", value=value, annotator="ann", source="human"))
    write_jsonl(Path("answers.jsonl"), rows)
    values: dict[str, Any] = {"runs": names, "judge": "answers.jsonl"}
    values |= {"dataset_name": "prompts.jsonl", "max_completion_length": 6}
    with pytest.raises(UserError, match="has no answers to these prompts that compare"):
        run(output_dir="asked", **values)
    told = run(output_dir="asked-alone", baseline="none", **values)
    assert told["win_rates"]["ppo"]["dpo"][0] == 0.75
    assert (told["baseline"], [*told["win_rates"]]) == (None, ["ppo", "dpo"])
    assert "kl" not in told


def test_one_with_another_vocabulary_has_no_kl_and_the_others_theirs(folder: Path) -> None:
    other = Path("runs/words/dpo")
    shutil.copytree("runs/task-128/dpo", other)
    tokenizer = AutoTokenizer.from_pretrained(other / "final")
    tokenizer.add_tokens(["purple"])
    model = AutoModelForCausalLM.from_pretrained(other / "final")
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(other / "final")
    judged = {key: one for key, one in YAMLS["evaluate"].items() if key != "run"}
    told = run(runs=[str(other), "runs/task-128/rloo"], output_dir="apart-by-words", **judged)
    for key in ("kl", "kl_stderr"):
        assert told[key] == {"rloo": pytest.approx(summary_of(FOLDER)[key]["rloo"], abs=1e-6)}
    assert told["score"].keys() == {"dpo", "rloo", "sft"}
    assert Page(Path("apart-by-words/report.html")).figures[0] == "Score against KL"


def test_a_key_of_evaluate_yaml_that_is_none_here_is_refused_by_the_name_of_its_file(
    folder: Path,
) -> None:
    shutil.copytree("task", "sliced")
    Path("sliced/evaluate.yaml").write_text(yaml.safe_dump(YAMLS["evaluate"] | {"slices": ["x"]}))
    with pytest.raises(UserError, match=r"^sliced/evaluate.yaml: slices: compare has no such key"):
        run(methods=["ppo", "dpo"], configs="sliced", output_dir="new")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"runs": ["runs/task-128/ppo"]}, "name two to 6 runs, or methods, each once."),
        ({"runs": ["a", "a"]}, "name two to 6 runs, or methods, each once."),
        ({"methods": ["ppo,dpo"], "runs": ["a", "b"]}, "name two to 6 runs, or methods"),
        (
            {"methods": ["ppo,sft"]},
            r"methods=sft: is none of those in task \(ppo, rloo, grpo,",
        ),
        ({"runs": ["sft", "runs/task-128/ppo"]}, "runs=sft: is no finished run of a model;"),
        ({"runs": ["runs/task-128/ppo", "task-128/ppo/"]}, "names one run twice."),
        ({"runs": ["a", "b"], "judge": ["x.py:y"]}, "dataset_name is missing; give both or none."),
        ({"runs": ["a", "b"], "dataset_name": "x"}, "judge is missing; give both or none."),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    values: dict[str, Any], said: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run(**values, output_dir="new")
    assert not Path("new").exists()


def test_runs_are_a_tree_of_what_began_from_what(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(name: str, start: str, summary: dict[str, Any] | None = None) -> Path:
        path = write_run(Path("all") / name, summary, [{"step": 1, "seconds": 61.0}], None, {})
        path.joinpath("config.yaml").write_text(f"model_name_or_path: {start}\n")
        path.joinpath("lineage.json").unlink()
        return path

    make("sft/mine", "Some/Model", {"perplexity": 2.177, "seconds": 16.0})
    make("reward/mine", "all/sft/mine", {"accuracy": 0.785, "seconds": 43.0})
    make("ppo/mine", "all/sft/mine/final", {"scores": 3.8, "seconds": 71.0})
    make("dpo/again", "all/ppo/mine")
    stopped = make("kto/again", "all/ppo/mine") / "checkpoint-4"
    stopped.mkdir()
    stopped.joinpath("manifest.json").write_text("{}")
    for one, other in (("rloo/a", "rloo/b"), ("rloo/b", "rloo/a")):  # of one that was overwritten
        make(one, f"all/{other}")
    assert runs.main(["all"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert [line[:15].rstrip() for line in shown] == [
        "run",
        "Some/Model",
        "  sft/mine",
        "    ppo/mine",
        "      dpo/again",
        "      kto/again",
        "    reward/mine",
        "rloo/a",
        "  b",  # beside the one above it
        "    a",
    ]
    states = {line.split()[0]: line.split()[-1] for line in shown[2:7]}
    assert states == {
        "sft/mine": "done",
        "ppo/mine": "done",
        "dpo/again": "failed",
        "kto/again": "stopped",
        "reward/mine": "done",
    }
    ppo = next(line for line in shown if "ppo/mine" in line)
    assert re.search(r"scores 3\.8 +\d\d-\d\d \d\d:\d\d +1\Wmin 11\Ws +done", ppo)
    assert "1\u00a0min 01\u00a0s" in next(line for line in shown if "dpo/again" in line)
    held = "from recipes.lib.runs.lock import acquire; from pathlib import Path; "
    held += "acquire(Path('all/kto/again')); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        runs.main(["all/kto"])
        child.kill()
    assert capsys.readouterr().out.rstrip().endswith("running")
    assert runs.main(["nowhere"]) == 2
    said = "rlhf runs: error: nowhere: is no folder; write rlhf runs [FOLDER].\n"
    assert capsys.readouterr().err == said


def test_the_kl_of_tokens_becomes_that_of_completions_at_the_episode_of_its_step() -> None:
    rows = [
        {"step": step, "kl": 0.1 * step, "completions/mean_length": 20.0, "reward": 1.0}
        for step in (1, 2)
    ]
    made = aligned(RunFiles(Path(), {"recipe": "rloo", "episodes": 64}, rows))
    assert [(row["episode"], row["kl"]) for row in made] == [(32, 2), (64, 4)]
    kto = RunFiles(Path(), {"recipe": "kto"}, [{"step": 1, "kl": 0.5}])  # a reference point
    assert aligned(kto) == [{"step": 1}]


def test_a_run_keeps_its_colour_where_others_logged_nothing() -> None:
    logs = [[{"step": n, name: 1.0 * n} for n in (1, 2)] for name in ("x", "loss", "loss")]
    made = {name: RunFiles(Path(), {}, rows) for name, rows in zip("abc", logs, strict=True)}
    (picture,) = curves(made)
    assert [(key.series, key.label) for key in picture.keys] == [(2, "b"), (3, "c")]
    assert "var(--series-3)" in picture.svg
    assert "var(--series-1)" not in picture.svg
