"""Code beside a model: no recipe runs it unless it is told to, and then the lineage says so."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from recipes.lib.recipe.main import launch
from tests.helpers.tiny_models import save_model
from tests.helpers.tiny_runs import FAST, LORA, flags, snapshot, write

CODE = """
from pathlib import Path
Path("ran").write_text("code of the model ran")
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedTokenizerFast,
)
class MineConfig(LlamaConfig):
    model_type = "mine"
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
class MineForSequenceClassification(LlamaForSequenceClassification):
    config_class = MineConfig
    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""
STEP: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2}
SAMPLED = STEP | {"num_generations": 2, "max_completion_length": 4, "beta": 0.1}
SAMPLED |= {"reward_funcs": ["rewards.py:odd"], "dataset_name": "rows.jsonl"}
PPO = {
    "reward_funcs": ["rewards.py:odd"],
    "dataset_name": "rows.jsonl",
    "total_episodes": 4,
    "rollout_batch_size": 4,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
}
PAIRS = STEP | {"dataset_name": "pairs.jsonl", "test_fraction": 0.5}
EVALUATE = {
    "run": "model",
    "baseline": "model",
    "judge": "rewards.py:length",
    "dataset_name": "rows.jsonl",
    "max_completion_length": 4,
}
FEEDBACK = {
    "action": "simulate",
    "judge": "rewards.py:length",
    "dataset_name": "rows.jsonl",
    "test_fraction": 0.5,
    "max_completion_length": 4,
}
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", STEP | {"dataset_name": "rows.jsonl"}),
    "sft, lora": ("sft", STEP | LORA | {"dataset_name": "rows.jsonl"}),
    "reward": ("reward", PAIRS),
    "dpo": ("dpo", PAIRS),
    "kto": ("kto", PAIRS),
    "rloo": ("rloo", SAMPLED),
    "grpo": ("grpo", SAMPLED),
    "ppo": ("ppo", PPO),
    "ppo, lora": ("ppo", PPO | LORA),
    "ppo, critic of its own": ("ppo", PPO | {"critic": "model"}),
    "evaluate": ("evaluate", EVALUATE),
    "feedback": ("feedback", FEEDBACK),
}
REWARDS = """
def odd(completion_ids, **_):
    return [ids[0] / 9 for ids in completion_ids]
def length(prompts, completions):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    save_model(Path("model"), tiny_tokenizer)
    words = ("cat", "dog", "bird", "child")
    write(Path("rows.jsonl"), [{"prompt": f"the {word}", "completion": " sat ."} for word in words])
    sides = {"chosen": " sat .", "rejected": " ran ."}
    write(Path("pairs.jsonl"), [{"prompt": f"the {word}"} | sides for word in words])
    Path("rewards.py").write_text(REWARDS)
    return tmp_path


def give_code(folder: str, head: str = "AutoModelForCausalLM") -> None:
    """Make the model in a folder, and its tokenizer, ones of classes whose code lies beside it."""
    Path(folder, "mine.py").write_text(CODE)
    file = Path(folder, "config.json")
    kinds = ("ForCausalLM", "ForSequenceClassification")
    places = {f"AutoModel{kind}": f"mine.Mine{kind}" for kind in kinds}
    places |= {"AutoConfig": "mine.MineConfig"}
    own = {"model_type": "mine", "auto_map": places}
    own["architectures"] = [head.replace("AutoModel", "Mine")]
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    file = Path(folder, "tokenizer_config.json")
    own = {"tokenizer_class": "MineTokenizer"}
    own["auto_map"] = {"AutoTokenizer": [None, "mine.MineTokenizer"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))


def classifier(folder: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """A reward model: the trunk of the tiny model with a score head."""
    save_model(Path(folder), tokenizer)
    weights = load_file(Path(folder, "model.safetensors"))
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith("lm_head")}
    row = weights["model.embed_tokens.weight"][:1].clone()
    save_file(trunk | {"score.weight": row}, Path(folder, "model.safetensors"), {"format": "pt"})
    file = Path(folder, "config.json")
    own = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "good"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own | {"label2id": {"good": 0}}))


def words(recipe: str, values: dict[str, Any], **more: Any) -> list[str]:
    """The command line; what is no trainer has few of the usual keys."""
    given = flags(values | more)
    if recipe not in ("evaluate", "feedback"):
        return given
    unknown = {f"--{key}" for key in FAST if key != "seed"}
    unknown |= {"--model_name_or_path"} if recipe == "evaluate" else set()
    kept = [i for i in range(0, len(given), 2) if given[i] not in unknown]
    return [word for i in kept for word in given[i : i + 2]]


def forget() -> None:
    """As in a new process: code that was imported before is imported anew, and leaves its mark."""
    Path("ran").unlink(missing_ok=True)
    for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
        del sys.modules[name]


def refused(
    recipe: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str], **more: Any
) -> str:
    """What is said; it is one sentence that names the key, and nothing ran or was written."""
    forget()
    before = snapshot(Path.cwd())
    capsys.readouterr()
    assert launch(recipe, words(recipe, values, **more)) == 2
    said = capsys.readouterr().err
    (told,) = [line for line in said.splitlines() if line.startswith(f"rlhf {recipe}: error: ")]
    assert "needs code that lies beside it; read that code and set trust_remote_code" in told
    assert "Traceback" not in said
    assert snapshot(Path.cwd()) == before
    return told


def works(recipe: str, values: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The lineage of a run that trusts."""
    forget()
    given = values | more | {"trust_remote_code": True}
    assert launch(recipe, words(recipe, given)) == 0
    assert Path("ran").exists()
    folder = str(given.get("output_dir", "run"))
    return dict(json.loads(Path(folder, "lineage.json").read_text()))


