"""The own decode loop, on the CPU and thus uncaptured: beside generate and exact distributions."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    BloomConfig,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    OpenAIGPTConfig,
    Phi3Config,
    PreTrainedModel,
)

from recipes.lib.errors import UserError
from recipes.lib.generation.decoder import Decoder, is_faster
from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate
from recipes.lib.models.policies import disable_4bit_packing
from tests.helpers.tiny_models import CLASSES, GROUPED

VOCABULARY, STOP, PAD = 24, 1, 0
NUM_PROMPTS, WIDTH, LENGTH = 9, 7, 20  # longer together than Gemma's window of 8
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
NEO = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
SHAPES = pytest.mark.parametrize("is_static", [False, True])


def make(name: str = "llama", **more: Any) -> PreTrainedModel:
    kind, sizes = CLASSES[name]
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(
        kind(**(sizes | {"vocab_size": VOCABULARY, "initializer_range": 0.5} | more))
    )
    return model.eval()


def prompts(num: int = NUM_PROMPTS) -> tuple[Tensor, Tensor]:
    """Prompts of 1 to 7 tokens, padded left."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, VOCABULARY, (num, WIDTH), generator=generator)
    lengths = torch.arange(num) % WIDTH + 1
    lengths[0] = WIDTH
    mask = (torch.arange(WIDTH) >= WIDTH - lengths.unsqueeze(1)).long()
    return torch.where(mask.bool(), ids, PAD), mask


def decoding(length: int = LENGTH, temperature: float = 1.0) -> Decoding:
    return Decoding(length, temperature, STOP, PAD)


def assert_like_generate(model: PreTrainedModel, decoder: Decoder, seed: int = 0) -> Tensor:
    """Greedy and sampled completions are those of generate; gives the sampled ones."""
    ids, mask = prompts()
    noise = episode_uniforms(seed, range(NUM_PROMPTS), decoder.decoding.max_new_tokens)
    for uniforms in (None, noise):
        expected_ids, expected_mask = generate(model, ids, mask, uniforms, decoder.decoding)
        got_ids, got_mask = decoder.sample(ids, mask, uniforms)
        assert torch.equal(got_mask, expected_mask)
        assert torch.equal(got_ids, expected_ids)
    return got_ids


@SHAPES
@pytest.mark.parametrize("name", CLASSES)
def test_tokens_are_those_of_generate(name: str, is_static: bool) -> None:
    model = make(name)
    said = assert_like_generate(model, Decoder(model, decoding(), 9, 27, is_static))
    assert said.unique().numel() > VOCABULARY / 2  # no model that says one thing


@SHAPES
def test_tokens_are_those_of_generate_under_an_adapter(is_static: bool) -> None:
    model = get_peft_model(make("qwen3"), LoraConfig(target_modules="all-linear", r=4))
    before = generate(model.get_base_model(), *prompts(), None, decoding())[0]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    decoder = Decoder(model.get_base_model(), decoding(), 9, 27, is_static)
    assert_like_generate(model.get_base_model(), decoder)
    after = decoder.sample(*prompts(), None)[0]
    assert after.shape != before.shape or not torch.equal(after, before)


@SHAPES
@pytest.mark.parametrize("with_adapter", [False, True])
def test_tokens_are_those_of_generate_on_a_4_bit_base(
    tmp_path: Any, is_static: bool, with_adapter: bool
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    make("qwen3", **sizes).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config).eval()
    disable_4bit_packing(model)
    if with_adapter:
        adapted = get_peft_model(
            model, LoraConfig(target_modules="all-linear", init_lora_weights=False)
        )
        model = adapted.get_base_model()
    assert_like_generate(model, Decoder(model, decoding(), 9, 27, is_static))


@SHAPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_those_of_generate_in_16_bits(dtype: torch.dtype, is_static: bool) -> None:
    model = make("qwen3").to(dtype)
    decoder = Decoder(model, decoding(), 9, 27, is_static)
    ids, mask = prompts()
    for noise in (None, episode_uniforms(0, range(NUM_PROMPTS), LENGTH)):
        expected, expected_mask = generate(model, ids, mask, noise, decoding())
        got, got_mask = decoder.sample(ids, mask, noise)
        # Other shapes round otherwise, and a row that has once gone another way stays on it.
        same = [torch.equal(one, other) for one, other in zip(got, expected, strict=True)]
        assert sum(same) >= NUM_PROMPTS - 1
        assert got_mask.shape == expected_mask.shape
    assert decoder.cache.layers[0].keys.dtype == dtype


@SHAPES
def test_an_autocast_is_that_of_generate(is_static: bool) -> None:
    model = make("llama")
    with torch.autocast("cpu", torch.bfloat16):
        decoder = Decoder(model, decoding(), 9, 27, is_static)
        ids, mask = prompts()
        # bfloat16 rounds other shapes otherwise, so only the beginnings are compared.
        got, expected = (
            decoder.sample(ids, mask, None)[0],
            generate(model, ids, mask, None, decoding())[0],
        )
        assert (got[:, :3] == expected[:, :3]).float().mean() > 0.9
    assert_like_generate(model, decoder)  # in fp32 again: the cache takes its new form


@SHAPES
def test_sampled_tokens_have_the_exact_distribution(is_static: bool) -> None:
    model, num = make("llama", initializer_range=0.3), 20_000
    ids = torch.full((1, 3), 5)
    logits = model(input_ids=ids).logits[0, -1].double()
    for temperature in (1.0, 2.0):
        probs = (logits / temperature).softmax(-1)
        noise = episode_uniforms(11, range(num), 2)
        decoder = Decoder(model, decoding(2, temperature), num, 5, is_static)
        many = ids.expand(num, -1)
        got = decoder.sample(many, torch.ones_like(many), noise)[0]
        counts = torch.bincount(got[:, 0], minlength=VOCABULARY).double()
        assert chisquare(counts.numpy(), (probs * num).detach().numpy()).pvalue > 1e-3
        # The second token too, behind the most frequent first one.
        counts[STOP] = 0
        first = int(counts.argmax())
        behind = model(input_ids=torch.tensor([[5, 5, 5, first]])).logits[0, -1].double()
        chosen = got[got[:, 0] == first][:, 1]
        expected = (behind / temperature).softmax(-1).detach() * len(chosen)
        counts = torch.bincount(chosen, minlength=VOCABULARY).double()
        assert chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


@SHAPES
def test_rows_that_have_ended_are_left_out(is_static: bool) -> None:
    model = make("llama", initializer_range=0.3)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    decoder = Decoder(model, decoding(), 9, 27, is_static)
    noise = episode_uniforms(0, range(NUM_PROMPTS), LENGTH)
    _, mask = decoder.sample(*prompts(), noise)
    handle.remove()
    lengths = mask.sum(1).tolist()
    assert len(set(lengths)) > 3  # they end at different times
    assert len(sizes) <= max(lengths)
    assert sizes[0] == NUM_PROMPTS
    assert sizes[-1] <= NUM_PROMPTS / 2
    if is_static:  # few sizes, each of which is captured on a GPU
        assert set(sizes[1:]) <= {9, 8, 4, 2, 1}


def test_nothing_is_computed_once_all_have_ended() -> None:
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are as likely; the first is taken
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    stops_at_once = Decoding(LENGTH, 1.0, 0, PAD)
    ids, mask = Decoder(model, stops_at_once, 9, 27).sample(*prompts(), None)
    assert len(calls) == 1
    assert ids.shape == mask.shape == (NUM_PROMPTS, 1)


@SHAPES
def test_a_cache_in_use_never_serves_old_weights(is_static: bool) -> None:
    model = make("llama")
    decoder = Decoder(model, decoding(), 9, 27, is_static)
    first = assert_like_generate(model, decoder)
    for number in range(3):  # in place, as an optimizer does
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        again = assert_like_generate(model, decoder, seed=number)
    assert again.shape != first.shape or not torch.equal(again, first)
    keys = decoder.cache.layers[0].keys
    model.load_state_dict(make("llama", initializer_range=0.4).state_dict())
    assert_like_generate(model, decoder)
    assert decoder.cache.layers[0].keys is keys  # the same memory all along


