#!/usr/bin/env python3
"""A regression on frozen features: last token or mean, and its share of a reward run's time.

    .venv/bin/python scripts/bench/real_models/frozen_features.py

Needs the folder of models and data beside the project. Prints the section of
docs/benchmarks/real-models.md.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

import recipes.reward  # noqa: E402  the path above comes first
from recipes.lib.evaluation import pair_scores  # noqa: E402
from recipes.lib.models.classifiers import load_reward_model  # noqa: E402
from recipes.lib.models.forward import pad_right  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402

SHARED = ROOT.parent / "shared"
PAIRS = SHARED / "data/preference/sentence_polarity_pairs.jsonl"
MODELS = {
    "tales, shipped": ROOT / "recipes/lib/tasks/tales/trained",
    "stories260K": SHARED / "models/stories260K",
}
NUM_TRAIN, NUM_TEST, LENGTH, BATCH = 1920, 533, 96, 64
NUM_TIMED = 600


@torch.no_grad()
def features(model: Any, tokenizer: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden states of the texts: of the last token, and their mean over tokens."""
    last, mean = [], []
    for start in range(0, len(texts), BATCH):
        ended = [text + tokenizer.eos_token for text in texts[start : start + BATCH]]
        rows = [row[-LENGTH:] for row in tokenizer(ended)["input_ids"]]
        ids, mask = pad_right(rows, tokenizer.pad_token_id, "cpu")
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
        last.append(states[torch.arange(len(rows)), mask.sum(1) - 1])
        mean.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(last).numpy(), torch.cat(mean).numpy()


def accuracies(path: Path) -> list[float]:
    """Held-out accuracies of the regression on last tokens and on means, of one draw of pairs."""
    model, tokenizer = load_reward_model(str(path), new_head=True)
    rows = load_dataset("json", data_files=str(PAIRS), split="train").shuffle(seed=1)
    rows = rows.select(range(NUM_TRAIN + NUM_TEST))
    texts = [[p + row for p, row in zip(rows["prompt"], rows[s], strict=True)] for s in SIDES]
    found = []
    for chosen, rejected in zip(*(features(model, tokenizer, side) for side in texts), strict=True):
        pairs = chosen - rejected
        margins = pairs[NUM_TRAIN:] @ pair_scores.fit_weights(pairs[:NUM_TRAIN])
        found.append(float((margins > 0).mean()))
    return found


SIDES = ("chosen", "rejected")


def share_of_time(path: Path, folder: Path) -> tuple[float, float]:
    """Seconds of a reward run of two epochs, as in the quickstart, and of the regression in it."""
    spent = 0.0
    plain = pair_scores.frozen_features_accuracy

    def timed(*given: Any, **named: Any) -> float:
        nonlocal spent
        start = time.monotonic()
        accuracy = plain(*given, **named)
        spent = time.monotonic() - start
        return accuracy

    pair_scores.frozen_features_accuracy = timed
    values = {"model_name_or_path": str(path), "dataset_name": str(PAIRS), "test_fraction": 0.02}
    values |= {"output_dir": str(folder), "frozen_features": True, "max_length": 512}
    values |= {"num_train_epochs": 2, "per_device_train_batch_size": 8, "save_strategy": "no"}
    values |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "seed": 1}
    values |= {"max_train_rows": NUM_TIMED, "disable_tqdm": True, "report_to": "none"}
    summary = recipes.reward.run(parse("reward", [], values))
    pair_scores.frozen_features_accuracy = plain
    return summary["seconds"] - spent, spent


def main() -> None:
    """Print the section."""
    hush()
    print("## A regression on frozen features\n")
    print(conditions("scripts/bench/real_models/frozen_features.py"))
    print(f"- {NUM_TRAIN} pairs of sentence_polarity to fit, {NUM_TEST} held out; fp32\n")
    print("| base | last token | mean of tokens |\n|---|---|---|")
    for name, path in MODELS.items():
        last, mean = accuracies(path)
        print(f"| {name} | {last:.3f} | {mean:.3f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run, own = share_of_time(MODELS["tales, shipped"], Path(folder) / "run")
    print(
        f"\nOf the shipped base, {NUM_TIMED} pairs, two epochs in batches of 8 as "
        f"in the quickstart: {run:.0f} s without\nthe regression, which takes {own:.1f} s more "
        f"({100 * own / run:.0f} %)."
    )


if __name__ == "__main__":
    main()
