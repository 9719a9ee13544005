"""What stands on a page, in order: one section for each subject a run has data for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from recipes.lib.feedback.status import COLUMNS, agreement_lines, annotator_table
from recipes.lib.report.charts import DPO, GROUPS, KTO, LOSS, OVER_KL, PPO, REWARD, SFT
from recipes.lib.report.curves import Curve, draw_curves
from recipes.lib.report.figure import SERIES, Picture
from recipes.lib.report.numbers import QUANTITIES, is_number, number, plain
from recipes.lib.report.pairs import (
    check_picture,
    differences,
    label_reliability,
    margin_histogram,
    reliability_diagram,
    win_histogram,
)
from recipes.lib.report.run_files import RunFiles
from recipes.lib.report.samples import (
    SampleTable,
    comparison,
    errors,
    preferences,
    progress,
    rated,
    references,
)
from recipes.lib.report.times import Spent, phase_times

MOST_LABELS = 12  # whose confusion is a table
NUMBERS = ("statistic", "limit")


@dataclass(frozen=True)
class Section:
    """A heading with pictures, texts, lines or a table under it."""

    name: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    samples: SampleTable | None = None
    times: list[Spent] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)  # its first line are the headings
    lines: list[str] = field(default_factory=list)


def run_sections(run: RunFiles) -> list[Section]:
    """The sections of one run's page, by its recipe; those without data are left out."""
    samples = Section("samples", "Samples")
    if run.recipe == "ppo":
        spent = phase_times(run.metrics, run.summary.get("seconds"))
        samples = replace(samples, samples=progress(run.samples))
        made = [ppo_curves(run), samples, Section("times", "Where the time went", times=spent)]
    elif run.recipe in ("rloo", "grpo"):
        title = f"{run.recipe.upper()}, step by step"
        made = [_training(run, GROUPS, title), replace(samples, samples=progress(run.samples))]
    elif run.recipe == "reward":
        made = reward_sections(run)
    elif run.recipe == "classify":
        made = label_sections(run)
    elif run.recipe == "dpo":
        made = reward_sections(run, DPO, "How the policy tells chosen from rejected")
    elif run.recipe == "kto":
        made = [_training(run, KTO), replace(samples, samples=rated(run.samples))]
    elif run.recipe == "evaluate":
        made = [
            judge_section(run),
            checkpoint_section(run),
            slice_section(run),
            ability_section(run),
            evaluation_section(run, ("Baseline", "Model")),
        ]
    elif "annotators" in run.summary:
        table, lines = annotator_table(run.summary), agreement_lines(run.summary)
        people = Section("people", "Who answered", table=[list(COLUMNS), *table], lines=lines)
        made = [people, Section("hints", "To look at", lines=run.summary["hints"])]
    else:
        made = [_training(run, SFT), replace(samples, samples=references(run.samples))]
    return present(made)


def quickstart_sections(stages: dict[str, RunFiles]) -> list[Section]:
    """The sections of the quickstart's page, from the folders of its stages.

    The texts come first: they are what a newcomer can judge.
    """
    made = [evaluation_section(stages["evaluate"], ("SFT", "PPO"))] if "evaluate" in stages else []
    if "ppo" in stages:
        made.append(ppo_curves(stages["ppo"]))
    if "reward" in stages:
        made += reward_sections(stages["reward"])
    pictures: list[Picture] = []
    for name, title in (("base", "Loss of the base model"), ("sft", "Loss of SFT")):
        if run := stages.get(name):
            curve = replace(LOSS, title=title)
            pictures += draw_curves([curve], run.metrics, run.summary, f"{name}-")
    return present([*made, Section("language", "Learning the language", pictures)])


def present(sections: Sequence[Section]) -> list[Section]:
    """Those sections that have something to show."""
    return [
        section
        for section in sections
        if section.pictures or section.samples or section.times or section.table or section.lines
    ]


def ppo_curves(run: RunFiles) -> Section:
    """What PPO did, rollout by rollout."""
    return replace(_training(run, PPO, "PPO, rollout by rollout"), name="ppo")


def _training(run: RunFiles, curves: Sequence[Curve], title: str = "Training") -> Section:
    return Section("training", title, draw_curves(curves, run.metrics, run.summary))


def reward_sections(
    run: RunFiles,
    curves: Sequence[Curve] = REWARD,
    title: str = "How far the reward model can be trusted",
) -> list[Section]:
    """Accuracy, margins and calibration of a reward, learned or implicit, then pairs to read."""
    margins = differences(run.samples, "score_chosen", "score_rejected")
    drawn = [margin_histogram(margins), reliability_diagram(margins)]
    pictures = draw_curves(curves, run.metrics, run.summary)
    pictures += [picture for picture in drawn if picture is not None]
    return [
        Section("reward", title, pictures),
        check_section(run),
        Section("pairs", "Pairs it scored", samples=preferences(run.samples)),
    ]


def label_sections(run: RunFiles) -> list[Section]:
    """The loss, how sure a classifier may be, which labels it takes for which, and its errors."""
    names = run.summary.get("labels") or []
    single = [row for row in run.samples if isinstance(row.get("label"), str)]
    pairs = Counter((row["label"], row["predicted"]) for row in single)
    table = [["Label \\ predicted", *names]] if single and len(names) <= MOST_LABELS else []
    table += [[one, *(plain(pairs[one, two], 0) for two in names)] for one in names if table]
    loss = replace(LOSS, unit="nats per row")
    pictures = draw_curves([loss], run.metrics, run.summary)
    pictures += [picture] if (picture := label_reliability(run.samples)) else []
    return [
        Section("training", "Training", pictures),
        Section("confusion", "What is taken for what, in test rows", table=table),
        Section("samples", "Its surest errors", samples=errors(run.samples)),
    ]


