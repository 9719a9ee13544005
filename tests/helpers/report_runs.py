"""Invented run folders for the tests of the report: seeded test data, nobody's measurement."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CHINESE = (
    "\u4ece\u524d\u6709\u4e00\u53ea\u5c0f\u732b\uff0c\u5b83\u559c\u6b22\u6652\u592a\u9633\u3002"
)
ARABIC = "\u0643\u0627\u0646 \u0647\u0646\u0627\u0643 \u0642\u0637 \u0635\u063a\u064a\u0631."
EMOJI = "\U0001f431\u2764\ufe0f\U0001f44d\U0001f3fd"
SCRIPT = "<script>document.title='owned'</script><img src=\"http://example.org/x.png\">"
ODD_TEXTS = (CHINESE, ARABIC, EMOJI, SCRIPT)

NAMES = ("Mia", "Ben", "the old baker", "a small dog", "Lily", "the captain")
PLACES = ("by the river", "in the garden", "at the market", "under the bridge", "on the hill")
ENDS = ("and smiled", "and felt happy", "and was kind", "and went home", "and cried", "and waited")


def text(rng: np.random.Generator, sentences: int = 2) -> str:
    """A few templated sentences."""
    return " ".join(
        f"{rng.choice(NAMES).capitalize()} sat {rng.choice(PLACES)} {rng.choice(ENDS)}."
        for _ in range(sentences)
    )


def write_run(
    path: Path,
    summary: dict[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder with the files that are given."""
    path.mkdir(parents=True, exist_ok=True)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary, indent=2))
    for name, rows in (("metrics", metrics), ("samples", samples)):
        if rows is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    if config is not None:
        (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
        versions = {"torch": "2.13.0", "trl": "1.16.0", "transformers": "5.23.0"}
        lineage = {"model": {"name": "runs/sft/final"}, "versions": versions, "commit": "0123abcd"}
        (path / "lineage.json").write_text(json.dumps(lineage))
    return path


def ppo_row(step: int, done: float, rng: np.random.Generator) -> dict[str, Any]:
    """The metrics of one rollout; `done` is the fraction of the run that is over."""
    score = 0.2 + 1.3 * (1 - math.exp(-3 * done)) + 0.05 * rng.normal()
    kl = 9.3 * done**1.2 + 0.1 * abs(rng.normal())
    return {
        "step": 4 * step,
        "episode": 128 * step,
        "seconds": 4.5 * step,
        "objective/scores": score,
        "objective/kl": kl,
        "objective/rlhf_reward": score - 0.05 * kl,
        "objective/entropy": 41 * (1.9 - 0.9 * done),
        "policy/entropy_avg": 1.9 - 0.9 * done + 0.03 * rng.normal(),
        "policy/clipfrac_avg": 0.12 + 0.03 * rng.normal(),
        "val/clipfrac_avg": 0.03 + 0.01 * rng.normal(),
        "loss/value_avg": 0.4 * math.exp(-2 * done) + 0.02 * abs(rng.normal()),
        "val/explained_variance": 0.7 * (1 - math.exp(-4 * done)),
        "completions/mean_length": 41 + 6 * done + rng.normal(),
        "objective/eos_fraction": 0.9 + 0.08 * done,
        "time/sampling": 2.6 + 0.1 * rng.normal(),
        "time/scoring": 0.6 + 0.02 * rng.normal(),
        "time/training": 1.1 + 0.05 * rng.normal(),
    }


def ppo_run(path: Path, rollouts: int = 25) -> Path:
    """A PPO run whose reward rises while KL grows."""
    rng = np.random.default_rng(1)
    metrics = [ppo_row(step, step / rollouts, rng) for step in range(1, rollouts + 1)]
    samples = [
        {
            "step": row["step"],
            "episode": row["episode"],
            "prompt": text(rng, 1),
            "completion": ODD_TEXTS[i] if row["step"] == 4 else text(rng),
            "score": row["objective/scores"] + 0.4 * (i - 1.5),
            "kl": row["objective/kl"],
            "num_tokens": 40 + i,
        }
        for row in metrics[::6]
        for i in range(4)
    ]
    last = {name: metrics[-1][f"objective/{name}"] for name in ("scores", "rlhf_reward", "kl")}
    last["completion_length"] = metrics[-1]["completions/mean_length"]
    first = {"first_scores": metrics[0]["objective/scores"]}
    summary = {"recipe": "ppo", "episodes": 128 * rollouts} | first | last | {"seconds": 114.0}
    return write_run(path, summary, metrics, samples, {"seed": 7, "kl_coef": 0.05})


def sft_run(path: Path, recipe: str = "sft", steps: int = 40) -> Path:
    """A language model's training with a held-out loss every ten steps."""
    rng = np.random.default_rng(2)
    metrics: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 1.4 + 2.2 * math.exp(-step / 12)
        metrics.append({"step": step, "loss": loss + 0.05 * rng.normal(), "seconds": 0.5 * step})
        metrics[-1]["mean_token_accuracy"] = 0.75 - 0.18 * (loss - 1.4)
        if step % 10 == 0:
            metrics.append({"step": step, "eval_loss": loss + 0.08})
    samples = [
        {"prompt": text(rng, 1), "reference": text(rng), "completion": text(rng)} for _ in range(4)
    ]
    samples.append({"prompt": CHINESE, "reference": ARABIC, "completion": EMOJI})
    summary = {"recipe": recipe, "train_loss": 1.9, "eval_loss": 1.56, "perplexity": 4.76}
    summary |= {"base_perplexity": 9.87, "seconds": 20.0}
    return write_run(path, summary, metrics, samples, {"seed": 7, "learning_rate": 0.001})


def reward_run(path: Path, pairs: int = 500) -> Path:
    """A slightly overconfident reward model: outcomes follow 0.8 of its margins."""
    rng = np.random.default_rng(3)
    metrics: list[dict[str, Any]] = []
    for step in range(1, 31):
        right = 0.84 - 0.3 * math.exp(-step / 6)
        row = {"step": step, "loss": 0.35 + 0.34 * math.exp(-step / 7), "accuracy": right}
        metrics.append(row | {"margin": 2.2 * (1 - math.exp(-step / 10))})
        if step % 6 == 0:
            held_out = {"eval_accuracy": right - 0.01, "eval_loss": row["loss"] + 0.02}
            metrics.append({"step": step} | held_out)
    samples = []
    for _ in range(pairs):
        size = abs(rng.normal(0, 2.4))
        margin = size if rng.random() < 1 / (1 + math.exp(-0.8 * size)) else -size
        low = rng.normal()
        scores = {"score_chosen": low + margin, "score_rejected": low}
        texts = {"prompt": text(rng, 1), "chosen": text(rng), "rejected": text(rng)}
        samples.append(texts | scores)
    summary = {"recipe": "reward", "accuracy": 0.75, "accuracy_ceiling": 0.8713}
    summary |= {"accuracy_bag_of_words": 0.71, "margin": 1.36, "seconds": 31.5}
    return write_run(path, summary, metrics, samples, {"seed": 7})


def evaluate_run(path: Path, prompts: int = 200) -> Path:
    """Two models on the same prompts; the best, the worst and some others in odd scripts."""
    rng = np.random.default_rng(4)
    samples = [
        {
            "prompt": f"{text(rng, 1)} ({i})",
            "baseline": text(rng),
            "completion": text(rng),
            "score_baseline": round(rng.normal(0.1, 0.5), 1),
            "score": round(rng.normal(0.9, 0.5), 1),
        }
        for i in range(prompts)
    ]
    samples[0] |= {"completion": CHINESE + EMOJI, "score": 4.0}
    asked = f"\u8bf7\u8bb2\u4e00\u4e2a\u6545\u4e8b\uff1a{CHINESE}"
    samples[1] |= {"prompt": asked, "completion": SCRIPT, "score": -2.0}
    summary = {"recipe": "evaluate", "seconds": 12.0, "num_prompts": prompts}
    summary |= {"win_rate": 0.87, "win_rate_ci95": [0.82, 0.91]}
    return write_run(path, summary, None, samples, {"seed": 7})


QUICKSTART_SUMMARY: dict[str, Any] = {
    "base_perplexity": 9.8712,
    "sft_perplexity": 4.7638,
    "reward_accuracy": 0.8264,
    "reward_accuracy_ceiling": 0.8713,
    "gold_sft": 0.1234,
    "gold_ppo": 1.2071,
    "win_rate": 0.8723,
    "win_rate_ci95": [0.8195, 0.9105],
    "kl": 9.3149,
    "seconds": {
        "base": 61.2,
        "sft": 22.4,
        "feedback": 14.8,
        "reward": 31.5,
        "ppo": 113.7,
        "evaluate": 12.3,
    },
    "peak_rss_mb": 1834.6,
}


def quickstart_run(root: Path) -> Path:
    """A finished quickstart with all of its stages."""
    sft_run(root / "base", "base")
    sft_run(root / "sft")
    write_run(root / "feedback", {"recipe": "feedback", "seconds": 14.8, "num_pairs": 2000})
    reward_run(root / "reward")
    ppo_run(root / "ppo")
    evaluate_run(root / "evaluate")
    return write_run(root, QUICKSTART_SUMMARY)
