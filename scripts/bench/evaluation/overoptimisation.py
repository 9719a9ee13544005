#!/usr/bin/env python3
"""PPO run far too long: who sees it without the hidden true score, and what holds it back.

    .venv/bin/python scripts/bench/evaluation/overoptimisation.py --seeds 6 7 8 9 10

The laboratory is the quickstart's task, whose stages of each seed are those of
scripts/bench/quickstart/quickstart_task.py, in the same folder. Of each seed one run of LONG's
keys keeps its checkpoints, which witnesses that never see gold choose from: reward models of other
pairs, of another base and of frozen features, the least and the disagreement of an ensemble, and
early stops by KL and by length. Then the brakes, each with as many episodes as that run.

About forty minutes a seed on one core, half of it for the brakes, which have seeds of their own. A
stage that is done is kept in its folder and its rows in rows.jsonl, so that it goes on after a
stop; several may run beside each other with a seed each.
--page writes the section of docs/benchmarks/evaluation.md from the rows that are there, and --tiny
tries everything in little time, with numbers that say nothing.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.runs.files import append_jsonl, read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.quickstart import quickstart_task as task  # noqa: E402

PAGE = ROOT / "docs/benchmarks/evaluation.md"
TITLE = "## Over-optimisation"
SAVE_STEPS = 24  # three rollouts of eight steps
STOP_KL = 8.0  # nats per completion, twice what the quickstart's PPO moves
STOP_LENGTH = 0.2  # share by which the mean length differs from the first rollout's
MEMBERS = 5
TINY = {
    "total_episodes": 128,
    "rollout_batch_size": 64,
    "per_device_train_batch_size": 16,
    "save_steps": 8,
}
# Keys of each brake beside those of LONG; the reward model is that of the unbraked run, or the
# ensemble, a model of the same pairs with several outputs.
BRAKES: dict[str, dict[str, Any]] = {
    "none": {},
    "kl_coef 0.02": {"kl_coef": 0.02},
    "target_kl 4": {"kl_coef": 0.05, "target_kl": 4.0},
    "ensemble, min": {"ensemble_aggregation": "min"},
    "ensemble, mean - sd": {"ensemble_aggregation": "mean_minus_sd"},
}


class Laboratory(task.Seed):
    """The stages of one seed, and the rows that come out of them."""

    def __init__(self, root: Path, seed: int, rows: Path, *, is_tiny: bool) -> None:
        super().__init__(root, seed)
        self.rows, self.is_tiny = rows, is_tiny
        self.size = 150 if is_tiny else task.QUICK
        self.known = {(row["kind"], row["name"]) for row in self.read()}

    def stage(self, recipe: str, name: str, **changes: Any) -> dict[str, Any]:
        """As the quickstart's bench; of a stage that was stopped what there is goes aside."""
        return super().stage(recipe, name, overwrite=True, **changes)

    def read(self) -> list[dict[str, Any]]:
        """The rows of this seed."""
        kept = read_jsonl(self.rows) if self.rows.is_file() else []
        return [row for row in kept if row["seed"] == self.seed]

    def tell(self, kind: str, name: str, **numbers: Any) -> None:
        """Keep a row."""
        row = {"kind": kind, "name": name, "seed": self.seed} | numbers
        append_jsonl(self.rows, [row])
        print(row, flush=True)

    def others(self) -> dict[str, Any]:
        """Pairs that the reward model of the run never saw."""
        path = self.folder / "other-pairs.jsonl"
        write_jsonl(path, read_jsonl(self.folder / "feedback/final/train.jsonl")[self.size :])
        test = str(self.folder / "feedback/final/test.jsonl")
        return {"dataset_name": str(path), "test_dataset_name": test}

    def judge_model(self, name: str, **changes: Any) -> str:
        """A reward model by the quickstart's keys; its folder."""
        given = {"max_train_rows": self.size, "skip_check": True} | self.model() | changes
        self.stage("reward", name, **given)
        return str(self.folder / name)

    def prepare(self) -> None:
        """What the quickstart's bench makes, and the reward models."""
        super().prepare()
        pairs = {"dataset_name": str(self.folder / "feedback")}
        self.proxy = self.judge_model(f"reward-{self.size}", **pairs)
        self.ensemble = self.judge_model(f"ensemble-{self.size}", ensemble=MEMBERS, **pairs)
        own = {"seed": self.seed + 100}
        base = {"model_name_or_path": str(self.folder / "base")}
        self.witnesses = {
            "same pairs, other order": self.judge_model("witness-order", **pairs, **own),
            "other pairs": self.judge_model("witness-pairs", **self.others(), **own),
            "other pairs, other base": self.judge_model(
                "witness-base", **self.others(), **own, **base, frozen_features=True
            ),
        }
        frozen = self.folder / "witness-base/frozen_features"
        self.witnesses["other pairs, frozen features of the other base"] = str(frozen)
        self.other_ensemble = self.judge_model(
            "witness-ensemble", ensemble=MEMBERS, **self.others(), **own, **base
        )

    def train_braked(self, name: str) -> list[dict[str, Any]]:
        """PPO with a brake; its rollouts."""
        folder = f"braked-{name.replace(', ', '-').replace(' ', '-')}"
        model = self.ensemble if name.startswith("ensemble") else self.proxy
        keys: dict[str, Any] = task.LONG | self.model() | BRAKES[name]
        keys |= {"dataset_name": str(self.data / "ppo_prompts.jsonl"), "skip_check": True}
        keys |= {"reward_funcs": [model, task.GOLD], "critic_model_name_or_path": self.proxy}
        keys |= {"save_strategy": "steps" if name == "none" else "no", "save_steps": SAVE_STEPS}
        keys |= {"save_total_limit": None, "log_completions": False}
        self.stage("ppo", folder, **(keys | (TINY if self.is_tiny else {})))
        rows = read_jsonl(self.folder / folder / "metrics.jsonl")
        return [row for row in rows if "objective/kl" in row]

    def judged(self, name: str, judges: list[str], **more: Any) -> dict[str, dict[str, Any]]:
        """The checkpoints of the run without a brake, by judges that do not know of each other."""
        summary = self.stage(
            "evaluate",
            f"checkpoints-{name}",
            run=None,
            baseline=None,
            checkpoints=str(self.folder / "braked-none"),
            judge=judges,
            dataset_name=str(self.data / "eval_prompts.jsonl"),
            num_prompts=32 if self.is_tiny else None,
            **more,
        )
        found: dict[str, dict[str, Any]] = summary["checkpoints"]
        return found

    def choose(self) -> None:
        """Which checkpoint each witness takes, and its gold beside the highest there is."""
        rollouts = self.train_braked("none")
        table = self.judged("models", [*self.witnesses.values(), task.GOLD])
        scores = {w: {m: row[j] for m, row in table.items()} for w, j in self.witnesses.items()}
        scores["the run's own reward"] = {m: row["reward_funcs"] for m, row in table.items()}
        several = self.judged("mean", [self.other_ensemble])
        lower = self.judged("less-sd", [self.other_ensemble], ensemble_aggregation="mean_minus_sd")
        least = self.judged("min", [self.other_ensemble], ensemble_aggregation="min")
        for name, found in (("mean", several), ("mean - sd", lower), ("min", least)):
            told = {model: row[self.other_ensemble] for model, row in found.items()}
            scores[f"other pairs, other base, ensemble: {name}"] = told
        chosen = {name: max(told, key=lambda m: told[m]) for name, told in scores.items()}
        chosen |= early_stops(table, rollouts)
        gold = {model: row[task.GOLD] for model, row in table.items()}
        peak = max(gold, key=lambda model: gold[model])
        for name, model in (chosen | {"gold itself": peak}).items():
            if ("witness", name) not in self.known:
                numbers = {"model": model, "kl": table[model]["kl"], "gold": gold[model]}
                self.tell("witness", name, **numbers, peak=gold[peak], start=gold["start"])

    def brake(self) -> None:
        """Where each brake ends, over windows of rollouts."""
        for name in BRAKES:
            if ("brake", name) in self.known:
                continue
            rows = self.train_braked(name)
            width = min(task.PEAK_WINDOW, len(rows))
            levels = [
                {
                    key: mean(row[key] for row in rows[end - width : end])
                    for key in ("rewards/gold", "objective/kl", "objective/scores")
                }
                for end in range(width, len(rows) + 1)
            ]
            last, peak = levels[-1], max(level["rewards/gold"] for level in levels)
            numbers = {"gold": last["rewards/gold"], "kl": last["objective/kl"], "peak": peak}
            self.tell("brake", name, **numbers, score=last["objective/scores"])


