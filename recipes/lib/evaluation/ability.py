"""Ability kept: what two models can do beside the prompts, on benchmarks and held-out text.

Benchmarks are lm-eval's tasks, which it runs on models as this project loads them; extra [eval].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.formats import format_of
from recipes.lib.data.loading import BESIDE, load_splits
from recipes.lib.data.preview import token_rows
from recipes.lib.data.prompts import context_length
from recipes.lib.errors import UserError, note, one_sentence
from recipes.lib.evaluation.win_rate import mean_interval
from recipes.lib.models.likelihood import label_logps, perplexity_of

if TYPE_CHECKING:
    from datasets import Dataset

NORMAL = 1.959964  # standard errors in half an interval of 95 %
NUM_RESAMPLES = 1000  # of lm-eval, for standard errors that have no formula
Likelihood = tuple[list[list[int]], list[float]]  # labels and nats of each text


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Load tasks, groups and tags of lm-eval, or YAML files, as its TaskManager does.

    Raises:
        UserError: lm-eval is not installed, or a task cannot be loaded.
    """
    if find_spec("lm_eval") is None:
        raise UserError("tasks: lm-eval is not installed; pip install 'rlhf-recipes[eval]'.")
    from lm_eval.tasks import TaskManager

    # The index of its own tasks takes seconds; a file needs it only if it groups others.
    files = [path for path in map(Path, names) if path.is_file()]
    groups = any("\ngroup:" in f"\n{path.read_text('utf-8', 'replace')}" for path in files)
    manager = TaskManager(include_defaults=len(files) < len(names) or groups)
    found: dict[str, Any] = {"tasks": {}, "groups": {}}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # whatever the code and the data of a task may raise
            raise UserError(
                f"tasks={name}: lm-eval cannot load it ({one_sentence(error)}); lm-eval ls tasks "
                "has the names, and a YAML file needs data that are there."
            ) from error
        found = {kind: ones | loaded[kind] for kind, ones in found.items()}
    return found


def load_texts(name: str, seed: int, on_bad_rows: str) -> Dataset:
    """Load rows as of SFT, those of the test split where there is one."""

    def columns(rows: Dataset) -> Sequence[str]:
        if "sft" not in (shape := format_of(rows)).recipes:
            wanted = "text, messages, or prompt and completion"
            raise UserError(f"dataset_name={name}: holds {shape.name}; it needs {wanted}.")
        return shape.columns

    args = DataArguments(dataset_name=name, on_bad_rows=on_bad_rows)
    try:
        train, test = load_splits(args, seed, columns, BESIDE)
    except UserError as error:  # which knows no other key for data
        raise UserError(str(error).replace("dataset_name", "text_dataset_name", 1)) from error
    return train if test is None else test


def benchmark(
    model: Any, tokenizer: Any, tasks: dict[str, Any], limit: int | None, batch_size: int, seed: int
) -> Any:
    """Let lm-eval run tasks on a loaded model: its results, with what it has of each document."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed)  # every model is shown the same examples
    wrapped = HFLM(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
    try:
        return evaluate(wrapped, tasks, limit=limit, bootstrap_iters=NUM_RESAMPLES)
    except (AssertionError, ValueError) as error:
        names = ", ".join(tasks["tasks"])
        raise UserError(f"tasks: lm-eval refuses {names} ({one_sentence(error)}).") from error


def likelihood(model: Any, tokenizer: Any, texts: Dataset, batch_size: int) -> Likelihood:
    """Labels of each text as SFT makes them, cut to the model's context, and its nats."""
    shape, context = format_of(texts), context_length(model.config)
    try:
        seen = [token_rows(row, shape, tokenizer, False)[0] for row in texts]
    except UserError as error:  # it names a key of sft
        raise UserError(
            f"text_dataset_name: the tokenizer of {model.name_or_path} has no chat template for "
            "these messages; take rows of text, or of prompt and completion."
        ) from error
    pairs = [zip(one.ids, one.has_loss, strict=True) for one in seen]
    labels = [[token if loss else -100 for token, loss in pair][:context] for pair in pairs]
    ids = [one.ids[:context] for one in seen]
    logps = label_logps(model, ids, labels, batch_size=batch_size)
    return labels, [-float(logps_C.double().sum()) for logps_C in logps]


