"""Checklist 44 to 49: the reference of adapters, dtypes, what is saved, and stale samplers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate
from recipes.lib.models.forward import Batch
from recipes.lib.models.policies import load_adapted_policy, load_policy
from recipes.lib.ppo.actor_critic import reference_logps
from tests.helpers import tiny


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT adapter on the base that changes what it says."""
    folder = tmp_path_factory.mktemp("sft")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    tiny.shake(model, 0.3)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_item_44_a_second_adapter_on_a_policy_is_refused_with_the_remedy(
    tmp_path: Path, base: Path, sft: Path
) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft)
    with pytest.raises(UserError, match=r"merge the adapter \(merge_and_unload\)"):
        tiny.trainer(tmp_path, model, peft_config=lora())
    with pytest.raises(UserError, match=r"put it on with PeftModel\.from_pretrained"):
        tiny.trainer(tmp_path, str(sft))
    model.add_adapter("other", lora())
    with pytest.raises(UserError, match="has the adapters default, other"):
        tiny.trainer(tmp_path, model)


@pytest.mark.parametrize("kind", ["full", "lora", "goes on"])
def test_item_44_from_an_sft_adapter_the_reference_is_the_sft_model(
    tmp_path: Path, base: Path, sft: Path, kind: str
) -> None:
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft)
    bare = AutoModelForCausalLM.from_pretrained(base)
    given = ModelConfig(model_name_or_path=str(sft))
    model = load_adapted_policy(given) if kind == "goes on" else load_policy(given)
    more = {"critic": "head"} if kind == "goes on" else {}
    trainer = tiny.trainer(tmp_path, model, peft_config=lora() if kind == "lora" else None, **more)
    rollout = trainer.collector.rollout(0)
    assert trainer.collector.metrics["objective/kl"] == 0.0
    tiny.shake(trainer.actor_critic.policy)
    rollout = trainer.collector.rollout(0)
    assert abs(trainer.collector.metrics["objective/kl"]) > 0.01
    for row, (prompt, completion) in enumerate(tiny.sequences(rollout)):
        places, ids = slice(len(prompt) - 1, -1), torch.tensor(completion)[:, None]
        said = tiny.log_probs(expected, prompt + completion)[places].gather(1, ids)[:, 0]
        stored = rollout.ref_logps[row, : len(completion)].double()
        assert torch.allclose(stored, said, atol=1e-5)
        other = tiny.log_probs(bare, prompt + completion)[places].gather(1, ids)[:, 0]
        assert not torch.allclose(stored, other, atol=1e-2)


def test_item_45_the_adapter_is_back_after_the_reference_spoke_also_after_an_error(
    tmp_path: Path,
) -> None:
    trainer = tiny.trainer(tmp_path, peft_config=lora())
    module = trainer.actor_critic
    policy = module.policy
    tiny.shake(policy)
    ids, mask = torch.tensor([[4, 5, 6, 7]]), torch.ones(1, 4).long()
    trainable = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        before = policy(ids).logits
        trainer.collector.rollout(0)
        theirs = reference_logps(module, None, Batch(ids, mask, 3), 1.0)
        assert not torch.equal(theirs, module(ids, mask, 3, 1.0)[0])
        with pytest.raises(IndexError):
            reference_logps(module, None, Batch(ids + 1000, mask, 3), 1.0)
        assert torch.equal(policy(ids).logits, before)
    assert policy.active_adapters == ["default"]
    assert [n for n, p in trainer.model.named_parameters() if p.requires_grad] == trainable
    assert len(trainable) > 20


def dtypes(trainer: Any) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("loading", ["nf4", "bf16"])
def test_item_46_adapters_and_value_head_keep_fp32_on_a_16_or_4_bit_base(
    tmp_path: Path, base: Path, loading: str
) -> None:
    more: dict[str, Any] = {"sampler": "transformers" if loading == "nf4" else "graph"}
    if loading == "nf4":
        model: Any = str(tmp_path / "base")
        # 64 is a block of quantization
        tiny.llama(hidden_size=64, intermediate_size=64, initializer_range=0.1).save_pretrained(
            model
        )
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    trainer = tiny.trainer(tmp_path, model, peft_config=lora(), critic="head", bf16=True, **more)
    before = dtypes(trainer)
    adapters = {name for name in before if "lora_" in name}
    assert adapters
    assert {before[name] for name in adapters} == {torch.float32}
    assert before["value_head.0.weight"] == torch.float32
    stored = torch.uint8 if loading == "nf4" else torch.bfloat16
    assert stored in before.values()
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert dtypes(trainer) == before
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(frozen[name], now[name]) for name in frozen)
    # also those of the first layer, to which gradients come through all that is frozen
    assert all(now[name].abs().max() > 0 for name in adapters if "lora_B" in name)


