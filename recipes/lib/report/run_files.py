"""What a report reads: the files of one run folder, each optional."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.lib.config.strict_yaml import read_yaml

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The content of a run folder; a missing file is an empty value.

    `notes` tells the reader of the page what could not be read.
    """

    path: Path
    summary: Row = field(default_factory=dict)
    metrics: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    lineage: Row = field(default_factory=dict)
    check: Row = field(default_factory=dict)
    config: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> str:
        """The recipe that made the run, from its summary; empty where there is none."""
        return str(self.summary.get("recipe", ""))

    @property
    def settings(self) -> Row:
        """The configuration as a dictionary; empty where the file is missing."""
        return read_yaml(self.path / "config.yaml").values if self.config else {}


def read_run(path: Path) -> RunFiles:
    """Reads config.yaml, metrics.jsonl, samples.jsonl, summary.json, lineage.json and check.json.

    Args:
        path: the run folder.

    Returns:
        The content. A last line that a killed run left half-written is left out and noted.
    """
    notes: list[str] = []
    config = path / "config.yaml"
    return RunFiles(
        path=path,
        summary=read_json(path / "summary.json"),
        metrics=read_lines(path / "metrics.jsonl", notes),
        samples=read_lines(path / "samples.jsonl", notes),
        lineage=read_json(path / "lineage.json"),
        check=read_json(path / "check.json"),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        notes=notes,
    )


def read_json(path: Path) -> Row:
    """The object in a JSON file, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def read_lines(path: Path, notes: list[str]) -> list[Row]:
    """The objects of a JSON-lines file; lines that are none are left out and counted in `notes`."""
    if not path.is_file():
        return []
    # splitlines() would also cut at U+2028, which JSON allows inside a text.
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    rows = [row for line in lines if (row := _parsed(line)) is not None]
    if len(rows) < len(lines):
        notes.append(f"{len(lines) - len(rows)} unreadable line(s) of {path.name} were left out.")
    return rows


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
