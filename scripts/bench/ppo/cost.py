#!/usr/bin/env python3
"""Whether PPO keeps a cost within its limit (cost_funcs, cost_limit), and what that takes from it.

First run ./scripts/quickstart, whose SFT and reward model this reads; then
`OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ppo/cost.py --task FILE` writes
docs/benchmarks/cost.md. FILE is ../shared/bench/exact_task.py. Some forty minutes on one core; what
was run is kept in runs/cost.jsonl, so that a stopped bench goes on. With the name of a part (exact,
far, tales) that part alone is run, and no page is written.
"""

import argparse
import copy
import functools
import hashlib
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import ppo  # noqa: E402
from recipes.lib.data.prompts import prompt_text  # noqa: E402
from recipes.lib.ppo import cost_controller  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl  # noqa: E402
from recipes.lib.tasks.tales.words import WARM  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.kept import kept  # noqa: E402
from scripts.bench.ppo.exact_methods import make_ppo  # noqa: E402
from scripts.bench.ppo.exact_tasks import (  # noqa: E402
    Task,
    all_rewards,
    completion_log_probs,
    completions,
    load_task,
    log_probs,
)
from scripts.bench.quickstart.quickstart_task import CONFIGS, GOLD, RUN  # noqa: E402

COMMAND = "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ppo/cost.py --task FILE"
PAGE = ROOT / "docs/benchmarks/cost.md"
KEPT = ROOT / "runs/cost.jsonl"
SEEDS, FAR = (51, 52, 53, 54, 55), 1e6
SETTINGS = {"critic": "head", "learning_rate": 2e-3, "num_ppo_epochs": 8}  # docs/benchmarks/ppo.md
STEPS = 32  # of a rollout: eight epochs of four mini-batches
HELD, OURS = "held at the right one", "proportional ahead, integral"
CONTROLLERS: dict[str, dict[str, float]] = {
    OURS: {},
    "integral alone": {"PROPORTIONAL": 0.0, "AHEAD": 0.0, "WINDING": math.inf},
    HELD: {},
}
LIMIT = 0.5
LAST = 3  # of a run: its last third is what is reported
TALES_LIMIT, TALES_EPISODES = 0.5, 4608  # twice the quickstart's


