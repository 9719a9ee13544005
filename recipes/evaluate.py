"""Evaluation: lets a run and a baseline complete the same held-out prompts and judges both.

Win rate: share of prompts on which the judge scores the run's completion higher (ties half), with a
95 % bootstrap interval. A language model (judge.yaml) compares the two in both orders; a verdict
that flips with the order is a tie. KL(run || baseline) = E over the run's own completions of the
summed log p_run(token) - log p_baseline(token): nats per completion, with its standard error.

Data: a prompt column (text or messages); the test split where there is one.
Writes samples.jsonl, summary.json and report.html to runs/evaluate/<run>_vs_<baseline>_by_<judge>.

    rlhf evaluate runs/quickstart/ppo --baseline runs/quickstart/sft --dataset_name prompts.jsonl \
        --judge rewards.py:happy_words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import EnsembleArguments
from recipes.lib.rewards.loading import is_judge
from recipes.lib.runs.folder import FolderArguments, named_folder, open_run

POSITIONAL = "run"
FOLDER = "runs/evaluate/<run>_vs_<baseline>_by_<judge>"


@dataclass(kw_only=True)
class EvaluateArguments(EnsembleArguments, FolderArguments, DataArguments, TrustArguments):
    """What is compared, on what, and who judges."""

    output_dir: str | None = option(FOLDER, "Run folder.")
    run: str | None = option(None, "Run, model folder or Hub id to evaluate.")
    baseline: str | None = option(None, "Run, model folder or Hub id to compare with.")
    judge: str | None = option(
        None,
        "Who scores: a reward function as file.py:name or module:name, asked as in training, a "
        "reward model (run, folder or Hub id), or a language model that compares (judge.yaml).",
    )
    reward_weights: list[float] | None = option(
        None, "Weight of each aspect of a reward model that judges; default: 1 each."
    )
    num_prompts: int | None = option(None, "Use the first so many prompts only.")
    max_completion_length: int = option(64, "Longest completion, in tokens.")
    temperature: float = option(1.0, "Of the sampling; 0 is greedy, and then there is no KL.")
    batch_size: int = option(64, "Prompts or completions at a time.")
    dtype: str = option("auto", "Of all models: auto (as saved), float32, bfloat16 or float16.")
    seed: int = option(0, "Of the sampling and of the bootstrap.")

    def __post_init__(self) -> None:
        """Name the folder by what is compared."""
        self.output_dir = named_folder(self.output_dir or FOLDER, self)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (EvaluateArguments,)


def validate(script: EvaluateArguments) -> None:
    """Check the keys before anything is loaded.

    Raises:
        UserError: A key is missing, or is none of such a judge.
    """
    for key in ("baseline", "judge", "dataset_name"):
        if not getattr(script, key) and not (key == "dataset_name" and script.datasets):
            raise UserError(f"{key} is missing; give --{key}.")
    if script.reward_weights and is_judge(str(script.judge)):
        told = f"reward_weights={script.reward_weights}: {script.judge} compares completions"
        raise UserError(f"{told}, and has no scores to weigh; leave it out.")


def sample_rows(prompts: list[Any], ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """The rows of samples.jsonl."""
    return [
        {
            "prompt": prompt_text(prompt),
            "baseline": theirs.completions[row].text,
            "completion": ours.completions[row].text,
            "score_baseline": theirs.scores[row],
            "score": ours.scores[row],
        }
        | ({"verdicts": list(ours.verdicts[row])} if ours.verdicts else {})
        for row, prompt in enumerate(prompts)
    ]


@guarded
def run(config: Config) -> dict[str, Any]:
    """Sample, judge, compare.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: scores of the judge, win rate in 0..1 with its interval, KL in nats per
        completion, lengths in tokens.

    Raises:
        UserError: A key, the prompts, a model or the judge cannot be used.
    """
    from recipes.lib.evaluation.contest import SamplingSettings, compare
    from recipes.lib.evaluation.judges import load_judge
    from recipes.lib.evaluation.win_rate import win_rate
    from recipes.lib.models.policies import evaluation_device
    from recipes.lib.recipe.spine import finish
    from recipes.lib.rewards.judge import LanguageModelJudge

    script: EvaluateArguments = config.script
    validate(script)
    train, test = load_splits(script, script.seed, ("prompt",))
    columns = (train if test is None else test)[: script.num_prompts]
    prompts = columns.pop("prompt")
    trusted = {"trust_remote_code": script.trust_remote_code}
    judge: Any
    if is_judge(str(script.judge)):
        judge = LanguageModelJudge(str(script.judge), evaluation_device(), **trusted)
    else:
        reward = script.reward_model(str(script.judge), script.dtype)
        judge = load_judge(reward, script.batch_size, script.reward_weights, **trusted)
    folder = open_run(config)
    sampling = SamplingSettings(
        script.max_completion_length, script.temperature, script.batch_size, script.seed
    )
    contestants = (str(script.run), str(script.baseline))
    ours, theirs, numbers = compare(
        contestants, prompts, columns, judge, sampling, script.dtype, **trusted
    )
    pairs = [pair for pair in zip(ours.scores, theirs.scores, strict=True) if None not in pair]
    wins = win_rate(*zip(*pairs, strict=True), seed=script.seed)
    folder.write_samples(sample_rows(prompts, ours, theirs))
    summary: dict[str, Any] = {"num_prompts": len(prompts)}
    if len(pairs) < len(prompts):
        summary["num_judged"] = len(pairs)
    summary |= ours.facts("") | theirs.facts("_baseline")
    summary |= {"win_rate": wins.value, "win_rate_ci95": [wins.low, wins.high]} | numbers
    facts = {"model": script.run, "data": script.data_names(), "baseline": script.baseline}
    return finish(folder, config, summary, judge=script.judge, **facts, **trusted)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("evaluate", argv)


if __name__ == "__main__":
    raise SystemExit(main())
