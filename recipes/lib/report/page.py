"""Writes the page: reads the folder, chooses numbers and charts, fills the template.

Import it late: it brings matplotlib, scipy and Jinja2 with it.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from recipes.lib.report.compared import compared_sections
from recipes.lib.report.numbers import is_number, number, tiles
from recipes.lib.report.origin import origin
from recipes.lib.report.rounds import round_sections, round_steps, rounds_verdict
from recipes.lib.report.run_files import Row, RunFiles, read_run
from recipes.lib.report.sections import quickstart_sections, run_sections
from recipes.lib.report.verdict import quickstart_verdict, verdict
from recipes.lib.runs.files import write_text

RECIPE_TITLES = {
    "base": "Base model",
    "sft": "Supervised fine-tuning",
    "feedback": "Feedback",
    "reward": "Reward model",
    "classify": "Classifier",
    "evaluate": "Evaluation",
    "compare": "Comparison",
}  # the others are abbreviations
# Each tile: its key in summary.json, then the keys of the numbers it is compared with.
RUN_TILES = [
    tile.split()
    for tile in (
        "win_rate win_rate_ci95, length_controlled_win_rate length_controlled_win_rate_ci95, "
        "score score_baseline, scores first_scores, kl, kl_per_token, "
        "rlhf_reward, completion_length, accuracy accuracy_ceiling, accuracy_bag_of_words "
        "accuracy_frozen_features, accuracy_tfidf accuracy_frozen_features, "
        "accuracy_pixels accuracy_frozen_features, "
        "f1_macro log_loss, calibration_error, auc, "
        "margin, perplexity base_perplexity perplexity_baseline, eval_loss train_loss, "
        "num_pairs num_test, mean_score, num_prompts, num_texts, num_parameters, episodes, "
        "seconds, energy_kwh_measured co2_grams, energy_kwh_estimated co2_grams"
    ).split(",")
]
QUICKSTART_TILES = [
    tile.split()
    for tile in (
        "win_rate win_rate_ci95, gold_ppo gold_sft, kl, reward_accuracy reward_accuracy_ceiling, "
        "sft_perplexity base_perplexity, total_seconds, peak_rss_mb"
    ).split(",")
]
QUICKSTART_LABELS = {"win_rate": "Win rate of PPO over SFT", "kl": "KL from the SFT model"}
# Stages in their order, each with the number that stands for it and what it is called there.
STAGE_NUMBERS = {
    "base": ("base_perplexity", "perplexity"),
    "sft": ("sft_perplexity", "perplexity"),
    "feedback": ("reward_accuracy_ceiling", "best accuracy its noise allows"),
    "reward": ("reward_accuracy", "accuracy"),
    "ppo": ("kl", "KL"),
    "evaluate": ("win_rate", "win rate of PPO over SFT"),
}


def write_report(run: Path) -> Path:
    """Writes the page of one run from the files in its folder.

    Args:
        run: the run folder; whatever it lacks is left out of the page.

    Returns:
        The page, `report.html` in that folder: one file that refers to nothing outside itself.
    """
    files = read_run(Path(run))
    sections = compared_sections if files.recipe == "compare" else run_sections
    return _write(
        files,
        [files],
        eyebrow=RECIPE_TITLES.get(files.recipe, files.recipe.upper() or "Run"),
        title=files.path.resolve().name,
        verdict=verdict(files),
        tiles=tiles(files.summary, RUN_TILES),
        stages=[],
        sections=sections(files),
        facts=origin(files),
        numbers=[number(key, value) for key, value in files.summary.items() if is_number(value)],
        notes=files.notes,
    )


def write_quickstart_report(root: Path) -> Path:
    """Writes the page of a quickstart from its summary and the folders of its stages.

    Args:
        root: `runs/quickstart`; stages that are missing are left out of the page.

    Returns:
        The page, `report.html` in that folder.
    """
    whole = read_run(Path(root))
    folders = {name: whole.path / name for name in STAGE_NUMBERS}
    stages = {name: read_run(folder) for name, folder in folders.items() if folder.is_dir()}
    summary = whole.summary
    times = summary["seconds"] if isinstance(summary.get("seconds"), dict) else {}
    known = [value for value in times.values() if is_number(value)]
    total = {"total_seconds": sum(known)} if known else {}
    notes = [f"{run.path.name}: {note}" for run in stages.values() for note in run.notes]
    return _write(
        whole,
        list(stages.values()) or [whole],
        eyebrow="RLHF quickstart",
        title="From a base model to PPO",
        verdict=quickstart_verdict(summary),
        tiles=tiles({**summary, **total}, QUICKSTART_TILES, QUICKSTART_LABELS),
        stages=[_stage(run, name, times.get(name), summary) for name, run in stages.items()],
        sections=quickstart_sections(stages),
        facts=origin(stages.get("ppo", whole)),
        numbers=[],
        notes=[*whole.notes, *notes],
    )


def write_rounds_report(root: Path, rounds: dict[str, Row]) -> Path:
    """Writes the page of rounds.

    Args:
        root: Their folder.
        rounds: By name what each wrote into its summary.json.

    Returns:
        The page, `report.html` in that folder.
    """
    whole = read_run(Path(root))
    return _write(
        whole,
        [],
        eyebrow="Rounds",
        title=whole.path.resolve().name,
        verdict=rounds_verdict(rounds),
        tiles=[],
        stages=round_steps(whole.path),
        sections=round_sections(rounds),
        facts=[],
        numbers=[],
        notes=whole.notes,
    )


def _write(target: RunFiles, runs: list[RunFiles], **content: Any) -> Path:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        configs={run.path.name: run.config for run in runs if run.config},
        warnings=[line for run in runs for line in _warnings(run)],
        **content,
    )
    write_text(target.path / "report.html", page)
    return target.path / "report.html"


def _stage(run: RunFiles, name: str, seconds: Any, summary: Row) -> dict[str, Any]:
    """One line of the quickstart's table of stages."""
    key, label = STAGE_NUMBERS[name]
    return {
        "name": name,
        "time": number("seconds", seconds) if is_number(seconds) else None,
        "label": label,
        "result": number(key, summary[key]) if is_number(summary.get(key)) else None,
        "report": f"{name}/report.html" if (run.path / "report.html").is_file() else "",
    }


def _warnings(run: RunFiles) -> list[str]:
    told = run.summary.get("warnings")
    return [
        f"From episode {warning['episode']:,}, step {warning['step']:,}: {warning['message']}"
        for warning in (told if isinstance(told, list) else [])
    ]
