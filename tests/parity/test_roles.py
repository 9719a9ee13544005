"""Roles on one backbone against separate plain models that hold the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils.checkpoint import noop_context_fn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
)

from recipes.lib.errors import UserError
from recipes.lib.models.adapters import POLICY, REFERENCE, VALUE, Adapters
from recipes.lib.models.forward import Batch, chunked_logps
from recipes.lib.ppo.actor_critic import reference_logps
from recipes.lib.rewards.reward_models import RewardModel, load_reward_functions
from tests.helpers import four_roles, tiny

IDS = torch.tensor([[4, 5, 6, 7, 8, 9, 1], [0, 0, 4, 9, 8, 1, 0], [5, 5, 4, 10, 11, 12, 13]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
C = 4
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_roles.write_folders(tmp_path_factory.mktemp("roles"))


def plain(folders: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The same policy and critic as models of their own."""
    base = AutoModelForCausalLM.from_pretrained(folders / "base", dtype=dtype)
    policy = PeftModel.from_pretrained(base, folders / "sft", is_trainable=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folders / "base", num_labels=1, dtype=dtype
    )
    critic = PeftModel.from_pretrained(classifier, folders / "reward", is_trainable=True)
    critic.score.modules_to_save["default"].float()
    return policy.train(), critic.train()


def positions() -> torch.Tensor:
    return (MASK.cumsum(-1) - 1).clamp(min=0)


