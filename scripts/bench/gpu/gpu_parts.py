"""The parts of the GPU benchmark, each a process of its own: `gpu_parts.py PART SIZE ...`.

Waits for a line, then prints one of JSON. SIZE is `full` or `tiny`; tiny shapes run the same code
on any machine.
"""

import faulthandler
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
sys.path.append(str(Path(__file__).resolve().parents[3]))  # behind a TRL of another release

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from scripts.bench.gpu.gpu_cards import card, prepare
from scripts.bench.gpu.gpu_models import (
    EOS,
    LORA,
    PAD,
    make,
    shape,
    texts,
    write_reward_adapter,
    write_tokenizer,
)
from scripts.bench.gpu.gpu_peak import DEVICE, GIB, Peak
from scripts.bench.gpu.gpu_plan import plan

PHASES = ("sampling", "scoring", "training")
ROLLOUTS = 3


def lengths(size: str) -> tuple[int, int]:
    """Tokens of a prompt and of a completion."""
    return (256, 256) if size == "full" else (8, 8)


def train_ours(
    config: Any, model: Any, folder: Path, size: str, rewards: Any, **settings: Any
) -> dict[str, Any]:
    """Three rollouts of PPO; the first one is warm-up. Seconds of the others, peaks of all."""
    from recipes.lib.ppo.config import PPOConfig
    from recipes.lib.ppo.trainer import PPOTrainer

    prompt, completion = lengths(size)
    args = PPOConfig(
        output_dir=str(folder / "run"),
        total_episodes=ROLLOUTS * settings["rollout_batch_size"],
        max_prompt_length=prompt,
        max_completion_length=completion,
        stop_token="eos",
        bf16=True,
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    from transformers import AutoTokenizer

    rows = Dataset.from_list(texts(config, settings["rollout_batch_size"], prompt))
    trainer = PPOTrainer(
        model,
        rewards,
        args,
        rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        peft_config=LoraConfig(**LORA),
    )
    peak = Peak()
    with peak.watched():
        trainer.train()
    logs = [row for row in trainer.state.log_history if "time/training" in row]
    assert len(logs) == ROLLOUTS
    seconds = {phase: mean(row[f"time/{phase}"] for row in logs[1:]) for phase in PHASES}
    wholes = [sum(row[f"time/{phase}"] for phase in PHASES) for row in logs[1:]]
    return {"seconds": seconds, "spread": pstdev(wholes), "memory": peak.numbers()}


def four_roles(size: str, epochs: str, sampler: str) -> dict[str, Any]:
    """Policy, reference, reward and value on one NF4 base of the 8B shape."""
    config = shape("meta-llama/Llama-3.1-8B", size == "tiny")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tokenizer(config, folder / "base")
        write_reward_adapter(config, folder / "base", folder / "reward")
        model = make(config, folder / "base", DEVICE, nf4=True)
        return train_ours(
            config,
            model,
            folder,
            size,
            str(folder / "reward"),
            rollout_batch_size=16,
            num_ppo_epochs=int(epochs),
            num_mini_batches=4,
            per_device_train_batch_size=4,
            sampling_batch_size=16,
            scoring_batch_size=4,
            gradient_checkpointing=True,
            critic="adapter",
            critic_model_name_or_path=str(folder / "reward"),
            sampler=sampler,
        )


VERSUS: dict[str, Any] = {"num_ppo_epochs": 4, "num_mini_batches": 1, "learning_rate": 1e-5}
EPISODES, MICRO_BATCH = 32, 8


def versus_ours(size: str, critic: str, sampler: str) -> dict[str, Any]:
    """Our side of the comparison with TRL 1.12: the Qwen3-1.7B shape in bf16."""
    config = shape("Qwen/Qwen3-1.7B-Base", size == "tiny")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tokenizer(config, folder / "base")
        model = make(config, folder / "base", DEVICE)
        reward = make(config, folder / "base", DEVICE, classifier=True)
        return train_ours(
            config,
            model,
            folder,
            size,
            reward,
            rollout_batch_size=EPISODES,
            per_device_train_batch_size=MICRO_BATCH,
            sampling_batch_size=EPISODES,
            scoring_batch_size=MICRO_BATCH,
            gradient_checkpointing=False,
            critic=critic,
            sampler=sampler,
            **VERSUS,
        )


def versus_trl112(size: str) -> dict[str, Any]:
    """TRL 1.12's PPOTrainer on the same task; that release comes first on PYTHONPATH."""
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from scripts.bench.speed.speed_task import Laps
    from scripts.bench.speed.speed_trl112 import watch

    prompt, completion = lengths(size)
    config = shape("Qwen/Qwen3-1.7B-Base", size == "tiny")
    laps, peak = Laps(), Peak()
    watch(laps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tokenizer(config, folder / "base")
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        made = [make(config, folder / "base", DEVICE, classifier=c) for c in (False, True, True)]
        args = PPOConfig(
            output_dir=str(folder / "run"),
            total_episodes=ROLLOUTS * EPISODES,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=EPISODES // MICRO_BATCH,
            local_rollout_forward_batch_size=MICRO_BATCH,
            response_length=completion,
            stop_token="eos",
            num_sample_generations=0,
            logging_steps=10**6,
            bf16=True,
            use_cpu=DEVICE == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **VERSUS,
        )
        rows = [
            {"input_ids": tokenizer(row["prompt"])["input_ids"]}
            for row in texts(config, EPISODES, prompt)
        ]
        data = Dataset.from_list(rows)
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=made[0],
            ref_model=None,
            reward_model=made[1],
            value_model=made[2],
            train_dataset=data,
            eval_dataset=data,
            peft_config=LoraConfig(**LORA),
        )
        with peak.watched():
            trainer.train()
    laps.begin("sampling")
    assert len(laps.wholes) == ROLLOUTS - 1
    seconds = {phase: whole / len(laps.wholes) for phase, whole in laps.seconds.items()}
    return {"seconds": seconds, "spread": pstdev(laps.wholes), "memory": peak.numbers()}


def bandwidth() -> float:
    """Bytes that a copy on the device moves in a second, reads and writes together."""
    block = torch.empty((2 * GIB if DEVICE == "cuda" else 2**24) // 4, device=DEVICE)
    return 2 * 4 * block.numel() / seconds_of(lambda: block.clone())


def seconds_of(way: Callable[[], Any]) -> float:
    """Least seconds of two calls, after one that is not counted."""
    took = []
    for _ in range(3):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        way()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return min(took[1:])


def decode(size: str, weights: str) -> dict[str, Any]:
    """Tokens per second of generate and of the graph sampler, and the bound of the bandwidth."""
    config, is_nf4 = shape("meta-llama/Llama-3.1-8B", size == "tiny"), weights == "nf4"
    prompt, completion = (256, 48) if size == "full" else (8, 8)
    with tempfile.TemporaryDirectory() as temporary:
        model = make(config, Path(temporary), DEVICE, nf4=is_nf4)
    model = get_peft_model(model, LoraConfig(**LORA)).get_base_model().eval()
    read = sum(
        p.numel() * p.element_size() for n, p in model.named_parameters() if "embed" not in n
    )
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cached = 2 * 2 * config.num_hidden_layers * heads * (prompt + completion / 2)
    speed = bandwidth()
    rows = []
    for batch in (1, 8, 32, 128) if size == "full" else (1, 8):
        bound = batch * speed / (read + batch * cached)
        speeds = tokens_per_second(model, config.vocab_size, batch, prompt, completion)
        rows.append({"batch": batch, "bound": bound} | speeds)
    return {"rows": rows, "bandwidth": speed}


def tokens_per_second(
    model: Any, vocabulary: int, batch: int, prompt: int, completion: int
) -> dict[str, float]:
    """Tokens per second of each sampler, the reading of the prompts left out."""
    from recipes.lib.generation.decoder import Decoder
    from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate

    ids = torch.randint(2, vocabulary, (batch, prompt), device=DEVICE)
    mask = torch.ones_like(ids)
    took: dict[str, list[float]] = {"transformers": [], "graph": []}
    for length in (completion, 1):
        noise = episode_uniforms(0, range(batch), length)
        decoding = Decoding(length, 1.0, EOS, PAD)
        decoder = Decoder(model, decoding, batch, prompt + length)
        took["transformers"].append(
            seconds_of(partial(generate, model, ids, mask, noise, decoding))
        )
        took["graph"].append(seconds_of(partial(decoder.sample, ids, mask, noise)))
        if length == completion:
            one, other = (
                generate(model, ids, mask, noise, decoding),
                decoder.sample(ids, mask, noise),
            )
    width = min(one[0].shape[1], other[0].shape[1])
    same = (one[0][:, :width] == other[0][:, :width]).float().mean().item()
    found = {w: batch * (completion - 1) / (whole - first) for w, (whole, first) in took.items()}
    return found | {"same": same}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "four_roles": four_roles,
    "versus_ours": versus_ours,
    "versus_trl112": versus_trl112,
    "decode": decode,
    "plan": plan,
    "card": card,
}


NEEDED = {
    "four_roles": ("recipes.lib.ppo.trainer",),
    "versus_ours": ("recipes.lib.ppo.trainer",),
    "versus_trl112": ("trl.experimental.ppo",),
    "decode": ("recipes.lib.generation.decoder",),
    "plan": (
        "recipes.lib.plan.planner",
        "recipes.lib.config.parse",
        "recipes.lib.ppo.trainer",
        "trl",
    ),
    "card": ("recipes.lib.plan.planner", "recipes.lib.plan.options", "recipes.lib.ppo.trainer"),
}


def run(part: str, *given: str, turn: Callable[[], object] = lambda: True) -> dict[str, Any]:
    """Prepare a part, wait for its turn, run it; nothing if the turn does not come."""
    for name in NEEDED[part]:
        importlib.import_module(name)
    before = Path.cwd()
    more = [prepare(*given)] if part == "card" else []
    try:
        return PARTS[part](*given, *more) if turn() else {}
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {str(error).splitlines()[0][:200]}"}
    finally:
        os.chdir(before)


def main(part: str, *given: str) -> None:
    """Run a part when its turn comes, and print what it found."""
    faulthandler.enable()
    if part != "versus_trl112":
        from recipes.lib.recipe.guard import set_expandable_segments

        set_expandable_segments()  # as every recipe does it
    print(json.dumps(run(part, *given, turn=sys.stdin.readline)))


if __name__ == "__main__":
    main(*sys.argv[1:])