@dataclass(frozen=True)
class Limited:
    """A task of exact_tasks.py with a cost.

    Attributes:
        task: The task.
        what: The cost in words.
        cost: Cost of a completion for a prompt, both as ids.
        limit: What its mean may be, a third of what it is at the optimum without a limit.
    """

    task: Task
    what: str
    cost: Callable[[tuple[int, ...], tuple[int, ...]], float]
    limit: float

    def costs(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Costs of completions as a trainer asks for them."""
        return [self.cost((), tuple(ids)) for ids in completion_ids]


LIMITED: dict[str, Limited] = {}  # by name


def add_task(path: Path) -> None:
    """The first task, on which symbols with an even id cost 1 each."""
    task = load_task(path)
    first = task.first_word + task.num_words

    def even(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
        return float(sum(token >= first and token % 2 == 0 for token in completion))

    LIMITED[task.name] = Limited(task, "symbols with an even id", even, LIMIT)


def enumerated(one: Limited, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, reward and cost of every completion to every prompt, each (prompts, all)."""
    task, model = one.task, model.eval()
    asked = [tuple(task.prompt_ids(prompt)) for prompt in task.prompts]
    logps = [completion_log_probs(task, log_probs(task, model, p)) for p in task.prompts]
    costs = [[one.cost(prompt, said) for said in completions(task)] for prompt in asked]
    rewards = torch.stack([all_rewards(task, prompt) for prompt in asked])
    return torch.stack(logps), rewards, torch.tensor(costs, dtype=torch.float64)


def objective(one: Limited, logps: Tensor, ref: Tensor, rewards: Tensor) -> float:
    """J = E[reward] - beta KL(policy || reference), mean over prompts."""
    return ((logps.exp() * (rewards - one.task.beta * (logps - ref))).sum() / len(ref)).item()


def expected(logps: Tensor, costs: Tensor) -> float:
    """Mean cost of a policy."""
    return ((logps.exp() * costs).sum() / len(costs)).item()


@functools.cache
def optimum(name: str) -> dict[str, float]:
    """The best policy within the limit.

    It is the reference tilted by (reward - multiplier * cost) / beta, with the multiplier at which
    its mean cost is the limit; that is found by bisection, since more weight means less cost.
    """
    one = LIMITED[name]
    ref, rewards, costs = enumerated(one, one.task.build()[0])

    def tilted(multiplier: float) -> Tensor:
        return (ref + (rewards - multiplier * costs) / one.task.beta).log_softmax(1)

    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        is_above = expected(tilted(middle), costs) > one.limit
        low, high = (middle, high) if is_above else (low, middle)
    best, free = tilted(high), tilted(0.0)
    return {
        "J_ref": objective(one, ref, ref, rewards),
        "J_best": objective(one, best, ref, rewards),
        "multiplier": high,
        "natural": expected(free, costs),
        "cost_ref": expected(ref, costs),
    }


def digest(model: Any) -> str:
    """Hash of all weights."""
    hashed = hashlib.sha256()
    for weight in model.parameters():
        hashed.update(weight.detach().numpy().tobytes())
    return hashed.hexdigest()


def train(name: str, seed: int, limit: float | None, controller: str) -> dict[str, Any]:
    """PPO on an exact task: what was logged of each rollout, and what the policy is worth."""
    one, best = LIMITED[name], optimum(name)
    task, right = one.task, best["multiplier"]
    if controller == HELD:
        charged = lambda p, y: one.task.reward(p, y) - right * one.cost(p, y)  # noqa: E731
        task, limit = replace(task, reward=charged), None
    model, tokenizer = one.task.build()
    reference = copy.deepcopy(model)
    start = {"model": model, "processing_class": tokenizer}
    start |= {"cost_funcs": one.costs if limit is not None else None}
    with tempfile.TemporaryDirectory() as folder:
        settings = SETTINGS | {"output_dir": folder, "seed": seed, "logging_steps": STEPS}
        settings["cost_limit"] = limit
        trainer = make_ppo(task, "ppo", task.episodes, start, settings)
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    logps, rewards, costs = enumerated(one, trainer.actor_critic.policy)
    reached = objective(one, logps, enumerated(one, reference)[0], rewards)
    cost = expected(logps, costs)
    # what is spent beyond the limit is paid for at its price, so that none can have more than 1
    gain = reached - right * (cost - one.limit) - best["J_ref"]
    return {
        "cost": [row.get("objective/cost") for row in rows],
        "multiplier": [row.get("objective/cost_multiplier") for row in rows],
        "optimality": gain / (best["J_best"] - best["J_ref"]),
        "J": reached,
        "expected_cost": cost,
        "weights": digest(trainer.model),
    }


def exact_run(name: str, seed: int, limit: float | None, controller: str = "") -> dict[str, Any]:
    """One training, kept; with another controller where one is named."""
    changes = CONTROLLERS.get(controller, {})
    before = {key: getattr(cost_controller, key) for key in changes}
    try:
        vars(cost_controller).update(changes)
        key = ["exact", name, seed, limit, controller]
        found: dict[str, Any] = kept(KEPT, key, lambda: train(name, seed, limit, controller))
    finally:
        vars(cost_controller).update(before)
    return found


def last(values: list[float]) -> float:
    """Mean over the last third of a run."""
    return mean(values[-(len(values) // LAST) :])


def optimum_rows() -> str:
    """What is known of the tasks."""
    lines = []
    for name, one in LIMITED.items():
        best = optimum(name)
        cells = [name, one.what, *(f"{best[key]:.3f}" for key in ("cost_ref", "natural"))]
        cells += [f"{one.limit:g}", f"{best['multiplier']:.3f}"]
        cells += [f"{best[key]:.3f}" for key in ("J_ref", "J_best")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def exact_rows() -> str:
    """Runs with a limit, by controller and seed."""
    lines = []
    for name, one in LIMITED.items():
        for controller in CONTROLLERS:
            for seed in SEEDS:
                run = exact_run(name, seed, one.limit, controller)
                cells = [name, controller, str(seed), f"{run['optimality']:.4f}"]
                logged = controller != HELD
                cells += [f"{last(run['cost']) / one.limit:.3f}" if logged else ""]
                cells += [f"{min(run['cost']):.2f}" if logged else ""]
                cells += [f"{run['expected_cost'] / one.limit:.3f}"]
                cells += [f"{last(run['multiplier']):.3f}" if logged else ""]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def far_rows() -> str:
    """A limit above the natural cost, beside no limit."""
    (name,), lines = LIMITED, []
    for seed in SEEDS[:2]:
        none, far = exact_run(name, seed, None), exact_run(name, seed, FAR)
        is_same = "yes" if none["weights"] == far["weights"] else "**no**"
        lines.append(f"| {seed} | {max(far['multiplier']):g} | {is_same} |")
    return "\n".join(lines)


def warm_words(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Warm words in a tale, of which the hidden score likes the first three."""
    words = [prompt_text(said).lower().replace(".", " ").split() for said in completions]
    return [float(sum(word in WARM for word in tale)) for tale in words]


def tales(seed: int, limit: float | None, **changes: Any) -> dict[str, list[float]]:
    """PPO of the quickstart, twice as long; without a limit warm words are a reward of weight 0."""
    warm = f"{Path(__file__).resolve()}:warm_words"
    named = {"cost_funcs": [warm], "cost_limit": limit} if limit is not None else {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": f"{folder}/run",
            "model_name_or_path": str(RUN / "sft"),
            "dataset_name": str(RUN / "base/data/ppo_prompts.jsonl"),
            "critic_model_name_or_path": str(RUN / "reward"),
            "reward_funcs": [str(RUN / "reward"), GOLD, warm],
            "reward_weights": [1.0, 0.0, 0.0],
            "total_episodes": TALES_EPISODES,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": seed,
        }
        settings |= named | changes
        ppo.run(parse("ppo", ["--config", str(CONFIGS / "ppo.yaml")], settings))
        rows = [r for r in read_jsonl(Path(folder) / "run/metrics.jsonl") if "loss" in r]
    names = ("rewards/warm_words", "rewards/gold", "objective/raw_scores", "objective/kl")
    found = {name.partition("/")[2]: [row[name] for row in rows] for name in names}
    return found | {"multiplier": [row.get("objective/cost_multiplier", 0.0) for row in rows]}


def tales_rows() -> str:
    """The quickstart's PPO, without a limit and with one."""
    lines = []
    for seed in SEEDS:
        for limit in (None, TALES_LIMIT):
            run = kept(
                KEPT,
                ["tales", seed, limit, *([OURS] if limit else [])],
                functools.partial(tales, seed, limit),
            )
            cost = last(run["warm_words"])
            share = f"{cost / limit:.3f}" if limit is not None else ""
            cells = [str(seed), str(limit or "none"), f"{cost:.3f}", share]
            cells += [f"{last(run[name]):.2f}" for name in ("gold", "raw_scores", "kl")]
            cells += [f"{last(run['multiplier']):.2f}"]
            cells += [" ".join(f"{value:.1f}" for value in run["warm_words"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", required=True, help="the exact task's file")
    parser.add_argument("part", nargs="?", choices=["exact", "far", "tales"])
    asked = parser.parse_args()
    hush()
    add_task(Path(asked.task))
    parts = {"optimum": optimum_rows, "exact": exact_rows, "far": far_rows, "tales": tales_rows}
    if asked.part:
        print(parts[asked.part]())
        return 0
    tables = {name: rows() for name, rows in parts.items()}
    PAGE.write_text(PAGE_TEXT.format(conditions=conditions(COMMAND), **tables), encoding="utf-8")
    return 0


PAGE_TEXT = f"""# A cost with a limit in PPO

{{conditions}}

`cost_funcs` and `cost_limit`: docs/ppo.md. The constants of the controller were found in
simulations and on another seed (docs/log.md). Costs of a run are means over its last third.

## Known optima

The first task of [ppo.md](ppo.md) (critic: head, learning rate 2e-3, 8 passes, 10,240 episodes),
with a cost. The best policy within the limit is the reference tilted by
(reward - multiplier * cost) / beta, with the multiplier at which its mean cost is the limit.
Natural: the cost of the best policy without a limit.

| task | cost | of the reference | natural | limit | multiplier | J of the reference | J* |
|---|---|---|---|---|---|---|---|
{{optimum}}

Optimality: (J - multiplier * (cost - limit) - J_ref) / (J* - J_ref), at most 1 for any policy, by
enumeration of the last one. Integral alone: plain dual ascent, at the same rate. Held: the reward
less the right multiplier times the cost from the start, which is what PPO itself comes to.

| task | controller | seed | optimality | cost / limit | least cost | last policy | multiplier |
|---|---|---|---|---|---|---|---|
{{exact}}

## A limit above the natural cost

The first task with a limit of {FAR:g}, beside the run without one.

| seed | largest multiplier | all weights equal |
|---|---|---|
{{far}}

## The quickstart's PPO

Its SFT and reward model, {TALES_EPISODES:,} episodes ({TALES_EPISODES // 256} rollouts); the
cost is the number of warm words, of which the hidden score likes the first three. Gold: that score.

| seed | limit | warm words | of the limit | gold | reward | KL | multiplier | each rollout |
|---|---|---|---|---|---|---|---|---|
{{tales}}
"""


if __name__ == "__main__":
    raise SystemExit(main())
