"""Feedback: what people, or a simulated rater, say of a model's completions.

serve RUN... samples completions for prompts, or takes ready ones (items), and opens a page on which
people compare, rank, rate and rewrite them, or chat with a run; sample is what fills its queue.
import FILE... takes answers from elsewhere, export writes what training reads, status says how far
it is and how much people agree, forget NAME... erases an annotator.
select RUN chooses what is asked: of many sampled pairs those that tell most, as items.
simulate lets a simulated rater choose instead, with the Bradley-Terry probability on the scores of
a judge: a Python function of plain texts, f(prompts, completions) -> scores.

Data: prompt (text or messages).
Writes a project: feedback.db, and of its answers answers.jsonl, final/*.jsonl, report.html.
simulate writes feedback.jsonl, final/train.jsonl and final/test.jsonl in TRL's preference format
(the test rows with their noise, and from other prompts), and its summary has the ceiling of
accuracy. Where annotators may tie, final/ranks.jsonl has the training rows with their ties.

    rlhf feedback serve runs/sft/mine --dataset_name prompts.jsonl
    rlhf feedback simulate --config configs/quickstart/feedback.yaml

Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NoReturn

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import load_splits
from recipes.lib.data.prompts import prompt_text
from recipes.lib.errors import UserError, first_line, visible
from recipes.lib.feedback.arguments import (
    AskArguments,
    ExchangeArguments,
    SelectArguments,
    ServeArguments,
)
from recipes.lib.feedback.rows import Row
from recipes.lib.feedback.simulation import PAIRS, Rater
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.rewards.loading import is_judge
from recipes.lib.runs.files import write_jsonl
from recipes.lib.runs.folder import FolderArguments, Run, folder_of, is_run, open_run
from recipes.lib.runs.lock import acquire, release

if TYPE_CHECKING:
    from recipes.lib.feedback.queue import Talker
    from recipes.lib.feedback.sampling import Sampler
    from recipes.lib.generation.completions import Completion

ACTIONS = ("serve", "simulate", "select", "sample", "import", "export", "status", "forget")
OPERANDS = "names"
EXTRA = {"nh3", "markdown_it", "sqlalchemy", "starlette", "uvicorn"}  # what a page and a store take


@dataclass(kw_only=True)
class FeedbackArguments(SelectArguments, AskArguments, ExchangeArguments, FolderArguments):
    """Keys of the recipe."""

    action: str | None = option(None, f"What to do: {', '.join(ACTIONS)}.")
    model_name_or_path: str | None = option(
        None, "Model to compare completions of: a run or a folder."
    )
    dtype: str = option("float32", "Number format of the model.")
    judge: str | None = option(
        None, "Function with the hidden scores: module:function or file.py:function."
    )
    rater_temperature: float = option(1.0, "Difference of scores that is one unit of log-odds.")
    annotators: list[Rater] = option(
        list,
        "Simulated annotators instead of one: mappings of name, and perhaps temperature, bias (of "
        "ratings and thumbs), position_bias, tie.",
    )
    sampling_batch_size: int = option(256, "Completions at a time.")


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (FeedbackArguments,)


def _keys(*types: type) -> set[str]:
    return {field.name for one in types for field in fields(one)}


# Keys that each action reads, beside those of every action.
EVERY = _keys(FolderArguments, TrustArguments) | {"action"}
READS = {
    "serve": _keys(AskArguments) | {"database"},
    "simulate": _keys(FeedbackArguments)
    - _keys(SelectArguments, ServeArguments, ExchangeArguments)
    - {"names"}
    | {"kinds", "num_completions", "items"},
    "select": _keys(SelectArguments, DataArguments)
    | {"names", "num_completions", "repeat", "temperature", "max_completion_length", "seed"}
    | {"sampling_batch_size"},
    "sample": {"database", "sampling_batch_size"},
    "import": {"names", "mapping", "database"},
    "export": {"format", "implicit_weight", "database"},
    "status": {"database"},
    "forget": {"names", "database"},
}


def make_samplers(
    script: FeedbackArguments, keys: dict[str, Any], dtype: str
) -> tuple[Sampler, Talker]:
    """What writes completions, and replies in a chat; each model is loaded once."""
    from recipes.lib.generation.completions import complete, stream
    from recipes.lib.publishing.source import load_as_trained

    trusted = script.trust_remote_code
    load = functools.cache(lambda name: load_as_trained(name, dtype, trust_remote_code=trusted))
    told = {"max_new_tokens": keys["max_completion_length"], "temperature": keys["temperature"]}
    for known in keys.get("models") or ():  # what cannot be loaded ends all, and costs no prompt
        load(known)

    def sample(name: str, prompts: Sequence[Any], seed: int) -> list[Completion]:
        model, tokenizer, kwargs = load(name)
        more = told | {"seed": seed, "batch_size": script.sampling_batch_size}
        return complete(model, tokenizer, prompts, template_kwargs=kwargs, **more)

    def talk(name: str, prompt: Any, episode: int, show: Callable[[str], None]) -> str:
        model, tokenizer, kwargs = load(name)
        more = told | {"seed": keys["seed"], "episode": episode}
        return stream(model, tokenizer, prompt, show, template_kwargs=kwargs, **more)

    return sample, talk


# The run, rows with what a judge may read, what is judged of each, its completions, and numbers.
Asked = tuple["Run", list[Row], list[Row], "list[list[Completion]]", dict[str, Any]]


def sampled_sets(config: Config) -> Asked:
    """Rows of the data whose completions differ."""
    from recipes.lib.feedback.sampling import sample_sets, sampled_item

    script = config.script
    train, test = load_splits(script, script.seed, ("prompt",))
    folder = open_run(config)
    rows = train.to_list() + (test.to_list() if test else [])
    tests = {*map(prompt_text, test["prompt"])} if test else set()
    models = [script.model_name_or_path] * (2 if script.kinds == PAIRS else script.num_completions)
    jobs = [{"prompt": row["prompt"], "models": models} for row in rows]
    found = sample_sets(jobs, make_samplers(script, vars(script), script.dtype)[0], script.seed)
    kept = [rows[place] for place in found]
    items = [
        sampled_item(row["prompt"], said, models, held_out=prompt_text(row["prompt"]) in tests)
        for row, said in zip(kept, found.values(), strict=True)
    ]
    lengths = [len(one.ids) for said in found.values() for one in said]
    numbers = {"num_left_out": len(rows) - len(kept), "completion_length": fmean(lengths)}
    return folder, kept, items, [*found.values()], numbers


def ready_sets(config: Config) -> Asked:
    """Rows of a file of items; which tokens their completions had nobody knows."""
    from recipes.lib.feedback.queue import read_items
    from recipes.lib.generation.completions import Completion

    items = list(read_items(config.script))
    texts = [[prompt_text(one["content"]) for one in item["completions"]] for item in items]
    sets = [[Completion([], [], text, True) for text in some] for some in texts]
    return open_run(config), [{"prompt": item["prompt"]} for item in items], items, sets, {}


def load_rater_judge(name: str, *, trust_remote_code: bool) -> Any:
    """What scores completions, or a language model that compares them."""
    from recipes.lib.evaluation.judges import load_judge
    from recipes.lib.models.policies import evaluation_device
    from recipes.lib.rewards.judge import LanguageModelJudge

    if is_judge(name):
        device = evaluation_device()
        return LanguageModelJudge(name, device, trust_remote_code=trust_remote_code)
    return load_judge(name, trust_remote_code=trust_remote_code)


@guarded
def simulate(config: Config) -> dict[str, Any]:
    """Sample completions, or take ready ones, let simulated annotators answer, write the rows.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: numbers of pairs and ceiling of accuracy, or of rows by file; mean score.

    Raises:
        UserError: A key, the data, the model or the judge cannot be used.
    """
    from recipes.lib.feedback.exchange import write_answers, write_pairs
    from recipes.lib.feedback.simulation import (
        check_simulation,
        compared,
        raters_of,
        score_sets,
        simulate_answers,
    )
    from recipes.lib.recipe.spine import finish
    from recipes.lib.rewards.judge import judge_counts

    script = config.script
    check_simulation(script)
    trusted = {"trust_remote_code": script.trust_remote_code}
    judge = load_rater_judge(script.judge, **trusted)
    folder, rows, items, sets, summary = (ready_sets if script.items else sampled_sets)(config)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if is_judge(script.judge):
        answers = compared(judge, items, now)
    else:
        scores = score_sets(judge, rows, sets)
        drawn = {"kinds": script.kinds, "raters": raters_of(script), "seed": script.seed}
        answers = simulate_answers(items, scores, created_at=now, **drawn)
        summary["mean_score"] = fmean(map(fmean, scores))
    write_jsonl(folder.path / "feedback.jsonl", answers)
    held_out = {item["id"] for item in items if item.get("held_out")}
    if script.kinds == PAIRS and not script.items:
        may_tie = is_judge(script.judge) or any(rater.tie for rater in raters_of(script))
        summary = write_pairs(folder.final, answers, held_out, may_tie=may_tie) | summary
    else:
        made = write_answers(answers, folder.path, held_out=held_out)
        summary = {f"num_{name}": number for name, number in made.items()} | summary
    facts = {"model": script.model_name_or_path, "judge": script.judge} | trusted
    facts["data"] = script.data_names() or [script.items]
    return finish(folder, config, summary | judge_counts([judge]), **facts)


@guarded
def select(config: Config) -> dict[str, Any]:
    """Sample completions of many prompts, and choose the pairs that are asked.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: numbers of items, of those drawn at random, and of those that come again.

    Raises:
        UserError: A key, the data or a model cannot be used.
    """
    from recipes.lib.feedback.selection import ITEMS, Chooser, check_selection
    from recipes.lib.recipe.spine import finish

    script: FeedbackArguments = config.script
    check_selection(script)
    rows, _ = load_splits(script, script.seed, ("prompt",))
    chooser = Chooser(script)
    folder = open_run(config)
    sample = make_samplers(script, vars(script), "trained")[0]
    items, summary = chooser.choose(rows["prompt"], sample)
    folder.final.mkdir(exist_ok=True)
    write_jsonl(folder.final / ITEMS, items)
    facts: dict[str, Any] = {"model": script.names[0], "data": script.data_names()}
    facts |= {"reward_model": script.reward_model_name_or_path, "asked": script.asked}
    return finish(folder, config, summary, **facts)


def serve(config: Config) -> dict[str, Any]:
    """Ask people on a page until all is answered, or until Ctrl-C; then export.

    Args:
        config: The parsed configuration.

    Returns:
        The summary of the export.

    Raises:
        UserError: Nothing is to be asked, or the page cannot be opened.
    """
    from recipes.lib.annotation.hosting import host
    from recipes.lib.feedback.project import check_asked, open_project
    from recipes.lib.feedback.queue import read_items

    script: FeedbackArguments = config.script
    path = folder_of(config)
    check_asked(script, is_new=not is_run(path))
    prompts = []
    if script.dataset_name or script.datasets:
        rows, _ = load_splits(script, script.seed, ("prompt",))
        prompts = rows["prompt"]
    items = list(read_items(script)) if script.items else []
    project = open_project(path, config.values, may_begin=True)
    acquire(path)  # others may read and export meanwhile
    try:
        project.ask(script, config.values, items, prompts)
        host(project, script)
    finally:
        release(path)
    if script.num_answers and not project.store.is_over(script.num_answers):
        raise KeyboardInterrupt  # what was answered is kept, and the next time goes on from there
    return export(config)


def sample(config: Config) -> NoReturn:
    """Sample what the queue of a project holds until standard input ends; `serve` starts it.

    Args:
        config: The parsed configuration.

    Raises:
        UserError: There is no such project, or a model cannot be used.
    """
    from recipes.lib.feedback.project import open_project
    from recipes.lib.feedback.queue import fill

    store = open_project(folder_of(config), config.values, may_begin=False).store

    def end() -> None:  # whoever started this holds the other end, and may be killed
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
    fill(store, *make_samplers(config.script, store.settings, "trained"))


def import_answers(config: Config) -> dict[str, Any]:
    """Take answers from files of other tools.

    Args:
        config: The parsed configuration.

    Returns:
        How many rows of each kind.

    Raises:
        UserError: A file is not there, or not of that format.
    """
    from recipes.lib.feedback.exchange import read_answers
    from recipes.lib.feedback.project import open_project

    script: FeedbackArguments = config.script
    if not script.names:
        raise UserError("names is missing; write rlhf feedback import FILE.")
    rows = [row for name in script.names for row in read_answers(Path(name), script.mapping)]
    project = open_project(folder_of(config), config.values, may_begin=True)
    return {"imported": dict(Counter(row["kind"] for row in project.store.take(rows)))}


def export(config: Config) -> dict[str, Any]:
    """Write the answers that hold for training, or in the format of another tool.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: numbers of answers and rows, agreement.

    Raises:
        UserError: There is no such project, or it cannot be written.
    """
    from recipes.lib.feedback.project import open_project
    from recipes.lib.recipe.spine import finish

    script: FeedbackArguments = config.script
    project = open_project(folder_of(config), config.values, may_begin=False)
    if script.implicit_weight < 0:
        raise UserError(f"implicit_weight={script.implicit_weight}: must be 0 or more.")
    numbers = project.export(script.format, script.implicit_weight)
    # The models are named so that what learned from a project is found through what sampled for it.
    facts = {"sampled_from": project.store.settings.get("models")}
    return finish(Run(project.path), config, numbers, model=None, data=[], **facts)


def status(config: Config) -> dict[str, Any]:
    """Say how far a project is, how much people agree, and what looks odd.

    Args:
        config: The parsed configuration.

    Returns:
        Numbers of items and answers, agreement.

    Raises:
        UserError: There is no such project.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from recipes.lib.feedback.project import open_project
    from recipes.lib.feedback.status import COLUMNS, agreement_lines, annotator_table, preferred

    project = open_project(folder_of(config), config.values, may_begin=False)
    rows, counts = project.store.rows(), project.store.counts()
    told = project.describe(rows)
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for line in annotator_table(told):
        table.add_row(*map(visible, line))
    console = Console(highlight=False, markup=False)
    console.print(
        f"{counts['answered']:,} of {counts['items']:,} items are answered, {counts['waiting']:,} "
        "prompts wait for their completions"
    )
    console.print(table)
    wins = [f"{run} was preferred in {number}" for run, number in preferred(rows).items()]
    for line in [*agreement_lines(told), *wins, *told["hints"]]:
        console.print(visible(line), soft_wrap=True)
    return counts | told