@pytest.mark.parametrize("name", COMMANDS)
def test_code_runs_only_when_it_is_trusted_and_lineage_says_so(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_code("model")
    recipe, values = COMMANDS[name]
    refused(recipe, values, capsys)
    assert works(recipe, values)["trust_remote_code"] is True


@pytest.mark.parametrize("name", COMMANDS)
def test_without_such_code_the_lineage_does_not_speak_of_trust(name: str, place: Path) -> None:
    recipe, values = COMMANDS[name]
    assert launch(recipe, words(recipe, values)) == 0
    assert "trust_remote_code" not in Path("run/lineage.json").read_text()


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("ppo", PPO | {"reward_funcs": ["judge"]}),
        ("ppo", PPO | {"critic": "model", "critic_model_name_or_path": "judge"}),
        ("rloo", SAMPLED | {"reward_funcs": ["judge"]}),
        ("grpo", SAMPLED | {"reward_funcs": ["judge"]}),
        ("evaluate", EVALUATE | {"judge": "judge"}),
        ("evaluate", EVALUATE | {"baseline": "judge"}),
        ("feedback", FEEDBACK | {"judge": "judge"}),
    ],
)
def test_a_second_model_is_asked_for_as_the_first_one_is(
    recipe: str,
    values: dict[str, Any],
    place: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if values.get("baseline") == "judge":
        save_model(Path("judge"), tiny_tokenizer)
        give_code("judge")
    else:
        classifier("judge", tiny_tokenizer)
        give_code("judge", "AutoModelForSequenceClassification")
    assert "model_name_or_path=judge: its" in refused(recipe, values, capsys)
    assert works(recipe, values)["trust_remote_code"] is True


def test_each_run_on_a_trusted_one_is_asked_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_code("model")
    works("sft", COMMANDS["sft"][1], output_dir="sft")
    assert Path("sft/final/mine.py").is_file()  # so the run is whole without the first folder
    ppo = PPO | {"model_name_or_path": "sft", "output_dir": "ppo"}
    assert "=sft: its tokenizer needs code" in refused("ppo", ppo, capsys)
    lineage = works("ppo", ppo)
    assert lineage["trust_remote_code"] is True
    assert lineage["model"]["lineage"]["trust_remote_code"] is True
    evaluate = EVALUATE | {"run": "ppo", "baseline": "sft"}
    assert "=ppo: its tokenizer needs code" in refused("evaluate", evaluate, capsys)
    assert works("evaluate", evaluate)["trust_remote_code"] is True


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("ppo", PPO | LORA),
        ("ppo", PPO),
        ("reward", PAIRS | LORA),
        ("reward", PAIRS),
        ("dpo", PAIRS),
        ("evaluate", EVALUATE | {"run": "sft", "baseline": "sft"}),
    ],
)
def test_an_adapter_asks_for_its_base(
    recipe: str, values: dict[str, Any], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_code("model")
    works("sft", COMMANDS["sft, lora"][1], output_dir="sft")
    assert not Path("sft/final/model.safetensors").exists()
    refused(recipe, values, capsys, model_name_or_path="sft")
    assert works(recipe, values, model_name_or_path="sft")["trust_remote_code"] is True


def test_reward_adapters_on_the_policys_base_are_trusted_with_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_code("model")
    works("reward", PAIRS | LORA, output_dir="judge")
    values = PPO | LORA | {"reward_funcs": ["judge"]}
    refused("ppo", values, capsys)
    lineage = works("ppo", values)
    assert lineage["trust_remote_code"] is True
    assert lineage["roles"]["reward"].startswith("adapter in ")


def test_a_class_without_a_classifier_is_no_reward_model_and_no_critic_of_its_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_code("model")
    file = Path("model/config.json")
    config = json.loads(file.read_text())
    del config["auto_map"]["AutoModelForSequenceClassification"]
    file.write_text(json.dumps(config))
    trust = {"trust_remote_code": True}
    for recipe, values, kind in (
        ("reward", PAIRS, "reward model"),
        ("ppo", PPO | {"critic": "model"}, "critic"),
    ):
        assert launch(recipe, flags(values | trust)) == 2
        said = capsys.readouterr().err
        assert f"model: no {kind} can be loaded from it (Unrecognized configuration class" in said
        assert not Path("run").exists()
    assert works("ppo", PPO)["trust_remote_code"] is True


def test_the_page_of_data_asks_for_a_tokenizers_code(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give_code("model")
    asked = ["rows.jsonl", "--model_name_or_path", "model"]
    before = snapshot(place)
    assert launch("data", asked) == 2
    assert "its tokenizer needs code that lies beside it; read" in capsys.readouterr().err
    assert snapshot(place) == before
    assert launch("data", [*asked, "--trust_remote_code"]) == 0
    assert "LOSS" in capsys.readouterr().out


def test_the_trainer_of_ppo_trusts_a_model_by_name_as_its_configuration_says(place: Path) -> None:
    from datasets import Dataset

    from recipes import PPOConfig, PPOTrainer

    give_code("model")
    own = {key: PPO[key] for key in PPO if key not in ("reward_funcs", "dataset_name")}
    data = Dataset.from_list([{"prompt": "the cat"}])

    def made(**more: Any) -> Any:
        args = PPOConfig(output_dir="run", **(FAST | own | more))
        return PPOTrainer("model", lambda prompts, **_: [0.0] * len(prompts), args, data)

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        made()
    assert not Path("ran").exists()
    assert type(made(trust_remote_code=True).actor_critic.policy).__name__ == "MineForCausalLM"
