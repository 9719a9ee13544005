"""Compare: several runs over each other on one page.

Their curves on episodes, seconds and KL, their numbers, and where their configurations differ. With
`judge` and `dataset_name` all complete the same held-out prompts, too: who beats whom, scores
against KL with intervals, texts side by side, the largest gains and the largest losses.

`methods` trains them first, each by its YAML in `configs` on equally many completions (`budget`:
sampled by ppo, rloo and grpo, read by dpo and kto), in runs/<configs>-<budget>/<method>, and judges
them as evaluate.yaml there says. Finished ones are kept and interrupted ones go on, unless what
they began from was made anew since: then they run again.

Writes samples.jsonl, summary.json and report.html to runs/compare/<runs>.

    rlhf compare runs/ppo/one runs/ppo/other
    rlhf compare --methods ppo,rloo,grpo,dpo,kto
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from recipes.evaluate import ContestArguments, check_weights
from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config, rebuild
from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError
from recipes.lib.models.folders import RUNS
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.folder import named_folder, open_run
from recipes.lib.runs.settings import run_of, settings_of
from recipes.quickstart import CONFIGS, RUNS_ROOT, Stage, carry_out, parsed

POSITIONAL = OPERANDS = "runs"
INSTEAD = ("methods",)
FOLDER = "runs/compare/<runs><methods>"
METHODS = ("ppo", "rloo", "grpo", "dpo", "kto")
BEGAN_FROM = "model_name_or_path critic_model_name_or_path reward_funcs dataset_name".split()
MOST = 6  # lines that can be told apart, and texts that stand side by side


@dataclass(kw_only=True)
class CompareArguments(ContestArguments):
    """What is compared, and what is trained for it."""

    output_dir: str | None = option(FOLDER, "Run folder.")
    runs: list[str] = option(list, f"Runs to compare, two to {MOST}.")
    baseline: str | None = option(
        None,
        "Model to judge them against; none: no model. Default: the one that all began from, if it "
        "is one.",
    )
    methods: list[str] = option(
        list, f"Train these first, instead of runs: {', '.join(METHODS)}; commas may part them."
    )
    configs: str = option(str(CONFIGS), "Folder with one YAML for each method.")
    budget: int = option(2304, "Completions that each method trains on; a pair is two.")

    def __post_init__(self) -> None:
        """Name the folder by what is compared."""
        self.methods = [name for words in self.methods for name in words.split(",") if name]
        self.output_dir = named_folder(self.output_dir or FOLDER, self)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (CompareArguments,)


def completed(config: Config) -> Config:
    """The configuration with keys of the evaluation beside the methods' YAMLs, checked."""
    script: CompareArguments = config.script
    names = script.methods or script.runs
    if (script.methods and script.runs) or not 2 <= len({*names}) == len(names) <= MOST:
        told = f"runs={script.runs}, methods={script.methods}"
        raise UserError(f"{told}: name two to {MOST} runs, or methods, each once.")
    beside = {path.stem: path for path in sorted(Path(script.configs).glob("*.yaml"))}
    for name in script.methods:
        if name not in METHODS or name not in beside:
            known = ", ".join(one for one in METHODS if one in beside) or "none"
            raise UserError(f"methods={name}: is none of those in {script.configs} ({known}).")
    if script.methods and "evaluate" in beside:
        left_out, file = {"run", "output_dir", *config.values}, read_yaml(beside["evaluate"])
        more = {key: value for key, value in file.values.items() if key not in left_out}
        try:
            config = replace(rebuild(config, more), start=config.start)
        except UserError as error:
            raise UserError(f"{beside['evaluate']}: {error}") from error
    has_data = bool(config.script.dataset_name or config.script.datasets)
    if has_data != bool(config.script.judge):
        raise UserError(f"{'judge' if has_data else 'dataset_name'} is missing; give both or none.")
    if config.script.judge:
        check_weights(config.script)
    return config


def check_runs(runs: list[str]) -> None:
    """Refuse what is no run, and a run in two spellings."""
    places = {name: run_of(name) for name in runs}
    for name, place in places.items():
        if place is None:
            raise UserError(f"runs={name}: is no finished run of a model; rlhf runs lists them.")
    if len({place.resolve() for place in places.values() if place}) < len(places):
        raise UserError(f"runs={runs}: names one run twice.")