def early_stops(table: dict[str, dict[str, Any]], rollouts: list[dict[str, Any]]) -> dict[str, str]:
    """The last checkpoint before KL or length pass their limits."""
    steps = {name: int(name.split("-")[1]) for name in table if name.startswith("checkpoint-")}
    first = rollouts[0]["completions/mean_length"]
    passed = {
        f"stop at {STOP_KL:g} nats": [r["step"] for r in rollouts if r["objective/kl"] > STOP_KL],
        f"stop at {STOP_LENGTH:.0%} other length": [
            row["step"]
            for row in rollouts
            if abs(row["completions/mean_length"] / first - 1) > STOP_LENGTH
        ],
    }
    chosen = {}
    for name, places in passed.items():
        before = [model for model, step in steps.items() if not places or step < places[0]]
        chosen[name] = max(before, key=lambda model: steps[model], default="start")
    return chosen


def table_of(rows: list[dict[str, Any]], kind: str) -> str:
    """One line for each name, with a mean over the seeds and each seed's share of its peak."""
    lines = []
    mine = [row for row in rows if row["kind"] == kind]
    if kind == "brake":
        mine = [row for row in mine if row["name"] in BRAKES]
        seeds = {row["seed"] for row in mine}
        mine += [row for row in rows if row["name"].startswith("stop at") and row["seed"] in seeds]
    for name in dict.fromkeys(row["name"] for row in mine):
        some = [row for row in mine if row["name"] == name]
        shares = [row["gold"] / row["peak"] for row in some]
        cells = [mean(row["gold"] for row in some), mean(row["kl"] for row in some), mean(shares)]
        each = ", ".join(f"{share:.2f}" for share in shares)
        lines.append(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {each} |")
    return "\n".join(lines)


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write the section of the page; the others stay."""
    whole = {row["seed"] for row in rows if row["name"] == [*BRAKES][-1]}  # seeds with all brakes
    rows = [row for row in rows if row["kind"] == "witness" or row["seed"] in whole]
    rows = sorted(rows, key=lambda row: row["seed"])
    seeds, braked = (
        ", ".join(
            str(seed) for seed in dict.fromkeys(row["seed"] for row in rows if row["kind"] == kind)
        )
        for kind in ("witness", "brake")
    )
    command = ".venv/bin/python scripts/bench/evaluation/overoptimisation.py --page"
    section = SECTION.format(
        conditions=conditions(command),
        seeds=seeds,
        braked=braked,
        witnesses=table_of(rows, "witness"),
        brakes=table_of(rows, "brake"),
    )
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Evaluation\n"
    before, _, after = page.partition(f"\n{TITLE}\n")
    _, mark, rest = after.partition("\n## ")
    PAGE.write_text(f"{before.rstrip()}\n\n{section}{mark}{rest}", encoding="utf-8")
    print(section)


SECTION = f"""{TITLE}

{{conditions}}

PPO by the quickstart's reward model, {task.LONG["total_episodes"]:,} episodes without a KL penalty
at a constant learning rate; seeds {{seeds}}.
Gold is the hidden true score, on 512 prompts that no stage trained on. Each witness takes the
checkpoint that it scores highest and never sees gold; share is that checkpoint's gold by the
highest of all checkpoints.

| witness | gold | KL | share | by seed |
|---|---|---|---|---|
{{witnesses}}

The same number of episodes with a brake, seeds {{braked}}: gold of the rollouts at the end (mean of
{task.PEAK_WINDOW}), and its share of the highest such mean of the same run; early stops as above.

| brake | gold | KL | share | by seed |
|---|---|---|---|---|
{{brakes}}
"""


def main() -> int:
    """Measure, and write the page where that is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8, 9, 10])
    parser.add_argument("--braked", type=int, nargs="*", default=[6, 7], help="seeds of the brakes")
    parser.add_argument("--root", type=Path, default=ROOT / "runs/quickstart-seeds")
    parser.add_argument("--rows", type=Path, default=ROOT / "runs/overoptimisation/rows.jsonl")
    parser.add_argument("--tiny", action="store_true", help="try it in little time")
    parser.add_argument("--page", action="store_true", help="write the page of the rows there are")
    args = parser.parse_args()
    hush()
    if args.tiny:
        task.NUM_PROMPTS = 400
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    if not args.page:
        for seed in [*dict.fromkeys(args.seeds + args.braked)]:
            laboratory = Laboratory(args.root, seed, args.rows, is_tiny=args.tiny)
            laboratory.prepare()
            if seed in args.seeds:
                laboratory.choose()
            if seed in args.braked:
                laboratory.brake()
    else:
        write_page(read_jsonl(args.rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
