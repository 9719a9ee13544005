"""Checklist 18 to 25: where the score goes, what it is taken from, and how it is scaled."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, pipeline

from recipes.lib.errors import UserError
from recipes.lib.generation.sampling import episode_uniforms, mask_through_stop
from recipes.lib.ppo.collector import EVALUATION_SEED
from recipes.lib.ppo.returns import advantages_and_returns, whiten
from recipes.lib.ppo.rollouts import Episode
from recipes.lib.rewards.reward_models import RewardModel, load_reward_functions
from tests.helpers import tiny

REWARD_WORDS = "<start> <eos> <unk> <pad> l k j i h g f e d c b a . [ask] [/ask]".split()
REWARD_TEMPLATE = (
    "<start> {% for message in messages %}"
    "{% if message.role == 'user' %}[ask] {{ message.content }} [/ask] "
    "{% else %}{{ message.content }} <eos>{% endif %}"
    "{% endfor %}"
)
POLICY_TEMPLATE = (
    "{% for message in messages %}{{ message.content }} . {% endfor %}"
    "{% if add_generation_prompt %}b {% endif %}"
)


def test_item_18_score_on_the_last_real_token(tmp_path: Path) -> None:
    scores: list[float] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        scores.extend(sum(ids) + 0.5 for ids in completion_ids)
        return scores

    trainer = tiny.trainer(tmp_path, reward=reward, kl_coef=0.0, lam=1.0)
    rollout = trainer.collector.rollout(0)
    lengths = rollout.completion_mask.sum(1)
    assert lengths.min() < lengths.max()
    # without KL, with values of 0 and gamma = lambda = 1 every token's return is the score ...
    for row, (length, score) in enumerate(zip(lengths.tolist(), scores, strict=True)):
        assert rollout.returns[row].tolist() == [score] * length + [0.0] * (6 - length)
    # ... and what is handed out along the completion adds up to it once
    steps = rollout.returns - torch.nn.functional.pad(rollout.returns[:, 1:], (0, 1))
    assert (steps * rollout.completion_mask).sum(1).tolist() == pytest.approx(scores)


def test_item_19_the_penalty_asks_for_the_configured_stop_token_in_the_completion(
    tmp_path: Path,
) -> None:
    trainer = tiny.trainer(tmp_path, stop_token=".", missing_eos_penalty=1.5)
    stop, eos = 3, 1
    assert trainer.collector.decoding.stop_token_id == stop
    assert trainer.collector.decoding.generation_config().eos_token_id == stop
    episodes = [
        Episode(0, [4], [7, stop], score=2.0),  # ended
        Episode(0, [4], [7, 8], score=2.0),  # cut off
        Episode(0, [4], [7, eos], score=2.0),  # the tokenizer's end token is not the one asked for
        Episode(0, [4, stop], [7, 8], score=2.0),  # the stop token stands in the prompt only
    ]
    # subtracted from the score, not put in its place
    assert trainer.collector.penalised(episodes).tolist() == [2.0, 0.5, 0.5, 0.5]


def test_item_19_real_completions_end_with_the_configured_stop_token(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, stop_token=".", missing_eos_penalty=1.5, reward=tiny.nothing)
    rollout = trainer.collector.rollout(0)
    completions = [completion for _, completion in tiny.sequences(rollout)]
    ended = [ids[-1] == 3 for ids in completions]
    assert 0 < sum(ended) < 8
    assert all(3 not in ids[:-1] for ids in completions)
    assert all(len(ids) == 6 for ids, end in zip(completions, ended, strict=True) if not end)
    metrics = trainer.collector.metrics
    assert metrics["objective/eos_fraction"] == sum(ended) / 8
    assert metrics["objective/scores"] == pytest.approx(-1.5 * (8 - sum(ended)) / 8)
    assert metrics["objective/raw_scores"] == 0.0


ENDS = [1, 3, 7]  # <eos>, a full stop and the word d


def with_ends() -> LlamaForCausalLM:
    model = tiny.llama()
    model.generation_config.eos_token_id = ENDS
    return model


def test_item_19_each_end_token_of_the_model_counts_unless_one_is_configured(
    tmp_path: Path,
) -> None:
    episodes = [Episode(0, [4], [8, end], score=2.0) for end in (*ENDS, 9)]
    episodes.append(Episode(0, [4, 7], [8, 10], score=2.0))  # an end token in the prompt only
    for stop_token, expected in (
        (None, [2.0, 2.0, 2.0, 0.5, 0.5]),
        ("eos", [2.0, 0.5, 0.5, 0.5, 0.5]),
        (".", [0.5, 2.0, 0.5, 0.5, 0.5]),
        ("f", [0.5, 0.5, 0.5, 2.0, 0.5]),  # one that is not the model's
    ):
        named = {"stop_token": stop_token, "missing_eos_penalty": 1.5}
        trainer = tiny.trainer(tmp_path, with_ends(), **named)
        assert trainer.collector.penalised(episodes).tolist() == expected
    elsewhere = tiny.llama()
    elsewhere.generation_config.eos_token_id = [3, 7]  # without the tokenizer's: another's list
    trainer = tiny.trainer(tmp_path, elsewhere, missing_eos_penalty=1.5)
    assert trainer.collector.penalised(episodes).tolist() == [2.0, 0.5, 0.5, 0.5, 0.5]


def sampled(model: Any, prompt: list[int], noise: torch.Tensor | None) -> list[int]:
    """A completion worked out by itself, a token at a time, up to the first end token."""
    ids: list[int] = []
    for place in range(6):
        probs = tiny.log_probs(model, prompt + ids)[-1].exp()
        is_passed = probs.cumsum(0) <= (noise[place] if noise is not None else 0.0)
        ids.append(int(is_passed.sum()) if noise is not None else int(probs.argmax()))
        if ids[-1] in ENDS:
            break
    return ids


def test_item_19_completions_end_with_the_first_end_token_of_the_model(tmp_path: Path) -> None:
    seen: list[tuple[list[int], str]] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(zip(completion_ids, completions, strict=True))
        return [1.0] * len(completions)

    more = {"missing_eos_penalty": 1.5, "log_completions": True}
    trainer = tiny.trainer(tmp_path, with_ends(), reward=reward, **more)
    model, prompts = with_ends(), trainer.collector.prompts
    noise = episode_uniforms(trainer.args.seed, range(8), 6)
    made = tiny.sequences(trainer.collector.rollout(0))
    expected = [sampled(model, asked, noise[row]) for row, (asked, _) in enumerate(made)]
    assert [ids for _, ids in made] == expected
    last = [ids[-1] for ids in expected]
    assert len(set(last) & set(ENDS)) > 1
    ended = [token in ENDS for token in last]
    metrics = trainer.collector.metrics
    assert metrics["objective/eos_fraction"] == sum(ended) / 8 < 1
    assert metrics["objective/scores"] == pytest.approx(1.0 - 1.5 * (8 - sum(ended)) / 8)
    for sample, ids in zip(trainer.collector.samples, expected, strict=False):
        assert [text.strip() for text in sample["tokens"]] == [tiny.WORDS[i] for i in ids]
        assert sample["num_tokens"] == len(ids)
    # An end token is no part of what a reward reads, and the evaluation stops like the training.
    seen.clear()
    said = trainer.evaluate(trainer.train_dataset)
    noise = episode_uniforms(trainer.args.seed ^ EVALUATION_SEED, range(4), 6)
    expected = [sampled(model, prompts.ids[row], noise[row]) for row in range(4)]
    assert said["eval_completions/mean_length"] == sum(map(len, expected)) / 4
    expected += [sampled(model, ids, None) for ids in prompts.ids]
    assert [ids for ids, _ in seen] == expected
    for ids, text in seen:
        words = ids[:-1] if ids[-1] in ENDS else ids
        assert text.split() == [tiny.WORDS[i] for i in words if i > 1]  # <unk> is text


def test_item_20_the_end_is_terminal_also_where_the_completion_was_cut_off() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 4.0]])
    # gamma = 0.5, lambda = 0: deltas 0 + 0.5 - 0.5, 0 + 2 - 1 and 2 - 4 with nothing behind
    advantages, returns = advantages_and_returns(rewards, values, torch.ones(1, 3), 0.5, 0.0)
    assert advantages.tolist() == [[0.0, 1.0, -2.0]]
    assert returns.tolist() == [[0.5, 2.0, 2.0]]


def test_item_21_what_stands_behind_the_end_reaches_no_score_and_no_loss(tmp_path: Path) -> None:
    seen: list[tuple[list[int], str]] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(zip(completion_ids, completions, strict=True))
        return [float(sum(ids)) for ids in completion_ids]

    trainer = tiny.trainer(tmp_path, reward=reward)
    tiny.shake(trainer.model)
    batches = itertools.islice(trainer.stream, 8)  # those of the first rollout
    batch = next(b for b in batches if b["completion_mask"].sum(1).unique().numel() > 1)
    assert any(ids[-1] == 1 and len(ids) < 6 for ids, _ in seen)
    for ids, text in seen:
        assert 1 not in ids[:-1]
        assert "".join(text.split()) == "".join(tiny.WORDS[i] for i in ids if i > 1)
    found = []
    for filler in (0, 9):
        filled = torch.where(batch["completion_mask"].bool(), batch["completion_ids"], filler)
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch | {"completion_ids": filled})
        loss.backward()
        found.append((loss.item(), trainer.model.policy.lm_head.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_item_21_the_mask_of_a_completion_ends_with_its_first_stop_token() -> None:
    ids = torch.tensor([[5, 1, 6, 7], [5, 1, 1, 1], [5, 6, 7, 8], [1, 1, 5, 6]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert mask_through_stop(ids, 1).tolist() == expected


def reward_model(pad: str = "<pad>") -> tuple[Any, Any]:
    """A classifier with its own words, its own template and a start token that it is used to."""
    words = tiny.tokenizer(pad=pad, words=REWARD_WORDS, start="<start>")
    words.chat_template = REWARD_TEMPLATE
    more = {"vocab_size": len(REWARD_WORDS), "pad_token_id": words.pad_token_id}
    model = tiny.llama(seed=7, kind=LlamaForSequenceClassification, num_labels=1, **more)
    return model.eval(), words


@pytest.mark.parametrize("spoken", [False, True])
def test_item_22_scores_are_those_of_an_independent_pipeline_on_the_text(
    tmp_path: Path, spoken: bool
) -> None:
    model, words = reward_model()
    policy_words = tiny.tokenizer()
    policy_words.chat_template = POLICY_TEMPLATE
    prompts = ["a b", "c", "d e f g", "h"]
    rows = [[{"role": "user", "content": p}] for p in prompts] if spoken else prompts
    trainer = tiny.trainer(
        tmp_path,
        reward=model,
        reward_processing_classes=words,
        tokenizer=policy_words,
        prompts=rows,
    )
    # other ids for the same words, so a score from the policy's ids would be another
    assert words.convert_tokens_to_ids("a") != policy_words.convert_tokens_to_ids("a")
    collector = trainer.collector
    uniforms = torch.rand(4, 6, dtype=torch.float64)
    episodes = collector.sample(collector.prompts, range(4), uniforms)
    collector.score(collector.prompts, episodes)
    judge = pipeline(
        "text-classification", model=model, tokenizer=words, function_to_apply="none", device="cpu"
    )
    for prompt, episode in zip(prompts, episodes, strict=True):
        said = " ".join(tiny.WORDS[i] for i in episode.completion_ids if i != 1)
        said = said.replace("<pad>", "")
        # the pipeline puts the start token in front, the template is written out by hand
        text = f"[ask] {prompt} [/ask] {said} <eos>" if spoken else f"{prompt} {said} <eos>"
        assert episode.score == pytest.approx(judge(text)[0]["score"], abs=1e-5)


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_item_22_a_padded_batch_scores_like_batches_of_one(pad: str) -> None:
    scorer = RewardModel(*reward_model(pad), name="reward")
    prompts, completions = ["a", "b c", "d e f g h", "i"], [" a", " b c d e f", " g", " h i j"]
    together = scorer(prompts, completions)
    alone = [scorer([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 4
    # an end token that is there already is not doubled
    assert scorer.texts(["a"], [" b<eos>"]) == ["a b<eos>"]
    assert scorer.texts(["a"], [" b"]) == ["a b<eos>"]


def test_item_23_a_reward_model_has_one_output_and_no_random_head(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    two = tiny.llama(kind=LlamaForSequenceClassification, num_labels=2)
    with pytest.raises(UserError, match="has 2 outputs; a reward model has 1"):
        load_reward_functions(two, words, 8, "cpu")
    for name, model, message in (
        ("two", two, "it has 2 labels and a reward model has one"),
        ("language", tiny.llama(kind=LlamaForCausalLM), "do not hold score.weight"),
    ):
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=message):
            load_reward_functions(str(tmp_path / name), None, 8, "cpu")
    one = tiny.llama(kind=LlamaForSequenceClassification, num_labels=1)
    (scorer,) = load_reward_functions(one, words, 8, "cpu")
    assert [len(scorer(["a"] * n, ["b"] * n)) for n in (1, 3)] == [1, 3]
    assert not any(p.requires_grad for p in one.parameters())


def test_item_24_constant_scores_stay_finite_under_every_scaling(tmp_path: Path) -> None:
    def two(prompts: list[str], **_: Any) -> list[float]:
        return [2.0] * len(prompts)

    settings = {"normalize_rewards": True, "whiten_rewards": True}
    trainer = tiny.trainer(tmp_path, reward=two, kl_coef=0.0, **settings)
    rollout = trainer.collector.rollout(0)
    assert torch.isfinite(rollout.advantages).all()
    assert torch.isfinite(rollout.returns).all()
    assert trainer.collector.metrics["objective/scores"] == 2.0
    assert trainer.collector.moments.mean == 2.0


def test_item_25_whitened_rewards_keep_their_mean_and_so_their_sign(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, whiten_rewards=True, kl_coef=0.0, lam=1.0, num_generations=2)
    rollout = trainer.collector.rollout(0)
    count = rollout.completion_mask.sum()
    steps = rollout.returns - torch.nn.functional.pad(rollout.returns[:, 1:], (0, 1))
    rewards = steps[rollout.completion_mask.bool()]
    # only the last token of each of the eight completions was rewarded, by its score
    raw_mean = 8 * trainer.collector.metrics["objective/scores"] / count
    assert raw_mean > 0.05
    assert rewards.mean().item() == pytest.approx(raw_mean.item(), abs=1e-5)
    assert rewards.var(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    positive = torch.tensor([[4.0, 5.0, 6.0]])
    assert (whiten(positive, torch.ones(1, 3), shift_mean=False) > 0).all()
