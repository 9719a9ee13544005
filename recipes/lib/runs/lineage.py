"""Where a run came from: models, data with hashes, versions, commit."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from recipes.lib.models.folders import resolve_model
from recipes.lib.runs.files import write_json

PACKAGES = "torch transformers trl peft accelerate datasets bitsandbytes".split()
TEMPLATE_FILE = "chat_template.jinja"  # as transformers saves it


def write_lineage(
    run: Path,
    recipe: str,
    model: str | None,
    data: list[str],
    revision: str | None = None,
    **more: Any,
) -> None:
    """Write lineage.json.

    Args:
        run: The run folder.
        recipe: Name of the recipe.
        model: Model the run started from: folder, run or Hub id.
        data: Paths or Hub ids of the data.
        revision: Of a model on the Hub.
        more: Further facts, such as the reward functions; trust_remote_code where it is true.
    """
    if not more.get("trust_remote_code", True):
        del more["trust_remote_code"]
    if template := sha256(run / "final" / TEMPLATE_FILE):  # so that its loss is noticed
        more["chat_template"] = template
    write_json(
        run / "lineage.json",
        {
            "recipe": recipe,
            "model": _parent(model, revision),
            "data": [
                {"name": name, "sha256": sha256(Path(name)), "is_local": Path(name).exists()}
                | _files(Path(name))
                for name in data
            ],
            **more,
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "commit": commit(),
        },
    )


def _parent(model: str | None, revision: str | None) -> dict[str, Any] | None:
    if model is None:
        return None
    folder = Path(resolve_model(model))
    if not folder.is_dir():
        return {"name": model, "lineage": None, "commit": _hub_commit(str(folder), revision)}
    run = folder.parent if folder.name == "final" else folder
    return {"name": model, "lineage": _lineage_of(run)}


def _lineage_of(run: Path) -> dict[str, Any] | None:
    try:
        known = json.loads((run / "lineage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or one that says nothing; the run itself is done
        return None
    return known if isinstance(known, dict) else None


def _hub_commit(name: str, revision: str | None) -> str | None:
    """The commit of a Hub model that the cache has, which is the one that was loaded."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name
    return None


def trained_on(path: Path, root: Path) -> list[Path]:
    """The runs that learned from what a run made, directly or from a run that did.

    Args:
        path: Its folder.
        root: Where the runs lie.

    Returns:
        Their folders.
    """
    runs = [file.parent for file in sorted(root.glob("*/*/lineage.json"))]
    lineages = {run: _lineage_of(run) for run in runs}
    found = {path.resolve()}
    size = 0
    while size < len(found):  # what was made from what is found is found
        size = len(found)
        found |= {
            run.resolve()
            for run, lineage in lineages.items()
            if any(not found.isdisjoint({name, *name.parents}) for name in _named(lineage))
        }
    return [run for run in lineages if run.resolve() in found and run.resolve() != path.resolve()]


def _named(lineage: Any) -> Iterator[Path]:
    """Every text of a lineage that may be the path of something."""
    if isinstance(lineage, str) and len(lineage) < 4096:
        yield Path(lineage).resolve()
    elif isinstance(lineage, (dict, list)):
        for part in lineage.values() if isinstance(lineage, dict) else lineage:
            yield from _named(part)


def _files(run: Path) -> dict[str, Any]:
    """Hashes of the rows that a run made."""
    found = {file.name: sha256(file) for file in sorted(run.glob("final/*.jsonl"))}
    return {"files": found} if found else {}


def sha256(path: Path) -> str | None:
    """Hash of a file's bytes; None for what is no file (a folder, a Hub id)."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def commit() -> str | None:
    """Commit of this checkout, with a plus sign where files differ from it; None outside git."""
    root = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
