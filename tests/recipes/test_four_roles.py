"""Policy, reference, reward and value on one base: bytes, training, resume, refusals, recipes."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification
from trl import ModelConfig

from recipes import ppo, reward, sft
from recipes.lib.errors import UserError
from recipes.lib.models.policies import load_policy
from recipes.lib.recipe.main import parse
from recipes.lib.rewards.reward_models import load_reward_functions
from recipes.lib.runs.files import read_jsonl
from tests.helpers import four_roles, tiny
from tests.helpers.tiny_runs import FAST, write
from tests.recipes.test_ppo_resume import StopAt

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": True,
    "dtype": "bfloat16",
}
LOADING: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "nf4": NF4,
    "int8": {"load_in_8bit": True, "dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    return four_roles.write_folders(
        tmp_path_factory.mktemp("roles"), **sizes, initializer_range=0.05
    )


def live_bytes() -> int:
    """Bytes of all tensors that this process holds, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("loading", LOADING)
def test_four_roles_weigh_one_base_and_their_adapters_and_heads(
    folders: Path, tmp_path: Path, loading: str
) -> None:
    before = live_bytes()
    base = load_policy(ModelConfig(model_name_or_path=str(folders / "base"), **LOADING[loading]))
    of_base = live_bytes() - before
    del base
    before = live_bytes()
    trainer = four_roles.trainer(folders, tmp_path, LOADING[loading])
    trainer.collector.rollout(0)
    trainer.collector.rollout(1)
    total = live_bytes() - before
    adapters = trainer.actor_critic.adapters
    assert set(adapters.model.peft_config) == {"default", "reference", "value", "reward"}
    of_adapters = sum(
        p.numel() * p.element_size()
        for name in adapters.model.peft_config
        for p in adapters.parameters(name)
    )
    heads = 2 * (128 + 1) * 4
    assert of_base > 10 * heads
    assert total <= of_base + of_adapters + heads + 0.05 * of_base


