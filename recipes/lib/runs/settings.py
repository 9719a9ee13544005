"""The run that a model comes from, and what it was configured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.lib.config.strict_yaml import read_yaml
from recipes.lib.errors import UserError
from recipes.lib.models.folders import resolve_model


def run_of(name: str) -> Path | None:
    """The run that a model comes from.

    Args:
        name: A run, its final/, one of its checkpoints, a model folder, or a Hub id.

    Returns:
        The run folder; None where the model lies in none.
    """
    try:
        path = Path(resolve_model(name))
    except UserError:  # a place where nothing lies any more
        return None
    path = path.parent if path.name == "final" or path.name.startswith("checkpoint-") else path
    return path if (path / "config.yaml").is_file() else None


def settings_of(run: Path | None) -> dict[str, Any]:
    """The keys that a run was configured with; none where there is no run."""
    return {} if run is None else dict(read_yaml(run / "config.yaml").values)


def trained_dtype(run: Path | None) -> str:
    """The number format that a run was trained in; as stored, where there is no run."""
    return "auto" if run is None else str(settings_of(run).get("dtype", "float32"))


def template_kwargs(run: Path | None) -> dict[str, Any] | None:
    """What a run gave its chat template beside the messages."""
    kwargs = settings_of(run).get("chat_template_kwargs")
    return json.loads(kwargs) if isinstance(kwargs, str) else kwargs
