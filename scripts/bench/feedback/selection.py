#!/usr/bin/env python3
"""Which pairs to ask about: reward models after 300 random and 300 chosen answers.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/feedback/selection.py --pairs FILE --model DIR

First run ./scripts/quickstart. FILE is ../shared/data/preference/sentence_polarity_pairs.jsonl, DIR
../shared/models/stories260K. Some fifty minutes on one core; what was run is kept in
runs/selection.jsonl, so that a stopped bench goes on. --seeds runs these alone and writes no page.

tales: the quickstart's SFT model writes four completions of each of 1,500 prompts, a simulated
rater answers with noise, and accuracy is the share of held-out pairs that are ordered as the hidden
score orders them: two completions of each of 1,000 other prompts, where these scores differ (some
500 pairs). reviews: FILE's pairs without noise, and 1,000 held-out ones. Every strategy chooses as
`rlhf feedback select` does, a fifth of it at random and held out from training; all share the first
300, their reward model (five outputs) and the held-out pairs of a seed.
"""

import argparse
import functools
import os
import random
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from scipy.stats import t as student  # noqa: E402

from recipes import reward  # noqa: E402
from recipes.lib.data.prompts import prompt_text  # noqa: E402
from recipes.lib.feedback.arguments import STRATEGIES  # noqa: E402
from recipes.lib.feedback.exchange import training_rows  # noqa: E402
from recipes.lib.feedback.selection import Chooser  # noqa: E402
from recipes.lib.feedback.simulation import Rater, simulate_answers  # noqa: E402
from recipes.lib.generation.completions import Completion, complete  # noqa: E402
from recipes.lib.publishing.source import load_as_trained  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl, write_jsonl  # noqa: E402
from recipes.lib.tasks import tales  # noqa: E402
from recipes.lib.tasks.tales.prompts import draw_facts, request  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.kept import kept  # noqa: E402
from scripts.bench.quickstart.quickstart_task import (  # noqa: E402
    RUN,
    hidden_score,
    ppo_by,
)

COMMAND = (
    "OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/feedback/selection.py --pairs FILE "
    "--model DIR"
)
PAGE, KEPT = ROOT / "docs/benchmarks/selection.md", ROOT / "runs/selection.jsonl"
SEEDS = range(1, 11)
FIRST, SECOND, CANDIDATES, TESTS = 300, 300, 1200, 1000
TEMPERATURE = 0.45  # of the quickstart's rater
TRAINING: dict[str, Any] = {
    "test_fraction": 0,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
    "learning_rate": 7e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "adam_beta2": 0.98,
    "weight_decay": 0.1,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "eval_strategy": "no",
    "save_strategy": "no",
    "max_length": 160,
    "ensemble": 5,
    "skip_check": True,
    "overwrite": True,
}