@pytest.mark.parametrize("loading", ["fp32", "nf4"])
def test_twenty_updates_move_the_two_adapters_and_the_head_and_nothing_else(
    folders: Path, tmp_path: Path, loading: str
) -> None:
    trainer = four_roles.trainer(
        folders,
        tmp_path,
        LOADING[loading],
        gradient_checkpointing=True,
        total_episodes=40,
        num_mini_batches=4,
        num_ppo_epochs=1,
        learning_rate=1e-2,
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 20
    now = trainer.model.state_dict()
    # the units of the values are those of the reward model that the critic is made of
    assert all(torch.equal(before[name], now[name]) for name in before.keys() - trained)
    still = [name for name in trained if torch.equal(before[name], now[name])]
    assert still == []
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("stop", [3, 8])
def test_item_33_a_resumed_run_with_four_roles_is_bit_equal_to_the_unbroken_one(
    folders: Path, tmp_path: Path, stop: int
) -> None:
    more = {"total_episodes": 24, "num_mini_batches": 2, "learning_rate": 1e-2}
    whole = four_roles.trainer(folders, tmp_path / "whole", **more)
    whole.train()
    broken = four_roles.trainer(folders, tmp_path / "broken", callbacks=[StopAt(stop)], **more)
    broken.train()
    assert broken.state.global_step == stop < whole.state.global_step
    resumed = four_roles.trainer(folders, tmp_path / "broken", **more)
    flags = {name: p.requires_grad for name, p in resumed.model.named_parameters()}
    resumed.train(resume_from_checkpoint=str(tmp_path / f"broken/checkpoint-{stop}"))
    assert {name: p.requires_grad for name, p in resumed.model.named_parameters()} == flags
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_checkpoint_of_another_critic_is_refused(folders: Path, tmp_path: Path) -> None:
    four_roles.trainer(folders, tmp_path, callbacks=[StopAt(1)]).train()
    other = four_roles.trainer(folders, tmp_path, critic="head", critic_model_name_or_path=None)
    with pytest.raises(UserError, match="another key critic"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_what_does_not_belong_to_the_base_is_refused_and_can_be_a_model_of_its_own(
    folders: Path, tmp_path: Path
) -> None:
    def said(name: str, **more: Any) -> str:
        more = {"reward": str(tmp_path / name), "critic": "head"} | more
        with pytest.raises(UserError) as caught:
            four_roles.trainer(
                folders, tmp_path / "out", **({"critic_model_name_or_path": None} | more)
            )
        return str(caught.value)

    for name in ("other_base", "other_words", "other_template", "no_head", "two_heads"):
        shutil.copytree(folders / "reward", tmp_path / name)
    shutil.copytree(folders / "base", tmp_path / "copy")
    config = json.loads((folders / "reward/adapter_config.json").read_text())
    elsewhere = config | {"base_model_name_or_path": str(tmp_path / "copy")}
    (tmp_path / "other_base/adapter_config.json").write_text(json.dumps(elsewhere))
    assert said("other_base").endswith(
        f"is an adapter on {tmp_path / 'copy'}, and the policy's base is {folders / 'base'}; set "
        "share_backbone: false to load it as a model of its own."
    )
    as_critic = {"critic": "adapter", "critic_model_name_or_path": str(tmp_path / "other_base")}
    assert "critic_model_name_or_path=" in said("x", reward=tiny.every_third, **as_critic)
    words = AutoTokenizer.from_pretrained(folders / "reward")
    words.add_tokens(["zzz"])
    words.save_pretrained(tmp_path / "other_words")
    assert "its tokenizer is not the policy's" in said("other_words")
    words = AutoTokenizer.from_pretrained(folders / "reward")
    words.chat_template = "{{ messages[0].content }}"
    words.save_pretrained(tmp_path / "other_template")
    assert "its chat template is not the policy's" in said("other_template")
    shutil.copy(folders / "sft/adapter_model.safetensors", tmp_path / "no_head")
    assert "an adapter without a score head is no reward model" in said("no_head")
    heads = load_file(folders / "reward/adapter_model.safetensors")
    name = next(key for key in heads if key.endswith("score.weight"))
    save_file(
        heads | {name: torch.cat([heads[name]] * 2)},
        tmp_path / "two_heads/adapter_model.safetensors",
    )
    assert said("two_heads").endswith("two_heads has 2 outputs; a reward model has 1.")
    # the way out that the message names
    alone = {"share_backbone": False, "reward": str(tmp_path / "other_base")}
    trainer = four_roles.trainer(folders, tmp_path / "out", **alone)
    assert "reward" not in trainer.actor_critic.adapters.model.peft_config
    expected = load_reward_functions(str(folders / "reward"), None, 4, "cpu")[0]
    given = (["a b", "c"], [" d", " e f"])
    assert trainer.collector.functions[0](*given) == expected(*given)


def test_critic_adapter_needs_an_adapter_to_stand_beside(tmp_path: Path, folders: Path) -> None:
    with pytest.raises(UserError, match="critic=adapter needs LoRA; set use_peft"):
        tiny.trainer(tmp_path, critic="adapter")
    with pytest.raises(UserError, match="is no adapter; use critic=model"):
        four_roles.trainer(folders, tmp_path, critic_model_name_or_path=str(folders / "base"))


def test_sft_reward_and_ppo_on_a_4_bit_base_are_one_chain_of_adapters(tmp_path: Path) -> None:
    words = "cat dog bird child".split()
    tiny.llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"a b {w[0]}", "completion": f" {w[0]} c d"} for w in words]
    pairs = [
        {"prompt": f"a {x} b", "chosen": f" {y} c d", "rejected": f" {y} e f"}
        for x in "abcdef"
        for y in "ghijkl"
    ]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "pairs.jsonl", pairs)
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
    common: dict[str, Any] = FAST | lora | NF4 | {"max_steps": 2, "per_device_train_batch_size": 4}
    ours: dict[str, dict[str, Any]] = {
        "sft": {"model_name_or_path": "base", "dataset_name": "rows.jsonl"},
        "reward": {
            "model_name_or_path": "sft",
            "dataset_name": "pairs.jsonl",
            "test_fraction": 0.2,
            "skip_check": True,  # two steps teach it nothing
        },
        "ppo": {
            "model_name_or_path": "sft",
            "dataset_name": "rows.jsonl",
            "reward_funcs": ["reward"],
            "skip_check": True,
            "critic": "adapter",
            "critic_model_name_or_path": "reward",
            "total_episodes": 16,
            "rollout_batch_size": 8,
            "max_completion_length": 4,
            "learning_rate": 1e-3,
        },
    }
    paths = {"model_name_or_path", "dataset_name", "critic_model_name_or_path"}
    for name, recipe in (("sft", sft), ("reward", reward), ("ppo", ppo)):
        settings: dict[str, Any] = common | ours[name] | {"output_dir": str(tmp_path / name)}
        settings |= {key: str(tmp_path / settings[key]) for key in paths & settings.keys()}
        if name == "ppo":
            settings["reward_funcs"] = [str(tmp_path / "reward")]
            del settings["max_steps"]
        recipe.run(parse(name, [], settings))
    first = next(r for r in read_jsonl(tmp_path / "ppo/metrics.jsonl") if "objective/kl" in r)
    assert first["objective/kl"] == 0.0
    # one adapter on the one base, for plain peft
    final = tmp_path / "ppo/final"
    config = json.loads((final / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    for name in ("sft", "reward", "ppo"):  # which is what it is merged into, where it is
        rounded = json.loads((tmp_path / name / "final/base_quantization.json").read_text())
        assert rounded["load_in_4bit"] is rounded["use_bnb_nested_quant"] is True
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(base, final)
    lineage = json.loads((tmp_path / "ppo/lineage.json").read_text())
    assert lineage["model"]["name"] == str(tmp_path / "sft")
    assert lineage["roles"] == {
        "policy": "adapter in float32, trained",
        "reference": "adapter in float32",
        "reward": "adapter in float32, head in float32",
        "value": "adapter in float32, head in float32, trained",
        "base": "bfloat16, of it 4 bit (nf4, double)",
    }
    with pytest.raises(UserError, match="lora_r=8: the run goes on with the adapter of"):
        recipe.run(parse("ppo", [], settings | {"lora_r": 8, "output_dir": str(tmp_path / "x")}))
    assert not (tmp_path / "x").exists()


def test_ppo_refuses_what_its_models_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_completion_length=60: .* context of 64; lower it"):
        tiny.trainer(tmp_path, max_completion_length=60, prompts=["a b c d e"])
    with pytest.raises(UserError, match="the adapter does not fit the policy: Target modules"):
        tiny.trainer(tmp_path, peft_config=four_roles.lora(target_modules=["nothing_like_it"]))
    tiny.llama(kind=LlamaForSequenceClassification, num_labels=1).save_pretrained(tmp_path / "rm")
    tiny.tokenizer().save_pretrained(tmp_path / "rm")
    model = load_reward_functions(str(tmp_path / "rm"), None, 4, "cpu")[0]
    asked, said = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="reward model rm cannot render messages"):
        model([asked], [said])
    torch.save(tiny.llama().state_dict(), tmp_path / "rm/pytorch_model.bin")
    (tmp_path / "rm/model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        tiny.trainer(tmp_path, str(tmp_path / "rm"))


def test_int8_rounds_and_still_trains(folders: Path, tmp_path: Path) -> None:
    trainer = four_roles.trainer(folders, tmp_path, {"load_in_8bit": True, "dtype": "float32"})
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
