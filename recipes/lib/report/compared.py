"""Several runs over each other: curves, scores against KL, numbers, keys, and texts."""

from dataclasses import replace
from pathlib import Path

from recipes.lib.report.charts import DPO, GROUPS, KTO, PPO, REWARD, SFT
from recipes.lib.report.curves import Curve, draw_curves, with_episodes
from recipes.lib.report.figure import INK, SERIES, Key, Picture, canvas, to_svg
from recipes.lib.report.numbers import NATS, is_finite, is_number, number, percent, plain
from recipes.lib.report.run_files import Row, RunFiles, read_run
from recipes.lib.report.samples import Cell, SampleTable, text_cell
from recipes.lib.report.sections import Section, judge_section, present

CHARTS = {"ppo": PPO, "rloo": GROUPS, "grpo": GROUPS, "dpo": DPO, "kto": KTO, "reward": REWARD}
KL = f"KL, {NATS}"
AXES = {"episode": "episodes", "step": "optimizer steps", "seconds": "seconds", "kl": KL}
TITLES = {"seconds": "Reward over time", "kl": "Reward against KL"}
NONE = "\u2013"
PARTS = {"time", "implicit", "logps"}  # charts whose first line says nothing without the others


def compared_sections(files: RunFiles) -> list[Section]:
    """The sections of a comparison's page, from its folder and those of its runs."""
    summary = files.summary
    runs = {name: read_run(Path(path)) for name, path in summary["runs"].items()}
    pictures = [*([judged(summary)] if summary.get("kl") else []), *curves(runs)]
    made = [
        Section("wins", "Who beats whom", table=wins(summary.get("win_rates", {}))),
        replace(judge_section(files), title="Ranking"),
        Section("curves", "Over each other", pictures),
        Section("gains", "Largest gains", samples=extremes(files, 1)),
        Section("losses", "Largest losses", samples=extremes(files, -1)),
        Section("texts", "The same prompts", samples=texts(files.samples)),
        Section("numbers", "What each run says of itself", table=own_numbers(runs)),
        Section("keys", "Keys that differ", table=other_keys(runs)),
    ]
    return present(made)


def aligned(run: RunFiles) -> list[Row]:
    """The rows of metrics.jsonl, each with its episode and `kl` in nats per completion."""
    last, made = max((row["step"] for row in run.metrics), default=0), []
    for row in with_episodes(run.metrics):
        made.append({key: value for key, value in row.items() if key != "kl"})
        if "objective/kl" in row:
            made[-1]["kl"] = row["objective/kl"]
        elif "kl" in row and "completions/mean_length" in row:  # TRL logs the KL of tokens
            made[-1]["kl"] = row["kl"] * row["completions/mean_length"]
        if "episodes" in run.summary and last:  # and steps alone
            made[-1].setdefault("episode", row["step"] * run.summary["episodes"] / last)
    return made


def curves(runs: dict[str, RunFiles]) -> list[Picture]:
    """The charts that two or more runs have, with the first line of each run's."""
    rows = {name: aligned(run) for name, run in runs.items()}
    charts = {one: {c.name: c for c in CHARTS.get(run.recipe, SFT)} for one, run in runs.items()}
    drawn = []
    for key in dict.fromkeys(key for own in charts.values() for key in own if key not in PARTS):
        having = {name: own[key] for name, own in charts.items() if key in own}
        metrics = {name: "kl" if key == "kl" else c.lines[0][0] for name, c in having.items()}
        logged = {one: m for one, m in metrics.items() if sum(m in row for row in rows[one]) > 1}
        if len(logged) > 1:
            curve = having[next(iter(logged))]
            has_episodes = all("episode" in row for name in logged for row in rows[name])
            axes = ["episode" if has_episodes else "step"]
            axes += TITLES if key == "reward" else []
            drawn += [picture for axis in axes for picture in _over(curve, axis, logged, rows)]
    return drawn


def _over(
    curve: Curve, axis: str, metrics: dict[str, str], rows: dict[str, list[Row]]
) -> list[Picture]:
    merged = [
        {axis: row[axis], f"run {name}": row[metric]}  # a run may be called kl
        for name, metric in metrics.items()
        for row in rows[name]
        if {axis, metric} <= row.keys()
    ]
    lines = tuple((f"run {name}", name) for name in rows)  # a run has the same colour in all charts
    one = replace(curve, name=f"{curve.name}-{axis}", title=TITLES.get(axis, curve.title))
    one = replace(one, unit=KL if curve.name == "kl" else curve.unit, lines=lines, levels=())
    return draw_curves([replace(one, axis=(axis, AXES[axis]))], merged, {})


