"""The recipe files that alignment-handbook published, by their keys: each is read or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.lib.config.parse import Config
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse

# In place of theirs, which want a card and trackers that a machine for tests has not.
HERE = {"bf16": False, "use_cpu": True, "report_to": "none", "push_to_hub": False}
TEMPLATE = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"

Keys = dict[str, Any]
SHARED: Keys = {
    "bf16": True,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "hub_model_id": "mine",
    "learning_rate": 2.0e-5,
    "log_level": "info",
    "logging_steps": 5,
    "lr_scheduler_type": "cosine",
    "model_name_or_path": "mistralai/Mistral-7B-v0.1",
    "num_train_epochs": 1,
    "output_dir": "data/mine",
    "per_device_train_batch_size": 8,
    "push_to_hub": True,
    "seed": 42,
    "torch_dtype": "bfloat16",
    "warmup_ratio": 0.1,
}
EVALUATED: Keys = {"do_eval": True, "eval_strategy": "epoch", "per_device_eval_batch_size": 8}
SAVED: Keys = {"save_strategy": "steps", "save_steps": 100, "save_total_limit": 1}
TRACKED: Keys = {"report_to": ["tensorboard", "wandb"], "save_strategy": "no"}
FLASH: Keys = {"attn_implementation": "flash_attention_2"}
SFT: Keys = SHARED | {
    "hub_strategy": "every_save",
    "logging_strategy": "steps",
    "max_steps": -1,
    "model_revision": "main",
    "overwrite_output_dir": True,
    "remove_unused_columns": True,
}
DPO: Keys = SHARED | {"beta": 0.01, "max_prompt_length": 512, "optim": "adamw_torch"}
DPO |= EVALUATED | {"eval_strategy": "steps", "eval_steps": 100}
QLORA: Keys = {
    "load_in_4bit": True,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_r": 16,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj"],
    "use_peft": True,
}


def mixer(*splits: str, **more: Any) -> Keys:
    """The form of the earlier files."""
    shares = {"dataset_mixer": {"my/rows": 1.0}, "dataset_splits": list(splits)}
    return shares | {"preprocessing_num_workers": 12} | more


def mixture(*columns: str, held_out: float | None = 1000, seed: int | None = 0) -> Keys:
    """The form of the later files."""
    part = {"id": "my/rows", "config": "default", "columns": list(columns), "weight": 1.0}
    parts = [part | {"split": split} for split in ("train_a", "test_a")]
    own = {"datasets": parts, "test_split_size": held_out, "seed": seed}
    return {
        "dataset_mixture": {key: value for key, value in own.items() if value is not None},
        "dataset_num_proc": 12,
    }


CHATS = {"chat_template": TEMPLATE} | mixture("messages")
PAIRS = mixture("chosen", "rejected", held_out=2000)
NAMED = {"dataset_name": "my/rows", "dataset_train_split": "train", "dataset_num_proc": 24}
OWN_TOKENS = {"dataset_kwargs": {"add_special_tokens": False, "append_concat_token": False}}
SMOLLM3: Keys = FLASH | {
    "ddp_timeout": 18000,
    "do_eval": False,
    "eval_strategy": "no",
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "lr_scheduler_type": "cosine_with_min_lr",
    "max_grad_norm": 0.2,
    "report_to": ["wandb"],
    "run_name": "smollm3",
    "save_total_limit": 1,
    "trust_remote_code": True,
    "use_liger_kernel": True,
}
MIDTRAINED: Keys = (
    SFT
    | SMOLLM3
    | {
        "average_tokens_across_devices": True,
        "chat_template": TEMPLATE,
        "eos_token": "<|im_end|>",
        "max_length": 32768,
        "packing": True,
        "save_steps": 0.05,
        "save_strategy": "steps",
    }
)

# By the file's place under recipes/, the recipe here and its keys.
FILES: dict[str, tuple[str, Keys]] = {
    "constitutional-ai/dpo/config_anthropic": (
        "dpo",
        DPO
        | SAVED
        | mixer("train_prefs", "test_prefs")
        | {"do_train": True, "lr_scheduler_type": "linear", "max_length": 1024, "optim": "rmsprop"}
        | {"torch_dtype": None},
    ),
    "constitutional-ai/sft/config_anthropic": (
        "sft",
        SFT | EVALUATED | SAVED | FLASH | CHATS | {"do_train": True, "max_seq_length": 2048},
    ),
    "constitutional-ai/sft/config_grok": (
        "sft",
        SFT | EVALUATED | SAVED | FLASH | CHATS | {"do_train": True, "max_length": 2048},
    ),
    "gpt2-nl/cpt/config_full": (
        "sft",
        SFT
        | SAVED
        | mixer("train", dataset_configs=["tiny"])
        | {"do_eval": False, "eval_strategy": "no", "max_seq_length": 1024},
    ),
    "gpt2-nl/dpo/config_full": (
        "dpo",
        DPO
        | SAVED
        | mixer("train_prefs", "test_prefs")
        | {"max_length": 1024, "model_revision": "main", "report_to": ["wandb"]},
    ),
    "gpt2-nl/sft/config_full": (
        "sft",
        SFT
        | EVALUATED
        | SAVED
        | mixer("train_sft", "test_sft", chat_template=TEMPLATE)
        | {"max_seq_length": 1024, "report_to": ["wandb"]},
    ),
    "pref_align_scan/dpo/config_openhermes": (
        "dpo",
        DPO
        | SAVED
        | mixer("train_prefs", "test_prefs")
        | {"do_train": True, "hub_model_revision": "v1.0", "loss_type": "sigmoid"}
        | {"torch_dtype": None},
    ),
    "pref_align_scan/dpo/config_zephyr": (
        "dpo",
        DPO
        | SAVED
        | mixer("train_prefs", "test_prefs")
        | {"hub_model_revision": "dpo-beta-0.01", "loss_type": "sigmoid", "torch_dtype": None},
    ),
    "smollm/sft/config": (
        "sft",
        SFT | EVALUATED | TRACKED | FLASH | CHATS | OWN_TOKENS | {"max_length": 2048},
    ),
    "smollm2/sft/config": (
        "sft",
        SFT
        | EVALUATED
        | TRACKED
        | FLASH
        | NAMED
        | {"chat_template": TEMPLATE, "dataset_config": "all", "dataset_test_split": "test"}
        | {"max_length": 8192},
    ),
    "smollm2/sft/config_smol": (
        "sft",
        SFT
        | EVALUATED
        | TRACKED
        | FLASH
        | NAMED
        | {"chat_template": TEMPLATE, "dataset_test_split": "test", "max_length": 8192},
    ),
    "smollm2/dpo/config": (
        "dpo",
        DPO | TRACKED | PAIRS | {"hub_private_repo": True, "max_length": 1024},
    ),
    "smollm2/dpo/config_smol": (
        "dpo",
        DPO
        | TRACKED
        | mixer("train_prefs", "test_prefs")
        | {"hub_private_repo": True, "max_length": 1024},
    ),
    "smollm3/sft/mid": ("sft", MIDTRAINED | mixture("messages", held_out=None)),
    "smollm3/sft/sft": (
        "sft",
        MIDTRAINED
        | mixture("messages", "chat_template_kwargs", held_out=None)
        | {"assistant_only_loss": True, "packing_strategy": "ffd", "save_strategy": "epoch"},
    ),
    "smollm3/dpo/apo": (
        "dpo",
        SHARED
        | SMOLLM3
        | mixture("chosen", "rejected", "prompt", "chat_template_kwargs", held_out=None, seed=None)
        | {"beta": 0.05, "loss_type": "apo_zero", "max_length": 24576, "padding_free": True}
        | {"overwrite_output_dir": True, "save_steps": 0.5, "save_strategy": "steps"},
    ),
    "starchat2-15b/dpo/config_v0.1": ("dpo", DPO | TRACKED | PAIRS | {"max_length": 1024}),
    "starchat2-15b/sft/config_v0.1": (
        "sft",
        SFT | EVALUATED | TRACKED | FLASH | CHATS | {"max_length": 2048},
    ),
    "zephyr-7b-beta/dpo/config_full": (
        "dpo",
        DPO | SAVED | PAIRS | {"max_length": 1024, "torch_dtype": None},
    ),
    "zephyr-7b-beta/dpo/config_qlora": (
        "dpo",
        DPO
        | SAVED
        | QLORA
        | mixer("train_prefs", "test_prefs")
        | {"max_length": 1024, "optim": "paged_adamw_32bit", "torch_dtype": "float16"},
    ),
    "zephyr-7b-beta/sft/config_full": (
        "sft",
        SFT | EVALUATED | SAVED | FLASH | CHATS | {"max_seq_length": 2048},
    ),
    "zephyr-7b-beta/sft/config_qlora": (
        "sft",
        SFT | EVALUATED | SAVED | FLASH | CHATS | QLORA | {"max_length": 2048},
    ),
    "zephyr-7b-gemma/dpo/config_full": (
        "dpo",
        DPO | TRACKED | mixer("train", "test") | {"max_length": 1024},
    ),
    "zephyr-7b-gemma/sft/config_full": (
        "sft",
        SFT
        | EVALUATED
        | SAVED
        | OWN_TOKENS
        | mixer("train_sft", "test_sft", chat_template=TEMPLATE)
        | {"max_seq_length": 2048, "tokenizer_name_or_path": "my/tokenizer"}
        | {"use_flash_attention_2": True},
    ),
}
ORPO: Keys = (
    SHARED
    | TRACKED
    | FLASH
    | NAMED
    | {"beta": 0.05, "chat_template": TEMPLATE, "hub_model_id": "zephyr-orpo-141b-A35b"}
    | {"lr_scheduler_type": "inverse_sqrt", "max_length": 2048, "max_prompt_length": 1792}
    | {"optim": "adamw_bnb_8bit", "warmup_steps": 100}
)


def read(folder: Path, name: str, recipe: str, keys: Keys, **changes: Any) -> Config:
    path = folder / f"{name.replace('/', '-')}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(keys))))  # no aliases
    return parse(recipe, ["--config", str(path)], HERE | changes)


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_read(name: str, tmp_path: Path) -> None:
    recipe, keys = FILES[name]
    config = read(tmp_path, name, recipe, keys)
    assert config.training.learning_rate == 2.0e-5
    script = config.script
    assert script.dataset_name == "my/rows" or script.datasets[0]["path"] == "my/rows"


def test_ffd_is_read_as_what_came_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, keys = FILES["smollm3/sft/sft"]
    assert read(tmp_path, "smollm3", recipe, keys).training.packing_strategy == "bfd"
    assert "packing_strategy=ffd (" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["dpo", "kto"])
@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("hub", {}, "hub_model_id=zephyr-orpo-141b-A35b (PLACE, line 13): is a file for ORPO by"),
        ("out", {"hub_model_id": "x", "output_dir": "runs/SimPO"}, "output_dir=runs/SimPO (PLACE,"),
        ("orpo", {"hub_model_id": "x"}, "config=FOLDER/orpo.yaml: is a file for ORPO by its name"),
    ],
)
def test_a_file_for_orpo_is_not_trained_as_another_method(
    recipe: str, name: str, changes: Keys, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as told:
        read(tmp_path, name, recipe, ORPO | changes)
    place = tmp_path / f"{name}.yaml"
    said = said.replace("PLACE", str(place)).replace("FOLDER", tmp_path.name)
    assert str(told.value).startswith(said)
    assert str(told.value).endswith(f"to train with {recipe.upper()} instead.")


def test_a_name_that_says_both_is_the_users_choice(tmp_path: Path) -> None:
    names = {"hub_model_id": "zephyr-orpo-dpo", "output_dir": "runs/corporate"}
    assert read(tmp_path, "run", "dpo", ORPO | names).training.beta == 0.05
