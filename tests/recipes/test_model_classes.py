"""Model classes, adapters and number formats: load, one step, save, and reload what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast
from trl import ModelConfig

from recipes import ppo, reward, sft
from recipes.lib.data.loading import load_splits
from recipes.lib.data.streaming import load_rows
from recipes.lib.errors import UserError
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.policies import load_policy
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.recipe.main import parse
from tests.helpers.tiny_models import CLASSES, save_model
from tests.helpers.tiny_runs import FAST, write

VERBS = ("was", "sat", "ran", "is")
# Mixtures keep their experts in one parameter, which peft adapts without dropout only.
LORA = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.0}
ONE_STEP = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
ONE_ROLLOUT = {
    "total_episodes": 4,
    "rollout_batch_size": 4,
    "num_ppo_epochs": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "learning_rate": 1e-2,
}
RECIPES = ("sft", "reward", "ppo")
ADAPTED = (("gpt2", "lora"), ("gemma3", "lora"), ("qwen3_moe", "lora"))
MIXTURES = ("qwen3_moe", "mixtral")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nested nf4": {"load_in_4bit": True, "use_bnb_nested_quant": True},
    "int8": {"load_in_8bit": True},
    "nf4 dora": {"load_in_4bit": True, "use_dora": True},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The following .*_pattern keys did not match any",  # peft, of a mixture's experts
    "ignore:fan_in_fan_out is set to False",  # peft, of GPT-2's layers, which it then sets right
)


def some(name: str, what: str) -> Any:
    """A case of the grid; each class has one of a recipe, and the whole grid is for --all."""
    short = (*((n, RECIPES[i % 3]) for i, n in enumerate(CLASSES)), *ADAPTED)
    marks = [] if (name, what) in short else [pytest.mark.slow]
    return pytest.param(*((name,) if what == "lora" else (name, what)), marks=marks)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pairs = [
        {"prompt": "the cat", "chosen": f" {verb} happy .", "rejected": f" {verb} sad ."}
        for verb in VERBS
    ]
    write(tmp_path / "pairs.jsonl", pairs)
    texts = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    write(tmp_path / "rows.jsonl", texts)
    write(tmp_path / "test.jsonl", [pairs[0] | {"prompt": "the dog"}])
    (tmp_path / "rewards.py").write_text(
        "def odd(completion_ids, **_):\n    return [ids[0] / 9 for ids in completion_ids]\n"
    )
    return tmp_path


def make(recipe: str, rows: Path, name: str, **values: Any) -> Any:
    """A recipe's trainer as the recipe makes it."""
    given = FAST | {"model_name_or_path": name, "output_dir": str(rows / "run")}
    if recipe == "sft":
        given |= ONE_STEP | {"dataset_name": str(rows / "rows.jsonl")}
        config = parse("sft", [], given | values)
        found = load_rows(config.script, config.training, sft.columns_of)
        return sft.make_trainer(config, load_tokenizer(name), found)
    if recipe == "reward":
        given |= ONE_STEP | {"dataset_name": str(rows / "pairs.jsonl")}
        given |= {"test_dataset_name": str(rows / "test.jsonl")}
        config = parse("reward", [], given | values)
        return reward.make_trainer(config, reward.load_answers(config.script, config.training))
    given |= ONE_ROLLOUT | {"dataset_name": str(rows / "rows.jsonl")}
    given |= {"reward_funcs": [f"{rows / 'rewards.py'}:odd"]}
    config = parse("ppo", [], given | values)
    return ppo.make_trainer(config, *load_splits(config.script, 1, ("prompt",)))


def trained(trainer: Any) -> Any:
    return trainer.actor_critic.policy if hasattr(trainer, "actor_critic") else trainer.model


