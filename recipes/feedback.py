"""Feedback: collects preferences between completions of a model.

The action `simulate` samples two completions for each prompt and lets the simulated rater choose,
with the Bradley-Terry probability on the scores of a judge: a Python function of plain texts,
f(prompts, completions) -> scores, named as module:function or file.py:function.

Data: prompt (text or messages).
Writes feedback.jsonl, final/train.jsonl and final/test.jsonl in TRL's preference format (the test
rows with their noise, and from other prompts), and summary.json with the ceiling of accuracy.

    python -m recipes.feedback simulate --config configs/quickstart/feedback.yaml

Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.files import write_jsonl
from recipes.lib.runs.folder import FolderArguments, Run, open_run

if TYPE_CHECKING:
    from recipes.lib.evaluation.judges import Judge
    from recipes.lib.feedback.pairs import Pair
    from recipes.lib.feedback.rater import Rating

ACTIONS = ("simulate",)
NUM_TRIES = 3  # draws of a prompt whose two completions come out equal or empty


@dataclass(kw_only=True)
class FeedbackArguments(FolderArguments, DataArguments, TrustArguments):
    """Keys of the recipe."""

    action: str | None = option(None, "What to do: simulate.")
    model_name_or_path: str | None = option(
        None, "Model to compare completions of: a run or a folder."
    )
    dtype: str = option("float32", "Number format of the model.")
    judge: str | None = option(
        None, "Function with the hidden scores: module:function or file.py:function."
    )
    rater_temperature: float = option(1.0, "Difference of scores that is one unit of log-odds.")
    temperature: float = option(1.0, "Sampling temperature.")
    max_completion_length: int = option(64, "Longest completion, in tokens.")
    sampling_batch_size: int = option(256, "Completions at a time.")
    seed: int = option(0, "Of sampling, rating and splitting.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (FeedbackArguments,)


def validate(script: FeedbackArguments) -> None:
    """Check the keys before anything is loaded.

    Raises:
        UserError: The judge or the model is missing, there would be no test pairs, or nothing
            would be drawn.
    """
    if not script.judge:
        raise UserError("judge is missing: name a function as module:function or file.py:function.")
    if not script.model_name_or_path:
        raise UserError("model_name_or_path is missing: name a run or a model folder.")
    if script.test_fraction == 0 and not script.test_dataset_name:
        raise UserError(
            "test_fraction=0.0: no prompts are left for test pairs; set it to 0.2 or so, or name a "
            "test_dataset_name."
        )
    if script.temperature == 0:
        raise UserError("temperature=0.0: must be above 0; 1.0 is usual.")


def sample_prompts(script: FeedbackArguments, prompts: Sequence[Any]) -> list[Pair]:
    """Load the model and sample a pair for each prompt."""
    from trl import ModelConfig

    from recipes.lib.feedback.pairs import sample_pairs
    from recipes.lib.models.policies import load_policy
    from recipes.lib.models.tokenizers import load_tokenizer

    name = script.model_name_or_path or ""
    trusted = script.trust_remote_code
    args = ModelConfig(model_name_or_path=name, dtype=script.dtype)
    model = load_policy(args, trust_remote_code=trusted)
    return sample_pairs(
        model,
        load_tokenizer(name, trust_remote_code=trusted),
        prompts,
        num_tries=NUM_TRIES,
        max_new_tokens=script.max_completion_length,
        temperature=script.temperature,
        seed=script.seed,
        batch_size=script.sampling_batch_size,
    )


def judge_pairs(
    judge: Judge, script: FeedbackArguments, pairs: Sequence[Pair], rows: list[dict[str, Any]]
) -> tuple[list[Rating], float]:
    """Let the simulated rater choose; also the mean score of all completions."""
    from recipes.lib.feedback.rater import rate_pairs

    prompts = [pair.prompt for pair in pairs]
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    columns = {name: [rows[pair.row].get(name) for pair in pairs] for name in names}
    first = judge(prompts, [pair.first for pair in pairs], columns)
    second = judge(prompts, [pair.second for pair in pairs], columns)
    ratings = rate_pairs(first, second, temperature=script.rater_temperature, seed=script.seed)
    return ratings, sum(first + second) / (2 * len(pairs))


def write_pairs(
    folder: Run, pairs: Sequence[Pair], ratings: Sequence[Rating], tests: Sequence[bool], run: str
) -> None:
    """Write feedback.jsonl, final/train.jsonl and final/test.jsonl."""
    from recipes.lib.feedback.pairs import feedback_row, preference_row

    now = datetime.now(UTC).isoformat(timespec="seconds")
    judged = list(zip(pairs, ratings, tests, strict=True))
    write_jsonl(
        folder.path / "feedback.jsonl",
        [feedback_row(pair, rating, run, now) for pair, rating, _ in judged],
    )
    folder.final.mkdir(exist_ok=True)
    train = [preference_row(pair, rating) for pair, rating, is_test in judged if not is_test]
    test = [
        preference_row(pair, rating) | {"noise": rating.noise}
        for pair, rating, is_test in judged
        if is_test
    ]
    write_jsonl(folder.final / "train.jsonl", train)
    write_jsonl(folder.final / "test.jsonl", test)


@guarded
def run(config: Config) -> dict[str, Any]:
    """Sample pairs, let the simulated rater choose, write the rows.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: numbers of pairs, ceilings of accuracy in 0..1, mean score of the judge.

    Raises:
        UserError: A key, the data, the model or the judge cannot be used.
    """
    from recipes.lib.evaluation.judges import load_judge
    from recipes.lib.recipe.spine import finish

    script = config.script
    validate(script)
    trusted = script.trust_remote_code
    judge = load_judge(script.judge, trust_remote_code=trusted)
    train, test = load_splits(script, script.seed, ("prompt",))
    assert test is not None  # validate saw to it
    folder = open_run(config)
    test_prompts = {prompt_text(prompt) for prompt in test["prompt"]}
    rows = train.to_list() + test.to_list()
    pairs = sample_prompts(script, [row["prompt"] for row in rows])
    ratings, mean_score = judge_pairs(judge, script, pairs, rows)
    tests = [prompt_text(pair.prompt) in test_prompts for pair in pairs]
    write_pairs(folder, pairs, ratings, tests, script.model_name_or_path)
    noises = [rating.noise for rating, is_test in zip(ratings, tests, strict=True) if is_test]
    num_tokens = sum(len(pair.first.ids) + len(pair.second.ids) for pair in pairs)
    summary = {
        "num_pairs": len(pairs),
        "num_train": len(pairs) - len(noises),
        "num_test": len(noises),
        "num_left_out": len(train) + len(test) - len(pairs),
        "accuracy_ceiling": 1 - sum(noises) / len(noises),
        "mean_score": mean_score,
        "completion_length": num_tokens / (2 * len(pairs)),
    }
    facts = {"model": script.model_name_or_path, "data": script.data_names()}
    facts |= {"judge": script.judge, "trust_remote_code": trusted}
    return finish(folder, config, summary, **facts)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("feedback", argv)


if __name__ == "__main__":
    raise SystemExit(main())
