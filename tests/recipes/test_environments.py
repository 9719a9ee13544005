"""PPO over several turns with an environment, on tiny models and a game whose optimum is known."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from recipes.lib.errors import UserError
from recipes.lib.plan.planner import plan_of
from recipes.lib.plan.target import Target
from recipes.lib.ppo.config import PPOConfig
from recipes.lib.ppo.playing import conversation
from recipes.lib.ppo.rollouts import Episode, Turn
from recipes.lib.ppo.trainer import PPOTrainer
from recipes.lib.recipe.main import parse
from recipes.ppo import run
from tests.conftest import ROOT
from tests.helpers import tiny


class OneTurn:
    """Asks the row's prompt and pays for the letters a and b."""

    def reset(self, ask: str, seed: int) -> str:
        return ask

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        return "", paid(text), True, False


def paid(text: str) -> float:
    return float(sum(word in ("a", "b") for word in text.split()))


def paying(completions: list[str], **_: Any) -> list[float]:
    return [paid(text) for text in completions]


class Walk:
    """A walk of up to five turns over numbers, by what was said, with noise of its own seed."""

    def reset(self, seed: int, **row: Any) -> str:
        self.random, self.turns, self.place = random.Random(seed), 0, 0
        return "a" if self.random.random() < 0.5 else "b c"

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        self.turns += 1
        self.place += len(text.split()) % 3 - 1
        heard = " ".join("defgh"[self.random.randrange(5)] for _ in range(1 + self.turns % 3))
        over = self.place in (-2, 2)
        return heard, self.place / 2, over, self.turns == 5 and not over


def make(folder: Path, environment: Any, rows: Any = None, **more: Any) -> PPOTrainer:
    model = more.pop("model", None) or tiny.llama(max_position_embeddings=256)
    own = {
        name: more.pop(name) for name in ("eval_dataset", "callbacks", "cost_funcs") if name in more
    }
    reward = more.pop("reward_funcs", [])
    return PPOTrainer(
        model,
        reward,
        PPOConfig(output_dir=str(folder), **(tiny.SETTINGS | more)),
        Dataset.from_list(rows or [{"ask": text} for text in tiny.PROMPTS]),
        processing_class=more.pop("tokenizer", None) or tiny.tokenizer(),
        environment=environment,
        **own,
    )


def logged(trainer: PPOTrainer) -> list[dict[str, Any]]:
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.parametrize("context", ["all", "last"])
def test_one_turn_is_ppo_without_an_environment_to_the_bit(tmp_path: Path, context: str) -> None:
    settings = {"missing_eos_penalty": 0.25, "normalize_rewards": True, "reward_clip": 1.5}
    plain = tiny.trainer(
        tmp_path / "plain", tiny.llama(max_position_embeddings=256), reward=paying, **settings
    )
    rows = [{"ask": text} for text in tiny.PROMPTS]
    played = make(tmp_path / "played", OneTurn, rows, context=context, **settings)
    plain.train()
    played.train()
    assert tiny.same(tiny.state(plain.actor_critic), tiny.state(played.actor_critic))
    for one, other in zip(logged(plain), logged(played), strict=True):
        assert {name: other[name] for name in one} == one


@pytest.mark.parametrize("context", ["all", "last"])
@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, context: str, step: int) -> None:
    class StopAt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                control.should_save = control.should_training_stop = True

    settings = {"context": context, "num_environments": 2, "total_episodes": 32}
    whole = make(tmp_path / "whole", Walk, **settings)
    whole.train()
    first = make(tmp_path / "first", Walk, callbacks=[StopAt()], save_strategy="steps", **settings)
    first.train()
    second = make(tmp_path / "second", Walk, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / f"first/checkpoint-{step}"))
    assert tiny.same(tiny.state(whole.actor_critic), tiny.state(second.actor_critic))
    assert logged(whole)[-1] == logged(second)[-1]


@pytest.mark.parametrize("context", ["all", "last"])
@pytest.mark.parametrize("sampler", ["graph", "transformers"])
def test_a_rollout_depends_on_no_batch(tmp_path: Path, context: str, sampler: str) -> None:
    def rollout(size: int, slots: int) -> Any:
        trainer = make(
            tmp_path / f"{size}", Walk, context=context, sampler=sampler,
            sampling_batch_size=size, scoring_batch_size=size, num_environments=slots,
        )  # fmt: skip
        return trainer.collector.rollout(0)

    one, other = rollout(1, 8), rollout(8, 8)
    for name in ("prompt_ids", "completion_ids", "completion_mask", "action_mask"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("old_logps", "old_values", "advantages", "returns"):  # but for rounding
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-4), name
    if context == "all":
        assert not torch.equal(one.action_mask, one.completion_mask)


