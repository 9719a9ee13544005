"""One run of TRL 1.12's PPOTrainer for ppo_vs_trl: `speed_trl112.py FOLDER`. Prints JSON.

Run as a process of its own with that release first on PYTHONPATH.
"""

import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from scripts.bench.speed.speed_task import COMMON, COMPLETION_TOKENS, EPISODES, LORA, Laps, prompts


def watch(laps: Laps) -> None:
    """Note when sampling begins, when it ends, and when the first pass of updates begins."""
    generate, permute = ppo_trainer.batch_generation, np.random.permutation

    def generation(*args: Any, **kwargs: Any) -> Any:
        laps.begin("sampling")
        result = generate(*args, **kwargs)
        laps.begin("scoring")
        return result

    def permutation(*args: Any, **kwargs: Any) -> Any:
        if laps.phase == "scoring":
            laps.begin("training")
        return permute(*args, **kwargs)

    ppo_trainer.batch_generation, np.random.permutation = generation, permutation


def main(folder: str) -> None:
    """Train, and print seconds of an iteration by phase and memory in GiB."""
    at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = Dataset.from_list([{"input_ids": row} for row in prompts()])
    laps = Laps()
    watch(laps)
    with tempfile.TemporaryDirectory() as out:
        args = PPOConfig(
            output_dir=out,
            per_device_train_batch_size=EPISODES,  # in mini-batches, each an optimizer step
            gradient_accumulation_steps=1,
            response_length=COMPLETION_TOKENS,
            stop_token="eos",
            local_rollout_forward_batch_size=EPISODES,
            num_sample_generations=0,
            logging_steps=10**6,
            **COMMON,
        )
        load = AutoModelForSequenceClassification.from_pretrained
        trainer = PPOTrainer(
            args=args,
            processing_class=AutoTokenizer.from_pretrained(f"{folder}/policy"),
            model=AutoModelForCausalLM.from_pretrained(f"{folder}/policy"),
            ref_model=None,
            reward_model=load(f"{folder}/reward"),
            value_model=load(f"{folder}/reward"),
            train_dataset=rows,
            eval_dataset=rows,
            peft_config=LoraConfig(**LORA),
        )
        trainer.train()
    laps.begin("sampling")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"imports": at_start / 2**20, "peak": peak / 2**20}
    print(json.dumps({"seconds": laps.per_iteration(), "memory": memory}))


if __name__ == "__main__":
    main(*sys.argv[1:])
