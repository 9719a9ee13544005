"""Files of earlier TRL and of alignment-handbook run as they are, but for their paths."""

from pathlib import Path
from typing import Any

import pytest

from recipes.lib.config.parse import Config, build, read_command_line
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import launch, parse
from tests.helpers.fuzz.inputs import types_of
from tests.helpers.tiny_runs import write

FILES = Path(__file__).parents[2] / "old_configs"
ANSWER = {"role": "assistant", "content": "sat"}
NO_CARD = {"bf16": False, "use_cpu": True, "report_to": "none"}


def read(recipe: str, name: str, **values: Any) -> Config:
    return parse(recipe, ["--config", str(FILES / f"{name}.yaml")], NO_CARD | values)


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The old keys that a remark was made about, in order."""
    lines = capsys.readouterr().err.splitlines()
    return [line.split()[1] for line in lines if line.startswith("note: ")]


def test_a_handbook_file_for_sft(capsys: pytest.CaptureFixture[str]) -> None:
    config = read("sft", "handbook_sft")
    assert notes(capsys) == [
        "torch_dtype",
        "use_flash_attention_2",
        "dataset_mixer",
        "preprocessing_num_workers",
        "evaluation_strategy",
        "max_seq_length",
        "overwrite_output_dir",
        "warmup_ratio",
    ]
    expected = {
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "dataset_name": "HuggingFaceH4/ultrachat_200k",
        "dataset_train_split": "train_sft",
        "dataset_test_split": "test_sft",
        "dataset_num_proc": 12,
        "eval_strategy": "epoch",
        "max_length": 2048,
        "overwrite": True,
        "warmup_steps": 0.1,
    }
    assert expected.items() <= config.values.items()
    assert config.training.get_warmup_steps(200) == 20


@pytest.mark.parametrize("recipe", ["evaluate", "feedback", "ppo"])
def test_one_name_for_the_length_of_completions(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "earlier.yaml"
    file.write_text("max_new_tokens: 7\n")
    given = read_command_line(recipe, ["--config", str(file)])
    config = build(given, types_of(recipe), {"reward_funcs": []} if recipe == "ppo" else {})
    assert config.values["max_completion_length"] == 7
    assert notes(capsys) == ["max_new_tokens"]
    with pytest.raises(UserError, match=r"^--max_new_tokens: is called max_completion_length now"):
        read_command_line(recipe, ["--max_new_tokens", "7"])


def test_a_handbook_file_for_dpo(capsys: pytest.CaptureFixture[str]) -> None:
    config = read("dpo", "handbook_dpo")
    assert notes(capsys) == [
        "torch_dtype",
        "dataset_mixer",
        "preprocessing_num_workers",
        "evaluation_strategy",
        "max_prompt_length",
        "warmup_ratio",
    ]
    assert config.values["datasets"] == [
        {"path": "HuggingFaceH4/ultrafeedback_binarized", "weight": 0.5},
        {"path": "my/pairs", "weight": 1.0},
    ]
    assert config.script.dataset_test_split == "test_prefs"
    assert (config.training.beta, config.training.max_length) == (0.01, 1024)
    assert config.model.load_in_4bit


def test_a_handbook_file_with_a_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    config = read("sft", "handbook_mixture")
    assert notes(capsys) == ["dataset_mixture"]
    assert config.values["test_fraction"] == 0.1
    assert config.values["datasets"] == [
        {
            "path": "my/chats",
            "name": "everyday",
            "split": "train",
            "columns": ["messages"],
            "weight": 0.25,
        },
        {"path": "my/sums", "weight": 1.0},
    ]


def test_a_trl_file_for_sft(capsys: pytest.CaptureFixture[str]) -> None:
    config = read("sft", "trl_sft")
    told = ["test_split_size", "max_seq_length", "group_by_length", "save_safetensors", "datasets"]
    assert notes(capsys) == told
    assert config.values["datasets"][0]["path"] == "rows.jsonl"
    assert config.training.train_sampling_strategy == "group_by_length"
    assert config.script.test_fraction == 0.2


def test_trls_key_for_streaming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("dataset_streaming: true\n")
    config = parse("sft", ["--config", str(tmp_path / "run.yaml")], NO_CARD)
    assert config.script.streaming is True
    assert notes(capsys) == ["dataset_streaming"]


def test_a_trl_file_for_ppo(capsys: pytest.CaptureFixture[str]) -> None:
    config = read("ppo", "trl_ppo")
    assert notes(capsys) == [
        "sft_model_path",
        "reward_model_path",
        "response_length",
        "local_rollout_forward_batch_size",
        "num_sample_generations",
        "exp_name",
        "gradient_accumulation_steps",
    ]
    assert config.model.model_name_or_path == "my/sft"
    assert config.script.reward_funcs == ["my/reward"]
    training = config.training
    assert (training.rollout_batch_size, training.num_mini_batches) == (64, 4)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (16, 1)
    assert training.total_episodes == 10048
    assert training.max_completion_length == 53
    assert (training.sampling_batch_size, training.log_completions) == (16, True)
    assert training.run_name == "first"


def test_a_trl_file_for_rloo(capsys: pytest.CaptureFixture[str]) -> None:
    config = read("rloo", "trl_rloo")
    said = capsys.readouterr().err
    assert said.count("note: ") == 9
    assert "sampled from whole, and have to fit the model's context with max_completion_length" in (
        " ".join(said.split())
    )
    training = config.training
    assert (training.num_generations, training.beta) == (4, 0.05)
    assert (training.epsilon, training.num_iterations) == (0.2, 2)
    assert config.script.reward_funcs == ["my/reward"]


MISTAKES = {
    "both names": (
        "sft",
        "torch_dtype: auto\ndtype: auto",
        "torch_dtype (run.yaml, line 1) is the old name of dtype, which is set too (run.yaml, line "
        "2); leave torch_dtype out.",
    ),
    "the id of a token": (
        "ppo",
        "stop_token_id: 2",
        "stop_token_id (run.yaml, line 1): an id is one of a certain tokenizer; give the token "
        "itself as stop_token.",
    ),
    "k3": (
        "ppo",
        "reward_model_path: x\nkl_estimator: k3",
        "kl_estimator=k3 in the reward biases the gradient of the KL; use k1.",
    ),
    "a loss that became two": (
        "dpo",
        "rpo_alpha: 1.0",
        "rpo_alpha (run.yaml, line 1): it is a second loss now; set loss_type: [sigmoid, sft] with "
        "loss_weights: [1.0, ALPHA].",
    ),
    "a mixer that is a list": (
        "sft",
        "dataset_mixer: [a]",
        "dataset_mixer=['a'] must be a mapping of datasets to shares; write datasets: with a path "
        "and a weight for each.",
    ),
    "a size of the test rows that is none": (
        "sft",
        "dataset_mixture: {datasets: [{id: a}], test_split_size: many}",
        "test_split_size='many' must be a share of the rows, or a number of rows.",
    ),
    "two splits of one kind": (
        "sft",
        "dataset_mixer: {a: 1}\ndataset_splits: [train_a, train_b]",
        "dataset_splits=['train_a', 'train_b'] names two splits of one kind; set "
        "dataset_train_split and dataset_test_split.",
    ),
    "a value of the wrong type": (
        "sft",
        "max_seq_length: long",
        "max_length='long' (run.yaml, line 1): must be a whole number or null.",
    ),
    "an old name for a recipe that never had it": (
        "sft",
        "response_length: 3",
        "response_length (run.yaml, line 1): sft has no such key; see rlhf sft --help_all.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_translated_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, text, sentence = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    assert launch(recipe, ["--config", "run.yaml", "--use_cpu"]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"rlhf {recipe}: error: {sentence}"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_token_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("push_to_hub_token: secret\n")
    assert parse("sft", ["--config", str(path)]).training.hub_token == "secret"
    said = capsys.readouterr().err
    assert "push_to_hub_token" in said
    assert "secret" not in said


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    for split in ("train_sft", "test_sft"):
        words = ["cat", "dog"] if split == "train_sft" else ["bird"]
        rows = [
            {"messages": [{"role": "user", "content": f"the {word}"}, ANSWER]} for word in words
        ]
        write(tmp_path / f"{split}.jsonl", rows)
    return tmp_path


def test_a_handbook_file_trains_but_for_its_paths(folder: Path) -> None:
    from recipes.sft import run

    text = (FILES / "handbook_sft.yaml").read_text()
    text = text.replace("HuggingFaceH4/ultrachat_200k", str(folder))
    for line in ("use_flash_attention_2: true\n", "torch_dtype: bfloat16\n"):
        text = text.replace(line, "")  # for want of a card
    (folder / "handbook.yaml").write_text(text)
    paths = {"model_name_or_path": str(folder / "tiny"), "output_dir": str(folder / "run")}
    faster = {"max_steps": 1, "log_level": "passive", "disable_tqdm": True}
    argv = ["--config", str(folder / "handbook.yaml")]
    summary = run(parse("sft", argv, NO_CARD | paths | faster))
    assert summary["eval_loss"] > 0
    assert (folder / "run" / "final" / "config.json").is_file()
