"""Our rewards under TRL's RLOO and GRPO trainers, and the completions that they were asked about.

What a reward reads and may say is the same as under PPO: the text that continues the prompt, one
finite number or None for each row, and at least one number for every row. TRL's trainers decode a
completion by itself (many tokenizers then drop the space in front of it), take NaN for None, and
only warn of a row without any reward.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.lib.data.prompts import completion_text, prompt_token_ids
from recipes.lib.distributed.agreement import agreed_section
from recipes.lib.errors import UserError
from recipes.lib.rewards.reward_models import load_reward_functions
from recipes.lib.rewards.scoring import RewardFunction, ask, checked, distinct_names, wait_for
from recipes.lib.runs.files import read_jsonl

NUM_KEPT = 4  # completions of a generation that samples.jsonl gets, as under PPO
NUM_LAST = 3  # logs whose mean the summary repeats
# Names of TRL's metrics, and what the summary calls them.
SUMMARY = {
    "reward": "scores",
    "kl": "kl_per_token",
    "completions/mean_length": "completion_length",
}


class SampledRewards:
    """Reward functions as TRL calls them, one after the other on the same completions.

    Args:
        functions: Reward functions of this project.
        weights: One weight for each; None for 1.
        tokenizer: The policy's tokenizer.
        template_kwargs: Further arguments of its chat template.
        is_kept: Whether samples.jsonl gets completions.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None,
        tokenizer: Any,
        template_kwargs: dict[str, Any] | None = None,
        *,
        is_kept: bool = False,
    ) -> None:
        self.names = distinct_names(functions)
        self.weights = list(weights or [1.0] * len(functions))
        self.tokenizer = tokenizer
        self.template_kwargs = template_kwargs
        self.is_kept = is_kept
        self.completion_ids: Sequence[list[int]] = []
        self.prompt_ids: list[list[int]] = []
        self.ends: Sequence[int] = ()
        self.texts: list[str] = []
        self.said: dict[int, list[float]] = {}
        self.carried: list[dict[str, Any]] = []  # samples taken up
        self.functions = [self._called(i, function) for i, function in enumerate(functions)]

    def _called(self, index: int, function: RewardFunction) -> RewardFunction:
        def called(**given: Any) -> list[float | None]:
            with agreed_section():  # TRL gathers next what all processes say
                answer = ask(function, self._given(given))
                if inspect.isawaitable(answer):
                    answer = wait_for([answer], [function])[0]
                return self._hear(index, function, answer)

        async def awaited(**given: Any) -> list[float | None]:
            # TRL waits for all async functions together if it can tell that they are.
            return self._hear(index, function, await ask(function, self._given(given)))

        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  an object whose call is async
        )
        made = awaited if is_async else called
        made.__name__ = self.names[index]
        return made

    def _given(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["completion_ids"] is not self.completion_ids:
            self._begin(given["prompts"], given["completion_ids"])
        spoken = not isinstance(given["prompts"][0], str)
        said = [[{"role": "assistant", "content": text}] for text in self.texts]
        return given | {"completions": said if spoken else list(self.texts)}

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
        said = checked(function, answer, len(self.texts))
        self.said[index] = said
        if len(self.said) == len(self.names):
            for row, values in enumerate(zip(*self.said.values(), strict=True)):
                if all(map(math.isnan, values)):
                    raise UserError(
                        f"every reward function returned None for row {row}; one has to apply to "
                        "each row."
                    )
        return [None if math.isnan(value) else value for value in said]

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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append; what an evaluation sampled is left out."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        with self.path.open("a", encoding="utf-8") as file:
            for sample in self.rewards.samples():
                row = {"step": state.global_step} | sample
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def load_rewards(
    reward_funcs: Sequence[Any], training: Any, tokenizer: Any, prompt: Any
) -> SampledRewards:
    """Load the rewards of a run, before its policy.

    Args:
        reward_funcs: As `recipes.lib.rewards.reward_models.load_reward_functions` takes them.
        training: An RLOOConfig or GRPOConfig.
        tokenizer: The policy's tokenizer.
        prompt: One prompt of the data.

    Returns:
        The rewards.

    Raises:
        UserError: A reward is not there, or the tokenizer cannot render the prompt.
    """
    prompt_token_ids(tokenizer, prompt, training.chat_template_kwargs)
    batch_size = training.per_device_train_batch_size
    functions = load_reward_functions(
        list(reward_funcs),
        None,
        batch_size,
        training.device,
        trust_remote_code=training.trust_remote_code,
    )
    # Here it means rows in samples.jsonl, as under PPO. TRL would print every completion over the
    # progress bar, and its GRPO write tables into the run folder before that may be taken.
    is_kept, training.log_completions = training.log_completions, False
    weights = training.reward_weights
    if weights is not None and len(weights) != len(functions):
        raise UserError(
            f"reward_weights={weights} has {len(weights)} entries for {len(functions)} "
            "reward_funcs; give one for each."
        )
    return SampledRewards(
        functions, weights, tokenizer, training.chat_template_kwargs, is_kept=is_kept
    )


def keep_samples(trainer: Any, rewards: SampledRewards, path: Path) -> None:
    """Let samples.jsonl have completions of every log, where that is asked for.

    Args:
        trainer: TRL's trainer.
        rewards: Its rewards.
        path: The run folder.
    """
    if rewards.is_kept:
        trainer.rewards = rewards
        trainer.add_callback(SampleWriter(rewards, path))


def last_numbers(path: Path) -> dict[str, float]:
    """Means over the last logs, and the score of the first one to compare with.

    Args:
        path: The run folder.

    Returns:
        first_scores, and by the names of SUMMARY what TRL logged.
    """
    rows = [row for row in read_jsonl(path / "metrics.jsonl") if row.get("reward") is not None]
    if not rows:
        return {}
    last = {name: [row[name] for row in rows[-NUM_LAST:] if name in row] for name in SUMMARY}
    means = {SUMMARY[name]: sum(said) / len(said) for name, said in last.items() if said}
    return {"first_scores": rows[0]["reward"]} | means
