"""Writes the page: reads the folder, chooses numbers and charts, fills the template."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from recipes.lib.report.numbers import Number, is_number, number, tiles
from recipes.lib.report.origin import origin
from recipes.lib.report.run_files import Row, RunFiles, read_run
from recipes.lib.report.sections import quickstart_sections, run_sections
from recipes.lib.report.verdict import quickstart_verdict, verdict
from recipes.lib.runs.files import write_text

TITLES = {
    "base": "Base model",
    "sft": "Supervised fine-tuning",
    "feedback": "Feedback",
    "reward": "Reward model",
    "ppo": "PPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "kto": "KTO",
    "evaluate": "Evaluation",
}
# Each tile: its key in summary.json, then the keys of the numbers it is compared with.
RUN_TILES = [
    ("win_rate", "win_rate_ci95"),
    ("score", "score_baseline"),
    ("scores", "first_scores"),
    ("kl",),
    ("kl_per_token",),
    ("rlhf_reward",),
    ("completion_length",),
    ("accuracy", "accuracy_ceiling"),
    ("accuracy_bag_of_words",),
    ("auc",),
    ("margin",),
    ("perplexity", "base_perplexity"),
    ("eval_loss", "train_loss"),
    ("num_pairs", "num_test"),
    ("mean_score",),
    ("num_prompts",),
    ("num_texts",),
    ("num_parameters",),
    ("episodes",),
    ("seconds",),
]
QUICKSTART_TILES = [
    ("win_rate", "win_rate_ci95"),
    ("gold_ppo", "gold_sft"),
    ("kl",),
    ("reward_accuracy", "reward_accuracy_ceiling"),
    ("sft_perplexity", "base_perplexity"),
    ("total_seconds",),
    ("peak_rss_mb",),
]
QUICKSTART_LABELS = {"win_rate": "Win rate of PPO over SFT", "kl": "KL from the SFT model"}
# Stages in their order, each with the number that stands for it and what it is called there.
STAGES = {
    "base": ("base_perplexity", "perplexity"),
    "sft": ("sft_perplexity", "perplexity"),
    "feedback": ("reward_accuracy_ceiling", "best accuracy its noise allows"),
    "reward": ("reward_accuracy", "accuracy"),
    "ppo": ("kl", "KL"),
    "evaluate": ("win_rate", "win rate of PPO over SFT"),
}


@dataclass(frozen=True)
class Stage:
    """One line of the quickstart's table of stages."""

    name: str
    time: Number | None
    label: str
    result: Number | None
    report: str


def write_report(run: Path) -> Path:
    """Writes the page of one run from the files in its folder.

    Args:
        run: the run folder; whatever it lacks is left out of the page.

    Returns:
        The page, `report.html` in that folder: one file that refers to nothing outside itself.
    """
    files = read_run(Path(run))
    content = {
        "eyebrow": TITLES.get(files.recipe, files.recipe or "Run"),
        "title": files.path.resolve().name,
        "verdict": verdict(files),
        "warnings": _warnings(files),
        "tiles": tiles(files.summary, RUN_TILES),
        "sections": run_sections(files),
        "numbers": list(_all_numbers(files.summary)),
    }
    return _write(Path(run), content, files)


def write_quickstart_report(root: Path) -> Path:
    """Writes the page of a quickstart from its summary and the folders of its stages.

    Args:
        root: `runs/quickstart`; stages that are missing are left out of the page.

    Returns:
        The page, `report.html` in that folder.
    """
    root = Path(root)
    whole = read_run(root)
    stages = {name: read_run(root / name) for name in STAGES if (root / name).is_dir()}
    summary = whole.summary
    content = {
        "eyebrow": "RLHF quickstart",
        "title": "From a base model to PPO",
        "verdict": quickstart_verdict(summary),
        "warnings": [line for run in stages.values() for line in _warnings(run)],
        "tiles": tiles({**summary, **_total(summary)}, QUICKSTART_TILES, QUICKSTART_LABELS),
        "stages": [_stage(root, name, summary) for name in stages],
        "sections": quickstart_sections(stages),
        "numbers": [],
    }
    notes = [f"{run.path.name}: {note}" for run in stages.values() for note in run.notes]
    trained = stages.get("ppo", whole)
    return _write(root, content, trained, [*whole.notes, *notes], stages)


def _write(
    folder: Path,
    content: Row,
    run: RunFiles,
    notes: list[str] | None = None,
    stages: dict[str, RunFiles] | None = None,
) -> Path:
    configs = {run.path.name: run.config for run in (stages or {"": run}).values() if run.config}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        stages=content.pop("stages", []),
        facts=origin(run),
        configs=configs,
        notes=run.notes if notes is None else notes,
        **content,
    )
    target = folder / "report.html"
    write_text(target, page)
    return target


def _stage(root: Path, name: str, summary: Row) -> Stage:
    times = summary.get("seconds")
    seconds = times.get(name) if isinstance(times, dict) else None
    key, label = STAGES[name]
    report = f"{name}/report.html" if (root / name / "report.html").is_file() else ""
    return Stage(
        name,
        number("seconds", seconds) if is_number(seconds) else None,
        label,
        number(key, summary[key]) if is_number(summary.get(key)) else None,
        report,
    )


def _total(summary: Row) -> Row:
    times = summary.get("seconds")
    listed = times.values() if isinstance(times, dict) else []
    values = [value for value in listed if is_number(value)]
    return {"total_seconds": sum(values)} if values else {}


def _warnings(run: RunFiles) -> list[str]:
    told = run.summary.get("warnings")
    return [
        f"From episode {warning['episode']:,}, step {warning['step']:,}: {warning['message']}"
        for warning in (told if isinstance(told, list) else [])
    ]


def _all_numbers(summary: Row) -> Iterator[Number]:
    for key, value in summary.items():
        if is_number(value):
            yield number(key, value)
