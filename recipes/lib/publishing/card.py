"""The model card: what lineage and summary of a run say, and nothing that nobody measured."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData

from recipes.lib.models.folders import is_adapter
from recipes.lib.report.run_files import read_json


def write_card(run: Path, final: Path, repo: str | None = None) -> str:
    """Write the README.md of a model.

    Args:
        run: The run folder; the model's own where it comes from none.
        final: The folder of the model.
        repo: Its name on the Hub.

    Returns:
        The text, with metadata that the Hub reads.
    """
    lineage, summary = read_json(run / "lineage.json"), read_json(run / "summary.json")
    recipe, model = lineage.get("recipe"), (lineage.get("model") or {}).get("name")
    metadata = ModelCardData(
        library_name="peft" if is_adapter(final) else "transformers",
        tags=[recipe] if recipe else None,
    )
    lines = [f"# {(repo or run.name).split('/')[-1]}", ""]
    lines += [f"Trained with the recipe `{recipe}` from `{model}`.", ""] if recipe else []
    numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    if numbers:
        lines += ["| number | value |", "|---|---|"]
        lines += [f"| {key} | {value:.4g} |" for key, value in numbers.items()]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"
