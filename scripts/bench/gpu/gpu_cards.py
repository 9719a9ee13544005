"""A shipped configuration for a card, run on a GPU that is limited to the card's memory.

The recipe itself runs, as its file says, on a model of the file's shape with random weights and on
rows as long as the file allows; only the number of micro-batches is small.
"""

import fcntl
import importlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scripts.bench.gpu.gpu_files import ROOT, base_of, read_file
from scripts.bench.gpu.gpu_models import shape, texts, write_tokenizer, write_weights
from scripts.bench.gpu.gpu_peak import DEVICE, GIB, Peak, train_alone, used_by_process

STEPS, MICRO_BATCHES, ROWS = 2, 3, 56
# GiB of CUDA's context, as measured with the four roles; where NVML does not tell it.
CONTEXT = 0.83
Row = dict[str, Any]


def work_folder(size: str) -> Path:
    """Where models, rows and runs of all cards lie: in memory, if the machine has such a folder."""
    shared = Path("/dev/shm")
    has_room = shared.is_dir() and shutil.disk_usage(shared).free > 45 * GIB
    parent = shared if has_room and size == "full" else Path(tempfile.gettempdir())
    return parent / f"rlhf-cards-{size}"


def has_messages(values: dict[str, Any]) -> bool:
    """Whether the data set of a configuration holds conversations."""
    return values["dataset_name"] not in ("trl-lib/tldr", "trl-lib/tldr-preference")


def rows_for(name: str, values: dict[str, Any], config: Any, size: str) -> list[Row]:
    """Rows of the columns that the file's data set has, as long as the file allows."""
    longest = values.get("max_prompt_length") or values["max_length"]
    longest = longest if size == "full" else 24
    recipe = name.split("/")[0]
    if recipe == "ppo":
        return texts(config, ROWS, longest)
    half = (longest - 16) // 2 if has_messages(values) else longest // 2 - 1
    halves = [row["prompt"] for row in texts(config, ROWS, half)]
    rows: list[Row] = []
    for number, text in enumerate(halves):
        one, other = (" ".join([*text.split()[1:], word]) for word in ("w5", "w6"))
        if not has_messages(values):
            pair = {"chosen": f" {one}", "rejected": f" {other}"}
            rows.append({"prompt": text} | ({"completion": f" {one}"} if recipe == "sft" else pair))
            continue
        asked = [{"role": "user", "content": text}]
        said = [[{"role": "assistant", "content": content}] for content in (one, other)]
        if recipe == "sft":
            rows.append({"messages": asked + said[0]})
        elif recipe == "kto":
            rows.append({"prompt": asked, "completion": said[0], "label": number % 2 == 0})
        else:
            rows.append({"chosen": asked + said[0], "rejected": asked + said[1]})
    return rows


def words_for(name: str, values: dict[str, Any], size: str) -> list[str]:
    """The command line: the file, local data, and few but whole micro-batches."""
    recipe, micro = name.split("/")[0], values["per_device_train_batch_size"]
    given: dict[str, Any] = {
        "config": ROOT / f"configs/{name}.yaml",
        "dataset_name": f"rows/{name}.jsonl",
        "save_strategy": "no",
        "disable_tqdm": True,
        "skip_plan": True,  # the plan is asked beside it
        "use_cpu": DEVICE == "cpu",
    }
    if recipe == "ppo":
        rollout = 2 * micro * values["num_mini_batches"]
        given |= {"total_episodes": 2 * rollout, "rollout_batch_size": rollout}
    else:
        given |= {"max_steps": STEPS, "logging_steps": 1, "test_fraction": 8}
        given["global_batch_size"] = MICRO_BATCHES * micro
    if not values["model_name_or_path"].startswith("runs/"):
        given["model_name_or_path"] = values["model_name_or_path"]
    if size == "tiny":
        given |= {"fp16": False, "dtype": "float32"} if values.get("fp16") else {}
        given |= {"max_completion_length": 8} if recipe == "ppo" else {}
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def prepare(size: str, name: str) -> dict[str, Any]:
    """Model, rows and plan: what needs no card."""
    values, _ = read_file(name)
    base = base_of(values)
    config = shape(base, size == "tiny")
    folder = work_folder(size)
    for sub in ("rows", f"rows/{name.split('/')[0]}"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    shutil.rmtree(f"runs/{name}", ignore_errors=True)  # of an earlier try
    planned = {} if size == "tiny" else plan_file(name)
    Path(base).mkdir(parents=True, exist_ok=True)
    with Path(base, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the next run of the chain may come before it is written
        if not Path(base, "model.safetensors").is_file():
            # A model that chats already ends its answers as the template does.
            is_chat = has_messages(values) and "eos_token" not in values
            write_tokenizer(config, Path(base), "<|im_end|>" if is_chat else "<eos>")
            write_weights(config, Path(base))
    lines = [json.dumps(row) + "\n" for row in rows_for(name, values, config, size)]
    Path(f"rows/{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return planned


def plan_file(name: str) -> dict[str, Any]:
    """What `rlhf plan` says of a configuration as it is shipped. GiB."""
    from recipes.lib.plan.options import parse_config, read_options
    from recipes.lib.plan.planner import plan_of
    from recipes.lib.plan.target import Target
    from recipes.lib.recipe.main import parse

    options = read_options(["--config", str(ROOT / f"configs/{name}.yaml")])
    config, autocast = parse_config(options, parse)
    plan = plan_of(config, Target(options.launch, autocast, configs=options.configs))
    tensors = max(phase.allocated for phase in plan.phases) / GIB
    return {"tensors": tensors, "card": plan.peak / GIB, "phase": plan.fullest.name}


def limit_memory(gb: int) -> None:
    """Leave PyTorch what a card of so many GB has beside the context of CUDA."""
    torch.zeros(1, device=DEVICE)
    context = CONTEXT if (used := used_by_process()) is None else used
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((gb - context) * GIB / total)


class Steps:
    """Seconds of the micro-batches of a Trainer, each waited for."""

    def __init__(self) -> None:
        from transformers import Trainer

        self.seconds: list[float] = []
        real = Trainer.training_step

        def timed(trainer: Any, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            loss = real(trainer, *given, **named)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - start)
            return loss

        Trainer.training_step = timed


def card(size: str, name: str, planned: dict[str, Any]) -> dict[str, Any]:
    """Run a configuration; its peaks, and seconds of a micro-batch or of a rollout's phases."""
    from recipes.lib.recipe.main import parse
    from recipes.lib.runs.files import read_jsonl

    values, gb = read_file(name)
    recipe = name.split("/")[0]
    steps, peak = Steps(), Peak()
    train_alone()
    asked = parse(recipe, words_for(name, values, size))
    if DEVICE == "cuda":
        limit_memory(gb)
    start = time.monotonic()
    with peak.watched():
        importlib.import_module(f"recipes.{recipe}").run(asked)
    found = {"planned": planned, "memory": peak.numbers(), "run": time.monotonic() - start}
    if recipe != "ppo":
        rows, longest = values["per_device_train_batch_size"], values["max_length"]
        took = sorted(steps.seconds[2:])
        return found | {"micro": took[len(took) // 2], "rows": rows, "tokens": rows * longest}
    log = read_jsonl(Path(f"runs/{name}/metrics.jsonl"))
    last = [row for row in log if "time/training" in row][-1]
    phases = {phase: last[f"time/{phase}"] for phase in ("sampling", "scoring", "training")}
    episodes = 2 * values["per_device_train_batch_size"] * values["num_mini_batches"]
    return found | {"phases": phases, "rows": episodes}
