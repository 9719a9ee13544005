"""Linear layers with oneDNN's products: beside PyTorch's own, in float64 where it decides."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.lib.models import cpu_linear
from recipes.lib.models.cpu_linear import LEAST_WORK, CpuLinear, use_fast_products

ROWS, INPUTS, OUTPUTS = 96, 160, 288  # just above the least work


def layers(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    fast = copy.deepcopy(plain)
    fast.__class__ = CpuLinear
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("shape", [(ROWS,), (4, ROWS // 4)])
def test_values_and_gradients_are_those_of_float64(
    bias: bool, trained: bool, shape: tuple[int, ...]
) -> None:
    plain, fast = layers(bias)
    plain, fast = plain.double().requires_grad_(trained), fast.requires_grad_(trained)
    x = torch.randn(*shape, INPUTS, requires_grad=True)
    exact = x.detach().double().requires_grad_(True)
    assert ROWS * INPUTS * OUTPUTS >= LEAST_WORK
    out, expected = fast(x), plain(exact)
    assert out.grad_fn is not None
    assert "_Product" in type(out.grad_fn).__name__
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-4)
    for name, parameter in fast.named_parameters():
        other = plain.get_parameter(name).grad
        assert (parameter.grad is None) == (other is None) == (not trained)
        if trained:
            torch.testing.assert_close(parameter.grad.double(), other, rtol=1e-5, atol=1e-4)


def test_small_products_other_dtypes_and_autocast_are_left_to_pytorch() -> None:
    plain, fast = layers(True)
    small = torch.randn(2, INPUTS)
    assert torch.equal(fast(small), plain(small))
    large = torch.randn(ROWS, INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(large), plain(large))
    half = copy.deepcopy(fast).bfloat16()
    assert torch.equal(half(large.bfloat16()), plain.bfloat16()(large.bfloat16()))


def test_without_gradients_the_values_are_the_same() -> None:
    _, fast = layers(True)
    x = torch.randn(ROWS, INPUTS)
    with torch.no_grad():
        assert torch.equal(fast(x), fast(x.clone().requires_grad_(True)).detach())


def test_only_plain_layers_change_and_only_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "has_slow_mkl", lambda: True)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
    plain = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
    model = get_peft_model(plain, LoraConfig(target_modules=["q_proj"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_fast_products(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {CpuLinear}
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    merged = model.merge_and_unload()
    assert isinstance(merged, LlamaForCausalLM)


@pytest.mark.parametrize(("vendor", "capability"), [("", "AVX512"), ("AMD", "AVX2")])
def test_processors_of_intel_and_those_without_avx512_keep_mkl(
    vendor: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_linear.has_slow_mkl.cache_clear()
    monkeypatch.setattr(cpu_linear, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    try:
        assert not cpu_linear.has_slow_mkl()
        layer = nn.Sequential(nn.Linear(2, 2))
        use_fast_products(layer)
        assert type(layer[0]) is nn.Linear
    finally:
        cpu_linear.has_slow_mkl.cache_clear()
