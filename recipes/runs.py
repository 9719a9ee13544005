"""Runs: what lies under runs/, as a tree of which run began from which.

Beside each its main number, when it last changed, how long it took, and its state: done; running;
stopped (it has a checkpoint, and --resume goes on); failed (it has none).

    rlhf runs [FOLDER]
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.errors import UserError
from recipes.lib.models.folders import RUNS
from recipes.lib.recipe.help import answer
from recipes.lib.recipe.summary import format_number
from recipes.lib.report.numbers import duration
from recipes.lib.report.run_files import read_json, read_lines
from recipes.lib.runs.lock import is_locked

# A run's main number is the first of these that its summary has.
MAIN = "win_rate scores score accuracy auc perplexity eval_loss num_pairs num_texts".split()


def main(argv: list[str] | None = None) -> int:
    """Runs `rlhf runs`; the exit code is 0, or 2 for a mistake of the user."""
    return answer("runs", (__doc__ or "").strip(), argv, show)


def show(words: list[str]) -> None:
    """Print the runs of a folder.

    Raises:
        UserError: There is no such folder, or there are more words.
    """
    from rich.console import Console
    from rich.table import Table

    root = Path(words[0]) if words else RUNS
    if words[1:] or not root.is_dir():
        raise UserError(f"{' '.join(words) or root}: is no folder; write rlhf runs [FOLDER].")
    table = Table(box=None, pad_edge=False)
    for name in ("run", "recipe", "result", "changed", "time", "state"):
        table.add_column(name, overflow="fold", no_wrap=name not in ("run", "result"))
    paths = sorted(file.parent for file in root.rglob("config.yaml"))
    above: dict[int, Path] = {}
    for depth, path in tree(paths):
        name = str(path.relative_to(root)) if path in paths else str(path)
        is_beside = depth and above[depth - 1].parent == path.parent
        name, above[depth] = path.name if is_beside else name, path
        table.add_row("  " * depth + name, *(facts(path) if path in paths else ()))
    Console(highlight=False, markup=False).print(table)


def tree(paths: list[Path]) -> list[tuple[int, Path]]:
    """Runs, each behind what it began from and one deeper; with models that are none of them."""
    known = {path.resolve(): path for path in paths}
    below: dict[Path, list[Path]] = {}
    for path in paths:
        start = Path(start_of(path))
        named = (start, start.parent, RUNS / start, (RUNS / start).parent)
        places = (place.resolve() for place in named)
        start = next((known[place] for place in places if place in known), start)
        below.setdefault(start, []).append(path)

    def walk(path: Path, depth: int) -> list[tuple[int, Path]]:
        below_it = [row for one in below.pop(path, []) for row in walk(one, depth + 1)]
        return [(depth, path), *below_it]

    rows = walk(Path(), -1)[1:]  # those that began from nothing
    for start in [*sorted(below.keys() - {*paths}), *paths]:
        rows += walk(start, 0) if start in below else []  # of runs those in a circle are left
    return rows


def start_of(path: Path) -> str:
    """The model that a run began from; empty where it began from none."""
    model, keys = read_json(path / "lineage.json").get("model") or {}, dict[str, Any]()
    with suppress(UserError):  # one that cannot be read hides no other
        keys = read_yaml(path / "config.yaml").values
    return str(model.get("name") or keys.get("model_name_or_path") or keys.get("run") or "")


def facts(path: Path) -> list[str]:
    """Recipe, main number, last change, time and state of a run."""
    summary, logs = read_json(path / "summary.json"), read_lines(path / "metrics.jsonl", [])
    numbers = ((key, format_number(summary.get(key))) for key in MAIN)
    result = next((f"{key} {text}" for key, text in numbers if text), "")
    files = [path / name for name in ("config.yaml", "metrics.jsonl", "summary.json")]
    changed = max(file.stat().st_mtime for file in files if file.exists())
    seconds = (summary or (logs[-1] if logs else {})).get("seconds")
    state = "stopped" if any(path.glob("checkpoint-*/manifest.json")) else "failed"
    state = "done" if summary else "running" if is_locked(path) else state
    when = datetime.fromtimestamp(changed).strftime("%m-%d %H:%M")
    time = duration(seconds) if seconds is not None else ""
    return [str(summary.get("recipe", "")), result, when, time, state]


if __name__ == "__main__":
    raise SystemExit(main())
