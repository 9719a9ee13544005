"""What has to be on a card that vLLM shares with the training, from the shapes of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.parse import Config
from recipes.lib.distributed.launch import Launch
from recipes.lib.plan.breakdown import ADAPTERS, BASE, GIB, HEADS, OTHER_MODELS

BYTES = 2  # bytes of a number in vLLM, which serves fp32 models in 16 bits too


@dataclass(frozen=True)
class VLLMNeeds:
    """What a card holds at the least, GiB.

    Args:
        served: vLLM's share of the weights.
        cache: Keys and values of one sequence of the longest length, vLLM's share of them.
        trained: Weights of the training: policy, adapters, heads, and other models beside them.
    """

    served: float
    cache: float
    trained: float


def vllm_needs(config: Config, launch: Launch) -> VLLMNeeds | None:
    """What vLLM and the training hold on a card, without optimizer, activations and buffers.

    Args:
        config: The parsed Config of a recipe that samples.
        launch: How it is started.

    Returns:
        The sizes; None for a model whose shapes are not to be had.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    from recipes.lib.plan.model_shapes import policy_shapes
    from recipes.lib.plan.planner import plan_of
    from recipes.lib.plan.target import Target

    if is_deepspeed_zero3_enabled():
        return None  # there a model is divided while it is built, by all processes together
    try:
        configs = config.path.resolve().parent.parent if config.path is not None else None
        plan = plan_of(config, Target(launch, configs=configs, is_fixed_only=True))
        shape = policy_shapes(config, configs).config(config.training.trust_remote_code)
        cache = _cache(shape, longest(config.training))
    except Exception:
        # One that is not there is told better where it is loaded; and vLLM may serve one that the
        # plan does not understand.
        return None
    ranks = getattr(config.training, "vllm_tensor_parallel_size", 1)
    parts = plan.fullest.parts
    served = BYTES * plan.parameters
    if getattr(config.model, "load_in_4bit", False):
        served = parts[BASE] * launch.shards_weights  # vLLM packs them, too
    return VLLMNeeds(
        served / ranks / GIB,
        cache / ranks / GIB,
        sum(parts[thing] for thing in (BASE, ADAPTERS, HEADS, OTHER_MODELS)) / GIB,
    )


def longest(args: Any) -> int:
    """Tokens of the longest sequence that vLLM has to have room for, as far as it is said."""
    said = getattr(args, "vllm_max_model_length", None)
    return int(said or (getattr(args, "max_prompt_length", None) or 0) + args.max_completion_length)


def _cache(shape: Any, tokens: int) -> int:
    """Bytes of keys and values of a sequence; of layers that look back a window, no more of it."""
    text = shape.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None)
    return 2 * text.num_hidden_layers * heads * size * BYTES * min(tokens, window or tokens)