def test_graphs_are_forgotten_when_a_weight_or_an_adapter_moves() -> None:
    model = get_peft_model(make("llama"), LoraConfig(target_modules=["q_proj"]))
    base = model.get_base_model()
    decoder = Decoder(base, decoding(2), 9, 27, is_static=True)

    def changes() -> bool:
        decoder.graphs.captured["a graph",] = None
        decoder.sample(*prompts(), None)
        return not decoder.graphs.captured

    changes()
    assert not changes()
    with torch.no_grad():
        base.lm_head.weight.add_(1.0)  # in place: a graph sees it
    assert not changes()
    base.lm_head.weight.data = base.lm_head.weight.data.clone()
    assert changes()
    with model.disable_adapter():
        assert changes()
    assert changes()
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    assert changes()
    model.set_adapter("other")
    assert changes()
    assert not changes()
    with torch.autocast("cpu", torch.bfloat16):  # the cache is taken anew, in another format
        assert changes()
        assert not changes()
    assert changes()


@SHAPES
def test_more_rows_or_longer_prompts_than_expected_get_a_new_cache(is_static: bool) -> None:
    model = make("gpt2")
    decoder = Decoder(model, decoding(), 2, 5, is_static)
    assert_like_generate(model, decoder)
    assert (decoder.window.num_rows, decoder.window.num_slots) == (9, 27)


def test_many_slots_are_seen_in_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.lib.generation.decoder.SLOTS_PER_GRAPH", 8)
    model = make("gemma3")
    decoder = Decoder(model, decoding(), 9, 27, is_static=True)
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
    )
    ids, mask = prompts()
    got = decoder.sample(ids, mask, None)[0]
    assert set(widths[1:]) <= {8, 16, 24, 27}
    assert torch.equal(got, generate(model, ids, mask, None, decoding())[0])


def test_several_stop_tokens_end_a_row() -> None:
    model = make("llama")
    several = Decoding(LENGTH, 1.0, STOP, PAD, (4, 9))
    assert_like_generate(model, Decoder(model, several, 9, 27))


def test_the_mode_of_the_model_comes_back() -> None:
    model = make("llama").train()
    Decoder(model, decoding(3), 9, 27).sample(*prompts(), None)
    assert model.training
    copied = copy.deepcopy(model).eval()
    Decoder(copied, decoding(3), 9, 27).sample(*prompts(), None)
    assert not copied.training


WITHOUT: dict[str, tuple[type, dict[str, Any], bool, str]] = {
    "mamba": (MambaConfig, {"state_size": 2}, False, "has layers of"),
    "openai": (OpenAIGPTConfig, {"n_embd": 8, "n_head": 2, "n_layer": 1}, False, "takes no cache"),
    "phi3": (Phi3Config, GROUPED, False, "prepares its inputs for generation in its own way"),
    "dynamic": (LlamaConfig, GROUPED | DYNAMIC, False, "has positions of the kind dynamic"),
    "gpt_neo": (GPTNeoConfig, NEO, True, "has steps that depend on what they read"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_the_loop_would_get_wrong_is_left_to_generate(name: str) -> None:
    kind, sizes, is_static, reason = WITHOUT[name]
    model = AutoModelForCausalLM.from_config(kind(vocab_size=VOCABULARY, **sizes))
    assert is_faster(model) == is_static  # what a capture alone cannot do, the loop can
    with pytest.raises(UserError, match=f"sampler=graph: the model {reason}"):
        Decoder(model, decoding(), 2, 8, is_static)


def test_a_model_that_counts_positions_itself_is_not_told_them() -> None:
    sizes = {"hidden_size": 16, "n_head": 2, "n_layer": 2, "initializer_range": 0.5}
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=VOCABULARY, **sizes)).eval()
    assert is_faster(model)
    assert_like_generate(model, Decoder(model, decoding(), 9, 27))