def stage_of(name: str, script: CompareArguments) -> Stage:
    """The run of a method on the budget, which its batches have to divide."""
    path, budget = Path(script.configs) / f"{name}.yaml", script.budget
    folder = RUNS / f"{path.resolve().parent.name}-{budget}" / name
    stage = Stage(name, path, RUNS_ROOT, {"output_dir": str(folder)})
    training = (config := parsed(stage)).training
    accumulation = training.gradient_accumulation_steps
    if name == "ppo":
        unit = steps = training.rollout_batch_size
    elif name in ("rloo", "grpo"):
        unit = training.generation_batch_size
        steps, rest = divmod(training.steps_per_generation * training.num_iterations, accumulation)
        if rest:
            raise UserError(
                f"budget={budget}: {name} ({path}) updates on {accumulation} batches at a time, "
                "which end within a generation; let gradient_accumulation_steps divide "
                "steps_per_generation."
            )
    else:
        rows = config.script.global_batch_size or training.train_batch_size * accumulation
        unit, steps = rows * (2 if name == "dpo" else 1), 1
    if budget < unit or budget % unit:
        raise UserError(
            f"budget={budget}: {name} takes {unit} completions at a time ({path}); give a multiple."
        )
    key = "total_episodes" if name == "ppo" else "max_steps"
    return replace(stage, keys=stage.keys | {key: budget // unit * steps})


def is_outdated(stage: Stage) -> bool:
    """Whether a run or a file that a method's run began from was made anew since it began."""
    begun, keys = stage.folder / "config.yaml", stage.values()
    given = [keys[key] for key in BEGAN_FROM if keys.get(key)]
    names = [name for one in given for name in (one if isinstance(one, list) else [one])]
    runs = [(Path(name), run_of(name)) for name in names]
    marks = [run / "summary.json" if run else path for path, run in runs]
    # By time: a lineage has no hash of weights, and one that was interrupted has no lineage.
    times = [mark.stat().st_mtime for mark in marks if mark.is_file()]
    return begun.is_file() and max(times, default=0.0) > begun.stat().st_mtime


def short_names(paths: list[str]) -> dict[str, str]:
    """The last part of each path, or as many as tell them apart."""
    for depth in (1, 2, 99):
        made = ["/".join(Path(path).parts[-depth:]) for path in paths]
        if len({*made}) == len(paths):
            break
    return dict(zip(paths, made, strict=True))


def start_of(runs: list[str], baseline: str | None = None) -> str | None:
    """What the runs are compared with, by its name among them if it is one of them.

    That is the baseline, or the model that all others began from; None if they began from several.
    """
    own = {place.resolve(): run for run in runs if (place := run_of(run))}

    def known(model: str | None) -> str | None:
        place = run_of(model) if model else None
        return own.get(place.resolve(), model) if place else model

    if baseline:
        return None if baseline == "none" else known(baseline)
    keys = {run: settings_of(place) for place, run in own.items()}
    found = {run: known(own_keys.get("model_name_or_path")) for run, own_keys in keys.items()}
    starts = {start for run, start in found.items() if run not in found.values()}
    return starts.pop() if len(starts) == 1 else None


def judged_numbers(
    script: CompareArguments, names: list[str], said: dict[str, Any], kls: list[dict[str, float]]
) -> tuple[dict[str, Any], dict[str, list[float | None]]]:
    """What the judges say, by short names, and the first one's scores as of scores_over_last."""
    from recipes.lib.evaluation.checkpoints import standing
    from recipes.lib.evaluation.contest import scores_over_last, shares_of
    from recipes.lib.evaluation.results import ranked
    from recipes.lib.evaluation.win_rate import win_rate

    first = next(iter(said.values()))
    wins: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for (one, other), both in first.items():
        kept = [share for share in shares_of(*both) if share is not None]
        rate = win_rate(kept, [0.5] * len(kept), seed=script.seed)
        wins[names[one]][names[other]] = [rate.value, rate.low, rate.high]
        wins[names[other]][names[one]] = [1 - rate.value, 1 - rate.high, 1 - rate.low]
    scores = dict(zip(names, scores_over_last(first, len(names)), strict=True))
    rows = standing(scores, script.seed)[1]
    table = {name: rows[name] | kl for name, kl in zip(names, [*kls, {}], strict=True)}
    keys = dict.fromkeys(["score", "score_ci95", *(key for kl in kls for key in kl)])
    told = {key: {name: row[key] for name, row in table.items() if key in row} for key in keys}
    told["num_judged"] = rows[names[0]]["num_judged"]
    return told | {"win_rates": wins} | ranked(names, said, script.seed), scores


@guarded
def run(config: Config) -> dict[str, Any]:
    """Train the methods, where there are any; let the runs complete prompts; write the page.

    Args:
        config: The parsed configuration.

    Returns:
        The summary, by name of a run: scores with intervals, KL in nats per completion with
        standard errors, win rates in 0..1.

    Raises:
        UserError: A key is wrong, a run or a judge cannot be used, or a method cannot run.
    """
    from recipes.lib.evaluation.contest import judged
    from recipes.lib.recipe.spine import finish
    from recipes.lib.rewards.judge import judge_counts

    asked, config = config.script, completed(config)
    script: CompareArguments = config.script
    check_runs(script.runs)
    prompts, columns = script.prompts() if script.judge else ([], {})
    judges = script.judges() if script.judge else {}
    stages = [stage_of(name, script) for name in script.methods]
    folder = open_run(config)
    for number, stage in enumerate(stages, start=1):
        carry_out(stage, f"{number}/{len(stages)}", is_stale=is_outdated(stage))
    # The last words name one of them, too.
    asked.runs = runs = [str(stage.folder) for stage in stages] or script.runs
    start = start_of(runs, script.baseline)
    models = short_names([run for run in runs if run != start] + ([start] if start else []))
    summary: dict[str, Any] = {"runs": {models[run]: str(run_of(run)) for run in runs}}
    rows = []
    if script.judge:
        names, baseline = [*models.values()], models.get(start or "")
        how = {"has_baseline": bool(start), "one_template": not script.baseline}
        sides, kls = script.complete_all([*models], prompts, **how)
        asked_of = ([*models], prompts, columns, sides, [*combinations(range(len(models)), 2)])
        said = {name: judged(judge, *asked_of) for name, judge in judges.items()}
        told, scores = judged_numbers(script, names, said, kls)
        summary |= told | judge_counts([*judges.values()])
        summary |= {"num_prompts": len(prompts), "baseline": baseline}
        wins = told["win_rates"].items()
        summary["win_rate"] = {name: row[baseline] for name, row in wins if baseline in row}
        for n, prompt in enumerate(prompts):
            texts = {name: side[n].text for name, side in zip(names, sides, strict=True)}
            own = {name: some[n] for name, some in scores.items()}
            rows.append({"prompt": prompt_text(prompt), "completions": texts, "scores": own})
    folder.write_samples(rows)
    facts = {"model": None, "data": script.data_names(), "judge": script.judge, "runs": runs}
    return finish(folder, config, summary, **facts)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("compare", argv)


if __name__ == "__main__":
    raise SystemExit(main())
