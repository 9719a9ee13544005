"""What does not go together with several processes: one table, asked before anything loads.

Each line has the condition, what happens otherwise, the way out, and where that is known from: an
issue upstream, or a test of this project. `rlhf plan` prints the same table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.lib.checkpoints import numbered, read_manifest
from recipes.lib.errors import UserError
from recipes.lib.processes import Launch

KINDS_OF_FILES = (
    ("pytorch_model_fsdp*", "fsdp"),
    ("optimizer_0", "fsdp"),
    ("global_step*", "zero"),
)
WHOLE = {"single", "ddp"}  # their checkpoints are the same


@dataclass(frozen=True)
class Card:
    """One of the accelerators of a machine, and how many there are.

    Args:
        gib: Memory of one, GiB.
        number: How many one machine has.
    """

    gib: float
    number: int


@dataclass(frozen=True)
class Refusal:
    """A line of the table.

    Args:
        name: What does not go together.
        applies: Says of a configuration, a launch and a card (None: unknown) what is wrong, with
            keys and values; nothing where nothing is.
        reason: What would happen.
        remedy: The way out.
        evidence: Where it is known from.
        has_own_check: Whether the recipe refuses it by itself, with a sentence of its own.
    """

    name: str
    applies: Callable[[Any, Launch, Card | None], str]
    reason: str
    remedy: str
    evidence: str
    has_own_check: bool = False


def refusals(config: Any, launch: Launch, card: Card | None = None) -> list[tuple[Refusal, str]]:
    """The lines of the table that apply to a run.

    Args:
        config: The parsed Config of a recipe.
        launch: How it is started.
        card: The accelerator, where one is known.

    Returns:
        The lines, each with what is wrong in keys and values.
    """
    found = [(line, line.applies(config, launch, card)) for line in TABLE]
    return [(line, wrong) for line, wrong in found if wrong]


def refuse(config: Any) -> None:
    """Refuse a run that this launch cannot carry.

    Args:
        config: The parsed Config of a recipe.

    Raises:
        UserError: A line of the table applies.
    """
    if config.training is None:
        return
    for line, wrong in refusals(config, Launch.here(config.training), _card(config)):
        if line.has_own_check:
            continue
        raise UserError(f"{wrong}: {line.reason}; {line.remedy}.")


def _card(config: Any) -> Card | None:
    import torch

    if Launch.here(config.training).on_cpu or not torch.cuda.is_available():
        return None
    bytes_of_one = torch.cuda.get_device_properties(0).total_memory
    return Card(bytes_of_one / 2**30, torch.cuda.device_count())


def _of(config: Any, key: str, default: Any = None) -> Any:
    for holder in (config.script, config.training, config.model):
        if holder is not None and hasattr(holder, key):
            return getattr(holder, key)
    return default


def _bits(config: Any) -> str:
    return next((k for k in ("load_in_4bit", "load_in_8bit") if _of(config, k)), "")


def _quantized_zero3(config: Any, launch: Launch, card: Card | None) -> str:
    bits = _bits(config)
    return f"{bits}=true with DeepSpeed ZeRO-3" if bits and launch.kind == "zero3" else ""


def _int8_fsdp(config: Any, launch: Launch, card: Card | None) -> str:
    is_int8 = _bits(config) == "load_in_8bit" and launch.kind.startswith("fsdp")
    return "load_in_8bit=true with FSDP" if is_int8 else ""


def _int4_fsdp(config: Any, launch: Launch, card: Card | None) -> str:
    is_int4 = _bits(config) == "load_in_4bit" and launch.kind.startswith("fsdp")
    return "load_in_4bit=true with FSDP" if is_int4 else ""


def _graph_sharded(config: Any, launch: Launch, card: Card | None) -> str:
    moves = launch.kind.startswith("fsdp") or launch.kind == "zero3"
    is_graph = _of(config, "sampler") == "graph"
    return f"sampler=graph with {launch.kind}" if is_graph and moves else ""


def _spread(config: Any, launch: Launch, card: Card | None) -> str:
    given = _of(config, "model_init_kwargs")
    has_map = isinstance(given, dict) and given.get("device_map") is not None
    if has_map and launch.num_processes > 1:
        key = f"model_init_kwargs.device_map={given['device_map']}"
        return f"{key} with {launch.num_processes} processes"
    return ""


def _batches(config: Any, launch: Launch, card: Card | None) -> str:
    micro, number = _of(config, "per_device_train_batch_size"), launch.num_processes
    key, size = "global_batch_size", _of(config, "global_batch_size")
    if (rollout := _of(config, "rollout_batch_size")) is not None:
        key = "rollout_batch_size / num_mini_batches"
        size = rollout // _of(config, "num_mini_batches")
    if size and size % (micro * number):
        return f"{key}={size} on {number} processes of per_device_train_batch_size={micro}"
    return ""


def _sharded_on_cpu(config: Any, launch: Launch, card: Card | None) -> str:
    return f"use_cpu=true with {launch.kind}" if launch.on_cpu and launch.is_sharded else ""


def _too_few_cards(config: Any, launch: Launch, card: Card | None) -> str:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", launch.num_processes))
    if card is None or here <= max(card.number, 1) or launch.on_cpu:
        return ""
    return f"num_processes={here} on a machine with {card.number} cards"


def _vllm_room(config: Any, launch: Launch, card: Card | None) -> str:
    is_vllm = _of(config, "sampler") == "vllm" or _of(config, "use_vllm")
    if not is_vllm or _of(config, "vllm_mode", "colocate") != "colocate" or card is None:
        return ""
    share, weights = _of(config, "vllm_gpu_memory_utilization", 0.3), _weights_gib(config)
    theirs = share * card.gib / _of(config, "vllm_tensor_parallel_size", 1)
    if weights and (theirs <= weights or card.gib - theirs <= weights):
        return (
            f"vllm_gpu_memory_utilization={share} of {card.gib:.0f} GiB with weights of "
            f"{weights:.1f} GiB"
        )
    return ""


def _weights_gib(config: Any) -> float:
    """Weights on the disk, GiB; 0 for a model that is not here."""
    folder = Path(str(_of(config, "model_name_or_path")))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30


def _other_launch(config: Any, launch: Launch, card: Card | None) -> str:
    checkpoint = _resumed(config)
    if checkpoint is None:
        return ""
    kind, number = kind_of(checkpoint)
    same = kind == launch.kind or {kind, launch.kind} <= WHOLE
    if kind in ("fsdp", "zero"):  # of a program that wrote down no more
        same = launch.kind.startswith(kind)
    if same and not (kind.startswith("zero") and number not in (None, launch.num_processes)):
        return ""
    of = f"{kind} with {number} processes" if number else kind
    return f"{checkpoint} is of {of}, not {launch.kind} with {launch.num_processes}"


def _resumed(config: Any) -> Path | None:
    if _of(config, "resume"):
        found = numbered(Path(config.training.output_dir))
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


TABLE = (
    Refusal(
        "QLoRA with ZeRO-3",
        _quantized_zero3,
        "ZeRO-3 cuts weights into shards, which bitsandbytes' formats do not survive",
        "use --accelerate_config ddp, where each process places the base on its own card, or zero2",
        "huggingface/transformers#26412, deepspeedai/DeepSpeed#7096",
    ),
    Refusal(
        "int8 with FSDP",
        _int8_fsdp,
        "FSDP shards floating point weights alone",
        "use --accelerate_config ddp",
        "huggingface/peft#2833, bitsandbytes-foundation/bitsandbytes#1709",
    ),
    Refusal(
        "4-bit with FSDP",
        _int4_fsdp,
        "FSDP2 loses what is needed to read 4-bit weights, and accelerate therefore leaves them "
        "whole on each card, so that nothing is saved",
        "use --accelerate_config ddp",
        "huggingface/accelerate#3874, huggingface/accelerate#3983",
    ),
    Refusal(
        "graph sampler with FSDP or ZeRO-3",
        _graph_sharded,
        "a CUDA graph reads weights at fixed addresses, and shards are gathered anew elsewhere",
        "use sampler=transformers or vllm, or --accelerate_config ddp or zero2",
        "deepspeedai/DeepSpeed#6552",
    ),
    Refusal(
        "several processes with device_map",
        _spread,
        "the layers of one copy would be spread over the cards of all processes",
        "leave device_map out, or use one process",
        "huggingface/transformers#31557",
    ),
    Refusal(
        "batches that do not divide",
        _batches,
        "they do not divide, so the optimizer step would not be the one that was asked for",
        "change one of them",
        "tests/distributed/test_recipes_on_two.py",
        has_own_check=True,
    ),
    Refusal(
        "FSDP or DeepSpeed on the CPU",
        _sharded_on_cpu,
        "accelerate would run plain DDP without saying so",
        "use --accelerate_config cpu",
        "tests/distributed/test_launching.py",
    ),
    Refusal(
        "more processes than cards",
        _too_few_cards,
        "two processes on one card cannot talk to each other over NCCL",
        "lower num_processes, or use --accelerate_config cpu",
        "pytorch/pytorch#68666",
    ),
    Refusal(
        "vLLM colocate without room",
        _vllm_room,
        "both vLLM and the training hold the weights on the same card, and one of them has no room",
        "change vllm_gpu_memory_utilization, or give vLLM a card of its own (vllm_mode=server)",
        "huggingface/trl#2688, huggingface/trl#3394",
    ),
    Refusal(
        "a checkpoint of another launch kind",
        _other_launch,
        "its optimizer cannot be read there, or would be left out without a word",
        "start it as before, or another run from its model",
        "tests/distributed/test_recipes_on_two.py",
    ),
)
