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

Data: a prompt column (text or messages); the test split where there is one.
Writes samples.jsonl, summary.json and report.html to runs/evaluate/<run>_vs_<baseline>_by_<judge>.

    rlhf evaluate runs/quickstart/ppo --baseline runs/quickstart/sft --dataset_name prompts.jsonl \
        --judge rewards.py:happy_words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError, note
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.arguments import EnsembleArguments
from recipes.lib.rewards.loading import is_judge
from recipes.lib.runs.folder import FolderArguments, named_folder, open_run

if TYPE_CHECKING:
    from recipes.lib.evaluation.contest import Pairs

    Said = dict[str, Pairs]  # of each judge, by name

POSITIONAL = "run"
INSTEAD = ("runs", "checkpoints")
FOLDER = "runs/evaluate/<run>_vs_<baseline>_by_<judge>"
FOLDER_OF_MANY = "runs/evaluate/<runs>_by_<judge>"
FOLDER_OF_CHECKPOINTS = "runs/evaluate/checkpoints_of_<checkpoints>"


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

    def __post_init__(self) -> None:
        """Name the folder by what is compared."""
        given = None if self.output_dir == FOLDER else self.output_dir
        default = FOLDER_OF_MANY if self.runs else FOLDER
        default = FOLDER_OF_CHECKPOINTS if self.checkpoints else default
        self.output_dir = named_folder(given or default, self)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (EvaluateArguments,)


def validate(script: EvaluateArguments) -> None:
    """Check the keys before anything is loaded.

    Raises:
        UserError: A key is missing, or is none of such a judge.
    """
    several = "runs" if script.runs else "checkpoints" if script.checkpoints else ""
    for key in ("run", "baseline", "slices", "checkpoints") if several else ():
        if key != several and getattr(script, key):
            raise UserError(
                f"{key}={getattr(script, key)}: does not go with {several}; leave it out."
            )
    if script.checkpoints and script.temperature == 0:
        raise UserError("temperature=0: checkpoints are told apart by KL, which samples show.")
    if script.runs and len({*script.runs}) < max(len(script.runs), 3):
        raise UserError(f"runs={script.runs}: name three or more, each once.")
    for key in ("judge", "dataset_name") if several else ("baseline", "judge", "dataset_name"):
        if not getattr(script, key) and not (key == "dataset_name" and script.datasets):
            raise UserError(f"{key} is missing; give --{key}.")
    weights, judges = script.reward_weights, script.judge
    if weights and (len(judges) > 1 or is_judge(judges[0])):
        why = "there are several judges" if judges[1:] else f"{judges[0]} compares completions"
        raise UserError(f"reward_weights={weights}: {why}, and no scores to weigh; leave it out.")


def sample_rows(
    prompts: list[Any], names: list[str], sides: list[Any], said: Said
) -> list[dict[str, Any]]:
    """The rows of samples.jsonl."""
    if len(names) > 2:
        every = [
            {name: completion.text for name, completion in zip(names, row, strict=True)}
            for row in zip(*sides, strict=True)
        ]
        pairs = zip(map(prompt_text, prompts), every, strict=True)
        return [{"prompt": prompt, "completions": each} for prompt, each in pairs]
    ours, theirs = next(iter(said.values()))[0, 1]
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


def compared(
    script: EvaluateArguments, columns: dict[str, list[Any]], said: Said
) -> dict[str, Any]:
    """The numbers of a run and its baseline."""
    from recipes.lib.evaluation.contest import rates, shares_of
    from recipes.lib.evaluation.judges import agreement
    from recipes.lib.evaluation.slices import LENGTH, sliced, slices_of

    ours, theirs = next(iter(said.values()))[0, 1]
    shares = {name: shares_of(*pairs[0, 1]) for name, pairs in said.items()}
    both = (ours.completions, theirs.completions, script.seed)
    rated = {name: rates(one, *both) for name, one in shares.items()}
    summary: dict[str, Any] = ours.facts("") | theirs.facts("_baseline")
    summary |= next(iter(rated.values()))
    if len(said) > 1:
        summary |= {"judges": rated, "agreement": agreement(shares)}
    if script.slices:
        columns = columns | {LENGTH: [len(one.ids) for one in ours.completions]}
        summary["slices"] = sliced(next(iter(shares.values())), slices_of(script.slices, columns))
    return summary


def ranked(script: Any, said: Said) -> dict[str, Any]:
    """The ranking of the runs of a script by each judge."""
    from recipes.lib.evaluation.contest import shares_of
    from recipes.lib.evaluation.judges import agreement
    from recipes.lib.evaluation.logistic import bradley_terry

    shares = {
        name: {places: shares_of(*both) for places, both in pairs.items()}
        for name, pairs in said.items()
    }
    rankings = {
        name: bradley_terry(script.runs, one, seed=script.seed) for name, one in shares.items()
    }
    summary: dict[str, Any] = {"ranking": next(iter(rankings.values()))}
    if len(said) > 1:
        every = {
            name: [one for row in each.values() for one in row] for name, each in shares.items()
        }
        summary |= {"rankings": rankings, "agreement": agreement(every)}
    return summary


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
    from recipes.lib.evaluation.checkpoints import course, proxy, take_run
    from recipes.lib.evaluation.contest import SamplingSettings, compare
    from recipes.lib.evaluation.judges import load_judges
    from recipes.lib.evaluation.slices import LENGTH, slices_of
    from recipes.lib.evaluation.win_rate import smallest_difference
    from recipes.lib.recipe.spine import finish
    from recipes.lib.rewards.judge import judge_counts

    script: EvaluateArguments = config.script
    models, keys = take_run(script, config.values)
    validate(script)
    train, test = load_splits(script, script.seed, ("prompt",))
    columns = (train if test is None else test)[: script.num_prompts]
    prompts = columns.pop("prompt")
    slices_of([name for name in script.slices if name != LENGTH], columns)  # mistakes first
    trusted: dict[str, Any] = {"trust_remote_code": script.trust_remote_code}
    named = [script.reward_model(name, script.dtype) for name in script.judge]
    judges = load_judges(named, script.batch_size, script.reward_weights, **trusted)
    judges |= proxy(keys, script.batch_size, script.dtype, **trusted)
    gap = smallest_difference(len(prompts))
    note(f"{len(prompts)} prompts find a win rate of {0.5 + gap:.2f} and more in 80 % of cases.")
    folder, own = open_run(config), (script.temperature, script.batch_size, script.seed)
    sampling = SamplingSettings(script.max_completion_length, *own)
    names = [*models.values()] or script.runs or [str(script.run), str(script.baseline)]
    asked = ([*judges.values()], sampling, script.dtype)
    sides, pairs, kls = compare(names, prompts, columns, *asked, to_last=bool(models), **trusted)
    said = dict(zip(judges, pairs, strict=True))
    if models:
        told = course([*models], said, kls, script.seed)
    else:
        told = ranked(script, said) if script.runs else compared(script, columns, said) | kls[0]
    folder.write_samples(sample_rows(prompts, [*models] or names, sides, said))
    told |= judge_counts([*judges.values()])
    summary = {"num_prompts": len(prompts), "smallest_difference": gap} | told
    facts = {"model": names[0], "data": script.data_names(), "judge": script.judge[0]}
    facts |= {"runs": names} if len(names) > 2 else {"baseline": names[1]}
    return finish(folder, config, summary, **facts, **trusted)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("evaluate", argv)


if __name__ == "__main__":
    raise SystemExit(main())