def check_section(run: RunFiles) -> Section:
    """What `rlhf check` found: what is wrong or worth a look in words, all in numbers."""
    findings = run.check.get("findings", [])
    told = [row for row in findings if row["status"] in ("fault", "remark")]
    lines = [f"{row['status'].capitalize()}: {row['sentence']}. {row['remedy']}." for row in told]
    gone = [row for row in findings if row["status"] == "not checked"]
    lines += [f"{row['name'].replace('_', ' ').capitalize()} {row['sentence']}." for row in gone]
    table = [["Check", "Result", "Statistic", "Limit"]] if findings else []
    for row in findings:
        numbers = [plain(row[key]) if is_number(row.get(key)) else "" for key in NUMBERS]
        table.append([row["name"].replace("_", " "), row["status"], *numbers])
    picture = check_picture(findings)
    return Section(
        "check", "What the check found", [picture] if picture else [], None, [], table, lines
    )


def judge_section(run: RunFiles) -> Section:
    """Win rates by several judges, or the ranking of several runs; how far judges agree."""
    judges, agreed = run.summary.get("judges") or {}, run.summary.get("agreement") or {}
    table = [["Judge", "Win rate", "95\u00a0% interval"]] if judges else []
    for name, one in judges.items():
        table.append([name, *(number(k, one[k]).text for k in ("win_rate", "win_rate_ci95"))])
    ranking = run.summary.get("ranking") or {}
    if ranking:
        table = [["Run", "Strength, log-odds", "95\u00a0% interval", "Win rate over the others"]]
    for name, one in ranking.items():
        shown = [number(key, one[key]).text for key in ("strength", "strength_ci95", "win_rate")]
        table.append([name, *shown])
    found = {"alpha of all": agreed.get("alpha")}
    for both, one in agreed.get("kappas", {}).items():
        found[f"kappa of {both} on {one['num_prompts']} prompts"] = one["kappa"]
    lines = [f"{name}: {plain(one)}" for name, one in found.items() if is_number(one)]
    return Section("judges", "Ranking" if ranking else "By judge", table=table, lines=lines)


def checkpoint_section(run: RunFiles) -> Section:
    """The models of a run over the KL from its start, by its own rewards and by judges."""
    rows = run.summary.get("checkpoints") or {}
    keys = [key for key in next(iter(rows.values()), {}) if not key.endswith("_stderr")]
    judges = [key for key in keys if not key.startswith(("kl", "score_ci95", "behind_best"))]
    gains = {key: [row[key] - rows["start"][key] for row in rows.values()] for key in judges}
    most = {key: max(some) if max(some) > 0 else -min(some) or 1.0 for key, some in gains.items()}
    shares = [  # because each judge has a unit of its own
        {"kl": row.get("kl")} | {key: gains[key][place] / most[key] for key in judges}
        for place, row in enumerate(rows.values())
    ]
    names = {key: QUANTITIES[key].label if key in QUANTITIES else key for key in keys}
    lines = sorted(names.items(), key=lambda line: line[0] != "reward_funcs")
    lines = [line for line in lines if line[0] in judges][: len(SERIES)]
    pictures = draw_curves([replace(OVER_KL, lines=tuple(lines))], shares, {})
    table = [["Model", *names.values()]] if rows else []
    for name, row in rows.items():
        table.append([name, *(number(key, row[key]).text if key in row else "" for key in keys)])
    return Section("checkpoints", "Over the run", pictures, table=table)


def slice_section(run: RunFiles) -> Section:
    """Win rates of parts of the prompts, and which of them differ."""
    slices = run.summary.get("slices") or {}
    table = [["Slice", "Prompts", "Win rate", "95\u00a0% interval", ""]] if slices else []
    for name, one in slices.items():
        numbers = number("num_prompts", one["num_prompts"]), number("win_rate", one["win_rate"])
        shown = [cell.text for cell in (*numbers, number("win_rate_ci95", one["win_rate_ci95"]))]
        table.append([name, *shown, "differs" if one["differs"] else ""])
    told = "The intervals hold all at once; one that differs does so from the other prompts."
    return Section("slices", "By slice", table=table, lines=[told] if slices else [])


def ability_section(run: RunFiles) -> Section:
    """What both can do beside the prompts, on benchmarks and held-out text."""
    texts = ("nats_per_token", "perplexity")
    found = {key: one for key, one in run.summary.items() if key.startswith(texts)}
    found = (run.summary.get("tasks") or {}) | found
    table = [["Measure", "Run", "Baseline", "Difference", "95\u00a0% interval"]]
    for name in [key for key in found if f"{key}_baseline" in found]:
        shown = [found.get(f"{name}{suffix}") for suffix in ("", "_baseline", "_difference")]
        ends = found.get(f"{name}_difference_ci95") or []
        cells = [plain(one, 3) if is_number(one) else "" for one in shown]
        table.append([name.replace("_", " "), *cells, " to ".join(plain(one, 3) for one in ends)])
    return Section("ability", "Ability kept", table=table if table[1:] else [])


def evaluation_section(run: RunFiles, names: tuple[str, str]) -> Section:
    """Two models on the same prompts: texts side by side and the gain on each prompt."""
    picture = win_histogram(differences(run.samples, "score", "score_baseline"))
    texts = comparison(run.samples, names)
    return Section("evaluation", "Side by side", [picture] if picture else [], texts)
