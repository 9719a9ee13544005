"""Quickstart: the whole loop on a CPU, offline: base, SFT, feedback, reward model, PPO, evaluation.

With people, you are asked, too: 60 pairs on a page before the reward model, which learns from them
and from the simulated rater's, and at the end which of SFT and PPO you prefer, without their names.

Each stage is the ordinary run of an ordinary recipe with a YAML of configs/quickstart/. A finished
stage is skipped, an interrupted one goes on, and one whose YAML changed is run again with all after
it; what it held before is moved aside.

Writes runs/quickstart/<stage>/, runs/quickstart/summary.json and runs/quickstart/report.html
(runs/quickstart-people/ with people).

    python -m recipes.quickstart
"""

from __future__ import annotations

import gc
import importlib.util
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.lib.config.build import redacted
from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.config.shipped_configs import FOLDER
from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.errors import UserError, visible
from recipes.lib.feedback.arguments import NAMES, PAGE
from recipes.lib.recipe.main import launch, parse
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.files import read_jsonl, write_json
from recipes.lib.runs.folder import is_run, move_aside
from recipes.lib.verbosity import short_bars_hidden

STAGES = ("base", "sft", "feedback", "reward", "ppo", "evaluate")
WITH_PEOPLE = ("base", "sft", "feedback", "people", "reward", "ppo", "evaluate", "blind")
RUNS_ROOT = "runs/quickstart"  # the YAMLs name their folders below it; output_dir takes its place
CONFIGS = FOLDER / "quickstart"
HELD_OUT = ("test_fraction", "eval_strategy", "eval_steps")  # what a run adds to its keys


@dataclass(kw_only=True)
class QuickstartArguments:
    """Keys of the recipe."""

    output_dir: str = option(
        RUNS_ROOT, f"Folder of all stages; with people {RUNS_ROOT}-people by default."
    )
    configs: str = option(str(CONFIGS), "Folder with one YAML for each stage.")
    people: bool = option(False, "Ask you, too, on a page in the browser.")
    fresh: bool = option(False, "Move what is there aside and start over.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (QuickstartArguments,)


@dataclass(frozen=True)
class Stage:
    """One stage: its name, its YAML, the folder it writes to, and keys that win over the YAML."""

    name: str
    config: Path
    root: str
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """The recipe that it runs; that with an action is feedback."""
        return "feedback" if "action" in read_yaml(self.config).values else self.name

    @property
    def folder(self) -> Path:
        """The run folder of the stage."""
        return Path(self.keys.get("output_dir", Path(self.root) / self.name))

    @property
    def purpose(self) -> str:
        """What the first line of the YAML says after its colon."""
        line = self.config.read_text(encoding="utf-8").splitlines()[0]
        return line.partition(":")[2].strip()

    def values(self) -> dict[str, Any]:
        """The keys of the YAML, with its folders below the root."""
        placed = {key: self._placed(one) for key, one in read_yaml(self.config).values.items()}
        return placed | self.keys

    def _placed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._placed(item) for item in value]
        if isinstance(value, dict):
            return {key: self._placed(item) for key, item in value.items()}
        is_below = isinstance(value, str) and (value + "/").startswith(RUNS_ROOT + "/")
        return self.root + value[len(RUNS_ROOT) :] if is_below else value

    def summary(self) -> dict[str, Any]:
        """What the finished run wrote."""
        return read_json(self.folder / "summary.json")

    def is_finished(self) -> bool:
        """Whether its run has ended; an export while people still answer ends none."""
        if not (self.folder / "summary.json").is_file():
            return False
        keys = self.values()
        if keys.get("action") != "serve" or not keys.get("num_answers"):
            return True
        from recipes.lib.feedback.project import open_project

        project = open_project(self.folder, {}, may_begin=False)
        return project.store.is_over(keys["num_answers"])


def make_stages(script: QuickstartArguments) -> list[Stage]:
    """Find the YAML of every stage.

    Raises:
        UserError: One is not there.
    """
    folder = Path(script.configs)
    is_own = script.people and script.output_dir == RUNS_ROOT
    root = f"{RUNS_ROOT}-people" if is_own else script.output_dir
    stages = []
    for name in WITH_PEOPLE if script.people else STAGES:
        file = "reward_people" if script.people and name == "reward" else name
        stages.append(Stage(name, folder / f"{file}.yaml", root))
    for stage in stages:
        if not stage.config.is_file():
            raise UserError(f"configs={script.configs}: {stage.config.name} is not there.")
    return stages


def parsed(stage: Stage, **more: Any) -> Config:
    """The configuration of a stage, with its folders below the root."""
    written = read_yaml(stage.config).values
    changes = {key: value for key, value in stage.values().items() if value != written.get(key)}
    return parse(stage.recipe, ["--config", str(stage.config)], changes | more)


def is_of(stage: Stage) -> bool:
    """Whether a stage's folder holds a run of its YAML, also of one in the words of before."""
    stored = read_yaml(stage.folder / "config.yaml").values
    if stored == stage.values():
        return True
    now = redacted(parsed(stage).values)
    if now.get("action") == "serve":
        stored, now = (
            {key: one for key, one in some.items() if key not in NAMES | PAGE}
            for some in (stored, now)
        )
    if "test_fraction" not in now:  # test rows were held out by default
        stored = {key: one for key, one in stored.items() if key not in HELD_OUT or key in now}
    return bool(stored == now)