@dataclass
class Pool:
    """What can be asked, of one seed.

    Attributes:
        model: Where reward models begin.
        prompts: Texts or messages.
        sets: Completions, by the text of a prompt.
        tests: Held-out pairs without noise.
        better: Of pairs without noise the better completion, by the text of a prompt.
    """

    model: str
    prompts: list[Any]
    sets: dict[str, list[str]]
    tests: list[dict[str, Any]]
    better: dict[str, str] | None = None

    def answered(self, items: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        """Training rows of what is not held out."""
        asked = [item for item in items if not item.get("held_out")]
        told: dict[str, Any] = {"kinds": ["pair"], "raters": [Rater(temperature=TEMPERATURE)]}
        scores = [self.scores(item) for item in asked]
        said = simulate_answers(asked, scores, seed=seed, created_at="2026-01-01", **told)
        return training_rows(said)["preference"]

    def scores(self, item: dict[str, Any]) -> list[float]:
        """What the rater goes by."""
        texts, prompt = [one["content"] for one in item["completions"]], prompt_text(item["prompt"])
        if self.better is None:
            return tales.gold_scores([prompt] * len(texts), texts)
        return [100.0 * (text == self.better[prompt]) for text in texts]  # without noise

    def sample(self, _: str, prompts: Any, __: int) -> list[Completion]:
        """The completions of prompts, as if they were written now."""
        turns, made = dict.fromkeys(self.sets, 0), []
        for prompt in map(prompt_text, prompts):
            made.append(Completion([], [], self.sets[prompt][turns[prompt]], True))
            turns[prompt] += 1
        return made


@functools.lru_cache(maxsize=1)
def tales_pool(seed: int) -> Pool:
    """Completions of the quickstart's SFT model."""
    draw = random.Random(f"selection {seed}")
    model, tokenizer, _ = load_as_trained(str(RUN / "sft"), "float32")
    how: dict[str, Any] = {"max_new_tokens": 72, "batch_size": 256}

    def sampled(split: str, number: int, count: int) -> tuple[list[Any], dict[str, list[str]]]:
        texts = [request(facts, draw) for facts in draw_facts(split, number, seed)]
        asked = [[{"role": "user", "content": text}] for text in dict.fromkeys(texts)]
        sides = [complete(model, tokenizer, asked, seed=seed + 99 * n, **how) for n in range(count)]
        names = [prompt_text(prompt) for prompt in asked]
        return asked, {text: [side[n].text for side in sides] for n, text in enumerate(names)}

    tests, (asked, sets) = [], sampled("eval", TESTS, 2)
    for prompt, (text, two) in zip(asked, sets.items(), strict=True):
        gold = tales.gold_scores([text] * 2, two)
        if gold[0] != gold[1] and all(one.strip() for one in two):
            said = [[{"role": "assistant", "content": one}] for one in two]
            chosen, rejected = said if gold[0] > gold[1] else said[::-1]
            tests.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return Pool(str(RUN / "sft"), *sampled("feedback", FIRST + CANDIDATES, 4), tests)


def reviews_pool(pairs: Path, model: Path, seed: int) -> Pool:
    """Pairs of FILE, each with a prompt of its own: equal ones would be asked once."""
    draw = random.Random(f"selection {seed}")
    rows = draw.sample(read_jsonl(pairs), FIRST + CANDIDATES + TESTS)
    for number, row in enumerate(rows):
        row["prompt"] = f"Movie review {number}: "
    sets = {row["prompt"]: [row["chosen"], row["rejected"]] for row in rows[TESTS:]}
    better = {prompt: two[0] for prompt, two in sets.items()}
    for two in sets.values():
        draw.shuffle(two)
    return Pool(str(model), [*sets], sets, rows[:TESTS], better)


def choose(
    pool: Pool, folder: Path, strategy: str, seed: int, *, is_first: bool = False
) -> list[dict[str, Any]]:
    """Items as `rlhf feedback select` makes them, of completions that are there."""
    reads = strategy not in ("random", "diversity")
    script = SimpleNamespace(
        strategy=strategy,
        num_items=FIRST if is_first else SECOND,
        candidates_per_item=CANDIDATES // SECOND,
        random_share=0.2,
        repeat=0.0,
        asked=[] if is_first else [str(folder / "asked")],
        names=[pool.model],
        num_completions=len(next(iter(pool.sets.values()))),
        reward_model_name_or_path=str(folder / "first") if reads else None,
        seed=seed,
        trust_remote_code=False,
    )
    return Chooser(script).choose(pool.prompts, pool.sample)[0]


def train(pool: Pool, rows: list[dict[str, Any]], folder: Path, seed: int) -> float:
    """Accuracy of a reward model on the held-out pairs."""
    write_jsonl(folder.with_suffix(".jsonl"), rows)
    write_jsonl(folder.with_suffix(".test.jsonl"), pool.tests)
    values = TRAINING | {"model_name_or_path": pool.model, "seed": seed}
    values["dataset_name"] = str(folder.with_suffix(".jsonl"))
    values["test_dataset_name"] = str(folder.with_suffix(".test.jsonl"))
    values["output_dir"] = str(folder)
    with Path(os.devnull).open("w") as away, redirect_stdout(away), redirect_stderr(away):
        return float(reward.run(parse("reward", [], values))["accuracy"])


def first_answers(pool: Pool, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Training rows of the first items, which lie in folder/asked."""
    asked = choose(pool, folder, "random", seed, is_first=True)
    (folder / "asked/final").mkdir(parents=True)
    write_jsonl(folder / "asked/final/items.jsonl", asked)
    return pool.answered(asked, seed)


def measure(make: Any, seed: int) -> dict[str, float]:
    """Accuracy after the first answers, and after the second ones of each strategy."""
    with tempfile.TemporaryDirectory() as place:
        folder, pool = Path(place), make(seed)
        rows = first_answers(pool, folder, seed)
        found = {"first": train(pool, rows, folder / "first", seed)}
        for strategy in STRATEGIES:
            chosen = choose(pool, folder, strategy, seed)
            more = pool.answered(chosen, seed)
            found[strategy] = train(pool, rows + more, folder / strategy, seed)
    return found


def gold_after_ppo(strategy: str, seed: int) -> float:
    """Mean hidden score of the last third of PPO's rollouts against a strategy's reward model."""
    with tempfile.TemporaryDirectory() as place:
        folder, pool = Path(place), tales_pool(seed)
        rows = first_answers(pool, folder, seed)
        train(pool, rows, folder / "first", seed)
        chosen = choose(pool, folder, strategy, seed)
        train(pool, rows + pool.answered(chosen, seed), folder / "reward", seed)
        return hidden_score(ppo_by(folder / "reward", folder / "ppo", seed)[1])


def interval(gains: list[float]) -> str:
    """Mean with the 95 % interval of paired differences."""
    half = float(student.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
    return f"{mean(gains):+.4f} ({mean(gains) - half:+.4f} to {mean(gains) + half:+.4f})"


def rows_of(found: dict[int, dict[str, float]]) -> str:
    """A line for each strategy."""
    lines = []
    for name in ("first", *STRATEGIES):
        values = [one[name] for one in found.values()]
        gains = [one[name] - one["random"] for one in found.values()]
        told = interval(gains) if name not in ("first", "random") else ""
        lines.append(f"| {name} | {mean(values):.4f} | {stdev(values):.4f} | {told} |")
    return "\n".join(lines)


PAGE_TEXT = """# What to ask

{conditions}

What the script's first lines say, over {seeds} seeds: accuracy of a reward model after the first
{first} answers, and after {second} more that a strategy chose among {candidates} prompts (a fifth
of the answers is held out from training). Gain: paired by seed against random, with its 95 %
interval of Student's t.

## Tales

| strategy | accuracy | sd | gain over random |
|---|---|---|---|
{tales}

## Reviews

| strategy | accuracy | sd | gain over random |
|---|---|---|---|
{reviews}
{ppo}"""


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--ppo", nargs="*", default=[], help="strategies whose PPO is run, too")
    given = parser.parse_args()
    hush()
    pools: dict[str, Any] = {"tales": tales_pool}
    pools["reviews"] = functools.partial(reviews_pool, given.pairs, given.model)
    seeds = given.seeds or [*SEEDS]
    found = {
        name: {
            seed: kept(KEPT, [name, seed], functools.partial(measure, make, seed)) for seed in seeds
        }
        for name, make in pools.items()
    }
    tables = {name: rows_of(rows) for name, rows in found.items() if len(rows) > 1}
    golds = {
        name: [
            kept(KEPT, ["ppo", name, s], functools.partial(gold_after_ppo, name, s))
            for s in seeds[:5]
        ]
        for name in given.ppo
    }
    lines = [
        "",
        "## PPO",
        "",
        "Hidden score of the last third of PPO's rollouts, of seeds 1 to 5.",
        "",
    ]
    lines += ["| strategy | hidden score | over random |", "|---|---|---|"]
    for name, values in golds.items() if not given.seeds else ():
        gains = [a - b for a, b in zip(values, golds["random"], strict=True)]
        told = interval(gains) if name != "random" else ""
        lines.append(f"| {name} | {mean(values):.3f} +- {stdev(values):.3f} | {told} |")
    if given.seeds:
        print(tables)
        return 0
    asked = f" --ppo {' '.join(golds)}" if golds else ""
    page = PAGE_TEXT.format(
        first=FIRST,
        second=SECOND,
        candidates=f"{CANDIDATES:,}",
        seeds=len(seeds),
        conditions=conditions(f"{COMMAND}{asked}"),
        ppo="\n".join([*lines, ""]) if golds else "",
        **tables,
    )
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
