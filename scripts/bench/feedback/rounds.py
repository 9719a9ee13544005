#!/usr/bin/env python3
"""Three rounds of people and PPO against one with as many answers, on the quickstart's task.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/feedback/rounds.py --seeds 1 2 3 4 5

First run ./scripts/quickstart, from whose SFT model all begin. Each side has 900 answers of the
simulated rater. `three` is `rlhf rounds` as configs/rounds has it: three times 300 answers and
2,304 episodes, with 60 answers of each round for the gate, which sees the rater's answers and never
the hidden score. `one` asks all at once, without a gate, and has as many episodes as one of the
three rounds; `one, longer` as many as all three, by the same reward model. Nothing else differs.
Some ten minutes a seed on one core; a step that is done is kept in runs/bench-rounds. --page writes
docs/benchmarks/rounds.md of what is there.
"""

import argparse
import functools
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import ppo, rounds  # noqa: E402
from recipes.lib.config.strict_yaml import read_yaml  # noqa: E402
from recipes.lib.data.prompts import prompt_text  # noqa: E402
from recipes.lib.evaluation.win_rate import pair_accuracy  # noqa: E402
from recipes.lib.generation.completions import complete  # noqa: E402
from recipes.lib.models.policies import evaluation_device  # noqa: E402
from recipes.lib.publishing.source import load_as_trained  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.report.run_files import read_json  # noqa: E402
from recipes.lib.rewards.reward_models import load_reward_functions  # noqa: E402
from recipes.lib.rewards.scoring import as_answers  # noqa: E402
from recipes.lib.runs.files import read_jsonl  # noqa: E402
from recipes.lib.tasks import tales  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.feedback.selection import interval  # noqa: E402
from scripts.bench.kept import kept  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/feedback/rounds.py --seeds {}"
PAGE, RUNS = ROOT / "docs/benchmarks/rounds.md", ROOT / "runs/bench-rounds"
START, DATA = ROOT / "runs/quickstart/sft", ROOT / "runs/quickstart/base/data"
ANSWERS, GATE, EPISODES = 900, 60, 2304
SIDES: dict[str, dict[str, int]] = {
    "three": {"num_rounds": 3, "num_answers": ANSWERS // 3, "gate_answers": GATE},
    "one": {"num_rounds": 1, "num_answers": ANSWERS, "gate_answers": 0},
}
LONGER = "longer"  # PPO of `one`, with the episodes of three rounds


def play(side: str, seed: int) -> Path:
    """The rounds of a side; one that is finished is kept."""
    folder, keys = RUNS / f"seed-{seed}/{side}", SIDES[side]
    configs = RUNS / f"seed-{seed}/configs-{side}"
    configs.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / "configs/rounds").glob("*.yaml"):
        own = dict(read_yaml(file).values)
        own |= {"seed": 100 * seed} if "seed" in own else {}
        own |= {"disable_tqdm": True} if file.stem in ("reward", "ppo") else {}
        own |= {"total_episodes": EPISODES} if file.stem == "ppo" else {}
        if file.stem == "evaluate" and not keys["gate_answers"]:  # nobody is asked: a formality
            own |= {"judge": ["recipes.lib.tasks.tales:gold_scores"]}
            own |= {"dataset_name": str(DATA / "eval_prompts.jsonl"), "num_prompts": 32}
        text = yaml.safe_dump(own)
        (configs / file.name).write_text(f"# Step: {file.stem}.\n{text}", encoding="utf-8")
    values = keys | {"model_name_or_path": str(START), "output_dir": str(folder)}
    rounds.run(parse("rounds", [], values | {"configs": str(configs)}))
    return folder


def play_longer(one: Path) -> Path:
    """PPO of `one` with the episodes of three rounds."""
    folder = one.parent / LONGER
    if not (folder / "summary.json").is_file():
        keys = read_yaml(one / "round-1/ppo/config.yaml").values
        keys |= {"output_dir": str(folder), "total_episodes": 3 * EPISODES, "overwrite": True}
        ppo.run(parse("ppo", [], keys))
    return folder


