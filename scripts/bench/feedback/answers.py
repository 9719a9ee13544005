"""What a person's time is worth by kind of answer: reward models from simulated answers.

    .venv/bin/python scripts/bench/feedback/answers.py [--seeds 5] [--seconds 600 2400]

Everything is simulated: tales that the teller of recipes.lib.tasks.tales writes about a prompt, a
rater who answers by the gold score with noise, and the seconds that an answer takes him. Each kind
of answer gets as many as fit in the seconds; a reward model on the shipped language model learns
from them, and its accuracy is the share of held-out pairs that it orders as the gold score does.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from recipes import reward  # noqa: E402
from recipes.lib.feedback.exchange import training_rows  # noqa: E402
from recipes.lib.feedback.rows import item_id  # noqa: E402
from recipes.lib.feedback.simulation import Rater, simulate_answers  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import write_jsonl  # noqa: E402
from recipes.lib.tasks import tales  # noqa: E402
from recipes.lib.tasks.tales.prompts import draw_facts, request  # noqa: E402
from recipes.lib.tasks.tales.stories import TELLER, tell  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402

READING = 5.0  # seconds for a tale
# Seconds to answer when all is read, tales of an item, answers that an item gives.
KINDS = {"pair": (2.0, 2, 1), "rank": (8.0, 4, 1), "rating": (3.0, 2, 2), "thumb": (1.0, 2, 2)}
FILES = {"rating": "ratings", "thumb": "unpaired_preference"}
NAMES = {"pair": "pairs", "rank": "ranks of four", "rating": "ratings", "thumb": "thumbs"}
TALES = 16  # of a batch, in rows of one, two or four
RATER = Rater(temperature=0.8)
NUM_TESTS = 400
TRAINING: dict[str, Any] = {
    "model_name_or_path": str(Path(tales.__file__).parent / "trained"),
    "test_fraction": 0,
    "num_train_epochs": 6,
    "learning_rate": 1e-3,
    "adam_beta2": 0.98,
    "weight_decay": 0.1,
    "warmup_steps": 5,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "eval_strategy": "no",
    "save_strategy": "no",
    "max_length": 160,
    "overwrite": True,
}


def seconds_of(kind: str) -> float:
    """Seconds of one answer."""
    answering, num_tales, num_answers = KINDS[kind]
    return READING * num_tales / num_answers + answering


def items(split: str, number: int, num_tales: int, seed: int) -> Iterator[dict[str, Any]]:
    """Prompts with tales of the one teller."""
    draw = random.Random(f"answers {split} {seed}")
    for facts in draw_facts(split, number, seed):
        prompt = request(facts, draw)
        texts: list[str] = []
        while len(texts) < num_tales:
            text = f" {tell(facts, TELLER, draw).text}"
            texts += [text] if text not in texts else []
        completions = [{"content": text, "run": None} for text in texts]
        yield {"id": item_id(prompt, texts), "prompt": prompt, "completions": completions}


def gold(item: dict[str, Any]) -> list[float]:
    """The gold score of each tale of an item."""
    texts = [one["content"] for one in item["completions"]]
    return tales.gold_scores([item["prompt"]] * len(texts), texts)


def answers(kind: str, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Training rows from as many answers of a kind as fit in the seconds."""
    _, num_tales, num_answers = KINDS[kind]
    number = int(seconds // (seconds_of(kind) * num_answers))
    asked = list(items("feedback", number, num_tales, seed))
    told: dict[str, Any] = {"kinds": [kind], "raters": [RATER], "seed": seed}
    said = simulate_answers(asked, list(map(gold, asked)), created_at="2026-01-01", **told)
    return training_rows(said)[FILES.get(kind, "ranks")]


def tests(seed: int) -> list[dict[str, Any]]:
    """Held-out pairs in the order of the gold score."""
    rows = []
    for item in items("eval", NUM_TESTS, 2, seed):
        one, other = gold(item)
        if one != other:
            sides = [completion["content"] for completion in item["completions"]]
            chosen, rejected = sides if one > other else sides[::-1]
            rows.append({"prompt": item["prompt"], "chosen": chosen, "rejected": rejected})
    return rows


def accuracy(folder: Path, kind: str, seconds: float, seed: int, ensemble: int) -> float:
    """Accuracy of a reward model from answers of one kind."""
    rows = answers(kind, seconds, seed)
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "test.jsonl", tests(seed))
    size = len(rows[0].get("completions", [0]))
    values = TRAINING | {
        "dataset_name": str(folder / "rows.jsonl"),
        "test_dataset_name": str(folder / "test.jsonl"),
        "per_device_train_batch_size": TALES // size,
        "ensemble": ensemble,
        "skip_check": True,
        "seed": seed,
        "output_dir": str(folder / "run"),
    }
    with Path(os.devnull).open("w") as away, redirect_stdout(away), redirect_stderr(away):
        return float(reward.run(parse("reward", [], values))["accuracy"])


def table(found: dict[tuple[str, float, int], list[float]]) -> Iterator[str]:
    """The numbers as Markdown."""
    yield "| seconds | kind | answers | one output | ensemble of two | difference |"
    yield "|---|---|---|---|---|---|"
    for kind, seconds, ensemble in found:
        if ensemble == 1:
            one, two = found[kind, seconds, 1], found[kind, seconds, 2]
            number = int(seconds // seconds_of(kind))
            gains = [b - a for a, b in zip(one, two, strict=True)]
            cells = [f"{mean(some):.3f} +- {stdev(some):.3f}" for some in (one, two)]
            cells.append(f"{mean(gains):+.3f} (above 0 in {sum(g > 0 for g in gains)})")
            yield f"| {seconds:,.0f} | {NAMES[kind]} | {number} | {' | '.join(cells)} |"


def main() -> None:
    """Print the page's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, nargs="+", default=[600.0, 2400.0])
    parser.add_argument("--log", type=Path, help="JSON lines of what was measured, to go on from")
    given = parser.parse_args()
    hush()
    found: dict[tuple[str, float, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        log = given.log or Path(place) / "log.jsonl"
        known = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        rows = {tuple(row[:4]): row[4] for row in map(json.loads, known)}
        for seconds, kind, ensemble in itertools.product(given.seconds, KINDS, (1, 2)):
            for seed in range(1, given.seeds + 1):
                key = (kind, seconds, ensemble, seed)
                if key not in rows:
                    rows[key] = accuracy(Path(place), kind, seconds, seed, ensemble)
                    with log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([*key, rows[key]]) + "\n")
                found.setdefault(key[:3], []).append(rows[key])
    told = " ".join(f"{seconds:.0f}" for seconds in given.seconds)
    print(conditions(f"scripts/bench/feedback/answers.py --seeds {given.seeds} --seconds {told}"))
    print("\n".join(["", *table(found)]))


if __name__ == "__main__":
    main()