def judged(summary: Row) -> Picture:
    """Score against KL on the same held-out prompts, with 95 % intervals of both."""
    keys, start = [], summary["baseline"]
    with canvas(KL, "mean score by the judge") as (figure, axes):
        for place, name in enumerate(summary["runs"]):
            if name not in summary["kl"]:
                continue
            score, (low, high) = (summary[key][name] for key in ("score", "score_ci95"))
            kl, error = summary["kl"][name], 1.96 * summary.get("kl_stderr", {}).get(name, 0.0)
            bars = [[max(score - low, 0.0)], [max(high - score, 0.0)]]  # rounding can pass the end
            axes.errorbar(kl, score, bars, error, color=SERIES[place], marker="o")
            told = f"{plain(score)} ({plain(low)} to {plain(high)})"
            keys.append(Key(place + 1, name, f"{told} at {plain(kl)} \u00b1 {plain(error)}"))
        axes.axhline(summary["score"][start], color=INK, linewidth=1, linestyle=(0, (2, 2)))
        keys.append(Key(0, start, plain(summary["score"][start])))
        svg = to_svg(figure, "judged")
    caption = (
        "On prompts that none trained on, with 95\u00a0% intervals of both: up and to the left is "
        "better; the dashed line is what they are compared with, at a distance of 0."
    )
    told = "; ".join(f"{key.label} {key.value}" for key in keys)
    return Picture("judged", "Score against KL", svg, caption, f"By the judge: {told}.", keys)


def wins(rates: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """The win rate of each line's run over each column's, with the 95 % interval."""

    def cell(rate: float | None = None, *ends: float) -> str:
        spelled = " to ".join(plain(100 * end, 0) for end in ends)
        return NONE if rate is None else f"{percent(rate)} ({spelled})"

    rows = [[one, *(cell(*row.get(two, [])) for two in rates)] for one, row in rates.items()]
    return [["Wins over, ties half", *rates], *rows] if rates else []


def own_numbers(runs: dict[str, RunFiles]) -> list[list[str]]:
    """The numbers of the runs' own summaries: reward, KL, seconds, memory and energy if any."""
    told = [
        {key: number(key, one).text for key, one in run.summary.items() if is_number(one)}
        for run in runs.values()
    ]
    return _table(["Key of summary.json", *runs], told)


def other_keys(runs: dict[str, RunFiles]) -> list[list[str]]:
    """What is not the same in all configurations; a dash is the default."""
    settings = [{key: str(one) for key, one in run.settings.items()} for run in runs.values()]
    head, *rows = _table(["Key", *runs], settings)
    differing = [row for row in rows if len({*row[1:]}) > 1 and row[0] != "output_dir"]
    return [head, *differing] if differing else []


def _table(head: list[str], columns: list[dict[str, str]]) -> list[list[str]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return [head, *([key, *(column.get(key, NONE) for column in columns)] for key in keys)]


def texts(rows: list[Row], count: int = 4) -> SampleTable | None:
    """What all wrote for the first prompts."""
    names = [*rows[0]["completions"]] if rows else []
    cells = [[text_cell(row["prompt"]), *(_cell(row, n) for n in names)] for row in rows[:count]]
    rule = f"The first {len(cells)} prompts."
    return SampleTable(["Prompt", *names], cells, rule) if rows else None


def _cell(row: Row, name: str, label: str = "", *, is_best: bool = False) -> Cell:
    score = row["scores"][name]
    said = f"{label} score {plain(score)}".strip() if is_finite(score) else label
    return text_cell(row["completions"][name], said, is_best)


def extremes(files: RunFiles, sign: int, count: int = 3) -> SampleTable | None:
    """The prompts on which a run gains most (sign 1) or loses most (sign -1).

    That is against the baseline, or against the last run where there is none.
    """
    start, found = files.summary.get("baseline") or [*files.summary["runs"]][-1], []
    for row in files.samples:
        known = {name: sign * score for name, score in row["scores"].items() if is_finite(score)}
        if start in known and max(known.values()) > known[start]:
            best = max(known, key=known.__getitem__)
            found.append((known[start] - known[best], best, row))
    found = sorted(found, key=lambda one: one[0])[:count]
    cells = []
    for _, name, row in found:
        two = _cell(row, start, is_best=sign < 0), _cell(row, name, f"{name},", is_best=sign > 0)
        cells.append([text_cell(row["prompt"]), *two])
    rule = f"{len(cells)} of {len(files.samples)} prompts, each with the run furthest "
    rule += f"{'above' if sign > 0 else 'below'} {start} on it."
    return SampleTable(["Prompt", start, "Run"], cells, rule) if cells else None
