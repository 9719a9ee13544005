"""Files of LLaMA-Factory and axolotl are recognised, and told key by key what is what here."""

import re
from pathlib import Path

import pytest

from recipes.lib.config.foreign_files import PROJECTS
from recipes.lib.config.legacy_tables import RENAMED
from recipes.lib.config.option_table import TRAINING_RECIPES, table_fields
from recipes.lib.recipe.main import launch

ROOT = Path(__file__).parents[3]

FACTORY = """
model_name_or_path: my/model
trust_remote_code: true
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: my_rows,more_rows
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/mine
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
resize_vocab: true
"""
AXOLOTL = """
base_model: my/model
load_in_8bit: false
strict: false
datasets:
  - path: my/rows
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/mine
adapter: lora
lora_model_dir:
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
flash_attention: true
evals_per_epoch: 4
"""
# By the line that says the method: the recipe that it was given to, what is told of some keys, and
# the recipe to write a file for.
FILES = [
    (FACTORY, "stage: sft", "sft", {"lora_rank": "lora_r", "cutoff_len": "max_length"}, "sft"),
    (FACTORY, "stage: sft", "dpo", {"resize_vocab": "none", "val_size": "test_fraction"}, "sft"),
    (FACTORY, "stage: rm", "reward", {"overwrite_output_dir": "overwrite"}, "reward"),
    (
        FACTORY,
        "stage: dpo\npref_beta: 0.1\npref_loss: sigmoid",
        "sft",
        {"pref_beta": "beta"},
        "dpo",
    ),
    (FACTORY, "stage: kto\npref_beta: 0.1", "kto", {"warmup_ratio": "warmup_steps"}, "kto"),
    (
        FACTORY,
        "stage: ppo\nreward_model: saves/reward\nmax_new_tokens: 512\ntop_p: 0.9",
        "ppo",
        {"max_new_tokens": "max_completion_length", "reward_model": "reward_funcs"},
        "ppo",
    ),
    (AXOLOTL, "", "sft", {"micro_batch_size": "per_device_train_batch_size"}, "sft"),
    (AXOLOTL, "rl: dpo\nrl_beta: 0.1", "dpo", {"rl_beta": "beta", "bf16": "bf16"}, "dpo"),
    (AXOLOTL, "reward_model: true", "reward", {"optimizer": "optim"}, "reward"),
]
NAMES = {FACTORY: "LLaMA-Factory", AXOLOTL: "axolotl"}


@pytest.fixture
def in_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> pytest.CaptureFixture[str]:
    """What is printed in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return capsys


@pytest.mark.parametrize(("text", "method", "recipe", "some", "target"), FILES)
def test_a_file_of_another_project_is_told_key_by_key(
    text: str,
    method: str,
    recipe: str,
    some: dict[str, str],
    target: str,
    in_empty: pytest.CaptureFixture[str],
) -> None:
    Path("run.yaml").write_text(text + method + "\n")
    assert launch(recipe, ["--config", "run.yaml"]) == 2
    *notes, same, error = in_empty.readouterr().err.splitlines()
    told = dict(line.removeprefix("note: ").split(" -> ") for line in notes)
    assert all(told[key].startswith(here) for key, here in some.items())
    equal = same.removeprefix("note: the same here: ").split(", ")
    given = dict(re.findall(r"^(\w+):(.*(?:\n .*)*)", Path("run.yaml").read_text(), re.MULTILINE))
    assert {*told, *equal} == {key for key, value in given.items() if value}  # each, and once
    assert len(told) + len(equal) == len({*told, *equal})
    assert set(equal) <= set(table_fields(target))
    assert error.startswith(
        f"rlhf {recipe}: error: --config run.yaml: is a file of {NAMES[text]} (it has "
    )
    assert f"which no recipe reads; write one for rlhf {target}, " in error
    assert [path.name for path in Path().iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("text", "method"),
    [(FACTORY, "stage: dpo\npref_loss: orpo"), (AXOLOTL, "rl: orpo"), (AXOLOTL, "rl: simpo")],
)
def test_a_method_that_is_not_here_is_said(
    text: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text + method + "\n")
    assert launch("dpo", ["--config", str(tmp_path / "run.yaml")]) == 2
    said = method.replace("\n", ", ")
    assert f"no recipe trains {said}, the keys are" in capsys.readouterr().err.splitlines()[-1]


def test_one_key_that_looks_like_theirs_makes_no_file_of_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("template: llama3\nlearning_rate: 1.0e-4\n")
    assert launch("sft", ["--config", str(tmp_path / "run.yaml")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "template (" in error
    assert "sft has no such key" in error


def test_no_file_of_ours_is_taken_for_one_of_theirs() -> None:
    ours = {key for recipe in TRAINING_RECIPES for key in table_fields(recipe)}
    old = {key for names in RENAMED.values() for key in names}
    for known in PROJECTS.values():
        assert set(known["signs"]) <= set(known["keys"])
        assert set(known["signs"]) & (ours | old) == set()


@pytest.mark.parametrize("project", PROJECTS)
def test_the_page_has_the_table_that_is_told(project: str) -> None:
    page = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## From {project}\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert rows == PROJECTS[project]["keys"]


@pytest.mark.parametrize("project", PROJECTS)
def test_what_the_table_names_is_there(project: str) -> None:
    ours = {key for recipe in TRAINING_RECIPES for key in table_fields(recipe)}
    inner = {"min_lr_rate", "flash_attention_2", "cosine_with_min_lr", "chat_template"}
    for here in PROJECTS[project]["keys"].values():
        words = set(re.findall(r"\b[a-z]+_[a-z_0-9]+\b", here))
        assert words - {"dataset_info"} <= ours | inner, here
