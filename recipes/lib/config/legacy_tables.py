"""Old names of keys and what became of them, as tables; legacy_keys.py applies them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Values = dict[str, Any]
REWARD_MODELS = ("reward_model_path", "reward_model_name_or_path", "reward_model")
# Those that go together with the new key. TRL's PPO took the tokenizer from model_name_or_path and
# the policy from sft_model_path; transformers took a warmup_ratio where warmup_steps was 0.
MERGED = ("sft_model_path", *REWARD_MODELS, "warmup_ratio")


# By recipe, "" for all. A name is only translated for a recipe that has the new key.
RENAMED: dict[str, dict[str, str]] = {
    "": {
        "torch_dtype": "dtype",
        "max_seq_length": "max_length",
        "evaluation_strategy": "eval_strategy",
        "warmup_ratio": "warmup_steps",  # below 1 it is a share of the steps
        "no_cuda": "use_cpu",
        "use_liger": "use_liger_kernel",
        "overwrite_output_dir": "overwrite",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "per_gpu_eval_batch_size": "per_device_eval_batch_size",
        "push_to_hub_model_id": "hub_model_id",
        "push_to_hub_token": "hub_token",
        "preprocessing_num_workers": "dataset_num_proc",
        "test_split_size": "test_fraction",
        "exp_name": "run_name",
        "dataset_streaming": "streaming",
        "wandb_log_unique_prompts": "log_unique_prompts",
        "response_length": "max_completion_length",
        "max_new_tokens": "max_completion_length",
        "sft_model_path": "model_name_or_path",
        "hub_model_revision": "hub_revision",
        "push_to_hub_revision": "hub_revision",
        "use_liger_loss": "use_liger_kernel",
        "vllm_max_model_len": "vllm_max_model_length",
    },
    "ppo": {
        "batch_size": "rollout_batch_size",
        "local_rollout_forward_batch_size": "sampling_batch_size",
        "value_model_path": "critic_model_name_or_path",
        "model_name": "model_name_or_path",
        "query_dataset": "dataset_name",
        "ppo_epochs": "num_ppo_epochs",
        "init_kl_coef": "kl_coef",
        "target": "target_kl",
        "horizon": "kl_horizon",
        "score_clip": "reward_clip",
        "log_with": "report_to",
        "tracker_project_name": "project",
    },
    "rloo": {
        "rloo_k": "num_generations",
        "kl_coef": "beta",
        "cliprange": "epsilon",
        "num_ppo_epochs": "num_iterations",
        "normalize_advantage": "normalize_advantages",
    },
}

# What is left out, and why that changes nothing, or little.
LEFT_OUT = {
    "max_prompt_length": "TRL no longer cuts prompts of their own; max_length cuts the whole row",
    "max_target_length": "TRL no longer cuts completions of their own; max_length cuts the row",
    "max_completion_length": "TRL no longer cuts completions of their own; max_length cuts the row",
    "truncation_mode": "TRL cuts the end of a row here",
    "num_of_sequences": "packing no longer needs an estimate",
    "chars_per_token": "packing no longer needs an estimate",
    "dataset_batch_size": "packing no longer needs it",
    "label_pad_token_id": "TRL pads labels by itself",
    "padding_value": "TRL pads by itself",
    "use_logits_to_keep": "TRL chooses by itself",
    "ignore_bias_buffers": "it was for debugging",
    "use_legacy_prediction_loop": "it has no effect any more",
    "save_safetensors": "models are always saved as safetensors",
    "logging_dir": "trackers choose their own folder",
    "half_precision_backend": "PyTorch's own is used",
    "fp16_backend": "PyTorch's own is used",
    "include_tokens_per_second": "speeds are logged as the trainer has them",
    "use_mps_device": "the device is found by itself",
    "tpu_num_cores": "the device is found by itself",
    "local_rollout_forward_batch_size": "TRL chooses by itself",
    "ds3_gather_for_generation": "there is no such choice here",
    "model_code_revision": "the model and its code have one model_revision",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
    "use_num_logits_to_keep": "TRL chooses by itself",
    "base_model_attribute_name": "TRL finds the base model by itself",
    "dataset_num_proc": "rows are prepared in one process here",
    "preprocessing_num_workers": "rows are prepared in one process here",
    "world_size": "it is the number of processes that were launched",
    "fp16_opt_level": "it was for apex, which is no longer used",
    "wandb_entity": "set WANDB_ENTITY in the shell",
    "wandb_project": "set WANDB_PROJECT in the shell",
    "wandb_run_group": "set WANDB_RUN_GROUP in the shell",
    "benchmarks": "no benchmarks are run here",
    "auto_insert_empty_system_msg": "no system messages are put in; they are part of the data here",
    "num_processes": "it is the number of processes that were launched",
    "optimize_cuda_cache": "torch_empty_cache_steps does that",
    "optimize_device_cache": "torch_empty_cache_steps does that",
    "task_name": "run_name names a run",
    "tracker_kwargs": "trackers are set up by variables of the shell",
    "accelerator_kwargs": "accelerate launch sets the processes up",
    "project_kwargs": "output_dir is where a run lies",
}

# What a value of a key that has kept its name is called now.
NEW_VALUES = {"packing_strategy": ("ffd", "bfd")}  # both pack whole rows, the longest first

DERIVED = "it follows from other keys"
# What is left out at certain values alone; at others it is renamed, or refused.
LEFT_OUT_AT: dict[str, tuple[tuple[Any, ...], str]] = {
    "batch_size": ((None,), DERIVED),
    "mini_batch_size": ((None,), DERIVED),
    "micro_batch_size": ((None,), DERIVED),
    "local_batch_size": ((None,), DERIVED),
    "local_mini_batch_size": ((None,), DERIVED),
    "num_total_batches": ((None,), DERIVED),
    "chat_template": ((None,), "the model's own template is used"),
    "is_encoder_decoder": ((None, False), "every model is a decoder here"),
    "ref_model_init_kwargs": ((None, {}), "the reference is loaded as the model is"),
    "tools": ((None, []), "tools are a column of the data here"),
    "test_split_size": ((None,), "no rows are held out"),
    "vllm_device": ((None, "auto"), "vLLM chooses its device by vllm_mode"),
    "vllm_dtype": ((None, "auto"), "vLLM has the dtype of the model"),
    "push_to_hub_revision": ((None, False), "hub_revision alone says where to push"),
    "overwrite_hub_revision": ((None, False), "hub_revision alone says where to push"),
    "system_prompt": ((None, ""), "system messages are part of the data here"),
    "callbacks": ((None, [], ["push_to_hub_revision"]), "push_to_hub pushes what is saved"),
    "past_index": ((None, -1), "it was off, and is gone"),
    "num_mini_batches": ((1,), "it was 1"),
    "stop_token": ((None, "eos"), "completions end at the end tokens of the model"),
    "base_model_revision": ((None,), "an adapter names its base itself"),
    "is_peft_model": ((None, False, True), "use_peft says so"),
    "split_batches": ((None, False), "accelerator_config has it, off by default"),
    "dispatch_batches": ((None,), "accelerator_config has it"),
    "jit_mode_eval": ((None, False), "it was off, and is gone"),
    "use_ipex": ((None, False), "it was off, and is gone"),
}

# Where the reason is another one.
LEFT_OUT_OF = {
    recipe: {
        "max_prompt_length": "TRL no longer cuts prompts; they are sampled from whole, and have to "
        "fit the model's context with max_completion_length"
    }
    for recipe in ("rloo", "grpo")
}

# What cannot be left out, and what to do.
REFUSED = {
    "chat_template": "the template of model_name_or_path is used; put this one into that folder as "
    "chat_template.jinja, or leave it out",
    "stop_token_id": "an id is one of a certain tokenizer; give the token itself as stop_token",
    "reward_model_path": "this recipe has no reward model",
    "mini_batch_size": "it was derived; set rollout_batch_size and num_mini_batches",
    "local_batch_size": "it was derived; set rollout_batch_size",
    "num_total_batches": "it was derived; set total_episodes",
    "model_adapter_name": "the reference is the model with its adapter off; leave it out",
    "ref_adapter_name": "the reference is the model with its adapter off; leave it out",
    "force_use_ref_model": "the reference is the model that the run starts from; leave it out",
    "normalize_reward": "RLOO's advantages are rewards less their baseline; leave it out",
    "reference_free": "DPO without a reference is no longer in TRL; leave it out",
    "rpo_alpha": "it is a second loss now; set loss_type: [sigmoid, sft] with loss_weights: "
    "[1.0, ALPHA]",
    "generate_during_eval": "completions are sampled by `rlhf evaluate`; leave it out",
    "micro_batch_size": "it was derived; set per_device_train_batch_size",
    "local_mini_batch_size": "it was derived; set rollout_batch_size and num_mini_batches",
    "is_encoder_decoder": "TRL no longer trains models with an encoder; name a decoder",
    "ref_model_init_kwargs": "the reference is loaded as the model is; leave it out",
    "tools": "give each row its tools in a column tools, and leave it out",
    "vllm_device": "vLLM runs on the cards of the training or as a server; leave it out and set "
    "vllm_mode to colocate or server",
    "vllm_dtype": "vLLM has the dtype of the model; leave it out and set dtype",
    "overwrite_hub_revision": "hub_revision alone says where to push; leave it out",
    "system_prompt": "put it into the prompts of the data as a message with the role system, and "
    "leave it out",
    "callbacks": "no callbacks can be named here; leave it out",
    "past_index": "transformers no longer hands states from batch to batch; leave it out",
    "split_batches": "leave it out and set accelerator_config: {split_batches: true}",
    "dispatch_batches": "leave it out and set dispatch_batches in accelerator_config",
    "jit_mode_eval": "transformers no longer has it; leave it out, or set torch_compile",
    "use_ipex": "transformers no longer has it; leave it out",
    "base_model_revision": "an adapter names its base itself, in adapter_config.json; leave it out",
    "sanity_check": "leave it out and set max_train_rows",
    "deepspeed3": "leave it out and give deepspeed a file, or accelerate launch one",
    "label_names": "TRL names the labels itself; leave it out",
}
# What is refused for a reason of the recipe.
REFUSED_OF = {
    "rloo": {
        "total_episodes": "leave it out and set max_steps or num_train_epochs",
        "num_mini_batches": "leave it out and set steps_per_generation",
        "whiten_rewards": "RLOO's advantages are rewards less their baseline; leave it out",
        "token_level_kl": "the KL is part of the reward of a completion; leave it out",
        "stop_token": "completions end at the end tokens of the model; leave it out",
        "missing_eos_penalty": "leave it out and subtract it in a reward function",
        "non_eos_penalty": "leave it out and subtract it in a reward function",
        "penalty_reward_value": "leave it out and subtract it in a reward function",
    },
    "ppo": {
        "non_eos_penalty": "leave it out and set missing_eos_penalty, which is subtracted",
        "penalty_reward_value": "leave it out and set missing_eos_penalty, which is subtracted",
        "adap_kl_ctrl": "leave it out and set target_kl (6 was the default) and kl_horizon",
        "use_score_scaling": "leave it out and set normalize_rewards",
        "use_score_norm": "leave it out and set normalize_rewards",
        "early_stopping": "leave it out: max_approx_kl does it for each rollout",
        "steps": "leave it out and set total_episodes",
    },
}


def _if_on(key: str, found: Values) -> Callable[[Values], Values]:
    """What a key that is on stands for; off, it says nothing."""
    return lambda values: found if values[key] else {}


def _reentrant(values: Values) -> Values:
    chosen = values["gradient_checkpointing_use_reentrant"]
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": chosen}}
    return {} if chosen is None else kwargs


def _truncation(values: Values) -> Values:
    return {"truncation_mode": "keep_end"} if values["truncation_side"] == "left" else {}


def _text_field(values: Values) -> Values:
    named = values["text_column"]
    return {"dataset_text_field": named} if named not in (None, "text") else {}


def _log_completions(values: Values) -> Values:
    return {"log_completions": bool(values["num_sample_generations"])}


def _reward_funcs(values: Values) -> Values:
    given = values.get("reward_funcs") or []
    paths = [values.get(key) for key in REWARD_MODELS]
    return {"reward_funcs": [*([given] if isinstance(given, str) else given), *filter(None, paths)]}


# Keys whose value changes with the name.
SPECIAL: dict[str, Callable[[Values], Values | None]] = {
    "use_flash_attention_2": _if_on(
        "use_flash_attention_2", {"attn_implementation": "flash_attention_2"}
    ),
    "group_by_length": _if_on("group_by_length", {"train_sampling_strategy": "group_by_length"}),
    "adafactor": _if_on("adafactor", {"optim": "adafactor"}),
    "truncation_side": _truncation,
    "text_column": _text_field,
    "num_sample_generations": _log_completions,
    "gradient_checkpointing_use_reentrant": _reentrant,
    **dict.fromkeys(REWARD_MODELS, _reward_funcs),
}