@pytest.mark.parametrize("adapted", [False, True])
def test_item_47_the_exported_policy_loads_with_plain_classes_and_says_the_same(
    tmp_path: Path, base: Path, adapted: bool
) -> None:
    trainer = tiny.trainer(tmp_path, str(base), peft_config=lora() if adapted else None)
    trainer.train()
    out = tmp_path / "out"
    trainer.save_model(str(out))
    if adapted:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    else:
        model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert {key: list(value) for key, value in info.items() if value} == {}
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    with torch.no_grad():
        expected = trainer.actor_critic.policy.eval()(ids).logits
        assert torch.equal(model.eval()(ids).logits, expected)
        start = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert not torch.allclose(expected, start, atol=1e-3)
    (weights,) = out.glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        keys = list(file.keys())
    assert not any("policy" in key or "value" in key or "score" in key for key in keys)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tiny.tokenizer().get_vocab()


@pytest.mark.parametrize("critic", ["head", "model"])
def test_item_33_after_a_resume_the_same_parameters_are_trainable(
    tmp_path: Path, critic: str
) -> None:
    trainer = tiny.trainer(tmp_path, peft_config=lora(), critic=critic)
    start = tiny.state(trainer.model)
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, t in tiny.state(trainer.model).items() if not torch.equal(start[n], t)}
    # the policy's adapter and the critic, each of their tensors, and nothing of the base
    assert moved - {"value_offset", "value_scale"} == trainable
    assert any(name.startswith("policy.") for name in moved)
    assert any(not name.startswith("policy.") for name in moved)
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    other = tiny.trainer(tmp_path, tiny.llama(), peft_config=lora(), critic=critic)
    other._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert {n for n, p in other.model.named_parameters() if p.requires_grad} == trainable
    assert tiny.same(tiny.state(other.model), tiny.state(trainer.model))


@pytest.mark.parametrize("what", ["kl coefficient", "reward moments"])
def test_item_48_what_steers_the_reward_survives_saving_and_loading(
    tmp_path: Path, what: str
) -> None:
    settings = {"kl_coef": 0.2, "target_kl": 0.1, "normalize_rewards": True, "kl_horizon": 50}
    trainer = tiny.trainer(tmp_path, **settings, save_strategy="steps", save_steps=4)
    trainer.train()
    other = tiny.trainer(tmp_path, **settings)
    assert vars(other.collector.moments) != vars(trainer.collector.moments)
    other._load_rng_state(str(tmp_path / "checkpoint-8"))
    if what == "kl coefficient":
        assert other.collector.kl.value == trainer.collector.kl.value != 0.2
    else:
        assert vars(other.collector.moments) == vars(trainer.collector.moments)
        assert other.collector.moments.count == 16


def test_item_49_nothing_of_older_weights_is_left_in_the_sampler() -> None:
    model, decoding = tiny.llama(), Decoding(6, 1.0, 1, 0)
    prompts = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, last] for last in (4, 5, 6, 7)])
    mask, uniforms = torch.ones_like(prompts), episode_uniforms(2, range(4), 6)
    before = generate(model, prompts, mask, uniforms, decoding)[0]
    tiny.shake(model, 0.3)
    after = generate(model, prompts, mask, uniforms, decoding)[0]
    fresh = tiny.llama()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, generate(fresh, prompts, mask, uniforms, decoding)[0])
    assert not torch.equal(after, before)
    greedy, greedy_mask = generate(model, prompts, mask, None, decoding)
    plain = copy.deepcopy(fresh).generate(
        input_ids=prompts,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=1,
        pad_token_id=0,
    )
    kept = greedy_mask.bool()
    assert torch.equal(greedy[kept], plain[:, 11:][kept])
