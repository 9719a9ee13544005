"""Several turns from one cache: beside fresh readings of all that was said and heard so far."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    PreTrainedModel,
)

from recipes.lib.generation.decoder import Decoder
from recipes.lib.generation.numerics import NotFiniteError
from recipes.lib.generation.sampling import Decoding, episode_uniforms
from recipes.lib.generation.turns import CachedGenerate, Turns
from recipes.lib.ppo.samplers import Sampler
from tests.helpers.tiny_models import GROUPED
from tests.unit.generation.test_decoder import DYNAMIC, PAD, STOP, VOCABULARY, make

LENGTH = 6
DECODING = Decoding(LENGTH, 1.0, STOP, PAD, (4, 9, 22))  # rows end at different times
# What is heard in each turn, and by which of the rows in hand: they drop out at different turns.
HEARD = [
    ([0, 1, 2, 3, 4], [1, 4, 2, 7, 1]),
    ([0, 1, 3, 4], [3, 1, 1, 2]),
    ([3, 1, 0], [2, 9, 1]),
    ([2, 0], [1, 5]),
    ([0], [1]),
]
PROMPTS = [[5, 6, 7], [8], [9, 3, 4, 5, 6, 7, 8], [2, 2], [11, 12, 13, 14]]
WAYS = pytest.mark.parametrize("way", ["transformers", "graph", "static"])
BLOOM = {"hidden_size": 16, "n_head": 2, "n_layer": 2, "initializer_range": 0.5}


def sampler(model: PreTrainedModel, kind: str = "transformers") -> Sampler:
    args = SimpleNamespace(sampler=kind, sampling_batch_size=8, device=model.device)
    trainer = SimpleNamespace(
        actor_critic=SimpleNamespace(policy=model), args=args, accelerator=Accelerator(cpu=True)
    )
    return Sampler(trainer, DECODING, 60)


def begin(model: PreTrainedModel, way: str, prompts: Sequence[list[int]]) -> Turns:
    if way != "static":
        return sampler(model, way).begin(prompts)
    decoder = Decoder(model, DECODING, len(prompts), 70, is_static=True)
    return Turns(decoder, prompts, DECODING, model.device)


def play(
    model: PreTrainedModel, turns: Turns, prompts: Sequence[list[int]], is_sampled: bool = True
) -> list[list[list[int]]]:
    """All turns, each beside completions of the full token lists; gives what was said."""
    fresh, full, said = sampler(model), [list(prompt) for prompt in prompts], []
    episodes = list(range(len(prompts)))
    words = np.random.Generator(np.random.Philox(key=[4, 4]))
    for turn in range(len(HEARD) + 1):
        noise = episode_uniforms(7, episodes, LENGTH, turn) if is_sampled else None
        expected = fresh.completions(full, noise)
        assert turns.say(noise) == expected, f"turn {turn}"
        said.append(expected)
        if turn < len(HEARD):
            pairs = [pair for pair in zip(*HEARD[turn], strict=True) if pair[0] < len(full)]
            rows, numbers = zip(*pairs, strict=True)
            new = [words.integers(2, VOCABULARY, number).tolist() for number in numbers]
            turns.hear(rows, new)
            full = [full[row] + expected[row] + heard for row, heard in zip(rows, new, strict=True)]
            episodes = [episodes[row] for row in rows]
    return said


def reads(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Rows and columns of every pass that is made from now on."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@WAYS
@pytest.mark.parametrize("is_sampled", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mixtral"])
def test_turns_are_those_of_fresh_readings(name: str, is_sampled: bool, way: str) -> None:
    model = make(name)
    said = play(model, begin(model, way, PROMPTS), PROMPTS, is_sampled)
    if is_sampled:
        assert len(set(map(len, said[0] + said[1]))) > 2  # they end at different times


@WAYS
@pytest.mark.parametrize("is_sampled", [False, True])
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_turns_are_those_of_fresh_readings_where_attention_slides(
    name: str, is_sampled: bool, way: str
) -> None:
    model = make(name, sliding_window=5)  # less than a turn and what is heard behind it
    play(model, begin(model, way, PROMPTS), PROMPTS, is_sampled)


@WAYS
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_episode_alone_is_the_same(name: str, way: str) -> None:
    model = make(name)
    play(model, begin(model, way, PROMPTS[2:3]), PROMPTS[2:3])


@pytest.mark.parametrize("way", ["transformers", "graph"])
def test_a_model_that_counts_positions_itself_goes_on(way: str) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=VOCABULARY, **BLOOM)).eval()
    play(model, begin(model, way, PROMPTS), PROMPTS)


WITHOUT: dict[str, tuple[type, dict[str, Any]]] = {
    "mamba": (MambaConfig, {"state_size": 2, "hidden_size": 16, "num_hidden_layers": 2}),
    "phi3": (Phi3Config, GROUPED),
    "dynamic": (LlamaConfig, GROUPED | DYNAMIC),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_whose_cache_cannot_go_on_reads_all_each_time(name: str) -> None:
    kind, sizes = WITHOUT[name]
    torch.manual_seed(3)
    config = kind(**(sizes | {"vocab_size": VOCABULARY, "initializer_range": 0.5}))
    model = AutoModelForCausalLM.from_config(config).eval()
    turns = begin(model, "transformers", PROMPTS)
    assert isinstance(turns.way, CachedGenerate)
    play(model, turns, PROMPTS)
    assert turns.way.cache is None


@WAYS
def test_a_turn_reads_only_what_the_cache_lacks(way: str) -> None:
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are as likely: 0.52 is token 12, 0.06 is STOP
    turns = begin(model, way, [[5, 6, 7], [8]])
    noise = torch.full((2, LENGTH), 0.52).double()
    noise[1, 1] = 0.06
    shapes = reads(model)
    assert turns.say(noise) == [[12] * 6, [12, STOP]]
    turns.hear([0, 1], [[3, 4], [3]])
    turns.say(noise)  # the first lacks its last token and two; the second one, and reads two more
    turns.hear([1], [[9, 9, 9, 9]])
    turns.say(noise[:1])  # its STOP was read while the other went on
    expected = [(2, 3), *[(2, 1)] * 5, (2, 3), *[(2, 1)] * 5, (1, 4), *[(1, 1)] * 5]
    assert shapes == expected


@WAYS
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_log_probabilities_are_those_of_a_fresh_pass(name: str, way: str) -> None:
    model = make(name)
    turns, full = begin(model, way, PROMPTS), [list(prompt) for prompt in PROMPTS]
    for turn in range(4):
        seen: list[Tensor] = []
        handle = model.register_forward_hook(
            lambda module, given, out, seen=seen: seen.append(out.logits[:, -1].log_softmax(-1))
        )
        said = turns.say(episode_uniforms(2, range(len(full)), LENGTH, turn))
        handle.remove()
        for row, (before, ids) in enumerate(zip(full, said, strict=True)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before + ids]), use_cache=False).logits[0]
            expected = logits[len(before) - 1 : -1].log_softmax(-1)
            got = torch.stack([seen[step][row] for step in range(len(ids))])
            assert (got - expected).abs().max() < 1e-5
        heard = [[3 + turn] * (1 + (row + turn) % 3) for row in range(len(full))]
        turns.hear(range(len(full)), heard)
        full = [a + b + c for a, b, c in zip(full, said, heard, strict=True)]


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_where_slots_do_not_suffice_all_is_read_anew_and_then_gone_on_from(
    name: str, is_static: bool
) -> None:
    model = make(name)
    decoder = Decoder(model, DECODING, 5, 30, is_static)
    turns, shapes = Turns(decoder, PROMPTS, DECODING, "cpu"), reads(model)
    play(make(name), turns, PROMPTS)  # the same model, whose passes are not counted
    blocks = [width for _, width in shapes if width > 1]
    assert decoder.window.num_slots > 30
    assert sum(width > 20 for width in blocks) == 1  # and no turn says and hears so much


@pytest.mark.parametrize("is_static", [False, True])
def test_episodes_that_share_a_decoder_do_not_read_each_others_cache(is_static: bool) -> None:
    model = make("llama")
    decoder = Decoder(model, DECODING, 5, 70, is_static)
    one, other = (Turns(decoder, PROMPTS[at:], DECODING, "cpu") for at in (0, 3))
    fresh = sampler(model)
    for turns, prompts in ((one, PROMPTS), (other, PROMPTS[3:])):
        assert turns.say(None) == fresh.completions(prompts, None)
    for turns in (one, other, one):  # the second has the cache, the first has not
        full = [[*tokens, 3] for tokens in turns.tokens]
        turns.hear(range(len(full)), [[3]] * len(full))
        assert turns.say(None) == fresh.completions(full, None)
    decoder.sample(torch.tensor([[5, 6]]), torch.ones(1, 2).long(), None)
    full = [[*tokens, 4] for tokens in one.tokens]
    one.hear(range(len(full)), [[4]] * len(full))
    assert one.say(None) == fresh.completions(full, None)


@WAYS
def test_after_logits_that_were_nan_nothing_of_them_is_left(way: str) -> None:
    model = make("llama")
    turns, weight = begin(model, way, PROMPTS), model.model.layers[0].self_attn.v_proj.weight
    turns.say(None)
    kept = weight.detach().clone()
    turns.hear([0, 1], [[3], [4, 5]])
    with torch.no_grad():
        weight.fill_(float("nan"))
        with pytest.raises(NotFiniteError):
            turns.say(None)
        weight.copy_(kept)
    full = [list(tokens) for tokens in turns.tokens]
    assert turns.say(None) == sampler(model).completions(full, None)


@WAYS
def test_the_autocast_of_the_trainer_is_that_of_every_turn(way: str) -> None:
    model, noise = make("llama"), episode_uniforms(0, range(5), LENGTH)
    turns = begin(model, way, PROMPTS)
    turns.context = lambda: torch.autocast("cpu", torch.bfloat16)
    for _ in range(3):
        full = [list(tokens) for tokens in turns.tokens]
        said = turns.say(noise)
        with torch.autocast("cpu", torch.bfloat16):
            expected = sampler(model).completions(full, noise)
        # bfloat16 rounds other shapes otherwise, so only the beginnings are compared.
        same = [one[:2] == two[:2] for one, two in zip(said, expected, strict=True)]
        assert sum(same) >= 4
        turns.hear(range(5), [[3]] * 5)
    cache = turns.way.cache
    assert cache is not None
    values = cache.layers[0].values
    assert torch.equal(values, values.bfloat16().to(values.dtype))


def test_a_row_has_to_hear_something() -> None:
    turns = begin(make("llama"), "transformers", PROMPTS)
    turns.say(None)
    with pytest.raises(AssertionError, match="hears nothing"):
        turns.hear([0, 1], [[3], []])


def test_the_noise_of_the_first_turn_is_that_of_completions() -> None:
    for episode in (0, 3, 2**40):
        plain = np.random.Generator(np.random.Philox(key=[7, episode])).random(50)
        assert np.array_equal(episode_uniforms(7, [episode], 50)[0].numpy(), plain)
        assert np.array_equal(episode_uniforms(7, [episode], 50, 0)[0].numpy(), plain)


def test_the_noise_of_a_turn_is_far_along_the_same_stream() -> None:
    bits = np.random.Philox(key=[7, 3])
    bits.advance(5 * 2**64)
    expected = np.random.Generator(bits).random(50)
    assert np.array_equal(episode_uniforms(7, [3], 50, 5)[0].numpy(), expected)


def test_the_noise_of_turns_is_independent_and_comes_in_any_order() -> None:
    forth = [episode_uniforms(1, [4, 9], 4000, turn) for turn in range(4)]
    back = [episode_uniforms(1, [9, 4], 4000, turn).flip(0) for turn in reversed(range(4))]
    assert all(torch.equal(one, two) for one, two in zip(forth, reversed(back), strict=True))
    assert torch.equal(episode_uniforms(1, [9], 7, 3)[0], forth[3][1, :7])
    rows = torch.cat(forth)  # of two episodes in four turns
    between = torch.corrcoef(rows) - torch.eye(8)
    assert between.abs().max() < 4.5 / 4000**0.5  # 4.5 standard deviations of a correlation
    assert rows.unique().numel() == rows.numel()
    assert (rows.mean(1) - 0.5).abs().max() < 4.5 * (1 / 12 / 4000) ** 0.5