def test_evaluation_plays_whole_episodes(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"ask": text} for text in ("a", "b c")])
    found = {}
    for context in ("all", "last"):
        trainer = make(tmp_path / context, Walk, context=context, eval_dataset=rows)
        found[context] = trainer.evaluate()
        assert trainer.evaluate() == found[context]
        seed = trainer.args.seed ^ (1 << 62)
        played = trainer.collector.player.whole(trainer.collector.prompts, [0, 1], [0, 1], seed)
        totals = [row.outcome[0] for rows in played for row in rows if row.outcome]
        assert found[context]["eval_scores"] == pytest.approx(sum(totals) / 2)


def test_reward_functions_get_the_conversation(tmp_path: Path) -> None:
    asked: list[Any] = []

    def half(prompts: list[Any], completions: list[Any], **row: list[str]) -> list[float]:
        assert set(row["ask"]) <= set(tiny.PROMPTS)
        asked.extend(zip(prompts, completions, strict=True))
        return [0.5] * len(prompts)

    trainer = make(tmp_path, Walk, reward_funcs=half, log_completions=True, total_episodes=8)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert rows
    for row, (prompt, completion) in zip(rows, asked, strict=False):
        turns = row["turns"]
        assert row["score"] == pytest.approx(sum(turn["reward"] for turn in turns))
        assert completion == "".join(turn["text"] + turn["answer"] for turn in turns)
        assert prompt in ("a", "b c")
        texts = ["".join(row["tokens"][turn["start"] : turn["end"]]) for turn in turns]
        heard = [text.replace("<eos>", " ").replace("<pad>", " ").split() for text in texts]
        assert heard == [turn["text"].split() for turn in turns]
    walked = make(tmp_path / "alone", Walk, total_episodes=8)
    walked.collector.rollout(0)
    with_function = trainer.collector.metrics["objective/scores"]
    assert with_function == pytest.approx(walked.collector.metrics["objective/scores"] + 0.5)


@pytest.mark.parametrize(("last", "length"), [("No, the fox.", 4), ("", 3)])
def test_a_conversation_in_messages_ends_with_the_last_answer_if_there_is_one(
    last: str, length: int
) -> None:
    turns = [Turn(0, 1, "Is it quick?", 0.0, "Yes."), Turn(2, 3, "The owl.", 0.0, last)]
    episode = Episode(0, [1], [1, 2, 3], asked=[{"role": "user", "content": "Go."}], turns=turns)
    texts = ["Is it quick?", "Yes.", "The owl.", last]
    roles = ["assistant", "user"] * 2
    expected = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    assert conversation(episode, "user") == expected[:length]


class Failing(Walk):
    turns_left = 40

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        type(self).turns_left -= 1
        if type(self).turns_left < 0:
            raise ValueError("the lamp went out")
        return super().step(text)


def test_a_world_that_fails_stops_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    Failing.turns_left = 60
    trainer = make(tmp_path, Failing, total_episodes=64)
    trainer.listens = True  # as the recipe has it
    with pytest.raises(UserError) as told:
        trainer.train()
    assert "environment Failing raised ValueError twice: the lamp went out" in str(told.value)
    assert "--resume goes on" in str(told.value)
    (folder,) = tmp_path.glob("checkpoint-*")
    Failing.turns_left = 10**9
    again = make(tmp_path, Failing, total_episodes=64)
    whole = make(tmp_path / "whole", Walk, total_episodes=64)
    again.train(resume_from_checkpoint=str(folder))
    whole.train()
    assert tiny.same(tiny.state(whole.actor_critic), tiny.state(again.actor_critic))


class Chatty(Walk):
    def step(self, text: str) -> tuple[str, float, bool, bool]:
        heard, reward, over, cut = super().step(text)
        return " ".join([heard] * 5), reward, over, cut


def test_a_conversation_ends_at_its_limit_of_tokens(tmp_path: Path) -> None:
    trainer = make(tmp_path, Chatty, max_episode_length=30)
    rollout = trainer.collector.rollout(0)
    lengths = rollout.prompt_mask.sum(1) + rollout.completion_mask.sum(1)
    assert lengths.max() <= 30
    assert trainer.collector.metrics["environment/cut_fraction"] > 0
    for episode in trainer.collector.player.whole(trainer.collector.prompts, [0], [3], 5)[0]:
        assert len(episode.following_ids) <= 29


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "vllm"}, "sampler=vllm does not go on after an environment's answer"),
        ({"context": "last", "reward_funcs": paying}, "context=last: reward functions and tools"),
        ({"max_episode_length": 999}, "max_episode_length=999 is more than the model's context"),
        (
            {"context": "last", "max_episode_length": 99},
            "max_episode_length=99: with context=last no",
        ),
        ({"rows": [{"ask": "a", "seed": 7}]}, "the data set has a column seed"),
        ({"max_episode_length": 7}, "max_episode_length=7 has no room for a prompt and"),
        ({"num_environments": 3}, "rollout_batch_size=8 is no multiple of num_environments=3"),
        ({"max_turns": 0}, "max_turns=0 must be 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as told:
        make(tmp_path, Walk, **settings).collector.rollout(0)
    assert str(told.value).startswith(words)


def test_an_observation_that_is_too_long_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, OneTurn, max_prompt_length=3)
    with pytest.raises(UserError, match="max_prompt_length=3: an observation of the environment"):
        trainer.collector.rollout(0)


