"""What does not go together with several processes: one table, asked before anything loads.

Each line has the condition, what happens otherwise, the way out, and where that is known from: an
issue upstream, or a test of this project. Every run asks it at its start; `rlhf plan` says which
lines apply to what it was asked, and `rlhf plan --refusals` prints them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from recipes.lib.config.parse import Config
from recipes.lib.distributed.launch import Launch
from recipes.lib.errors import UserError
from recipes.lib.plan import refusal_conditions as checks
from recipes.lib.plan.breakdown import GIB
from recipes.lib.plan.options import PlanOptions
from recipes.lib.plan.refusal_conditions import Card


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
    applies: checks.Condition
    reason: str
    remedy: str
    evidence: str
    has_own_check: bool = False


def refusals(config: Config, launch: Launch, card: Card | None = None) -> list[tuple[Refusal, str]]:
    """The lines of the table that apply to a run.

    Args:
        config: The parsed Config of a recipe.
        launch: How it is started.
        card: The accelerator, where one is known.

    Returns:
        The lines, each with what is wrong in keys and values.
    """
    found = [(line, line.applies(config, launch, card)) for line in REFUSALS]
    return [(line, wrong) for line, wrong in found if wrong]


def refuse_launch(config: Config) -> None:
    """Refuse a run that this launch cannot carry.

    Args:
        config: The parsed Config of a recipe.

    Raises:
        UserError: A line of the table applies.
    """
    if config.training is None:
        return
    import torch

    launch, card = Launch.here(config.training), None
    if not launch.on_cpu and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        card = Card(memory / GIB, torch.cuda.device_count())
    for line, wrong in refusals(config, launch, card):
        if not line.has_own_check:
            raise UserError(f"{wrong}: {line.reason}; {line.remedy}.")


REFUSALS = (
    Refusal(
        "QLoRA with ZeRO-3",
        checks.quantized_zero3,
        "ZeRO-3 and bitsandbytes' formats do not go together, and transformers loads them whole on "
        "each card",
        "use --accelerate_config ddp, where each process places the base on its own card, or zero2",
        "huggingface/transformers#26412, deepspeedai/DeepSpeed#5819",
    ),
    Refusal(
        "int8 with FSDP",
        checks.fsdp_with("load_in_8bit"),
        "FSDP shards floating point weights alone",
        "use --accelerate_config ddp",
        "huggingface/peft#2833, bitsandbytes-foundation/bitsandbytes#1709",
    ),
    Refusal(
        "4-bit with FSDP",
        checks.fsdp_with("load_in_4bit"),
        "FSDP2 loses what is needed to read 4-bit weights, and accelerate therefore leaves them "
        "whole on each card, so that nothing is saved",
        "use --accelerate_config ddp",
        "huggingface/accelerate#3983, huggingface/accelerate#3987",
    ),
    Refusal(
        "graph sampler with FSDP or ZeRO-3",
        checks.shards_with("graph"),
        "a CUDA graph reads weights at fixed addresses, and shards are gathered anew elsewhere",
        "use sampler=transformers, or --accelerate_config ddp or zero2",
        "deepspeedai/DeepSpeed#6552, pytorch/pytorch#127225",
    ),
    Refusal(
        "vLLM sampler with FSDP or ZeRO-3",
        checks.shards_with("vllm"),
        "what hands the weights to vLLM gathers them from shards, and in a rollout they are whole",
        "use sampler=transformers, or --accelerate_config ddp or zero2",
        "tests/distributed/test_shards.py",
    ),
    Refusal(
        "several processes with device_map",
        checks.spread_over_cards,
        "the layers of one copy would be spread over the cards of all processes",
        "leave device_map out, or use one process",
        "huggingface/transformers#31557",
    ),
    Refusal(
        "batches that do not divide",
        checks.batches,
        "they do not divide, so the optimizer step would not be the one that was asked for",
        "change one of them",
        "tests/distributed/test_what_is_refused.py",
        has_own_check=True,
    ),
    Refusal(
        "FSDP or DeepSpeed on the CPU",
        checks.sharded_on_cpu,
        "accelerate would run plain DDP without saying so",
        "use --accelerate_config cpu",
        "tests/distributed/test_what_is_refused.py",
    ),
    Refusal(
        "FSDP1",
        checks.old_fsdp,
        "only FSDP2 is tested here, and PyTorch develops the older one no further",
        "set fsdp_version: 2, or use --accelerate_config fsdp2",
        "pytorch/tutorials#3358, pytorch/examples#1374",
    ),
    Refusal(
        "critic warm-up with DeepSpeed",
        checks.warmup_deepspeed,
        "its engine keeps gradients to itself, so that the warm-up would move the policy",
        "set critic_warmup_rollouts to 0, or use --accelerate_config fsdp2, or ddp with use_peft",
        "tests/distributed/test_engine.py",
        has_own_check=True,
    ),
    Refusal(
        "more processes than cards",
        checks.too_few_cards,
        "two processes on one card cannot talk to each other over NCCL",
        "lower num_processes, or use --accelerate_config cpu",
        "pytorch/pytorch#68666",
    ),
    Refusal(
        "vLLM colocate without room",
        checks.vllm_room,
        "both vLLM and the training hold the weights on the same card, and one of them has no room",
        "change vllm_gpu_memory_utilization, or give vLLM a card of its own (vllm_mode=server)",
        "huggingface/trl#2688, huggingface/trl#3394",
    ),
    Refusal(
        "a checkpoint of another launch kind",
        checks.other_launch,
        "its optimizer cannot be read there, or would be left out without a word",
        "start it as before, or another run from its model",
        "tests/distributed/test_what_is_refused.py",
    ),
)


def plan_refusals(
    config: Config, options: PlanOptions, memory: int | None
) -> list[tuple[Refusal, str]]:
    """The lines of the table that apply to what was asked.

    Args:
        config: The parsed Config of a training recipe.
        options: The command line, which says how the run is started.
        memory: Bytes of a card; None where none is known.

    Returns:
        The lines, each with what is wrong in keys and values.
    """
    import torch

    on_cpu = options.launch.on_cpu or bool(config.training.use_cpu)
    launch = replace(options.launch, on_cpu=on_cpu)
    if memory is None:
        return refusals(config, launch)
    # Cards of a machine; of one that is planned for elsewhere, as many as it has to have.
    cards = max(1, launch.num_processes // launch.num_machines)
    if options.memory is None and torch.cuda.is_available():
        cards = int(torch.cuda.device_count())
    return refusals(config, launch, Card(memory / GIB, cards))


def no_new_refusals(
    refused: list[tuple[Refusal, str]], again: Callable[[Config], list[tuple[Refusal, str]]]
) -> Callable[[Config], bool]:
    """Tells whether a changed configuration is refused for no reason that was not there before.

    Args:
        refused: What is refused without the change.
        again: Finds what is refused of a Config.

    Returns:
        A function of the changed Config.
    """
    before = {line.name for line, _ in refused}

    def is_allowed(config: Config) -> bool:
        return {line.name for line, _ in again(config)} <= before

    return is_allowed


def as_dicts(found: list[tuple[Refusal, str]]) -> list[dict[str, str]]:
    """Refusals in plain values."""
    return [
        {"name": line.name, "wrong": wrong, "reason": line.reason, "remedy": line.remedy}
        for line, wrong in found
    ]


def table_as_dicts() -> list[dict[str, str]]:
    """The whole table in plain values, with where each line is known from."""
    return [
        {"name": line.name, "reason": line.reason, "remedy": line.remedy, "evidence": line.evidence}
        for line in REFUSALS
    ]
