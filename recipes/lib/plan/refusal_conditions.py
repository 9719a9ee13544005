"""The conditions of the table of what does not go with several processes, one function each.

Each says of a configuration, a launch and a card (None: unknown) what is wrong, with keys and
values, and nothing where nothing is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.distributed.launch import Launch
from recipes.lib.runs.checkpoints import list_checkpoints, read_manifest

KINDS_OF_FILES = (
    ("pytorch_model_fsdp*", "fsdp"),
    ("optimizer_0", "fsdp"),
    ("global_step*", "zero"),
)
UNSHARDED = {"single", "ddp"}  # their checkpoints are the same


@dataclass(frozen=True)
class Card:
    """One of the accelerators of a machine, and how many there are.

    Args:
        gib: Memory of one, GiB.
        number: How many one machine has.
    """

    gib: float
    number: int


Condition = Callable[[Config, Launch, Card | None], str]


def _of(config: Config, key: str, default: Any = None) -> Any:
    for holder in (config.script, config.training, config.model):
        if holder is not None and hasattr(holder, key):
            return getattr(holder, key)
    return default


def _bits(config: Config) -> str:
    return next((k for k in ("load_in_4bit", "load_in_8bit") if _of(config, k)), "")


def quantized_zero3(config: Config, launch: Launch, card: Card | None) -> str:
    """Quantized weights under ZeRO-3."""
    bits = _bits(config)
    return f"{bits}=true with DeepSpeed ZeRO-3" if bits and launch.kind == "zero3" else ""


def fsdp_with(bits: str) -> Condition:
    """Weights of so few bits under FSDP; the key that asks for them says how few."""

    def condition(config: Config, launch: Launch, card: Card | None) -> str:
        return f"{bits}=true with FSDP" if _bits(config) == bits and launch.is_fsdp else ""

    return condition


def shards_with(sampler: str) -> Condition:
    """A sampler of PPO that needs weights which stay where they are."""

    def condition(config: Config, launch: Launch, card: Card | None) -> str:
        moves = launch.is_fsdp or launch.kind == "zero3"
        is_chosen = _of(config, "sampler") == sampler
        return f"sampler={sampler} with {launch.kind}" if is_chosen and moves else ""

    return condition


def spread_over_cards(config: Config, launch: Launch, card: Card | None) -> str:
    """One copy of the model over several cards in each process."""
    given = _of(config, "model_init_kwargs")
    has_map = isinstance(given, dict) and given.get("device_map") is not None
    if has_map and launch.num_processes > 1:
        key = f"model_init_kwargs.device_map={given['device_map']}"
        return f"{key} with {launch.num_processes} processes"
    return ""


def batches(config: Config, launch: Launch, card: Card | None) -> str:
    """A batch that the processes cannot share evenly."""
    micro, number = _of(config, "per_device_train_batch_size"), launch.num_processes
    key, size = "global_batch_size", _of(config, "global_batch_size")
    if (rollout := _of(config, "rollout_batch_size")) is not None:
        key = "rollout_batch_size / num_mini_batches"
        size = rollout // _of(config, "num_mini_batches")
    if size and size % (micro * number):
        return f"{key}={size} on {number} processes of per_device_train_batch_size={micro}"
    return ""


def sharded_on_cpu(config: Config, launch: Launch, card: Card | None) -> str:
    """Shards where accelerate makes none."""
    return f"use_cpu=true with {launch.kind}" if launch.on_cpu and launch.is_sharded else ""


def old_fsdp(config: Config, launch: Launch, card: Card | None) -> str:
    """The older FSDP."""
    return "fsdp_version=1" if launch.kind == "fsdp1" else ""


def warmup_deepspeed(config: Config, launch: Launch, card: Card | None) -> str:
    """Rollouts of PPO in which the policy is to stand still, in DeepSpeed's engine."""
    number = _of(config, "critic_warmup_rollouts")
    if not number or not launch.kind.startswith("zero"):
        return ""
    return f"critic_warmup_rollouts={number} with {launch.kind}"


def too_few_cards(config: Config, launch: Launch, card: Card | None) -> str:
    """Two processes on one card."""
    here = launch.num_processes // launch.num_machines
    if card is None or here <= max(card.number, 1) or launch.on_cpu:
        return ""
    return f"num_processes={here} on a machine with {card.number} cards"


def vllm_room(config: Config, launch: Launch, card: Card | None) -> str:
    """A training beside vLLM on a card too small for both."""
    is_vllm = _of(config, "sampler") == "vllm" or _of(config, "use_vllm")
    if not is_vllm or _of(config, "vllm_mode", "colocate") != "colocate" or card is None:
        return ""
    from recipes.lib.plan.vllm import vllm_needs

    if (needed := vllm_needs(config, launch)) is None:
        return ""
    share, total = _of(config, "vllm_gpu_memory_utilization", 0.3), card.gib
    of_vllm, of_training = share * total, (1 - share) * total
    key = f"vllm_gpu_memory_utilization={share} of {total:.1f} GiB"
    # On each card: tensor parallelism divides the weights, not the share.
    if of_vllm <= needed.served + needed.cache:
        return (
            f"{key} is {of_vllm:.1f}, and vLLM's weights take {needed.served:.1f} and the cache of "
            f"one sequence {needed.cache:.2f}"
        )
    if of_training <= needed.trained:
        return (
            f"{key} leaves {of_training:.1f}, and the training's weights take {needed.trained:.1f}"
        )
    return ""


def other_launch(config: Config, launch: Launch, card: Card | None) -> str:
    """A checkpoint that this launch cannot go on from."""
    checkpoint = _resumed(config)
    if checkpoint is None:
        return ""
    kind, number = kind_of(checkpoint)
    same = kind == launch.kind or {kind, launch.kind} <= UNSHARDED
    if kind in ("fsdp", "zero"):  # of a program that wrote down no more
        same = launch.kind.startswith(kind)
    if same and not (kind.startswith("zero") and number not in (None, launch.num_processes)):
        return ""
    of = f"{kind} with {number} processes" if number else kind
    return f"{checkpoint} is of {of}, not {launch.kind} with {launch.num_processes}"


def _resumed(config: Config) -> Path | None:
    if _of(config, "resume"):
        found = list_checkpoints(Path(config.training.output_dir))
        return found[-1][1] if found else None
    named = config.training.resume_from_checkpoint
    return Path(named) if isinstance(named, str) and Path(named).is_dir() else None


def kind_of(checkpoint: Path) -> tuple[str, int | None]:
    """How the run was started that wrote a checkpoint.

    Args:
        checkpoint: Its folder.

    Returns:
        The kind of launch and the number of processes; without a manifest that says it, what the
        files tell, and None.
    """
    known = read_manifest(checkpoint).get("launch")
    if known:
        return known["kind"], known["num_processes"]
    for pattern, kind in KINDS_OF_FILES:
        if any(checkpoint.glob(pattern)):
            return kind, None
    return "single", None
