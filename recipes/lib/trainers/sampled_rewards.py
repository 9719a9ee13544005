"""Our rewards under TRL's RLOO and GRPO trainers, and the completions that they were asked about.

What a reward reads and may say is the same as under PPO: the text that continues the prompt, one
finite number or None for each row, and at least one number for every row. TRL's trainers decode a
completion by itself (many tokenizers then drop the space in front of it), take NaN for None, and
only warn of a row without any reward.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerState
from trl import GRPOConfig, RLOOConfig

from recipes.lib.data.prompts import completion_text, prompt_token_ids
from recipes.lib.distributed.agreement import agreed_section
from recipes.lib.rewards.held_out import check_best_metric, held_out_metrics
from recipes.lib.rewards.reward_models import load_reward_functions
from recipes.lib.rewards.scoring import (
    RewardFunction,
    as_answers,
    await_rewards,
    call_reward,
    checked_rewards,
    distinct_names,
    is_async,
    refuse_unrated,
    reward_weights,
    weighted_scores,
    without_places,
)
from recipes.lib.runs.files import append_jsonl

NUM_KEPT = 4  # completions of a generation or a rollout that samples.jsonl gets


class SampledRewards:
    """Reward functions as TRL calls them, one after the other on the same completions.

    Args:
        functions: Reward functions of this project.
        weights: One weight for each; None for 1.
        tokenizer: The policy's tokenizer.
        template_kwargs: Further arguments of its chat template.
        is_kept: Whether samples.jsonl gets completions.
        held_out: Reward functions that evaluations ask, too.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None,
        tokenizer: Any,
        template_kwargs: dict[str, Any] | None = None,
        *,
        is_kept: bool = False,
        held_out: Sequence[RewardFunction] = (),
    ) -> None:
        self.held_out = held_out
        self.evaluated: list[dict[str, Any]] | None = None  # batches of an evaluation
        self.names, self.asked = distinct_names(functions), functions
        self.weights = reward_weights(functions, weights)
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs
        self.is_kept = is_kept
        self.are_conversations = False  # with tools, whose messages TRL hands on
        self.completion_ids: Sequence[list[int]] = []
        self.prompt_ids: list[list[int]] = []
        self.ends: Sequence[int] = ()
        self.texts: list[str] = []
        self.places: list[str] = []
        self.said: dict[int, list[float]] = {}
        self.carried: list[dict[str, Any]] = []  # samples taken up
        self.functions = [self._called(i, function) for i, function in enumerate(functions)]

    def _called(self, index: int, function: RewardFunction) -> RewardFunction:
        def called(**given: Any) -> list[float | None]:
            with agreed_section():  # TRL gathers next what all processes say
                answer = call_reward(function, self._given(given))
                if inspect.isawaitable(answer):
                    answer = await_rewards([answer], [function])[0]
                return self._hear(index, function, answer)

        async def awaited(**given: Any) -> list[float | None]:
            # TRL waits for all async functions together if it can tell that they are.
            return self._hear(index, function, await call_reward(function, self._given(given)))

        made = awaited if is_async(function) else called
        made.__name__ = self.names[index]
        return made

    def _given(self, given: dict[str, Any]) -> dict[str, Any]:
        if is_new := given["completion_ids"] is not self.completion_ids:
            self._begin(given["prompts"], given["completion_ids"])
        if not self.are_conversations:
            given["completions"] = as_answers(given["prompts"], self.texts)
        if is_new and self.evaluated is not None:
            self.evaluated.append(given)
        given, self.places = without_places(given)
        return given

    def _begin(self, prompts: Sequence[Any], completion_ids: Sequence[list[int]]) -> None:
        self.completion_ids, self.said = completion_ids, {}
        self.prompt_ids = [
            prompt_token_ids(self.tokenizer, prompt, self.template_kwargs) for prompt in prompts
        ]
        self.texts = [
            completion_text(self.tokenizer, list(before), list(ids), self.ends)
            for before, ids in zip(self.prompt_ids, completion_ids, strict=True)
        ]

    def _hear(self, index: int, function: RewardFunction, answer: Any) -> list[float | None]:
        said = checked_rewards(function, answer, self.places)
        self.said[index] = said
        if len(self.said) == len(self.names):
            refuse_unrated(list(zip(*self.said.values(), strict=True)), self.places)
        return [None if math.isnan(value) else value for value in said]

    def held_out_metrics(self) -> dict[str, float]:
        """What held-out rewards say of all that an evaluation sampled on every process."""
        said: list[tuple[str, list[float]]] = []
        with agreed_section():
            for given in self.evaluated or []:
                prompts, answers = given["prompts"], given["completions"]
                own = (prompts, answers, given["completion_ids"])
                _, said_BF = weighted_scores(self.held_out, None, *own, given)
                said += zip(map(str, prompts), said_BF.tolist(), strict=True)
        metrics = held_out_metrics(distinct_names(self.held_out), gather_object(said))
        return {f"eval_{name}": value for name, value in metrics.items()}

    def take_up(self, samples: list[dict[str, Any]]) -> None:
        """Count those as the newest that are still in use, after a resume or an evaluation.

        Args:
            samples: What `samples` gave.
        """
        self.said, self.carried = {}, samples

    def samples(self) -> list[dict[str, Any]]:
        """The first completions of the newest generation, as rows of samples.jsonl.

        Returns:
            Rows of prompt, completion, score (the weighted sum) and num_tokens.
        """
        if len(self.said) < len(self.names):
            return self.carried
        rows = []
        for row, text in enumerate(self.texts[:NUM_KEPT]):
            said = [(self.weights[i], values[row]) for i, values in sorted(self.said.items())]
            rows.append(
                {
                    "prompt": self.tokenizer.decode(self.prompt_ids[row], skip_special_tokens=True),
                    "completion": text,
                    "score": sum(weight * value for weight, value in said if value == value),
                    "num_tokens": len(self.completion_ids[row]),
                }
            )
        return rows