def completions(model: str, seed: int, count: int = 1) -> tuple[list[Any], list[list[str]]]:
    """Prompts that nothing trained on, and what a model says to each."""
    prompts = [row["prompt"] for row in read_jsonl(DATA / "eval_prompts.jsonl")]
    loaded, tokenizer, _ = load_as_trained(model, "float32")
    how: dict[str, Any] = {"max_new_tokens": 72, "batch_size": 256}
    sides = [complete(loaded, tokenizer, prompts, seed=seed + n, **how) for n in range(count)]
    return prompts, [[one.text for one in side] for side in sides]


def gold(prompts: list[Any], texts: list[str]) -> list[float]:
    """The hidden score."""
    return tales.gold_scores([prompt_text(prompt) for prompt in prompts], texts)


def accuracy(reward: str, prompts: list[Any], sides: list[list[str]]) -> float:
    """Share of pairs that a reward model orders as the hidden score does."""
    (function,) = load_reward_functions([reward], None, 64, evaluation_device())
    golds = [gold(prompts, texts) for texts in sides]
    scores: Any = [function(prompts=prompts, completions=as_answers(prompts, t)) for t in sides]
    better, worse = [], []
    for place, (a, b) in enumerate(zip(*golds, strict=True)):
        if a != b:
            better.append(scores[a < b][place])
            worse.append(scores[a > b][place])
    return pair_accuracy(better, worse)


def measure(seed: int) -> dict[str, Any]:
    """Hidden scores of what each side ends with, and how its reward models do on that."""
    three, one = play("three", seed), play("one", seed)
    told = [read_json(three / f"round-{n}/summary.json") for n in (1, 2, 3)]
    last = read_json(three / "summary.json")["promoted"]
    ends = {"start": str(START), "three": last, "one": str(one / "round-1/ppo")}
    ends[LONGER] = str(play_longer(one))
    found: dict[str, Any] = {"promoted": [row["promoted"] for row in told]}
    for name, model in ends.items():
        prompts, (texts,) = completions(model, 7)
        found[name] = mean(gold(prompts, texts))
    prompts, sides = completions(last, 70, 2)
    for number in (1, 2, 3):
        found[f"reward_{number}"] = accuracy(str(three / f"round-{number}/reward"), prompts, sides)
    return found


PAGE_TEXT = """# Rounds

{conditions}

What the script's first lines say. Hidden score: mean over prompts that nothing trained on.
Promoted: of the three rounds. Reward models of each round: share of pairs of completions of the
last promoted policy that they order as the hidden score does.

| seed | start | one | one, longer | three | promoted | reward 1 | reward 2 | reward 3 |
|---|---|---|---|---|---|---|---|---|
{rows}

Gain of three rounds, with the 95 % interval of Student's t over seeds: over one {gain}, over one
with as many episodes {longer}. Of the last reward model over the first: {reward}.
"""


def main() -> int:
    """Run the seeds, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    hush()
    RUNS.mkdir(parents=True, exist_ok=True)
    found = {s: kept(RUNS / "rows.jsonl", [s], functools.partial(measure, s)) for s in given.seeds}
    lines = []
    for seed, row in found.items():
        cells = [f"{row[name]:.2f}" for name in ("start", "one", LONGER, "three")]
        cells += [" ".join("yes" if one else "no" for one in row["promoted"])]
        cells += [f"{row[f'reward_{n}']:.3f}" for n in (1, 2, 3)]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if given.page:
        rows = found.values()
        gains = [interval([row["three"] - row[name] for row in rows]) for name in ("one", LONGER)]
        better = [row["reward_3"] - row["reward_1"] for row in rows]
        told = conditions(COMMAND.format(" ".join(map(str, given.seeds))))
        page = PAGE_TEXT.format(
            conditions=told,
            rows="\n".join(lines),
            gain=gains[0],
            longer=gains[1],
            reward=interval(better),
        )
        PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