class Steady:
    """Pays one a turn and is cut off after ten."""

    def reset(self, **row: Any) -> str:
        self.turns = 0
        return "a b"

    def step(self, text: str) -> tuple[str, float, bool, bool]:
        self.turns += 1
        return "" if self.turns == 10 else "c", 1.0, False, self.turns == 10


def test_scores_are_of_whole_episodes_where_turns_are_rows(tmp_path: Path) -> None:
    trainer = make(tmp_path, Steady, context="last", num_environments=2, total_episodes=64)
    trainer.train()  # four turns of each slot a rollout, and ten an episode
    told = [(row["objective/scores"], row.get("environment/return")) for row in logged(trainer)]
    assert [score for score, _ in told[2:]] == [10.0] * 6
    assert [total for _, total in told] == [None, None, 10.0, None, 10.0, None, None, 10.0]
    assert logged(trainer)[2]["environment/cut_fraction"] == 1.0


def test_what_is_logged_of_an_environment_is_documented(tmp_path: Path) -> None:
    trainer = make(tmp_path, Walk, total_episodes=8)
    trainer.train()
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    section = page.partition("## With an environment")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(environment/\w+)`", section))
    assert named == {key for key in logged(trainer)[0] if key.startswith("environment/")}


def test_a_limit_may_leave_nothing_to_read(tmp_path: Path) -> None:
    trainer = make(tmp_path, Steady)
    trainer.collector.rollout(0)
    assert trainer.collector.metrics["environment/turns"] == 10


def test_memory_is_taken_as_conversations_grow(tmp_path: Path) -> None:
    trainer = make(tmp_path, Walk, model=tiny.llama(max_position_embeddings=100_000))
    session = trainer.collector.sampler.begin([[4, 5, 6]])
    expected = trainer.args.max_prompt_length + trainer.args.max_completion_length
    assert session.way.window.num_slots == expected


def test_an_observation_beyond_the_context_is_refused(tmp_path: Path) -> None:
    for context in ("all", "last"):
        model = tiny.gpt2(n_positions=10)
        trainer = make(tmp_path / context, OneTurn, model=model, context=context)
        with pytest.raises(UserError, match="more than the 10 that are read; lower it, or let"):
            trainer.collector.rollout(0)


def test_who_pays_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no reward"):
        make(tmp_path, None, rows=[{"prompt": "a"}])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_turns": 4}, "max_turns=4 has no effect here; name an environment or tools"),
        ({"gamma_per": "turn"}, "gamma_per=turn has no effect here"),
        (
            {"environment": "worlds.py:Walk", "num_environments": 4},
            "num_environments=4 has no effect here; use context=last",
        ),
    ],
)
def test_keys_of_turns_without_turns_are_refused(
    tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    given |= {"model_name_or_path": "none", "dataset_name": "none", "reward_funcs": "x.py:f"}
    given |= {"output_dir": str(tmp_path / "run"), "use_cpu": True, "bf16": False}
    with pytest.raises(UserError) as error:
        run(parse("ppo", [], given))
    assert str(error.value).startswith(told)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_comes_close_to_the_best_policy_of_a_stochastic_game() -> None:
    from scripts.bench.environments.exact_game import train

    assert train(1)["optimality"] >= 0.985


def test_a_state_behind_a_limit_leaves_room_for_the_token_that_is_not_there(
    tmp_path: Path,
) -> None:
    """Positions of a GPT-2 end with its context, and a value stands before a token."""
    trainer = make(tmp_path, Steady, model=tiny.gpt2(n_positions=8), context="last", max_turns=10)
    played = trainer.collector.player.whole(trainer.collector.prompts, range(4), range(4), 3)
    rows = [row for episode in played for row in episode]
    assert {len(row.prompt_ids) + len(row.completion_ids) for row in rows} >= {8}
    trainer.collector.score(trainer.collector.prompts, rows)
    assert all(len(row.following_ids) < 8 for row in rows)


@pytest.mark.parametrize(("context", "tokens"), [("all", 224), ("last", 6)])
def test_a_plan_counts_whole_conversations(tmp_path: Path, context: str, tokens: int) -> None:
    tiny.llama(max_position_embeddings=256).save_pretrained(tmp_path / "start")
    tiny.tokenizer().save_pretrained(tmp_path / "start")
    given: dict[str, Any] = {"environment": "worlds.py:Walk"}
    given |= {"model_name_or_path": str(tmp_path / "start")}
    given |= {"max_prompt_length": 32, "max_completion_length": 6, "use_cpu": True}
    made = plan_of(parse("ppo", [], given | {"context": context, "bf16": False}), Target())
    assert made.facts["lengths"] == f"prompts of 32 tokens, completions of {tokens}"
