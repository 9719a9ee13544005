#!/usr/bin/env python3
"""What the quickstart's task demands, and what its result is worth: docs/benchmarks/quickstart.md.

First run ./scripts/quickstart, whose times and numbers the page repeats. Then, of each seed, all
stages again from SFT on, the reward model and PPO with several numbers of pairs, and the reward
model with shuffled prompts and with other orders:

    .venv/bin/python scripts/bench/quickstart/quickstart_task.py --seeds 6 7 8 9 10

About 17 minutes a seed on one core; `--long` runs PPO far too long, too. A finished stage is kept,
so that it goes on after a stop; several may run beside each other with a seed each, and --page
writes the page of what is there.
"""

import argparse
import json
import random
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import base, evaluate, feedback, ppo, reward, sft  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.tasks.tales.gold import gold_parts  # noqa: E402
from recipes.lib.tasks.tales.prompts import FACTS  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first

CONFIGS = ROOT / "configs/quickstart"
RUN = ROOT / "runs/quickstart"
PAGE = ROOT / "docs/benchmarks/quickstart.md"
GOLD = f"{Path(__file__).parent / 'gold_reward.py'}:gold"
RECIPES = dict(base=base, sft=sft, feedback=feedback, reward=reward, ppo=ppo, evaluate=evaluate)
NUM_PROMPTS = 6000  # of the pairs: 4,800 to train on
SIZES = (150, 600, 2400, 4800)
QUICK = 2400  # as many as the quickstart has
ORDERS = (1, 2, 3, 4, 5)  # seeds of the reward model on the same 1,000 labels
GENTLE = {"learning_rate": 3e-4, "num_train_epochs": 3}  # what does not undo what SFT's model knows
LONG = {  # far too long, with nothing that holds the policy back
    "total_episodes": 9216,
    "kl_coef": 0.0,
    "learning_rate": 6e-4,
    "lr_scheduler_type": "constant",
    "reward_weights": [1.0, 0.0],
}
PEAK_WINDOW = 3  # rollouts whose mean is a level, so that one lucky rollout is no peak


def ppo_by(reward: Path, folder: Path, seed: int, **changes: Any) -> tuple[dict[str, Any], Any]:
    """PPO from the quickstart's SFT model by a reward model, its critic a head.

    Returns:
        The summary, and the logged rows that have the hidden score, which is no reward here.
    """
    settings = {
        "output_dir": str(folder),
        "model_name_or_path": str(RUN / "sft"),
        "dataset_name": str(RUN / "base/data/ppo_prompts.jsonl"),
        "critic": "head",
        "critic_model_name_or_path": None,
        "reward_funcs": [str(reward), GOLD],
        "reward_weights": [1.0, 0.0],
        "save_strategy": "no",
        "disable_tqdm": True,
        "skip_check": True,
        "seed": seed,
    }
    summary = ppo.run(parse("ppo", ["--config", str(CONFIGS / "ppo.yaml")], settings | changes))
    logged = read_jsonl(folder / "metrics.jsonl")
    return summary, [row for row in logged if "rewards/gold" in row]


