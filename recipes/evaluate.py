"""Evaluation: lets a run and a baseline complete the same held-out prompts and judges both.

Win rate: share of prompts on which the judge scores the run's completion higher (ties half), with a
95 % bootstrap interval. A language model (judge.yaml) compares the two in both orders; a verdict
that flips with the order is a tie. On 30 prompts or more also the win rate at equal lengths
(length-controlled, lengths in tokens).
KL(run || baseline) = E over the run's own completions of the summed log p_run(token) -
log p_baseline(token): nats per completion, with its standard error.

`runs` names three or more instead, which are ranked (Bradley-Terry). `checkpoints` names a run,
all of whose models are compared with the one that it started from: the rewards that it was trained
on, those that it held out, and the judges over the KL, and which checkpoint is the best.

Ability kept: `tasks` of lm-eval and the perplexity of held-out text (`text_dataset_name`), of both,
with the interval of the difference. They need neither judge nor prompts.

Data: a prompt column (text or messages); the test split where there is one.
Writes samples.jsonl, summary.json and report.html to runs/evaluate/<run>_vs_<baseline>_by_<judge>.

    rlhf evaluate runs/quickstart/ppo --baseline runs/quickstart/sft --dataset_name prompts.jsonl \
        --judge rewards.py:happy_words
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.errors import UserError, note
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import EnsembleArguments
from recipes.lib.rewards.loading import is_judge
from recipes.lib.runs.folder import FolderArguments, named_folder, open_run

POSITIONAL = "run"
INSTEAD = ("runs", "checkpoints")
FOLDER = "runs/evaluate/<run>_vs_<baseline>_by_<judge>"


@dataclass(kw_only=True)
class ContestArguments(EnsembleArguments, FolderArguments, DataArguments, TrustArguments):
    """How models complete prompts, and who judges what they wrote."""

    judge: list[str] = option(
        list,
        "Who judges, one or several: a reward function as file.py:name or module:name, asked as in "
        "training, a reward model (run, folder or Hub id), a language model that compares "
        "(judge.yaml), or people's answers (a feedback run that compared these runs, or a .jsonl "
        "file of pairs). The first one's scores are those of the samples.",
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

    def prompts(self) -> tuple[list[Any], dict[str, list[Any]]]:
        """The prompts, of the test split where there is one, and the other columns of the data."""
        train, test = load_splits(self, self.seed, ("prompt",))
        columns = (train if test is None else test)[: self.num_prompts]
        return columns.pop("prompt"), columns

    def judges(self) -> dict[str, Any]:
        """The judges by name."""
        from recipes.lib.evaluation.judges import load_judges

        named = [self.reward_model(name, self.dtype) for name in self.judge]
        trusted = {"trust_remote_code": self.trust_remote_code}
        return load_judges(named, self.batch_size, self.reward_weights, **trusted)

    def complete_all(
        self, names: list[str], prompts: list[Any], **how: bool
    ) -> tuple[list[Any], list[dict[str, float]]]:
        """Completions of each model, and KLs from the last one, as of contest.complete_all."""
        from recipes.lib.evaluation.contest import complete_all

        sampling = {key: getattr(self, key) for key in ("temperature", "batch_size", "seed")}
        sampling["max_new_tokens"] = self.max_completion_length
        how["trust_remote_code"] = self.trust_remote_code
        return complete_all(names, prompts, sampling, self.dtype, **how)


@dataclass(kw_only=True)
class EvaluateArguments(ContestArguments):
    """What is compared."""

    output_dir: str | None = option(FOLDER, "Run folder.")
    run: str | None = option(None, "Run, model folder or Hub id to evaluate.")
    baseline: str | None = option(None, "Run, model folder or Hub id to compare with.")
    runs: list[str] = option(list, "Three or more to rank, instead of run and baseline.")
    checkpoints: str | None = option(
        None, "A run whose checkpoints are compared with its start, instead of run and baseline."
    )
    slices: list[str] = option(
        list,
        "Also the win rate by these columns of the data (their values, or quarters of numbers); "
        "length is that of the run's completion.",
    )
    tasks: list[str] = option(
        list,
        "Also what both can do: tasks of lm-eval (extra [eval]), its groups, or YAML files of "
        "your own.",
    )
    tasks_limit: int | None = option(None, "Use the first so many documents of each task only.")
    text_dataset_name: str | None = option(
        None, "Also the perplexity of both on these held-out rows, as sft reads them."
    )

    def __post_init__(self) -> None:
        """Name the folder by what is compared."""
        named = self.output_dir or FOLDER
        if named == FOLDER and self.checkpoints:
            named = "runs/evaluate/checkpoints_of_<checkpoints>"
        elif named == FOLDER and not self.judge:
            measure = "<tasks>" if self.tasks else "<text_dataset_name>"
            named = FOLDER.replace("by_<judge>", f"on_{measure}")
        elif named == FOLDER and self.runs:
            named = "runs/evaluate/<runs>_by_<judge>"
        self.output_dir = named_folder(named, self)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (EvaluateArguments,)


def validate(script: EvaluateArguments) -> None:
    """Check the keys before anything is loaded."""
    several = "runs" if script.runs else "checkpoints" if script.checkpoints else ""
    alien = ("run", "baseline", "slices", "checkpoints", "tasks", "text_dataset_name")
    for key in alien if several else ():
        if key != several and getattr(script, key):
            raise UserError(
                f"{key}={getattr(script, key)}: does not go with {several}; leave it out."
            )
    if script.checkpoints and script.temperature == 0:
        raise UserError("temperature=0: checkpoints are told apart by KL, which samples show.")
    if script.runs and len({*script.runs}) < max(len(script.runs), 3):
        raise UserError(f"runs={script.runs}: name three or more, each once.")
    if script.tasks_limit is not None and not script.tasks:
        raise UserError(f"tasks_limit={script.tasks_limit}: there are no tasks; name some, too.")
    has_prompts = bool(script.dataset_name or script.datasets)
    judges = script.judge
    asks = has_prompts or judges or script.reward_weights or script.slices
    alone = not asks and (script.tasks or script.text_dataset_name)
    needed = {"baseline": several or script.baseline, "judge": alone or judges}
    for key, is_there in (needed | {"dataset_name": alone or has_prompts}).items():
        if not is_there:
            raise UserError(f"{key} is missing; give --{key}.")
    check_weights(script)


def check_weights(script: ContestArguments) -> None:
    """Refuse weights of aspects where no one reward model judges."""
    judges, weights = script.judge, script.reward_weights
    if weights and (len(judges) > 1 or is_judge(judges[0])):
        why = "there are several judges" if judges[1:] else f"{judges[0]} compares completions"
        raise UserError(f"reward_weights={weights}: {why}, and no scores to weigh; leave it out.")


def contest(
    script: EvaluateArguments,
    names: list[str],
    labels: list[str],
    asked: tuple[list[Any], dict[str, list[Any]], dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Let the models complete and the judges compare: numbers, and the rows of samples.jsonl."""
    from recipes.lib.evaluation.checkpoints import course
    from recipes.lib.evaluation.contest import judged
    from recipes.lib.evaluation.results import compared, ranked, sample_rows
    from recipes.lib.evaluation.win_rate import smallest_difference
    from recipes.lib.rewards.judge import judge_counts

    prompts, columns, judges = asked
    gap = smallest_difference(len(prompts))
    note(f"{len(prompts)} prompts find a win rate of {0.5 + gap:.2f} and more in 80 % of cases.")
    last, is_course = len(names) - 1, bool(script.checkpoints)
    how = {"has_baseline": not script.runs, "one_template": is_course}
    sides, kls = script.complete_all(names, prompts, **how)
    pairs = [both for both in combinations(range(last + 1), 2) if script.runs or both[1] == last]
    asked_of = (names, prompts, columns, sides, pairs)
    said = {name: judged(judge, *asked_of) for name, judge in judges.items()}
    if is_course:
        told = course(labels, said, kls, script.seed)
    elif script.runs:
        told = ranked(script.runs, said, script.seed)
    else:
        told = compared(columns, script.slices, said, script.seed) | kls[0]
    told |= judge_counts([*judges.values()])
    summary = {"num_prompts": len(prompts), "smallest_difference": gap} | told
    return summary, sample_rows(prompts, labels, sides, said)


