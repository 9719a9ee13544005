"""Keys of earlier files whose meaning lies in their value: left out, taken on, or refused."""

from pathlib import Path
from typing import Any

import pytest

from recipes.lib.config.parse import Config
from recipes.lib.recipe.main import launch, parse
from tests.helpers.tiny_runs import write

NO_CARD = {"bf16": False, "use_cpu": True, "report_to": "none"}
REWARD = {"reward_funcs": ["my/reward"]}
TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def read(folder: Path, recipe: str, text: str) -> Config:
    path = folder / "old.yaml"
    path.write_text(text)
    needs_reward = recipe in ("ppo", "grpo", "rloo") and "reward_model_path" not in text
    return parse(recipe, ["--config", str(path)], NO_CARD | (REWARD if needs_reward else {}))


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The remarks, each in one line."""
    said = " ".join(capsys.readouterr().err.split())
    return [note.strip() for note in said.split("note: ")[1:]]


LEFT_OUT = [
    ("dpo", "is_encoder_decoder: false", "every model is a decoder here"),
    ("dpo", "ref_model_init_kwargs: null", "the reference is loaded as the model is"),
    ("kto", "base_model_attribute_name: model", "TRL finds the base model by itself"),
    ("dpo", "use_num_logits_to_keep: true", "TRL chooses by itself"),
    ("dpo", "tools: null", "tools are a column of the data here"),
    ("ppo", "dataset_num_proc: 4", "rows are prepared in one process here"),
    ("ppo", "preprocessing_num_workers: 4", "rows are prepared in one process here"),
    ("ppo", "world_size: 8", "it is the number of processes that were launched"),
    ("ppo", "micro_batch_size: null", "it follows from other keys"),
    ("ppo", "local_mini_batch_size: null", "it follows from other keys"),
    ("ppo", "num_total_batches: null", "it follows from other keys"),
    ("ppo", "batch_size: null", "it follows from other keys"),
    ("grpo", "vllm_device: auto", "vLLM chooses its device by vllm_mode"),
    ("grpo", "vllm_dtype: auto", "vLLM has the dtype of the model"),
    ("sft", "wandb_entity: me", "set WANDB_ENTITY in the shell"),
    ("sft", "wandb_project: mine", "set WANDB_PROJECT in the shell"),
    ("sft", "system_prompt: null", "system messages are part of the data here"),
    ("sft", "benchmarks: [lighteval]", "no benchmarks are run here"),
    ("grpo", "callbacks: [push_to_hub_revision]", "push_to_hub pushes what is saved"),
    ("sft", "push_to_hub_revision: false", "hub_revision alone says where to push"),
    ("sft", "past_index: -1", "it was off, and is gone"),
    ("sft", "split_batches: null", "accelerator_config has it, off by default"),
    ("sft", "dispatch_batches: null", "accelerator_config has it"),
    ("sft", "jit_mode_eval: false", "it was off, and is gone"),
    ("sft", "use_ipex: false", "it was off, and is gone"),
    ("sft", "fp16_opt_level: O1", "it was for apex, which is no longer used"),
    ("sft", "warmup_ratio: null", "null stood for no warmup"),
    ("sft", "test_split_size: null", "no rows are held out"),
    (
        "sft",
        "auto_insert_empty_system_msg: true",
        "no system messages are put in; they are part of the data here",
    ),
    ("sft", "base_model_revision: null", "an adapter names its base itself"),
    ("sft", "text_column: text", "its value is the default"),
    ("sft", "truncation_side: right", "its value is the default"),
    ("grpo", "num_processes: 7", "it is the number of processes that were launched"),
    ("kto", "generate_during_eval: false", "it was off"),
    ("dpo", "rpo_alpha: null", "it was off"),
    ("ppo", "adap_kl_ctrl: false", "it was off"),
    ("ppo", "stop_token_id: null", "it was off"),
    ("rloo", "num_mini_batches: 1", "it was 1"),
    ("rloo", "stop_token: eos", "completions end at the end tokens of the model"),
]


@pytest.mark.parametrize(("recipe", "line", "reason"), LEFT_OUT, ids=[case[1] for case in LEFT_OUT])
def test_what_changes_nothing_is_left_out_with_one_remark(
    recipe: str, line: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read(tmp_path, recipe, line)
    key = line.split(":")[0]
    assert told(capsys) == [f"{key} ({tmp_path}/old.yaml, line 1) is left out: {reason}."]
    assert set(config.values) - set(REWARD) == set(NO_CARD)


TRANSLATED = [
    ("sft", "hub_model_revision: v1", {"hub_revision": "v1"}),
    ("sft", "push_to_hub_revision: v1", {"hub_revision": "v1"}),
    ("dpo", "use_liger_loss: false", {"use_liger_kernel": False}),
    ("grpo", "vllm_max_model_len: 512", {"vllm_max_model_length": 512}),
    (
        "sft",
        "gradient_checkpointing_use_reentrant: false",
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    ("sft", "truncation_side: left", {"truncation_mode": "keep_end"}),
    ("sft", "text_column: content", {"dataset_text_field": "content"}),
    ("sft", "dataset_configs: [all]", {"dataset_config": "all"}),
    ("sft", "dataset_splits: [train_sft]", {"dataset_train_split": "train_sft"}),
    ("rloo", "normalize_advantage: true", {"normalize_advantages": True}),
    ("sft", "push_to_hub_model_id: me/mine", {"hub_model_id": "me/mine"}),
    ("sft", "push_to_hub_token: hf_a", {"hub_token": "hf_a"}),
    ("sft", "use_liger: false", {"use_liger_kernel": False}),
    ("sft", "per_gpu_train_batch_size: 3", {"per_device_train_batch_size": 3}),
    ("sft", "per_gpu_eval_batch_size: 3", {"per_device_eval_batch_size": 3}),
    ("sft", "exp_name: mine", {"run_name": "mine"}),
    ("sft", "dataset_streaming: false", {"streaming": False}),
    ("grpo", "wandb_log_unique_prompts: true", {"log_unique_prompts": True}),
    ("grpo", "response_length: 9", {"max_completion_length": 9}),
    ("ppo", "log_with: none", {"report_to": "none"}),
    ("ppo", "tracker_project_name: mine", {"project": "mine"}),
    ("rloo", "rloo_k: 4", {"num_generations": 4}),
    ("rloo", "kl_coef: 0.5", {"beta": 0.5}),
    ("rloo", "cliprange: 0.3", {"epsilon": 0.3}),
    ("rloo", "num_ppo_epochs: 3", {"num_iterations": 3}),
]


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated")
@pytest.mark.parametrize(("recipe", "line", "values"), TRANSLATED, ids=[c[1] for c in TRANSLATED])
def test_what_has_another_name_is_translated_with_one_remark(
    recipe: str,
    line: str,
    values: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = read(tmp_path, recipe, line).values
    assert {key: found[key] for key in found if key not in REWARD} == NO_CARD | values
    assert len(told(capsys)) == 1


REFUSED = [
    ("rloo", "reward_clip_range: 10.0", "must be a list of 2 numbers or null"),
    ("dpo", "is_encoder_decoder: true", "TRL no longer trains models with an encoder; name a"),
    ("dpo", "ref_model_init_kwargs: {a: 1}", "the reference is loaded as the model is; leave it"),
    ("kto", "tools: [{}]", "give each row its tools in a column tools"),
    ("ppo", "num_total_batches: 3", "it was derived; set total_episodes"),
    ("ppo", "micro_batch_size: 3", "it was derived; set per_device_train_batch_size"),
    ("grpo", "vllm_device: cuda:1", "vLLM runs on the cards of the training or as a server"),
    ("grpo", "system_prompt: Be brief.", "put it into the prompts of the data"),
    ("sft", "callbacks: [early]", "no callbacks can be named here; leave it out"),
    (
        "sft",
        "split_batches: true",
        "leave it out and set accelerator_config: {split_batches: true}",
    ),
    ("sft", "dataset_configs: [a, b]", "must be a list with the configuration of dataset_name"),
    ("rloo", "total_episodes: 9", "leave it out and set max_steps or num_train_epochs"),
    ("rloo", "non_eos_penalty: true", "leave it out and subtract it in a reward function"),
    ("ppo", "non_eos_penalty: true", "leave it out and set missing_eos_penalty"),
    ("ppo", "adap_kl_ctrl: true", "leave it out and set target_kl (6 was the default)"),
    ("ppo", "steps: 20000", "leave it out and set total_episodes"),
    ("sft", "past_index: 2", "transformers no longer hands states from batch to batch"),
]


@pytest.mark.parametrize(("recipe", "line", "reason"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_would_change_the_run_is_refused_with_the_reason(
    recipe: str, line: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.yaml").write_text(line)
    assert launch(recipe, ["--config", str(tmp_path / "old.yaml")]) == 2
    key = line.split(":")[0]
    said = capsys.readouterr().err
    assert reason in said
    assert said.startswith(f"rlhf {recipe}: error: {key}")


OLDEST_PPO = """model_name: my/sft
query_dataset: my/prompts
reward_model: my/reward
ppo_epochs: 3
init_kl_coef: 0.1
target: 6
horizon: 9000
score_clip: 4
batch_size: 32
"""


def test_the_names_of_trls_first_ppo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read(tmp_path, "ppo", OLDEST_PPO + "reward_model_path: null\n")
    training = config.training
    assert config.model.model_name_or_path == "my/sft"
    assert (config.script.dataset_name, config.script.reward_funcs) == ("my/prompts", ["my/reward"])
    assert (training.num_ppo_epochs, training.kl_coef, training.target_kl) == (3, 0.1, 6)
    assert (training.kl_horizon, training.reward_clip) == (9000, 4)
    assert training.rollout_batch_size == 32
    assert sum("is now written" in one for one in told(capsys)) == 9


@pytest.mark.parametrize("streaming", [False, True])
def test_the_column_of_the_text_may_have_another_name(streaming: bool, tmp_path: Path) -> None:
    from recipes.sft import load_text_rows

    path = write(tmp_path / "rows.jsonl", [{"content": "the cat"}, {"content": "the dog"}])
    stream = "streaming: true\nmax_steps: 1\n" if streaming else ""
    config = read(tmp_path, "sft", f"dataset_name: {path}\n{stream}text_column: content\n")
    rows = load_text_rows(config.script, config.training)
    assert sorted(row["text"] for row in rows.train) == ["the cat", "the dog"]


@pytest.mark.parametrize(
    ("steps", "ratio", "taken"), [(0, 0.1, 0.1), (20, 0.1, 20), ("null", 0.1, 0.1), (20, 0.0, 20)]
)
def test_the_warmup_is_the_one_that_transformers_took(
    steps: Any, ratio: float, taken: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"warmup_steps: {steps}\nwarmup_ratio: {ratio}\n"
    assert read(tmp_path, "sft", text).training.warmup_steps == taken
    assert len(told(capsys)) == 1


OLD_PPO = "sft_model_path: my/sft\nreward_model_path: my/reward\nper_device_train_batch_size: 16\n"


def test_a_file_of_trls_ppo_without_accumulation_has_the_batch_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path, "ppo", OLD_PPO).training.rollout_batch_size == 16
    assert told(capsys)[2:] == [
        "gradient_accumulation_steps is absent, and was 1 in TRL's PPO: rollout_batch_size=16.",
        "defaults here that differ from those of TRL's PPO: temperature 1.0 (0.7 there), cliprange "
        "0.15 (0.2 there), cliprange_value None (0.2 there).",
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    from recipes.lib.config.legacy_keys import rollout_batches

    assert rollout_batches({"per_device_train_batch_size": 16})["rollout_batch_size"] == 32


def test_only_a_file_of_trls_ppo_is_taken_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read(tmp_path, "ppo", "per_device_train_batch_size: 16\n")
    assert config.training.rollout_batch_size == 64
    assert told(capsys) == []


def test_stated_values_of_trls_ppo_are_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = "batch_size: 32\ntemperature: 0.7\ncliprange: 0.2\ncliprange_value: 0.2\n"
    assert read(tmp_path, "ppo", OLD_PPO + stated).training.rollout_batch_size == 32
    assert len(told(capsys)) == 3


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    prompt, answers = [{"role": "user", "content": "the cat"}], ("sat", "ran")
    chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
    write(tmp_path / "chats.jsonl", [{"messages": prompt + chosen}] * 2)
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    other = pair | {"prompt": [{"role": "user", "content": "the dog"}]}
    write(tmp_path / "pairs.jsonl", [pair, other])
    write(tmp_path / "prompts.jsonl", [{"prompt": prompt}] * 4)
    (tmp_path / "rewards.py").write_text(
        "def length(prompts, completions, **_):\n"
        "    return [float(len(one[0]['content'])) for one in completions]\n"
    )
    return tmp_path


def run_with(folder: Path, recipe: str, template: str, rows: str, *flags: str) -> int:
    text = f"chat_template: {template!r}\nmodel_name_or_path: {folder / 'tiny'}\n"
    text += f"dataset_name: {folder / rows}\noutput_dir: {folder / 'run'}\n"
    text += "" if recipe == "ppo" else "max_steps: 1\n"
    (folder / "old.yaml").write_text(text)
    return launch(recipe, ["--config", str(folder / "old.yaml"), "--use_cpu", *flags])


SAMPLED = "--per_device_train_batch_size 4 --max_completion_length 3".split()
OF_RECIPE: dict[str, tuple[str, list[str]]] = {
    "sft": ("chats.jsonl", []),
    "dpo": ("pairs.jsonl", []),
    "kto": ("pairs.jsonl", ["--per_device_train_batch_size", "2"]),
    "reward": ("pairs.jsonl", ["--test_fraction", "1"]),
    "rloo": ("prompts.jsonl", [*SAMPLED, "--num_generations", "2"]),
    "grpo": ("prompts.jsonl", [*SAMPLED, "--num_generations", "2"]),
    "ppo": ("prompts.jsonl", [*SAMPLED, "--total_episodes", "4", "--rollout_batch_size", "4"]),
}


@pytest.mark.parametrize("recipe", OF_RECIPE)
def test_a_template_in_the_file_is_trained_with_and_saved(
    recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    template = TEMPLATE.replace("'", '"')
    rows, words = OF_RECIPE[recipe]
    if recipe in ("ppo", "rloo", "grpo"):
        words = [*words, "--reward_funcs", f"{folder / 'rewards.py'}:length"]
    used: list[str | None] = []
    render = PreTrainedTokenizerFast.apply_chat_template

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        if args[:1] != ([{"role": "user", "content": "a"}],):  # each one is tried when it is loaded
            used.append(more.get("chat_template") or self.chat_template)
        return render(self, *args, **more)

    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", watched)
    assert run_with(folder, recipe, template, rows, "--bf16", "false", *words) == 0
    assert set(used) == {template}
    assert (folder / "run" / "final" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    ("template", "flags", "sentence"),
    [
        ("{% for x %}", (), "chat_template: is no Jinja template ("),
        (" ", (), "chat_template='': holds no template; write one, or leave it out."),
        (
            "x",
            ("--chat_template_path", "{folder}/tiny"),
            "exclude each other; leave one out.",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(
    template: str,
    flags: tuple[str, ...],
    sentence: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [flag.format(folder=folder) for flag in flags]
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    assert run_with(folder, "sft", template, "chats.jsonl", *given) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "run").exists()
