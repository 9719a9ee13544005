"""Numbers that no run can use: libraries would end in a traceback, or go on with nonsense.

Ranges that depend on other keys, and those of PPO's own keys, are checked where these are read.
"""

from __future__ import annotations

import math
from typing import Any

FROM_1 = """
per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
global_batch_size precompute_ref_batch_size eval_accumulation_steps dataset_num_proc
torch_empty_cache_steps max_length max_completion_length max_new_tokens
lora_r num_generations num_generations_eval num_iterations steps_per_generation
generation_batch_size ref_model_sync_steps sampling_batch_size scoring_batch_size
batch_size vllm_tensor_parallel_size num_measured max_rows max_train_rows
vocab_size hidden_size intermediate_size num_layers num_heads context_tokens
""".split()
FROM_0 = """
learning_rate critic_learning_rate weight_decay adam_epsilon warmup_steps max_grad_norm
eval_delay num_samples dataloader_num_workers top_k beta epsilon epsilon_high
neftune_noise_alpha desirable_weight undesirable_weight center_rewards_coefficient reward_retries
num_feedback_prompts num_ppo_prompts num_eval_prompts
""".split()
ABOVE_0 = """
logging_steps eval_steps save_steps num_train_epochs lora_alpha repetition_penalty
ddp_timeout reward_timeout rater_temperature num_texts num_sft_train
""".split()
SHARES = ["label_smoothing_factor", "label_smoothing", "min_p", "top_p", "top_entropy_quantile"]
BELOW_1 = ["adam_beta1", "adam_beta2", "lora_dropout"]
SEEDS = ["seed", "data_seed"]  # numpy takes 32 bits

# The lowest value and whether it is allowed, the highest value and whether it is, in words.
Range = tuple[float, bool, float, bool, str]
RANGES: dict[str, Range] = {
    **dict.fromkeys(FROM_1, (1, True, math.inf, True, "1 or more")),
    **dict.fromkeys(FROM_0, (0, True, math.inf, True, "0 or more")),
    **dict.fromkeys(ABOVE_0, (0, False, math.inf, True, "above 0")),
    **dict.fromkeys(SHARES, (0, True, 1, True, "from 0 to 1")),
    **dict.fromkeys(BELOW_1, (0, True, 1, False, "from 0 to below 1")),
    **dict.fromkeys(SEEDS, (0, True, 2**32 - 1, True, "from 0 to 4294967295")),
}


def out_of_range(key: str, value: Any) -> str | None:
    """Say what numbers a key takes, where a value is none of them.

    Args:
        key: The key.
        value: Its value, of the right type.

    Returns:
        Words that complete "must be ...", or None where nothing is wrong.
    """
    if key == "max_steps" and value == 0:
        return "-1 (go by num_train_epochs) or 1 or more"
    if key not in RANGES or type(value) not in (int, float):
        return None
    low, with_low, high, with_high, words = RANGES[key]
    is_high_enough = value >= low if with_low else value > low
    is_low_enough = value <= high if with_high else value < high
    return None if is_high_enough and is_low_enough else words
