#!/usr/bin/env python3
"""SFT, a reward model and PPO on real weights and real text; writes docs/benchmarks/real-models.md.

Run it with the environment's Python, with the folder of models and data beside the project:
`.venv/bin/python scripts/bench/real_models/real_models.py`. It takes about 20 minutes on two cores.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes import ppo, reward, sft  # noqa: E402
from recipes.lib.recipe.main import parse  # noqa: E402
from recipes.lib.runs.files import read_jsonl  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from scripts.bench.real_models.smollm2 import MARK  # noqa: E402

SHARED = ROOT.parent / "shared"
MODEL = str(SHARED / "models/stories260K")
STORIES = str(SHARED / "data/prompt/tinystories.jsonl")
HAPPY = f"{ROOT / 'scripts/bench/happy_words.py'}:happy_words"
PAGE = ROOT / "docs/benchmarks/real-models.md"
COMMON = {"use_cpu": True, "bf16": False, "save_strategy": "no"}
PPO = COMMON | {
    "dataset_name": STORIES,
    "total_episodes": 3200,
    "rollout_batch_size": 128,
    "num_ppo_epochs": 2,
    "num_mini_batches": 4,
    "per_device_train_batch_size": 32,
    "sampling_batch_size": 128,
    "max_completion_length": 64,
    "learning_rate": 3e-4,
    "critic": "model",
    "critic_learning_rate": 1e-3,
    "kl_coef": 0.07,
    "cliprange": 0.2,
    "vf_coef": 0.5,
}


def run_sft(out: Path) -> dict[str, Any]:
    """SFT of stories260K on TinyStories."""
    settings = COMMON | {
        "model_name_or_path": MODEL,
        "dataset_name": str(SHARED / "data/sft/tinystories_pc.jsonl"),
        "test_fraction": 0.2,
        "num_train_epochs": 3,
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 8,
        "max_length": 512,
        "gradient_checkpointing": False,
        "output_dir": str(out),
    }
    return sft.run(parse("sft", [], settings))


def run_reward(out: Path, policy: Path) -> dict[str, Any]:
    """A reward model from the SFT run on pairs of film reviews."""
    settings = COMMON | {
        "model_name_or_path": str(policy),
        "dataset_name": str(SHARED / "data/preference/sentence_polarity_pairs.jsonl"),
        "test_fraction": 0.2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "gradient_checkpointing": False,
        "output_dir": str(out),
    }
    return reward.run(parse("reward", [], settings))


def run_ppo(out: Path, policy: str, rewards: list[str], seed: int, **more: Any) -> dict[str, Any]:
    """PPO on the opening sentences of TinyStories."""
    settings = PPO | {
        "model_name_or_path": policy,
        "reward_funcs": rewards,
        "seed": seed,
        "output_dir": str(out),
    }
    start = time.monotonic()
    summary = ppo.run(parse("ppo", [], settings | more))
    rows = [r for r in read_jsonl(out / "metrics.jsonl") if "objective/kl" in r]
    return summary | {"rows": rows, "seconds": time.monotonic() - start}


def ppo_row(name: str, runs: list[dict[str, Any]]) -> str:
    """One line of the table: means over seeds, and the standard deviation over them."""

    def spread(key: str) -> str:
        values = [run[key] for run in runs]
        return f"{mean(values):.2f}" + (f" +- {stdev(values):.2f}" if len(values) > 1 else "")

    cells = [spread(k) for k in ("first_scores", "scores", "kl", "completion_length", "seconds")]
    return f"| {name} | {len(runs)} | " + " | ".join(cells) + " |"


def main() -> int:
    """Run everything and write the page."""
    hush()
    folder = Path(tempfile.mkdtemp())
    tuned = run_sft(folder / "sft")
    judged = run_reward(folder / "reward", folder / "sft")
    words = [run_ppo(folder / f"words-{s}", MODEL, [HAPPY], s) for s in (1, 2, 3)]
    model = [str(folder / "reward")]
    learned = run_ppo(folder / "learned", MODEL, model, 1)
    both = run_ppo(folder / "both", MODEL, [HAPPY, *model], 1, reward_weights=[1.0, 0.2])
    page = PAGE_TEXT.format(
        conditions=conditions(".venv/bin/python scripts/bench/real_models/real_models.py"),
        sft=tuned,
        reward=judged,
        words=ppo_row("happy words", words),
        learned=ppo_row("reward model", [learned]),
        both=ppo_row("happy words + 0.2 x reward model", [both]),
    )
    print(page)
    _, mark, chat_model = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(page + "\n" * bool(mark) + mark + chat_model, encoding="utf-8")
    return 0


PAGE_TEXT = """# Real models

stories260K (Llama class, 260 thousand parameters, trained on TinyStories) and real text.

{conditions}

## SFT on TinyStories

Test perplexity {sft[base_perplexity]:.2f} before and {sft[perplexity]:.2f} after 3 epochs of 145
stories, {sft[seconds]:.0f} s.

## Reward model on pairs of film reviews

4,265 pairs to train on, 1,066 to test on, the same split for both:

| reward model | test accuracy |
|---|---|
| stories260K after SFT | {reward[accuracy]:.3f} |
| bag of words, logistic regression | {reward[accuracy_bag_of_words]:.3f} |

{reward[seconds]:.0f} s. Counting words is the better use of these pairs where the model is as small
as this one and has read nothing but children's stories.

## PPO on the opening sentences of TinyStories

25 rollouts of 128 completions of 64 tokens. Score: mean of the first rollout and of the last three,
KL in nats per completion over the last three; spread is the standard deviation over seeds.

| reward | seeds | score at first | score at last | KL | tokens | seconds |
|---|---|---|---|---|---|---|
{words}
{learned}
{both}

The happy-words reward is (happy words - sad words) / 5 over lists of 20 everyday words each
(`scripts/bench/happy_words.py`).
"""


if __name__ == "__main__":
    raise SystemExit(main())
