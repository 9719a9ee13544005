"""Sampling: the right distribution, noise that belongs to the episode, no foreign settings."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from recipes.lib.generation.sampling import Decoding, episode_uniforms, generate, invert_cdf


def test_an_episodes_noise_depends_on_seed_episode_and_position_alone() -> None:
    together = episode_uniforms(7, range(5), 6)
    alone = episode_uniforms(7, [3], 4)
    assert torch.equal(together[3, :4], alone[0])
    assert not torch.equal(together[3], together[4])
    assert not torch.equal(together, episode_uniforms(8, range(5), 6))
    assert together.dtype == torch.float64
    assert ((together >= 0) & (together < 1)).all()


def test_item_07_tokens_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, float("-inf"), 0.5])
    expected = (logits.double() / 0.7).softmax(-1)
    number = 20_000
    uniforms = episode_uniforms(0, range(number), 1)[:, 0]
    tokens = invert_cdf(logits.repeat(number, 1), uniforms, temperature=0.7)
    counts = torch.bincount(tokens, minlength=6)
    assert counts[4] == 0
    kept = [0, 1, 2, 3, 5]
    # one test at the 0.1 % level with a fixed seed
    assert chisquare(counts[kept], expected[kept].numpy() * number).pvalue > 0.001


def test_the_ends_of_the_unit_interval_pick_tokens_of_positive_probability() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]] * 2)
    picked = invert_cdf(logits, torch.tensor([0.0, 1.0 - 2**-53]).double(), 1.0)
    assert picked.tolist() == [1, 2]


def prompts(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def decode(tokenizer: Any, max_new_tokens: int) -> Decoding:
    return Decoding(max_new_tokens, 1.0, tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_item_13_a_completion_does_not_depend_on_the_batch_that_it_is_in(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [6, 6]]
    uniforms = episode_uniforms(1, range(4), 8)
    decoding, pad = decode(tiny_tokenizer, 8), tiny_tokenizer.pad_token_id
    together, mask = generate(tiny_model, *prompts(rows, pad), uniforms, decoding)
    for i, row in enumerate(rows):
        alone, alone_mask = generate(
            tiny_model, *prompts([row], pad), uniforms[i : i + 1], decoding
        )
        length = int(alone_mask.sum())
        assert together[i, : int(mask[i].sum())].tolist() == alone[0, :length].tolist()


def test_item_08_the_models_own_generation_config_has_no_say(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    ids, mask = prompts([[5, 6], [7]], tiny_tokenizer.pad_token_id)
    uniforms = episode_uniforms(1, range(2), 8)
    decoding = decode(tiny_tokenizer, 8)
    expected = generate(tiny_model, ids, mask, uniforms, decoding)
    stored = tiny_model.generation_config
    tiny_model.generation_config = GenerationConfig(
        top_k=1, repetition_penalty=5.0, eos_token_id=int(expected[0][0, 0]), min_new_tokens=8
    )
    try:
        got = generate(tiny_model, ids, mask, uniforms, decoding)
        assert tiny_model.generation_config.repetition_penalty == 5.0
    finally:
        tiny_model.generation_config = stored
    assert torch.equal(expected[0], got[0])


def test_without_noise_the_tokens_are_those_of_greedy_generate(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    ids, mask = prompts([[5, 6, 7], [8, 9]], tiny_tokenizer.pad_token_id)
    decoding = decode(tiny_tokenizer, 6)
    got, got_mask = generate(tiny_model, ids, mask, None, decoding)
    expected = tiny_model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=decoding.stop_token_id,
        pad_token_id=decoding.pad_token_id,
    )[:, ids.shape[1] :]
    assert torch.equal(got[got_mask.bool()], expected[got_mask.bool()])


def test_the_models_mode_comes_back(tiny_model: Any, tiny_tokenizer: Any) -> None:
    ids, mask = prompts([[5]], tiny_tokenizer.pad_token_id)
    for training in (True, False):
        tiny_model.train(training)
        generate(tiny_model, ids, mask, None, decode(tiny_tokenizer, 2))
        assert tiny_model.training is training


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_item_06_temperature_scales_the_logits(temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    probability = (logits / temperature).softmax(-1)[0, 0].item()
    just_below, just_above = probability - 1e-6, probability + 1e-6
    uniforms = torch.tensor([just_below, just_above]).double()
    assert invert_cdf(logits.repeat(2, 1), uniforms, temperature).tolist() == [0, 1]