def task_numbers(ours: Any, theirs: Any, *, seed: int = 0) -> dict[str, Any]:
    """What lm-eval found of a run and its baseline, each as of `benchmark`, and the difference.

    Returns:
        By task/metric the run's value, and with _baseline, _difference and _difference_ci95 at the
        end the rest, in units of the metric; task/num_documents.
    """
    found: dict[str, Any] = {}
    for task, result in ours["results"].items():
        for key in result:
            metric, _, kept = key.partition(",")  # the filter of the answers
            pair = [side["results"][task].get(key) for side in (ours, theirs)]
            if not kept or metric.endswith("_stderr") or not _are_numbers(pair):
                continue
            name = f"{task}/{metric}" if kept == "none" else f"{task}/{metric},{kept}"
            one, other = map(float, pair)
            found |= {name: one, f"{name}_baseline": other, f"{name}_difference": one - other}
            if interval := _interval((ours, theirs), task, key, seed):
                found[f"{name}_difference_ci95"] = [*interval]
        if counts := ours["n-samples"].get(task):
            found[f"{task}/num_documents"] = counts["effective"]
    return found


def _interval(sides: tuple[Any, Any], task: str, key: str, seed: int) -> tuple[float, float] | None:
    """Paired by document where the metric is a mean over them, else of two independent errors."""
    metric, _, kept = key.partition(",")
    values = [float(side["results"][task][key]) for side in sides]
    rows = [[r for r in side["samples"].get(task, ()) if r["filter"] == kept] for side in sides]
    one, other = ({row["doc_id"]: row[metric] for row in ones if metric in row} for ones in rows)
    each = [*one.values(), *other.values()]
    if one and one.keys() == other.keys() and _are_numbers(each):
        means = fmean(one.values()), fmean(other.values())
        if np.allclose(means, values, equal_nan=True):
            gains_N = np.array([one[row] - other[row] for row in one], dtype=float)
            span = max(1.0, float(max(each) - min(each)))  # what an unseen document may turn
            return mean_interval(gains_N, (-span, span), seed)
    errors = [side["results"][task].get(f"{metric}_stderr,{kept}") for side in sides]
    half = NORMAL * math.hypot(*errors) if _are_numbers(errors) else math.nan
    gap = values[0] - values[1]
    return None if math.isnan(half) else (gap - half, gap + half)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Real) for value in values)  # NumPy's, too


def text_numbers(ours: Likelihood, theirs: Likelihood, *, seed: int = 0) -> dict[str, Any]:
    """Perplexity of a run and its baseline, in which every token has the same weight.

    Returns:
        num_texts, perplexity and nats_per_token, both also as ..._baseline; where both have the
        same tokens nats_per_token_difference and, of two texts or more, its interval ..._ci95.

    Source: Cochran, Sampling Techniques, 1977, chapter 6: a ratio of sums varies as the mean of
        ratio + (nats - ratio * tokens) / mean(tokens) does.
    """
    counts = [[sum(one != -100 for one in row[1:]) for row in side[0]] for side in (ours, theirs)]
    if not all(map(sum, counts)):
        raise UserError("text_dataset_name: no text has tokens to predict within the context.")
    means = [sum(side[1]) / sum(of) for side, of in zip((ours, theirs), counts, strict=True)]
    numbers: dict[str, Any] = {"num_texts": len(ours[0])}
    for suffix, mean in zip(("", "_baseline"), means, strict=True):
        numbers |= {f"perplexity{suffix}": perplexity_of(mean), f"nats_per_token{suffix}": mean}
    if ours[0] != theirs[0]:
        note("the two have different tokens, so there is no difference of their nats per token.")
        return numbers
    gap, counts_N = means[0] - means[1], np.array(counts[0])
    numbers["nats_per_token_difference"] = gap
    if len(counts_N) > 1:
        parts_N = gap + (np.subtract(ours[1], theirs[1]) - gap * counts_N) / counts_N.mean()
        numbers["nats_per_token_difference_ci95"] = [*mean_interval(parts_N, (gap, gap), seed)]
    return numbers