def ability(script: EvaluateArguments, names: list[str], tasks: Any, texts: Any) -> dict[str, Any]:
    """What a run and its baseline can do beside the prompts; one is in memory at a time."""
    from trl import ModelConfig

    from recipes.lib.evaluation.ability import benchmark, likelihood, task_numbers, text_numbers
    from recipes.lib.models.policies import load_policy, placed
    from recipes.lib.models.tokenizers import load_tokenizer

    results, likelihoods, seed = [], [], script.seed
    for name in names if tasks or texts else []:
        trusted = script.trust_remote_code
        tokenizer = load_tokenizer(name, trust_remote_code=trusted)
        args = ModelConfig(model_name_or_path=name, dtype=script.dtype)
        model = placed(load_policy(args, trust_remote_code=trusted))
        if tasks:
            sizes = script.tasks_limit, script.batch_size
            results.append(benchmark(model, tokenizer, tasks, *sizes, seed))
        if texts:
            likelihoods.append(likelihood(model, tokenizer, texts, script.batch_size))
        del model
    numbers = {"tasks": task_numbers(*results, seed=seed)} if tasks else {}
    return numbers | (text_numbers(*likelihoods, seed=seed) if texts else {})


@guarded
def run(config: Config) -> dict[str, Any]:
    """Sample, judge, compare; measure what both can do beside that.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: scores of the judge, win rate in 0..1 with its interval, KL in nats per
        completion, lengths in tokens; of tasks and texts both values and their difference.

    Raises:
        UserError: A key, the prompts, a model or the judge cannot be used.
    """
    from recipes.lib.evaluation.ability import load_tasks, load_texts
    from recipes.lib.evaluation.checkpoints import proxy, take_run
    from recipes.lib.evaluation.slices import LENGTH, slices_of
    from recipes.lib.recipe.spine import finish

    script: EvaluateArguments = config.script
    models, keys = take_run(script, config.values)
    validate(script)
    text = script.text_dataset_name
    texts = load_texts(text, script.seed, script.on_bad_rows) if text else None
    tasks = load_tasks(script.tasks) if script.tasks else None
    trusted: dict[str, Any] = {"trust_remote_code": script.trust_remote_code}
    if script.judge:  # mistakes first
        prompts, columns = script.prompts()
        slices_of([name for name in script.slices if name != LENGTH], columns)
        own = proxy(keys, script.batch_size, script.dtype, **trusted)
        asked = prompts, columns, script.judges() | own
    folder = open_run(config)
    names = [*models.values()] or script.runs or [str(script.run), str(script.baseline)]
    summary: dict[str, Any] = {}
    if script.judge:
        summary, rows = contest(script, names, [*models] or names, asked)
        folder.write_samples(rows)
    summary |= ability(script, names, tasks, texts)
    facts: dict[str, Any] = {"runs": names} if len(names) > 2 else {"baseline": names[1]}
    facts |= {"judge": next(iter(script.judge), None), "tasks": script.tasks}
    data = script.data_names() + ([text] if text else [])
    return finish(folder, config, summary, model=names[0], data=data, **facts, **trusted)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("evaluate", argv)


if __name__ == "__main__":
    raise SystemExit(main())