def logits(model: Any) -> torch.Tensor:
    # TRL's head of SFT gives no logits of its own, so the hidden states are compared with them.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    trunk = getattr(base, base.base_model_prefix)
    head = base.score if hasattr(base, "score") else base.get_output_embeddings()
    model.eval()
    with torch.no_grad():
        hidden = trunk(input_ids=torch.tensor([[6, 7, 8, 9, 1]])).last_hidden_state
        return head(hidden.to(head.weight.dtype)).float()


def moved(before: dict[str, torch.Tensor], model: Any) -> list[str]:
    after = model.state_dict()
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize(("name", "recipe"), [some(n, r) for n in CLASSES for r in RECIPES])
def test_a_class_takes_a_step_and_its_saved_model_is_the_trained_one(
    name: str, recipe: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_model(rows / "model", tiny_tokenizer, name)
    trainer = make(recipe, rows, folder)
    before = {key: value.clone() for key, value in trained(trainer).state_dict().items()}
    trainer.train()
    model = trained(trainer)
    assert moved(before, model)
    trainer.save_model(str(rows / "saved"))
    if recipe == "reward":
        again: Any = load_reward_model(str(rows / "saved"))[0]
    else:
        again = load_policy(ModelConfig(model_name_or_path=str(rows / "saved")))
    assert type(again).__name__ == type(model).__name__
    weights = model.state_dict()
    for key, value in again.state_dict().items():
        assert torch.equal(value, weights[key]), key
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [some(name, "lora") for name in CLASSES])
def test_a_class_takes_an_adapter(
    name: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_model(rows / "model", tiny_tokenizer, name)
    # peft knows good places by default, of mixtures only where they are named; these are all.
    where = {"lora_target_modules": ["all-linear"]} if name in MIXTURES else {}
    check_adapter(make("sft", rows, folder, **LORA, **where), rows, {})


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_its_adapter_alone_and_comes_back(
    method: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_model(rows / "model", tiny_tokenizer, "llama", hidden_size=64)
    values = METHODS[method]
    quantized = {key: value for key, value in values.items() if "dora" not in key}
    quantized.pop("use_rslora", None)
    check_adapter(make("sft", rows, folder, **LORA, **values), rows, quantized)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "llama"])
