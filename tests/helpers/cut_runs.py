"""A finished run made to one that was killed before its last checkpoint."""

import shutil
from pathlib import Path


def cut(run: Path, copy: Path) -> None:
    """Copy a run without its last checkpoint and without what is written at the end."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "final")
    shutil.rmtree(max(copy.glob("checkpoint-*")))
    (copy / "summary.json").unlink()