class SampleWriter(TrainerCallback):
    """Appends a few completions to samples.jsonl with every log of a training step.

    Args:
        rewards: Knows the completions.
        path: The run folder.
    """

    def __init__(self, rewards: SampledRewards, path: Path) -> None:
        self.rewards = rewards
        self.path = path / "samples.jsonl"

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Append; what an evaluation sampled is left out."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        step = {"step": state.global_step}
        append_jsonl(self.path, (step | sample for sample in self.rewards.samples()))


def load_rewards(
    reward_funcs: Sequence[Any],
    training: RLOOConfig | GRPOConfig,
    tokenizer: Any,
    prompt: Any,
    held_out: Sequence[Any] = (),
) -> SampledRewards:
    """Load the rewards of a run, before its policy.

    Args:
        reward_funcs: As `recipes.lib.rewards.reward_models.load_reward_functions` takes them.
        training: An RLOOConfig or GRPOConfig.
        tokenizer: The policy's tokenizer.
        prompt: One prompt of the data.
        held_out: As reward_funcs, those that evaluations ask, too.

    Returns:
        The rewards.

    Raises:
        UserError: A reward is not there, or the tokenizer cannot render the prompt.
    """
    prompt_token_ids(tokenizer, prompt, training.chat_template_kwargs)
    own = (None, training.per_device_train_batch_size, training.device)
    trusted = {"trust_remote_code": training.trust_remote_code}
    functions = load_reward_functions(list(reward_funcs), *own, **trusted)
    others = load_reward_functions(list(held_out), *own, **trusted) if held_out else []
    check_best_metric(training.metric_for_best_model, distinct_names(others))
    # Here it means rows in samples.jsonl, as under PPO. TRL would print every completion over the
    # progress bar, and its GRPO write tables into the run folder before that may be taken.
    is_kept, training.log_completions = training.log_completions, False
    template_kwargs = training.chat_template_kwargs
    weights = training.reward_weights
    return SampledRewards(
        functions, weights, tokenizer, template_kwargs, is_kept=is_kept, held_out=others
    )


def log_samples(trainer: Trainer, rewards: SampledRewards, path: Path) -> None:
    """Let a trainer know its rewards, and samples.jsonl have completions, if that is asked for.

    Args:
        trainer: TRL's trainer.
        rewards: Its rewards.
        path: The run folder.
    """
    trainer.rewards = rewards
    if rewards.is_kept:
        trainer.add_callback(SampleWriter(rewards, path))
