"""Old keys as flags are translated, left out or refused as in a file, with the same remarks."""

from pathlib import Path
from typing import Any

import pytest

from recipes.lib.arguments import parse
from tests.mistakes import attempt

NO_CARD = {"bf16": False, "use_cpu": True, "report_to": "none"}
REWARD = ["--reward_funcs", "my/reward"]

# The same keys as flags and as lines of a file.
SAME: dict[str, tuple[str, list[str], str]] = {
    "renamed": (
        "sft",
        ["--torch_dtype", "bfloat16", "--max-seq-length=512", "--evaluation_strategy", "steps"],
        "torch_dtype: bfloat16\nmax_seq_length: 512\nevaluation_strategy: steps",
    ),
    "a list": (
        "sft",
        ["--dataset_splits", "train_sft", "test_sft", "--dataset_mixer", '{"my/rows": 1.0}'],
        "dataset_splits: [train_sft, test_sft]\ndataset_mixer: {my/rows: 1.0}",
    ),
    "one item of a list": (
        "sft",
        ["--dataset_mixer", '{"my/rows": 1.0}', "--dataset_splits", "train_sft"],
        "dataset_mixer: {my/rows: 1.0}\ndataset_splits: [train_sft]",
    ),
    "alone": (
        "sft",
        ["--overwrite_output_dir", "--group_by_length"],
        "overwrite_output_dir: true\ngroup_by_length: true",
    ),
    "text that looks like a number": ("sft", ["--exp_name", "7"], "exp_name: '7'"),
    "left out": (
        "dpo",
        ["--max_prompt_length", "512", "--is_encoder_decoder", "false"],
        "max_prompt_length: 512\nis_encoder_decoder: false",
    ),
    "null": ("dpo", ["--tools", "None"], "tools: null"),
    "RLOO": (
        "rloo",
        ["--rloo_k", "4", "--kl_coef", "0.05", "--num_ppo_epochs", "2", *REWARD],
        "rloo_k: 4\nkl_coef: 0.05\nnum_ppo_epochs: 2\nreward_funcs: [my/reward]",
    ),
    "PPO of TRL 1.12": (
        "ppo",
        "--sft_model_path my/sft --reward_model_path my/reward --per_device_train_batch_size 64 "
        "--gradient_accumulation_steps 1 --num_ppo_epochs 4 --num_mini_batches 4 --total_episodes "
        "10000 --response_length 53 --stop_token eos --missing_eos_penalty 1.0 "
        "--local_rollout_forward_batch_size 16 --num_sample_generations 10 --exp_name a".split(),
        "sft_model_path: my/sft\nreward_model_path: my/reward\nper_device_train_batch_size: 64\n"
        "gradient_accumulation_steps: 1\nnum_ppo_epochs: 4\nnum_mini_batches: 4\n"
        "total_episodes: 10000\nresponse_length: 53\nstop_token: eos\nmissing_eos_penalty: 1.0\n"
        "local_rollout_forward_batch_size: 16\nnum_sample_generations: 10\nexp_name: a",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_an_old_flag_means_what_the_old_key_means_in_a_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, words, text = SAME[name]
    by_flag = parse(recipe, words, NO_CARD)
    told_by_flag = sorted(remarks(capsys, "on the command line"))
    path = tmp_path / "run.yaml"
    path.write_text(text)
    by_file = parse(recipe, ["--config", str(path)], NO_CARD)
    numbers = range(1, text.count("\n") + 2)
    told_by_file = sorted(remarks(capsys, *(f"{path}, line {number}" for number in numbers)))
    assert by_flag.values == by_file.values
    assert told_by_flag == told_by_file != []


def remarks(capsys: pytest.CaptureFixture[str], *places: str) -> list[str]:
    said = " ".join(capsys.readouterr().err.split())
    for place in sorted(places, key=len, reverse=True):
        said = said.replace(f"({place})", "")
    return [one.strip() for one in said.split("note: ")[1:]]


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "the id of a token": (
        "ppo",
        [*REWARD, "--stop_token_id", "2"],
        "stop_token_id (on the command line): an id is one of a certain tokenizer; give the token "
        "itself as stop_token.",
    ),
    "a second loss": (
        "dpo",
        ["--rpo_alpha", "1.0"],
        "rpo_alpha (on the command line): it is a second loss now; set loss_type: [sigmoid, sft] "
        "with loss_weights: [1.0, ALPHA].",
    ),
    "both names": (
        "sft",
        ["--torch_dtype", "auto", "--dtype", "auto"],
        "torch_dtype (on the command line) is the old name of dtype, which is set too (on the "
        "command line); leave torch_dtype out.",
    ),
    "twice": (
        "sft",
        ["--max_seq_length", "3", "--max-seq-length", "4"],
        "--max-seq-length: max_seq_length is already set by --max_seq_length; give it once.",
    ),
    "a wrong type": (
        "sft",
        ["--max_seq_length", "long"],
        "--max_seq_length long: must be a whole number or null.",
    ),
    "no value": (
        "sft",
        ["--max_seq_length"],
        "--max_seq_length: a value is missing; write --max_seq_length VALUE.",
    ),
    "a stray word": (
        "sft",
        ["--max_seq_length", "3", "4"],
        "'4' belongs to no flag; write --key value.",
    ),
    "a mixer that is no mapping": (
        "sft",
        ["--dataset_mixer", "my/rows"],
        "dataset_mixer='my/rows' must be a mapping of datasets to shares; write datasets: with a "
        "path and a weight for each.",
    ),
    "broken JSON": (
        "sft",
        ["--dataset_mixer", "{my/rows: 1}"],
        "--dataset_mixer {my/rows: 1}: cannot be read; write a value or JSON.",
    ),
    "of another recipe": (
        "sft",
        ["--response_length", "3"],
        "--response_length: sft has no such key; see rlhf sft --help_all.",
    ),
    "a key that reads like a number": (
        "sft",
        ["--warmup_ratio", "-0.1"],
        "--warmup_ratio -0.1: must be 0 or more.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_old_flag_that_cannot_be_translated_is_one_sentence(name: str, tmp_path: Path) -> None:
    recipe, words, sentence = REFUSED[name]
    answer = attempt(recipe, ["--use_cpu", *words], tmp_path)
    assert answer.sentence() == sentence
    assert (answer.code, answer.out, answer.changed) == (2, "", [])


def test_flags_under_old_names_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("max_length: 512\nseed: 3\n")
    config = parse("sft", ["--config", str(path), "--max_seq_length", "64"], NO_CARD)
    assert (config.values["max_length"], config.values["seed"]) == (64, 3)


def test_the_batch_of_a_file_stays_beside_flags_of_trls_ppo(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("rollout_batch_size: 32\nper_device_train_batch_size: 8\n")
    words = ["--config", str(path), "--reward_model_path", "my/reward", "--response_length", "9"]
    values: dict[str, Any] = parse("ppo", words, NO_CARD).values
    assert (values["rollout_batch_size"], values["max_completion_length"]) == (32, 9)


def test_a_token_given_under_its_old_name_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse("sft", ["--push_to_hub_token", "secret"], NO_CARD).training.hub_token == "secret"
    assert "secret" not in capsys.readouterr().err


def test_an_unknown_flag_beside_an_old_one_is_told(tmp_path: Path) -> None:
    answer = attempt("sft", ["--learning_rte", "0.1", "--torch_dtype", "auto"], tmp_path)
    assert answer.sentence() == (
        "--learning_rte: sft has no such key; the nearest is learning_rate."
    )