def hidden_score(logged: list[dict[str, Any]]) -> float:
    """Mean hidden score of the last third of the rollouts."""
    return mean(row["rewards/gold"] for row in logged[-(len(logged) // 3) :])


class Seed:
    """The stages of one seed, each in a folder of its own."""

    def __init__(self, root: Path, seed: int) -> None:
        self.folder, self.seed = root / f"seed-{seed}", seed
        self.data = self.folder / "base/data"

    def stage(self, recipe: str, name: str, **changes: Any) -> dict[str, Any]:
        """Run a stage's YAML with changes, or read what it wrote."""
        out = self.folder / name
        if not (out / "summary.json").is_file():
            settings = {"output_dir": str(out), "seed": self.seed} | changes
            if recipe not in ("evaluate", "feedback"):
                settings["disable_tqdm"] = True
            RECIPES[recipe].run(
                parse(recipe, ["--config", str(CONFIGS / f"{recipe}.yaml")], settings)
            )
        found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return found

    def prepare(self) -> None:
        """Base, SFT and feedback."""
        self.stage("base", "base", num_feedback_prompts=NUM_PROMPTS)
        rows = {"dataset_name": str(self.data / "sft_train.jsonl")}
        rows["test_dataset_name"] = str(self.data / "sft_test.jsonl")
        self.stage("sft", "sft", model_name_or_path=str(self.folder / "base"), **rows)
        prompts = str(self.data / "feedback_prompts.jsonl")
        self.stage("feedback", "feedback", dataset_name=prompts, **self.model())

    def model(self) -> dict[str, str]:
        """What begins at the SFT model."""
        return {"model_name_or_path": str(self.folder / "sft")}

    def reward(self, size: int, name: str = "", **changes: Any) -> dict[str, Any]:
        """The reward model of so many pairs."""
        pairs = {"dataset_name": str(self.folder / "feedback"), "max_train_rows": size}
        pairs["skip_check"] = True  # some are meant to learn little
        return self.stage("reward", f"reward-{size}{name}", **self.model(), **(pairs | changes))

    def shuffled(self, size: int) -> dict[str, Any]:
        """The reward model that trains and is tested with the prompts of other pairs."""
        folder = self.folder / "shuffled"
        for name in ("train", "test"):
            rows = read_jsonl(self.folder / f"feedback/final/{name}.jsonl")
            prompts = [row["prompt"] for row in rows]
            random.Random(self.seed).shuffle(prompts)
            folder.mkdir(exist_ok=True)
            both = zip(rows, prompts, strict=True)
            write_jsonl(folder / f"{name}.jsonl", [row | {"prompt": one} for row, one in both])
        files = {"dataset_name": str(folder / "train.jsonl")}
        files["test_dataset_name"] = str(folder / "test.jsonl")
        return self.reward(size, "-shuffled", **files)

    def ppo(self, size: int) -> dict[str, Any]:
        """PPO by the reward model of so many pairs, and its evaluation."""
        self.train(f"ppo-{size}", [str(self.folder / f"reward-{size}")])
        runs = {"run": str(self.folder / f"ppo-{size}"), "baseline": str(self.folder / "sft")}
        prompts = str(self.data / "eval_prompts.jsonl")
        return self.stage("evaluate", f"evaluate-{size}", dataset_name=prompts, **runs)

    def train(self, name: str, rewards: list[str], **changes: Any) -> dict[str, Any]:
        """PPO."""
        prompts = str(self.data / "ppo_prompts.jsonl")
        critic = {"critic_model_name_or_path": rewards[0]}
        given = {"dataset_name": prompts, "reward_funcs": rewards, "skip_check": True}
        given |= critic | self.model()
        return self.stage("ppo", name, **given, **changes)

    def samples(self, size: int) -> list[dict[str, Any]]:
        """What the evaluation sampled."""
        return read_jsonl(self.folder / f"evaluate-{size}/samples.jsonl")

    def kept(self, size: int, which: str = "completion") -> dict[str, float]:
        """Share of tales by fact in which it is as asked."""
        parts = [gold_parts(row["prompt"], row[which]) for row in self.samples(size)]
        return {name: mean(part[name] > 0 for part in parts) for name in FACTS}

    def long(self) -> list[dict[str, Any]]:
        """The rollouts of PPO run far too long; gold is logged and has weight 0."""
        self.train("long", [str(self.folder / f"reward-{QUICK}"), GOLD], **LONG)
        rows = read_jsonl(self.folder / "long/metrics.jsonl")
        return [row for row in rows if "objective/kl" in row]

    def all(self, *, has_long: bool) -> None:
        """Everything that the page tells."""
        self.prepare()
        for size in SIZES:
            self.reward(size)
            print(f"seed {self.seed}, {size} pairs: gold {self.ppo(size)['score']:.2f}", flush=True)
        self.shuffled(QUICK)
        if has_long:
            self.long()
        for order in ORDERS if self.seed == 6 else ():
            self.reward(1000, f"-order-{order}", seed=order)
            self.reward(1000, f"-gentle-{order}", seed=order, **GENTLE)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    more = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{more}"


def number_rows(summary: dict[str, Any]) -> str:
    """The summary of the quickstart as it stands in runs/quickstart/summary.json."""
    numbers = {k: v for k, v in summary.items() if isinstance(v, float)}
    lines = [f"| {name} | {value:.4g} |" for name, value in numbers.items()]
    low, high = summary["win_rate_ci95"]
    return "\n".join([*lines, f"| win_rate_ci95 | {low:.4g} to {high:.4g} |"])


def size_rows(seeds: list[Seed]) -> str:
    """Accuracy and gold by number of pairs."""
    lines = []
    for size in SIZES:
        rewards, judged = [s.reward(size) for s in seeds], [s.ppo(size) for s in seeds]
        cells = [spread([one["accuracy"] for one in rewards])]
        cells += [spread([one["accuracy_bag_of_words"] for one in rewards])]
        cells += [spread([one["accuracy_ceiling"] for one in rewards])]
        cells += [spread([one["score"] for one in judged], 2)]
        cells += [spread([one["win_rate"] for one in judged]), spread([o["kl"] for o in judged], 1)]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gain_rows(seeds: list[Seed], draws: int = 2000) -> str:
    """What more pairs bring: gold by the same prompts, with a bootstrap over seeds and prompts."""
    lines, rng = [], random.Random(0)
    for few, many in pairwise(SIZES):
        gains = [
            [b["score"] - a["score"] for a, b in zip(s.samples(few), s.samples(many), strict=True)]
            for s in seeds
        ]
        means = sorted(
            mean(mean(rng.choices(one, k=len(one))) for one in rng.choices(gains, k=len(gains)))
            for _ in range(draws)
        )
        low, high = means[int(0.025 * draws)], means[int(0.975 * draws)]
        each = ", ".join(f"{mean(one):+.2f}" for one in gains)
        gain = f"{mean(map(mean, gains)):+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(f"| {few} -> {many} | {gain} | {each} |")
    return "\n".join(lines)


def fact_rows(seeds: list[Seed]) -> str:
    """Share of tales in which a fact is as asked."""
    lines = []
    for name, size, which in [("SFT", SIZES[-1], "baseline")] + [
        (f"PPO, {size} pairs", size, "completion") for size in SIZES
    ]:
        kept = [seed.kept(size, which) for seed in seeds]
        cells = " | ".join(spread([one[fact] for one in kept], 2) for fact in FACTS)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def shuffled_rows(seeds: list[Seed]) -> str:
    """What the reward model loses without its prompts."""
    size = QUICK
    both = [(s.reward(size)["accuracy"], s.shuffled(size)["accuracy"]) for s in seeds]
    return "\n".join(
        f"| {seed.seed} | {own:.3f} | {other:.3f} | {own - other:.3f} |"
        for seed, (own, other) in zip(seeds, both, strict=True)
    )


def order_line(seeds: list[Seed], kind: str) -> str:
    """The same 1,000 labels with other orders and heads."""
    found = [s for s in seeds if (s.folder / f"reward-1000-{kind}-{ORDERS[-1]}").is_dir()]
    if not found:
        return "not run"
    values = [found[0].reward(1000, f"-{kind}-{order}")["accuracy"] for order in ORDERS]
    return f"{', '.join(f'{value:.3f}' for value in values)}; {spread(values)}"


def long_part(seeds: list[Seed]) -> str:
    """PPO far too long: where gold was best, and where it ended, over windows of rollouts."""
    lines = [LONG_TEXT]
    for seed in seeds:
        if not (seed.folder / "long").is_dir():
            continue
        rows = seed.long()
        name = next(key for key in rows[0] if key.startswith("rewards/reward"))
        levels = [
            {key: mean(r[key] for r in rows[i : i + PEAK_WINDOW]) for key in (name, "rewards/gold")}
            | {key: rows[i + PEAK_WINDOW - 1][key] for key in ("episode", "objective/kl")}
            for i in range(len(rows) - PEAK_WINDOW + 1)
        ]
        best, last = max(levels, key=lambda one: one["rewards/gold"]), levels[-1]
        cells = " | ".join(
            f"{one['episode']} | {one['objective/kl']:.1f} | {one[name]:.2f} | "
            f"{one['rewards/gold']:.2f}"
            for one in (best, last)
        )
        lines.append(f"| {seed.seed} | {cells} |")
    return "\n".join(lines) if lines[1:] else "PPO far too long: not run."


def pair_rows(seed: Seed, number: int = 5) -> str:
    """The first answers of SFT and PPO."""
    lines = []
    for row in seed.samples(QUICK)[:number]:
        lines.append(f"> **{row['prompt']}**\n>")
        lines.append(f"> SFT ({row['score_baseline']:.2f}): {row['baseline'].strip()}\n>")
        lines.append(f"> PPO ({row['score']:.2f}): {row['completion'].strip()}\n")
    return "\n".join(lines)


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8, 9, 10])
    parser.add_argument("--root", type=Path, default=ROOT / "runs/quickstart-seeds")
    parser.add_argument("--long", action="store_true", help="run PPO far too long, too")
    parser.add_argument("--page", action="store_true", help="write the page at the end")
    args = parser.parse_args()
    hush()
    seeds = [Seed(args.root, seed) for seed in args.seeds]
    for seed in seeds:
        seed.all(has_long=args.long)
    if not args.page:
        return 0
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    stages = "\n".join(f"| {name} | {s:.3g} |" for name, s in summary["seconds"].items())
    page = PAGE_TEXT.format(
        conditions=conditions(
            ".venv/bin/python scripts/bench/quickstart/quickstart_task.py --page"
        ),
        stages=stages,
        total=sum(summary["seconds"].values()),
        numbers=number_rows(summary),
        names=", ".join(str(seed.seed) for seed in seeds),
        sizes=size_rows(seeds),
        gains=gain_rows(seeds),
        facts=fact_rows(seeds),
        shuffled=shuffled_rows(seeds),
        orders=order_line(seeds, "order"),
        gentle=order_line(seeds, "gentle"),
        long=long_part(seeds),
        pairs=pair_rows(seeds[0]),
        quick=f"{QUICK:,}",
        **summary,
    )
    _, mark, rest = PAGE.read_text(encoding="utf-8").partition("## With people")  # by hand
    PAGE.write_text(page + mark + rest, encoding="utf-8")
    print(page)
    return 0


LONG_TEXT = f"""PPO run far too long ({LONG["total_episodes"]} episodes, no KL penalty, constant
learning rate), against the reward model of {QUICK:,} pairs; levels are means over {PEAK_WINDOW}
rollouts, at the best gold and at the end:

| seed | episode | KL | reward model | gold | episode | KL | reward model | gold |
|---|---|---|---|---|---|---|---|---|"""
PAGE_TEXT = """# The quickstart

{conditions}

## Time and memory

| stage | seconds |
|---|---|
{stages}
| together | {total:.0f} |

Peak resident memory {peak_rss_mb:.0f} MiB, one process for all stages.

## Result

The run whose time stands above:

| number | value |
|---|---|
{numbers}

## The task

Seeds {names}, each with its own data, SFT, labels, reward models and PPO from the shipped base on;
the task was chosen on others. Mean and standard deviation over the seeds; gold on 512 prompts that
no stage trained on, by the score that the simulated rater draws on; KL in nats per completion.

| pairs | accuracy of the reward model | bag of words | ceiling | gold of PPO | win rate | KL |
|---|---|---|---|---|---|---|
{sizes}

Gain of gold with more pairs, by the same prompts (95 % bootstrap over seeds and prompts), and by
seed:

| pairs | gain | by seed |
|---|---|---|
{gains}

Share of tales in which a fact is as asked:

| model | hero | deed | thing | place |
|---|---|---|---|---|
{facts}

The reward model of {quick} pairs, and one that trains and is tested with the prompts of other
pairs:

| seed | accuracy | with shuffled prompts | lost |
|---|---|---|---|
{shuffled}

The same 1,000 labels, five seeds of head and order: {orders};
at a learning rate of 3e-4 for 3 epochs: {gentle}.

{long}

## Five answers

The first five prompts of the first seed, with gold:

{pairs}
"""


if __name__ == "__main__":
    raise SystemExit(main())