def carry_out(
    stage: Stage, place: str, after: Sequence[Path] = (), *, is_stale: bool = False
) -> bool:
    """Run a stage unless it is finished and still holds.

    Args:
        stage: The stage.
        place: Its number, and that of all.
        after: Folders of what begins from it; where it runs, they are moved aside before that, so
            that a kill leaves nothing of before behind it.
        is_stale: Whether what it began from was made anew.

    Returns:
        Whether it ran.
    """
    title, reason = f"[{place}] {stage.name}", "runs anew"
    if is_run(stage.folder):
        is_same = is_of(stage)
        if is_same and not is_stale and stage.is_finished():
            print(f"{title}: finished before, in {stage.summary()['seconds']:.0f} s", flush=True)
            return False
        if is_stale or not is_same:
            reason = "its YAML changed" if not is_same else "what it began from was made anew"
            after = (stage.folder, *after)
        else:
            reason = "goes on where it was interrupted"
            print(f"{title}: {reason}", flush=True)
    for folder in after[::-1]:
        if folder.exists():
            print(f"{title}: {reason}; what was there is now {move_aside(folder)}", flush=True)
    print(f"{title}: {stage.purpose}", flush=True)
    with short_bars_hidden():
        config = parsed(stage, **({"resume": True} if is_run(stage.folder) else {}))
        importlib.import_module(f"recipes.{stage.recipe}").run(config)
    gc.collect()  # the models of the stage, before the next one loads its own
    return True


def summarise(stages: list[Stage], peak_rss_mb: float) -> dict[str, Any]:
    """Put the numbers of all stages into one summary.

    Args:
        stages: The finished stages.
        peak_rss_mb: Largest resident memory of the process, MiB.

    Returns:
        The summary: perplexities, accuracies in 0..1, mean gold scores, win rate of PPO against SFT
        in 0..1 with its 95 % interval, KL in nats per completion, seconds of each stage; with
        people how often they preferred PPO, of how many pairs that were no tie.
    """
    of = {stage.name: stage.summary() for stage in stages}
    people = {}
    if "blind" in of:  # ties are left out
        wins = {Path(name).name: number for name, number in of["blind"]["preferred"].items()}
        people = {"preferred_ppo": wins.get("ppo", 0), "preferred_of": sum(wins.values())}
    return people | {
        "base_perplexity": of["sft"]["base_perplexity"],
        "sft_perplexity": of["sft"]["perplexity"],
        "reward_accuracy": of["reward"]["accuracy"],
        "reward_accuracy_ceiling": of["reward"]["accuracy_ceiling"],
        "gold_sft": of["evaluate"]["score_baseline"],
        "gold_ppo": of["evaluate"]["score"],
        "win_rate": of["evaluate"]["win_rate"],
        "win_rate_ci95": of["evaluate"]["win_rate_ci95"],
        "kl": of["evaluate"]["kl"],
        "seconds": {name: summary["seconds"] for name, summary in of.items()},
        "peak_rss_mb": peak_rss_mb,
    }


def peak_memory(root: Path, has_skipped: bool) -> float:
    """Peak resident memory in MiB, of this process and of the one that ran the skipped stages."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    if has_skipped:
        now = max(now, read_json(root / "summary.json").get("peak_rss_mb", 0.0))
    return round(now)


def print_samples(rows: list[dict[str, Any]], number: int = 5) -> None:
    """Print a few prompts with the completions of SFT and PPO side by side."""
    from rich.console import Console
    from rich.table import Table

    for row in rows[:number]:
        prompt, *said = (visible(row[name]) for name in ("prompt", "baseline", "completion"))
        table = Table(title=prompt, title_justify="left", expand=True)
        table.add_column(f"SFT (gold {row['score_baseline']:.2f})", ratio=1)
        table.add_column(f"PPO (gold {row['score']:.2f})", ratio=1)
        table.add_row(*(text.strip() for text in said))
        Console(highlight=False, markup=False).print(table)


def run(config: Config) -> dict[str, Any]:
    """Run what is left of the stages, then summarise and report.

    Args:
        config: The parsed configuration.

    Returns:
        The summary; see `summarise`.

    Raises:
        UserError: A YAML is missing or wrong, or a stage cannot run.
    """
    from recipes.lib.report.page import write_quickstart_report

    script = config.script
    if script.people and importlib.util.find_spec("starlette") is None:
        raise UserError("people=true: there is no page; pip install 'rlhf-recipes[feedback]'.")
    stages = make_stages(script)
    root = Path(stages[0].root)
    script.output_dir = str(root)  # the last words are told of it
    if root.resolve() == Path.cwd():
        raise UserError(f"output_dir={root}: is the folder you are in; name one of its own.")
    if script.fresh and root.exists():
        if not any(is_run(stage.folder) for stage in stages):
            raise UserError(f"output_dir={root}: holds no quickstart; choose another folder.")
        print(f"--fresh: what was there is now {move_aside(root)}", flush=True)
    ran: list[bool] = []
    for number, stage in enumerate(stages, start=1):
        after = [later.folder for later in stages[number:]]
        ran.append(carry_out(stage, f"{number}/{len(stages)}", after))
    summary = summarise(stages, peak_memory(root, has_skipped=not all(ran)))
    write_json(root / "summary.json", summary)
    write_quickstart_report(root)
    print_samples(read_jsonl(root / "evaluate" / "samples.jsonl"))
    if script.people:
        wins, total = summary["preferred_ppo"], summary["preferred_of"]
        print(f"\nYou preferred the trained model in {wins} of {total}.")
    return summary


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("quickstart", argv)


if __name__ == "__main__":
    raise SystemExit(main())
