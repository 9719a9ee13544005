"""One run of this project's PPO: `speed_ours.py FOLDER CRITIC [PRODUCTS]`. Prints JSON.

PRODUCTS is `fast`, the recipes' own choice, or `mkl`, those that PyTorch takes by itself.
"""

import json
import resource
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from datasets import Dataset  # noqa: E402  the paths above come first
from peft import LoraConfig  # noqa: E402

from recipes.lib.models import cpu_linear  # noqa: E402
from recipes.lib.ppo.config import PPOConfig  # noqa: E402
from recipes.lib.ppo.trainer import PPOTrainer  # noqa: E402
from scripts.bench.speed.speed_task import COMMON, COMPLETION_TOKENS, EPISODES, LORA, prompts  # noqa: E402

PHASES = ("sampling", "scoring", "training")


def main(folder: str, critic: str, products: str = "fast") -> None:
    """Train, and print seconds of an iteration by phase and memory in GiB."""
    if products == "mkl":
        setattr(cpu_linear, "has_slow_mkl", lambda: False)  # noqa: B010
    at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = [{"prompt": " ".join(f"w{token - 2}" for token in row)} for row in prompts()]
    with tempfile.TemporaryDirectory() as out:
        args = PPOConfig(
            output_dir=out,
            rollout_batch_size=EPISODES,
            per_device_train_batch_size=EPISODES // COMMON["num_mini_batches"],
            sampling_batch_size=EPISODES,
            scoring_batch_size=EPISODES,
            max_completion_length=COMPLETION_TOKENS,
            critic=critic,
            **COMMON,
        )
        trainer = PPOTrainer(
            f"{folder}/policy",
            f"{folder}/reward",
            args,
            Dataset.from_list(rows),
            peft_config=LoraConfig(**LORA),
        )
        trainer.train()
    logs = [row for row in trainer.state.log_history if "time/training" in row][1:]
    seconds = {p: sum(row[f"time/{p}"] for row in logs) / len(logs) for p in PHASES}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"imports": at_start / 2**20, "peak": peak / 2**20}
    print(json.dumps({"seconds": seconds, "memory": memory}))


if __name__ == "__main__":
    main(*sys.argv[1:])