def plain_terms(policy: Any, critic: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and values by the models' own forward passes."""
    given = {"input_ids": IDS, "attention_mask": MASK, "position_ids": positions()}
    log_probs = policy(**given).logits.float().log_softmax(-1)[:, -C - 1 : -1]
    logps = log_probs.gather(-1, IDS[:, -C:, None])[..., 0]
    hidden = critic.get_base_model().model(**given).last_hidden_state[:, -C - 1 : -1]
    return logps, critic.get_base_model().score(hidden.float())[..., 0].float()


def loss(logps: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Some function of both that moves every weight; the noise makes all directions count."""
    noise = torch.linspace(-1.0, 2.0, logps.numel()).view_as(logps)
    counted = MASK[:, -C:]
    return ((logps * noise).exp() * counted).sum() + ((values - noise).square() * counted).sum()


def gradients(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Gradients of an adapter's weights by name, without the name of the adapter."""
    return {
        key.rpartition("base_model.model.")[2].replace(f".{name}", ""): p.grad.clone()
        for key, p in model.named_parameters()
        if f".{name}." in key and p.grad is not None and "score" not in key
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_item_33_gradients_of_both_trained_roles_are_those_of_separate_models(
    folders: Path, tmp_path: Path, dtype: torch.dtype, checkpointing: bool
) -> None:
    module = four_roles.trainer(
        folders, tmp_path, {"dtype": str(dtype).removeprefix("torch.")}
    ).actor_critic
    if checkpointing:
        module.activation_checkpointing_enable()
    logps, _, values = module.train()(IDS, MASK, C, 1.0)
    loss(logps, values).backward()
    policy, critic = plain(folders, dtype)
    loss(*plain_terms(policy, critic)).backward()
    # 2^-8 is half a unit of the last place in bf16; sums over a few layers of it
    bound = 1e-5 if dtype == torch.float32 else 0.04
    for name, expected in ((POLICY, policy), (VALUE, critic)):
        mine, theirs = gradients(module.policy, name), gradients(expected, "default")
        assert mine.keys() == theirs.keys()
        assert len(mine) == 28
        for key, gradient in theirs.items():
            assert gradient.abs().max() > 0, key
            off = (mine[key] - gradient).norm() / gradient.norm()
            assert off < bound, (key, off)
    head = critic.score.modules_to_save["default"].weight.grad
    assert torch.allclose(module.value_head[0].weight.grad, head, rtol=bound, atol=bound)
    frozen = [p for p in module.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_without_the_role_in_the_recomputation_gradients_would_be_wrong_and_silent(
    folders: Path, tmp_path: Path
) -> None:
    module = four_roles.trainer(folders, tmp_path).actor_critic
    module.adapters.checkpoint_contexts = noop_context_fn
    module.activation_checkpointing_enable()
    logps, _, values = module.train()(IDS, MASK, C, 1.0)
    loss(logps, values).backward()
    policy, critic = plain(folders, torch.float32)
    loss(*plain_terms(policy, critic)).backward()
    theirs, mine = gradients(critic, "default"), gradients(module.policy, VALUE)
    off = [not torch.allclose(mine[key], theirs[key], rtol=0.01) for key in mine]
    assert any(off) or mine.keys() != theirs.keys()


def test_reentrant_checkpointing_is_refused_where_two_adapters_are_trained(
    folders: Path, tmp_path: Path
) -> None:
    module = four_roles.trainer(folders, tmp_path).actor_critic
    with pytest.raises(UserError, match="loses gradients"):
        module.activation_checkpointing_enable({"use_reentrant": True})


def test_every_role_says_what_its_own_model_says(folders: Path, tmp_path: Path) -> None:
    trainer = four_roles.trainer(folders, tmp_path)
    module = trainer.actor_critic.eval()
    policy, critic = plain(folders, torch.float32)
    with torch.no_grad():
        logps, _, values = module(IDS, MASK, C, 1.0)
        expected_logps, expected_values = plain_terms(policy.eval(), critic.eval())
        reference = reference_logps(module, None, Batch(IDS, MASK, C), 1.0)
    counted = MASK[:, -C:].bool()
    assert torch.allclose(logps[counted], expected_logps[counted], atol=1e-6)
    assert torch.allclose(values[counted], expected_values[counted], atol=1e-5)
    assert torch.equal(reference, logps)  # to the bit: the step-0 KL is exactly 0
    tiny.shake(module, 0.1)
    with torch.no_grad():
        assert torch.equal(reference_logps(module, None, Batch(IDS, MASK, C), 1.0), reference)
    # the reward, which training does not move, says what the classifier of its folder says
    texts = (["a b", "c"], [" d e", " f g h i"])
    shared = trainer.collector.functions[0]
    alone = load_reward_functions(str(folders / "reward"), None, 4, "cpu")[0]
    assert isinstance(alone, RewardModel)
    assert "RewardRole" in type(shared.model).__name__
    assert shared(*texts) == pytest.approx(alone(*texts), abs=1e-5)


def test_item_45_a_role_gives_back_the_adapter_and_every_flag_also_on_an_error(
    folders: Path, tmp_path: Path
) -> None:
    module = four_roles.trainer(folders, tmp_path).actor_critic
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    assert {n.split(".")[-2] for n, flag in flags.items() if flag} == {POLICY, VALUE, "0"}
    assert flags["value_head.0.weight"]
    adapters: Adapters = module.adapters

    def fail_as(name: str | None) -> None:
        with adapters.role(VALUE), adapters.role(name):
            assert {n: p.requires_grad for n, p in module.named_parameters()} == flags
            raise KeyError(name)

    for name in (POLICY, REFERENCE, VALUE, "reward", None):
        with pytest.raises(KeyError):
            fail_as(name)
        assert module.policy.active_adapters == [POLICY]
        assert {n: p.requires_grad for n, p in module.named_parameters()} == flags


HEADS = {
    "capped": (Gemma2Config, {"final_logit_softcapping": 2.0, "head_dim": 8}),
    "scaled": (CohereConfig, {"logit_scale": 0.5}),
    "divided": (GraniteConfig, {"logits_scaling": 3.0}),
    "plain": (LlamaConfig, {}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", HEADS)
def test_what_a_model_does_to_its_logits_is_done_here_too(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    config, more = HEADS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            **more,
        ),
        dtype=dtype,
    )
    module = tiny.trainer(tmp_path, model, critic="head").actor_critic.eval()
    assert module.has_plain_head == (kind == "plain")
    tiny.shake(module, 0.3)
    given = {"input_ids": IDS, "attention_mask": MASK, "position_ids": positions()}
    with torch.no_grad():
        logps, _, values = module(IDS, MASK, C, 0.7)
        expected = (model(**given).logits.float() / 0.7).log_softmax(-1)[:, -C - 1 : -1]
        hidden = model.model(**given).last_hidden_state[:, -C - 1 : -1]
        assert module.value_head is not None
        expected_values = module.value_head(hidden.float())[..., 0]
    counted, close = MASK[:, -C:].bool(), 1e-5 if dtype == torch.float32 else 0.05
    expected = expected.gather(-1, IDS[:, -C:, None])[..., 0]
    assert torch.allclose(logps[counted], expected[counted], atol=close)
    assert torch.allclose(values[counted], expected_values[counted], atol=close)


def test_pieces_of_the_logits_make_the_same_numbers_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50)
    hidden = torch.randn(3, 7, 16, requires_grad=True)
    ids, mask = torch.randint(0, 50, (3, 7)), torch.ones(3, 7)
    mask[0, 4:] = 0
    results = []
    for most in (2**26, 3 * 50):
        monkeypatch.setattr("recipes.lib.models.forward.MAX_CHUNK_LOGITS", most)
        sizes: list[int] = []
        handle = head.register_forward_hook(lambda _, x, y, s=sizes: s.append(len(y)))
        logps, entropy = chunked_logps(
            head, hidden, ids, mask, temperature=0.7, with_gradient=True, vocab_size=50
        )
        handle.remove()
        assert sizes == ([18] if most > 150 else [3] * 6)
        (logps.square().sum() + entropy.sum()).backward()
        results.append((logps, entropy, hidden.grad.clone(), head.weight.grad.clone()))
        hidden.grad = head.weight.grad = None
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    expected = (head(hidden) / 0.7).log_softmax(-1)
    assert torch.allclose(results[0][0], expected.gather(-1, ids[..., None])[..., 0] * mask)