def forget(config: Config) -> dict[str, Any]:
    """Erase annotators, export what is left, and name the runs that learned from them.

    Args:
        config: The parsed configuration.

    Returns:
        How many rows were emptied.

    Raises:
        UserError: Nobody of that name has answered.
    """
    from recipes.lib.feedback.project import open_project
    from recipes.lib.runs.lineage import trained_on

    script: FeedbackArguments = config.script
    if not script.names:
        raise UserError("names is missing; write rlhf feedback forget NAME.")
    project = open_project(folder_of(config), config.values, may_begin=False)
    known = project.store.names()
    for name in sorted(set(script.names) & known):
        print(f"{name} is forgotten: {project.store.forget(name)} answers are emptied")
    summary = export(config)  # in any case: a kill may have come between the two
    if unknown := set(script.names) - known:
        told = ", ".join(sorted(known)) or "nobody"
        raise UserError(f"names={sorted(unknown)}: have answered nothing here; known: {told}.")
    root = Path(os.path.relpath(project.path.resolve().parents[1]))
    for path in trained_on(project.path, root):
        print(f"learned from this project before: {path}")
    print(f"Other folders than {root} were not searched for runs that learned from it.")
    return summary


def run(config: Config) -> dict[str, Any]:
    """Do what the action says; see the functions.

    Args:
        config: The parsed configuration.

    Returns:
        The summary.

    Raises:
        UserError: A key is of another action, or the action cannot be done.
    """
    action = str(config.script.action)
    for key, value in config.values.items():
        if key not in READS[action] | EVERY:
            others = ", ".join(name for name, keys in READS.items() if key in keys)
            raise UserError(f"{key}={value}: is a key of {others}, not of {action}; leave it out.")
    actions = {
        "serve": serve,
        "simulate": simulate,
        "select": select,
        "sample": sample,
        "import": import_answers,
    }
    actions |= {"export": export, "status": status, "forget": forget}
    try:
        return actions[action](replace(config, start=time.monotonic()))
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise UserError(
            f"action={action}: the package {error.name} is not installed; "
            "pip install 'rlhf-recipes[feedback]'."
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith("sqlalchemy."):
            raise
        raise UserError(f"output_dir={folder_of(config)}: {first_line(error)}.") from error


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("feedback", argv)


if __name__ == "__main__":
    raise SystemExit(main())