def test_every_class_trains_by_every_method(
    name: str, method: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    width = "n_embd" if name == "gpt2" else "hidden_size"
    folder = save_model(rows / "model", tiny_tokenizer, name, **{width: 64})
    where = {"lora_target_modules": ["all-linear"]}
    if name in MIXTURES and "dora" in method:
        with pytest.raises(UserError, match=r"^use_dora=true: peft has no DoRA for the experts"):
            make("sft", rows, folder, **LORA, **where, **METHODS[method])
        return
    trainer = make("sft", rows, folder, **LORA, **where, **METHODS[method])
    model = trained(trainer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.train()
    names = moved(before, model)
    assert names
    assert all("lora" in name for name in names)


def check_adapter(trainer: Any, rows: Path, quantized: dict[str, Any]) -> None:
    """Train a step; only the adapter moves, and on the base as it was it says the same again."""
    model = trained(trainer)
    assert isinstance(model, PeftModel)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.train()
    names = moved(before, model)
    assert names
    assert all("lora" in name for name in names)
    trainer.save_model(str(rows / "saved"))
    base = load_policy(ModelConfig(model_name_or_path=str(rows / "model"), **quantized))
    again = PeftModel.from_pretrained(base, rows / "saved")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-4)
    merged = load_policy(ModelConfig(model_name_or_path=str(rows / "saved")))
    if not quantized:
        torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("recipe", ["sft", "reward"])
def test_an_evaluation_before_the_first_step_lets_every_4_bit_layer_learn(
    recipe: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    # Some CPUs pack 4-bit weights at the first evaluation into a form that no gradient passes.
    folder = save_model(rows / "model", tiny_tokenizer, "llama", hidden_size=128)
    targets = {"lora_target_modules": ["q_proj", "v_proj"]}
    trainer = make(recipe, rows, folder, **LORA, **targets, load_in_4bit=True)
    model = trained(trainer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits(model)
    trainer.train()
    learned = {name for name in moved(before, model) if "lora_B" in name}
    assert learned == {name for name in before if "lora_B" in name}


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("recipe", ["reward", "ppo"])
def test_reward_and_ppo_train_adapters_on_quantized_weights(
    recipe: str, key: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_model(rows / "model", tiny_tokenizer, "llama", hidden_size=64)
    targets = {"lora_target_modules": ["q_proj", "v_proj"]}
    # In 16 bits, since int8 rounds the activations of a whole batch together.
    trainer = make(recipe, rows, folder, **LORA, **targets, **{key: True}, dtype="bfloat16")
    model = trained(trainer)
    assert model.get_base_model().is_quantized
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    names = moved(before, model)
    assert names
    assert all("lora" in name or "score" in name for name in names)
    trainer.save_model(str(rows / "saved"))
    args = ModelConfig(**{key: True})
    if recipe == "reward":
        again: Any = load_reward_model(str(rows / "saved"), "bfloat16", model_args=args)[0]
        torch.testing.assert_close(logits(again), logits(model), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_fine_tuning_keeps_its_number_format(
    dtype: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_model(rows / "model", tiny_tokenizer)
    trainer = make("sft", rows, folder, dtype=dtype)
    trainer.train()
    trainer.save_model(str(rows / "saved"))
    again = load_policy(ModelConfig(model_name_or_path=str(rows / "saved"), dtype="auto"))
    assert again.dtype == getattr(torch, dtype)
    for key, value in again.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[key])
        assert value.isfinite().all()


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo"])
def test_half_precision_is_for_what_an_adapter_leaves_alone(
    recipe: str, rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_model(rows / "model", tiny_tokenizer)
    trainer = make(recipe, rows, folder, dtype="float16", **LORA)
    trainer.train()
    parts = dict(trained(trainer).named_parameters())
    assert {p.dtype for name, p in parts.items() if "lora" in name} == {torch.float32}
    frozen = {p.dtype for p in parts.values() if not p.requires_grad}
    assert frozen - {torch.float32} == {torch.float16}
    assert all(parameter.isfinite().all() for parameter in parts.values())


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft, of the base's vocabulary
@pytest.mark.parametrize(
    "method",
    [{}, pytest.param({"load_in_4bit": True, "dtype": "bfloat16"}, marks=pytest.mark.slow)],
    ids=["plain", "4-bit"],
)
def test_runs_chain_without_a_merge(
    method: dict[str, Any], rows: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    import json

    folder = save_model(rows / "model", tiny_tokenizer, hidden_size=64)
    given: dict[str, Any] = FAST | LORA | method | {"dataset_name": str(rows / "rows.jsonl")}
    own: dict[str, Any] = {"reward_funcs": [f"{rows / 'rewards.py'}:odd"]} | ONE_ROLLOUT
    steps: tuple[tuple[str, dict[str, Any]], ...]
    steps = (("sft", ONE_STEP), ("ppo", own), ("sft", ONE_STEP))
    policies = [load_policy(ModelConfig(model_name_or_path=folder))]
    for number, (recipe, values) in enumerate(steps):
        run = {"sft": sft.run, "ppo": ppo.run}[recipe]
        out = str(rows / f"run{number}")
        place = {"model_name_or_path": folder, "output_dir": out}
        run(parse(recipe, [], given | values | place))
        folder = out
        policies.append(load_policy(ModelConfig(model_name_or_path=folder)))
    said = [logits(policy) for policy in policies]
    assert all((said[i] - said[i + 1]).abs().max() > 1e-6 for i in range(3))
    known = json.loads((rows / "run2" / "lineage.json").read_text())
    names = []
    while known is not None:
        names.append(Path(known["model"]["name"]).name)
        known = known["model"]["lineage"]
    assert names == ["run1", "run0", "model"]
