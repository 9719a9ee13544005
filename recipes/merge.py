"""Merging: makes a plain model of a run's adapters and its base, and compares the two.

The merged model is loaded again from its folder and asked what the trained one was asked: every
layer with noise, and the prompts of the run's own data. KL(trained || merged) is the mean over the
tokens of the trained model's greedy texts, nats a token. What differs by more than rounding is
refused.

Writes final/ (model and tokenizer), export.json, summary.json, lineage.json and report.html to
runs/merge/<run>.

    rlhf merge runs/quickstart/ppo
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.lib.config.fields import option
from recipes.lib.config.parse import Config
from recipes.lib.data.arguments import DataArguments
from recipes.lib.models.folders import TrustArguments
from recipes.lib.recipe.guard import guarded
from recipes.lib.recipe.main import launch
from recipes.lib.runs.files import write_json
from recipes.lib.runs.folder import FolderArguments, named_folder, open_run

POSITIONAL = "run"
FOLDER = "runs/merge/<run>"
DTYPES = ("trained", "float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class MergeArguments(FolderArguments, DataArguments, TrustArguments):
    """What is merged, into what, and what the two are compared on."""

    output_dir: str | None = option(FOLDER, "Run folder.")
    run: str | None = option(None, "Run, checkpoint, adapter folder or Hub id to merge.")
    onto: str = option(
        "trained",
        "Base to merge into: trained (the weights that training saw, also where they were "
        "rounded to 4 or 8 bits) or original (unrounded; no longer what was trained).",
        choices=("trained", "original"),
    )
    dtype: str = option(
        "trained", "Number format of the merged model; trained is that of the run.", choices=DTYPES
    )
    num_prompts: int = option(64, "Prompts that the two models are compared on.")
    max_completion_length: int = option(48, "Longest greedy text, in tokens.")

    def __post_init__(self) -> None:
        """Name the folder by what is merged."""
        self.output_dir = named_folder(self.output_dir or FOLDER, self)


def arguments() -> tuple[type, ...]:
    """Dataclasses that the configuration is parsed into."""
    return (MergeArguments,)


@guarded
def run(config: Config) -> dict[str, Any]:
    """Merge, save, load again, compare.

    Args:
        config: The parsed configuration.

    Returns:
        The summary: how far the merged model is from the trained one.

    Raises:
        UserError: There is nothing to merge, or the two models say different things.
    """
    from recipes.lib.publishing.merge import Merge, adapter_of
    from recipes.lib.publishing.source import own_prompts
    from recipes.lib.recipe.spine import finish
    from recipes.lib.runs.settings import run_of, trained_dtype

    script: MergeArguments = config.script
    name = str(script.run)
    path, source = adapter_of(name), run_of(name)
    prompts = own_prompts(source, script, script.num_prompts)
    own = trained_dtype(source)
    dtype = own if script.dtype == "trained" else script.dtype
    trusted = {"trust_remote_code": script.trust_remote_code}
    folder = open_run(config)
    length, number = script.max_completion_length, script.num_prompts
    merge = Merge(path, prompts, own, dtype, script.onto, length, trusted, number)
    merge.record()
    merge.save(folder.partial)
    numbers = merge.compare(folder.partial)
    folder.publish_final()
    write_json(folder.path / "export.json", numbers)
    facts = {"model": name, "data": script.data_names(), **trusted}
    facts |= {key: numbers[key] for key in ("base", "stored", "onto")}
    return finish(folder, config, dict(numbers), **facts)


def main(argv: list[str] | None = None) -> int:
    """Launch the recipe from the command line."""
    return launch("merge", argv)


if __name__ == "__main__":
    raise SystemExit(main())
