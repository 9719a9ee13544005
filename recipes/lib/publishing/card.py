"""The model card of a run: what its files say, in words and numbers, and nothing beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from recipes.lib.models.adapter_folders import BASE_QUANTIZATION
from recipes.lib.models.folders import RUNS, is_adapter, is_local
from recipes.lib.report.numbers import duration, is_number, number
from recipes.lib.report.origin import spelled_energy
from recipes.lib.report.run_files import RunFiles, read_json, read_run
from recipes.lib.report.verdict import verdict
from recipes.lib.rewards.loading import classifier_of, is_function_reference, is_judge
from recipes.lib.runs.settings import run_of

NUM_HASH_DIGITS = 12
MODEL = "a reward model"
# Numbers that the facts at the top tell.
OF_FACTS = ("seconds", "energy_kwh_measured", "energy_kwh_estimated", "co2_grams")
SIMULATED = "simulated: a function of the text, and no person"


def shown(name: str) -> str:
    """A model or file as others may read it: a Hub id whole, of a path its last part."""
    path = Path(name)
    if not path.exists() and not is_local(name):
        return name
    return (path.parent if path.name == "final" else path).name


def base_of(lineage: dict[str, Any], final: Path) -> tuple[str | None, str | None]:
    """The model that a chain of runs began with.

    Args:
        lineage: From lineage.json.
        final: The folder of the model, whose adapter names its base where there is no lineage.

    Returns:
        Its name, None where it is not known or was trained from scratch; and its commit on the
        Hub, empty where that is not known, None where it was a folder.
    """
    model = lineage.get("model") or {}
    while lineage.get("recipe") != "base" and (model.get("lineage") or {}).get("model"):
        lineage = model["lineage"]
        model = lineage["model"]
    if lineage.get("recipe") == "base" or (model.get("lineage") or {}).get("recipe") == "base":
        return None, None
    if model:
        commit = str(model["commit"] or "") if "commit" in model else None
        return str(model["name"]), commit
    base = read_json(final / "adapter_config.json").get("base_model_name_or_path")
    return (base, None) if not base or is_local(base) else (base, "")


def licence_of(base: str | None, commit: str | None) -> str | None:
    """The licence that the card of the base states, where it lies beside it or in the cache."""
    from huggingface_hub import try_to_load_from_cache

    if base is None:
        return None
    file: Any = Path(base) / "README.md"
    if commit is not None:
        file = try_to_load_from_cache(base, "README.md", revision=commit or None)
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return None
    try:
        stated = ModelCard.load(file, ignore_metadata_errors=True).data.license
    except ValueError:
        return None
    return stated if isinstance(stated, str) else None


def write_card(run: Path, final: Path, repo: str | None = None) -> str:
    """Write the card of a finished run.

    Args:
        run: The run folder, with its summary.json and lineage.json.
        final: The folder of the model.
        repo: Id on the Hub, for the title and for loading; default the name of the run.

    Returns:
        The text of README.md, with the data that the Hub reads in front.
    """
    files = read_run(run)
    trained = _trained_run(files)
    (base, commit), kind = base_of(files.lineage, final), _kind(final)
    title = repo or run.resolve().name
    contests = list(_evaluations(trained))
    licence = licence_of(base, commit)
    data = ModelCardData(
        base_model=base if commit is not None else None,
        datasets=[str(one["name"]) for one in _data(trained) if not _is_file(one)] or None,
        library_name="peft" if is_adapter(final) else "transformers",
        license=licence,
        pipeline_tag=_task(kind),
        tags=["rlhf", *([trained.recipe] if trained.recipe else [])],
        model_name=title,
        eval_results=[_result(one) for one in contests] or None,
    )
    return _template().render(
        data=data.to_yaml(),
        title=title,
        what=kind[0].upper() + kind[1:],
        recipe=trained.recipe,
        verdict=verdict(trained),
        facts=list(_facts(trained, base, commit, licence)),
        name=repo or str(final),
        is_adapter=is_adapter(final),
        is_reward="reward" in kind,
        task=_task(kind) if {"classifier", "pictures"} & {*kind.split()} else "",
        is_text=not (final / "chat_template.jinja").is_file(),
        bits=_bits(read_json(final / BASE_QUANTIZATION)),
        results=list(_results(trained)),
        evaluations=[f"{verdict(one)} Compared {_judge(one)}." for one in contests],
        limits=list(_limits(trained, files)),
        tree="\n".join(_tree(files.lineage, shown(str(run.resolve())))),
        report=(run / "report.html").is_file(),
        lineage=bool(files.lineage),
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["repr"] = repr
    return environment.get_template("card.md.jinja")


def _bits(known: dict[str, Any]) -> str:
    """What rounds the base of an adapter as it was in training; empty where it was not."""
    if not known or known.get("load_in_8bit"):
        return "load_in_8bit=True" if known else ""
    nested = ", bnb_4bit_use_double_quant=True" if known.get("use_bnb_nested_quant") else ""
    return f"load_in_4bit=True, bnb_4bit_quant_type={known['bnb_4bit_quant_type']!r}{nested}"


def _task(kind: str) -> str:
    if "pictures and text" in kind:
        return "image-text-to-text"
    of_pictures = "image-classification" if "pictures" in kind else "text-classification"
    return "text-generation" if "language" in kind else of_pictures


def _kind(final: Path) -> str:
    adapter = read_json(final / "adapter_config.json")
    named = str((read_json(final / "config.json").get("architectures") or [""])[0])
    is_reward = "SEQ_CLS" in str(adapter.get("task_type")) or "SequenceClassification" in named
    model = "reward model" if is_reward else "language model"
    if not is_reward and (final / "processor_config.json").is_file():
        model = "language model of pictures and text"
    kind = str(read_json(final / "config.json").get("problem_type"))
    model = "classifier" if kind.endswith("label_classification") else model
    model = "classifier of pictures" if "ImageClassification" in named else model
    return f"a {adapter.get('peft_type', 'PEFT')} adapter of a {model}" if adapter else f"a {model}"


def _trained_run(files: RunFiles) -> RunFiles:
    """The run behind a merge or an export, whose numbers are those of the model."""
    source = (files.lineage.get("model") or {}).get("name")
    run = run_of(source) if files.recipe in ("merge", "export") and source else None
    return _trained_run(read_run(run)) if run else files


def _data(files: RunFiles) -> list[dict[str, Any]]:
    return list(files.lineage.get("data") or [])


def _is_file(entry: dict[str, Any]) -> bool:
    known = entry.get("sha256") or Path(str(entry["name"])).exists()
    return bool(entry.get("is_local", known))


def _facts(
    files: RunFiles, base: str | None, commit: str | None, licence: str | None
) -> Iterator[tuple[str, str]]:
    if base is not None:
        at = f" at {commit[:NUM_HASH_DIGITS]}" if commit else ""
        yield "base", shown(base) + (at if commit is not None else " (a local folder)")
    elif files.lineage:
        yield "base", "none, trained from scratch"
    yield "licence", licence or "not stated: that of the base and of the data applies"
    for entry in _data(files):
        name, digest = str(entry["name"]), entry.get("sha256")
        where = "a local file" if _is_file(entry) else "on the Hub"
        digest = f", sha256 {digest[:NUM_HASH_DIGITS]}" if digest else ""
        yield "data", f"{shown(name)} ({where}{digest}){_of_feedback(name)}"
    for reward in _rewards(files.lineage):
        kind = _sort_of_judge(reward)
        yield "reward", shown(reward) + (f" ({kind})" if kind != MODEL else "")
    if is_number(files.summary.get("seconds")):
        yield "time", duration(float(files.summary["seconds"])).replace("\u00a0", " ")
    if "energy" in files.summary:
        yield "energy", spelled_energy(files.summary)
    versions = files.lineage.get("versions") or {}
    yield "versions", ", ".join(f"{name} {text}" for name, text in versions.items())


def _rewards(lineage: dict[str, Any]) -> list[str]:
    given = lineage.get("reward_funcs") or []
    return [str(one) for one in (given if isinstance(given, list) else [given])]


def _of_feedback(name: str) -> str:
    for path in (Path(name), Path(name).parent, RUNS / name):
        lineage = read_json(path / "lineage.json")
        if lineage.get("recipe") == "feedback":
            return f", judged by {shown(str(lineage.get('judge')))} ({SIMULATED})"
    return ""


def _results(files: RunFiles) -> Iterator[tuple[str, str]]:
    for key, value in files.summary.items():
        if key not in OF_FACTS and is_number(value) and not key.startswith("num_rows"):
            told = number(key, value)
            label = f"{told.label}, {told.unit}" if told.unit else told.label
            yield label, told.text.replace("\u00a0", " ")


def _evaluations(run: RunFiles) -> Iterator[RunFiles]:
    """Evaluations of a run, as it is now, that lie beside it or under runs/evaluate."""
    places = {one for at in (run.path.parent, RUNS / "evaluate") for one in at.glob("*")}
    for place in sorted(places):
        lineage = read_json(place / "lineage.json")
        known = (lineage.get("model") or {}).get("lineage")
        if lineage.get("recipe") == "evaluate" and known and known == run.lineage:
            found = read_run(place)
            yield from [found] if "win_rate" in found.summary else []


def _judge(files: RunFiles) -> str:
    judge = str(files.lineage.get("judge"))
    baseline = shown(str(files.lineage["baseline"]))
    return f"against {baseline}, judged by {shown(judge)} ({_sort_of_judge(judge)})"


def _sort_of_judge(judge: str) -> str:
    if is_judge(judge):
        return "a language model"
    if classifier_of(judge) is not None:
        return "the probability of a classifier's label"
    return SIMULATED if is_function_reference(judge) else MODEL


def _result(files: RunFiles) -> EvalResult:
    names = [str(one["name"]) for one in _data(files)] or ["prompts"]
    low, high = files.summary.get("win_rate_ci95", [None, None])
    return EvalResult(
        task_type="text-generation",
        dataset_type=shown(names[0]),
        dataset_name=shown(names[0]),
        metric_type="win_rate",
        metric_name=f"win rate {_judge(files)}",
        metric_value=files.summary["win_rate"],
        metric_args={"interval_95": [low, high], "num_prompts": files.summary["num_prompts"]},
    )


def _limits(trained: RunFiles, files: RunFiles) -> Iterator[str]:
    for key, told in (
        ("max_length", "Training saw at most {} tokens of a row"),
        ("max_completion_length", "Completions had at most {} tokens in training"),
    ):
        if trained.settings.get(key):
            yield told.format(f"{trained.settings[key]:,}") + "."
    for key, told in (("num_rows_cut", "cut"), ("num_rows_left_out", "left out")):
        if trained.summary.get(key):
            yield f"{trained.summary[key]:,} rows were {told} for their length."
    for warning in trained.summary.get("warnings") or []:
        yield f"At step {warning['step']:,}: {warning['message']}"
    if files.recipe == "merge" and "kl_per_token" in files.summary:
        kl, number = files.summary["kl_per_token"], files.summary["num_prompts"]
        same = round(files.summary["greedy_equal"] * number)
        yield (
            f"Merged, it is {kl:.1e} nats a token from the trained model, and says the same greedy "
            f"text to {same} of {number} prompts."
        )


def _tree(lineage: dict[str, Any], name: str, depth: int = 0) -> Iterator[str]:
    yield "  " * depth + f"{name} ({lineage.get('recipe', 'a model')})"
    model = lineage.get("model")
    if isinstance(model, dict):
        known = model.get("lineage") or {}
        yield from _tree(known, shown(str(model["name"])), depth + 1)
    for reward in _rewards(lineage):
        yield "  " * (depth + 1) + f"{shown(reward)} (reward)"
    for entry in lineage.get("data") or []:
        yield "  " * (depth + 1) + f"{shown(str(entry['name']))} (data)"
