"""From a configuration to a plan."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from recipes.lib.config.parse import Config
from recipes.lib.data.prompts import context_length
from recipes.lib.plan import meta_models, passes
from recipes.lib.plan.breakdown import (
    ADAPTERS,
    BASE,
    GRADIENTS,
    HEADS,
    OPTIMIZER,
    OTHER_MODELS,
    WORKSPACE,
    MemoryPhase,
    Plan,
)
from recipes.lib.plan.measure import FakeModels, MemoryMeasure
from recipes.lib.plan.run_models import RunModels, make_run_models
from recipes.lib.plan.sampling_phases import add_captured_graphs, prompt_length, sampling_peaks
from recipes.lib.plan.target import Target

BUCKET = 500_000_000  # numbers in the buffer that DeepSpeed gathers gradients in
LEAST_PAGED = 100_000  # numbers in a weight whose state bitsandbytes may page to the host
# Copies of the trainable weights that a step makes on the way, where it works on lists of tensors.
STEP_COPIES = {"adamw_torch": 1}


def plan_of(config: Config, target: Target) -> Plan:
    """Plan the memory of a run.

    Args:
        config: The parsed Config of a training recipe.
        target: What it is planned for.

    Returns:
        The plan, for the card of one process.

    Raises:
        UserError: A model is not there.
    """
    from recipes.lib.verbosity import hush

    hush()
    models = make_run_models(config, target.autocast, target.configs)
    config = _with_conversations(config, models)
    fakes = FakeModels(models, target.autocast, on_card=target.on_card)
    trained = [p for p in models.trained.parameters() if p.requires_grad]
    with fakes.mode, MemoryMeasure():
        passes.prepare(fakes, config)
        fixed = _fixed(config, models, target)
    gradients = _gradient_bytes(trained, target)
    optimizer = str(getattr(config.training.optim, "value", config.training.optim))
    step = STEP_COPIES.get(optimizer, 0) * sum(parameter.nbytes for parameter in trained)
    phases = [MemoryPhase("update", fixed | {GRADIENTS: gradients, WORKSPACE: step})]
    if not target.is_fixed_only:
        phases = _phases(config, target, fakes, fixed, gradients) + phases
        phases = add_captured_graphs(config, target, fakes, phases)
    return Plan(
        recipe=config.recipe,
        model=models.source.name if models.source else "",
        phases=tuple(phases),
        trainable=sum(p.numel() for p in trained),
        parameters=_num_parameters(models.policy),
        facts=_facts(config, target, models),
    )


def longest_row(config: Config, models: RunModels) -> int:
    """Tokens of the longest row that is trained on, T."""
    limit = getattr(config.training, "max_length", None)
    context = getattr(models.policy.config.get_text_config(), "max_position_embeddings", None)
    return int(min(limit or 2048, context or limit or 2048))


def _with_conversations(config: Config, models: RunModels) -> Config:
    """With an environment or tools, completions as long as a conversation may become."""
    script, training = config.script, copy.copy(config.training)
    plays = getattr(script, "environment", None) or getattr(script, "tools", None)
    if config.recipe != "ppo" or not plays or training.context != "all":
        return config
    limit = training.max_episode_length or context_length(models.policy.config)
    if limit is not None:
        rest = limit - training.max_prompt_length
        training.max_completion_length = max(training.max_completion_length, rest)
    return replace(config, training=training)


def _phases(
    config: Config, target: Target, fakes: FakeModels, fixed: dict[str, int], gradients: int
) -> list[MemoryPhase]:
    makers = {"sft": _supervised, "dpo": _supervised, "kto": _supervised, "reward": _reward}
    moving = makers.get(config.recipe, sampling_peaks)(config, target, fakes)
    phases = []
    for name, kinds in moving.items():
        parts = Counter(fixed)
        parts.update(kinds)
        if name == "training":
            sharded = target.launch.shards_optimizer > 1
            if config.training.gradient_accumulation_steps > 1 or sharded:
                parts[GRADIENTS] = gradients
            elif target.launch.kind == "ddp":
                parts[GRADIENTS] += gradients // 2  # the buckets
        if name == "saving":
            parts[OTHER_MODELS] += sum(fixed[thing] for thing in (BASE, ADAPTERS, HEADS))
        is_alone = config.recipe == "ppo" and name in ("sampling", "scoring")
        parts[WORKSPACE] += _gathered(fakes.models.trained, target, whole=is_alone)
        phases.append(MemoryPhase(name, parts))
    return phases


def _supervised(config: Config, target: Target, fakes: FakeModels) -> dict[str, dict[str, int]]:
    training, width = config.training, longest_row(config, fakes.models)
    estimates = config.recipe == "kto" and training.loss_type != "apo_zero_unpaired"
    is_held = config.recipe != "sft" and not training.precompute_ref_log_probs
    judged, others = (1 + estimates) * is_held, int(estimates)

    def loss(rows: int) -> Any:
        rows *= 2 if config.recipe == "dpo" else 1
        return passes.fused_loss(fakes, rows, width, judged=judged, others=others)

    of_step = loss(training.per_device_train_batch_size)
    found = {"training": passes.training_pass(fakes, config, of_step, target.launch)}
    if target.has_test:
        rows = training.per_device_eval_batch_size
        found["evaluation"] = fakes.peak(passes.evaluation_pass(fakes, rows, width, loss(rows)))
    return found


def _reward(config: Config, target: Target, fakes: FakeModels) -> dict[str, dict[str, int]]:
    training, width = config.training, longest_row(config, fakes.models)
    rows, model = training.per_device_train_batch_size, fakes.models.policy
    scoring = config.script.scoring_batch_size
    weighed = fakes.peak(passes.classifier_scoring(fakes, model, scoring, width))
    loss = passes.answer_loss(fakes, rows, target.num_completions, width)
    return {
        "training": passes.training_pass(fakes, config, loss, target.launch),
        "scoring": weighed,
        "saving": weighed,
    }


def _fixed(config: Config, models: RunModels, target: Target) -> dict[str, int]:
    """Bytes of what is there all the time."""
    launch, dtype = target.launch, target.autocast
    critic = getattr(models.trained, "critic", None)
    of_critic = meta_models.model_bytes(critic) if critic is not None else 0
    by_kind = {ADAPTERS: 0, HEADS: 0, OTHER_MODELS: of_critic}
    for name, parameter in models.trained.named_parameters():
        kind = _kind(name)
        if kind in (ADAPTERS, HEADS):
            by_kind[kind] += _held(parameter, target)
    everything = meta_models.model_bytes(models.trained)
    everything += sum(_held(p, target) - p.nbytes for p in models.trained.parameters())
    base = everything - sum(by_kind.values())
    frozen = [module for module in models.modules if module is not models.trained]
    trained = [p for p in models.trained.parameters() if p.requires_grad]
    states = state_bytes(config.training, models.trained)
    if launch.kind.startswith("zero") and dtype is not None:
        states += sum(4 * p.numel() for p in trained if p.dtype != torch.float32)
    fixed = {BASE: base, **by_kind}
    fixed = {thing: size // launch.shards_weights for thing, size in fixed.items()}
    fixed[OTHER_MODELS] += sum(map(meta_models.model_bytes, frozen))
    fixed[OPTIMIZER] = states // launch.shards_optimizer
    return fixed


def _kind(name: str) -> str | None:
    if name.startswith("critic."):
        return OTHER_MODELS
    if name.startswith(("value_head.", "score_")) or ".score." in name or name == "score.weight":
        return HEADS
    is_adapter = "lora_" in name or "modules_to_save" in name
    return ADAPTERS if is_adapter else None


def _held(parameter: nn.Parameter, target: Target) -> int:
    """Bytes of a weight as the launch keeps it: FSDP2 trains in fp32 under mixed precision."""
    if target.launch.is_fsdp and target.autocast is not None and parameter.requires_grad:
        return 4 * parameter.numel()
    return parameter.nbytes


def _gradient_bytes(trained: list[nn.Parameter], target: Target) -> int:
    """Bytes of all gradients together; under DDP a second time, in the buckets that are sent."""
    total = sum(_held(parameter, target) for parameter in trained)
    if target.launch.kind == "ddp":
        return 2 * total
    gradients = total // target.launch.shards_optimizer
    if target.launch.kind == "zero2":
        gradients += min(total, 2 * BUCKET)
    return gradients


def _gathered(trained: nn.Module, target: Target, *, whole: bool) -> int:
    """Bytes of weights that are whole at a time where they are divided.

    All of them where a process computes by itself, as in a rollout; else two layers and the rest.
    """
    if target.launch.shards_weights == 1:
        return 0
    of_layer: dict[str, int] = {}
    for name, parameter in trained.named_parameters():
        width = 2 if target.autocast is not None else parameter.element_size()
        size = parameter.numel() * min(width, parameter.element_size())
        # The value head is a stack of its own, beside the layers.
        parts = [] if name.startswith("value_head.") else name.split(".")
        number = next((part for part in parts if part.isdigit()), "")
        of_layer[number] = of_layer.get(number, 0) + size
    if whole:
        return sum(of_layer.values())
    rest = of_layer.pop("", 0)
    return rest + 2 * max(of_layer.values(), default=0)


def _num_parameters(policy: nn.Module) -> int:
    """Weights of the model without adapters; packed ones count as what they were."""
    found = {id(p): p for name, p in policy.named_parameters() if _kind(name) is None}
    states = [(p, getattr(p, "quant_state", None)) for p in found.values()]
    return sum(p.numel() if state is None else state.shape.numel() for p, state in states)


def _facts(config: Config, target: Target, models: RunModels) -> dict[str, str]:
    args, names = config.training, {torch.bfloat16: "bf16", torch.float16: "fp16", None: "none"}
    facts = {"processes": str(target.launch), "mixed precision": names[target.autocast]}
    if config.recipe in ("ppo", "rloo", "grpo"):
        prompt = prompt_length(config, target)
        facts["lengths"] = (
            f"prompts of {prompt} tokens, completions of {args.max_completion_length}"
        )
        if config.recipe != "ppo":
            facts["lengths"] += " (--prompt_length)"
    else:
        number = target.num_completions if config.recipe == "reward" else 2
        each = "" if number == 2 else f"{number} times "
        facts["lengths"] = f"rows of {each}{longest_row(config, models)} tokens"
    if models.source is not None and models.source.origin:
        facts["model"] = models.source.origin
    return facts


def state_bytes(training: Any, trained: nn.Module) -> int:
    """Bytes of the optimizer's states on the device after its first step.

    Args:
        training: The TrainingArguments.
        trained: The module whose trainable weights are moved.

    Returns:
        Bytes; what a paged optimizer may keep on the host is left out.
    """
    from transformers import Trainer

    made, kwargs = Trainer.get_optimizer_cls_and_kwargs(training)
    embeddings = {id(part.weight) for part in trained.modules() if isinstance(part, nn.Embedding)}
    shapes = Counter(
        (tuple(p.shape), p.dtype, id(p) in embeddings)
        for p in trained.parameters()
        if p.requires_grad
    )
    tables: dict[str, int] = {}
    total = 0
    for (shape, dtype, is_embedding), number in shapes.items():
        weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        state = _state_of(made, kwargs, weight, is_embedding)
        paged = kwargs.get("is_paged") and weight.numel() >= LEAST_PAGED
        for name, value in state.items():
            if not isinstance(value, Tensor) or (paged and name in ("state1", "state2")):
                continue
            size = value.untyped_storage().nbytes()
            if name.startswith("qmap"):  # shared by all weights
                tables[name] = size
            else:
                total += number * size
    return total + sum(tables.values())


def _state_of(made: Any, kwargs: dict[str, Any], weight: Any, is_embedding: bool) -> dict[str, Any]:
    is_bitsandbytes = "optim_bits" in kwargs
    # A fused step has the same states and needs a card; paging does, too.
    kwargs = {name: value for name, value in kwargs.items() if name not in ("fused", "is_paged")}
    if is_embedding and kwargs.get("optim_bits") == 8:
        kwargs["optim_bits"] = 32  # as Trainer has it
    optimizer = made([weight], **kwargs)
    weight.grad = torch.empty_like(weight)
    if not is_bitsandbytes:
        optimizer.step()
        return dict(optimizer.state[weight])
    # Its register is one for all optimizers of a process, by number: others' weights are in it.
    optimizer.mng = SimpleNamespace(index2config={}, pid2config={})
    optimizer.init_state(optimizer.param_groups[0], weight, 0, 0)
    return dict(optimizer.state[weight])
