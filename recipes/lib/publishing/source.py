"""The run behind a model: what it trained, as it trained it, and the prompts of its data."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from recipes.lib.data.arguments import DataArguments
from recipes.lib.data.loading import read_rows
from recipes.lib.errors import UserError, note
from recipes.lib.models.folders import fetch_adapter, resolve_model
from recipes.lib.runs.settings import run_of, settings_of, template_kwargs, trained_dtype

# Of a run that took a slice of its rows; which slice does not matter here.
NOT_OF_ROWS = {"test_fraction", "max_train_rows"}


def load_as_trained(
    name: str, dtype: str = "trained", revision: str = "main", *, trust_remote_code: bool = False
) -> tuple[Any, Any, dict[str, Any] | None]:
    """Load a model as its training saw it: its adapter unmerged, its base rounded as it was there.

    Args:
        name: Run, checkpoint, model or adapter folder, or Hub id.
        dtype: Number format; "trained" is that of the run.
        revision: Of a model on the Hub.
        trust_remote_code: Whether code of the model may run.

    Returns:
        The model, its tokenizer, and what its chat template was given in training.

    Raises:
        UserError: There is none, or it is a reward model.
    """
    from trl import ModelConfig

    from recipes.lib.models.policies import load_trained, placed
    from recipes.lib.models.tokenizers import load_tokenizer

    path = resolve_model(name)
    run = run_of(path)
    dtype = trained_dtype(run) if dtype == "trained" else dtype
    trusted = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(fetch_adapter(path, revision), revision=revision, **trusted)
    args = ModelConfig(model_name_or_path=path, model_revision=revision, dtype=dtype)
    return placed(load_trained(args, **trusted)), tokenizer, template_kwargs(run)


def own_prompts(run: Path | None, args: DataArguments, number: int) -> list[Any]:
    """Prompts of the data that are named, or else of the data that a run was trained on.

    Args:
        run: The run folder, or None.
        args: The keys of data of the command.
        number: How many are wanted.

    Returns:
        Texts or messages, from all over the data; fewer where there are fewer, none where the
        run names no data or they are gone.

    Raises:
        UserError: Data that were named cannot be read.
    """
    is_named = bool(args.dataset_name or args.datasets)
    if not is_named:
        known = {field.name for field in fields(DataArguments) if field.init} - NOT_OF_ROWS
        own = {key: value for key, value in settings_of(run).items() if key in known}
        args = DataArguments(**own)
        if args.streaming or not (args.dataset_name or args.datasets):
            return []  # a stream may be longer than anybody waits
    try:
        rows, _ = read_rows(args, seed=0)
    except UserError as error:
        if is_named:
            raise
        note(f"the run's own data cannot be read ({str(error).rstrip('.')}).")
        return []
    step = max(1, len(rows) // number)
    found = (_prompt(row) for row in rows.select(range(0, len(rows), step)))
    return [prompt for prompt in found if prompt][:number]


def _prompt(row: dict[str, Any]) -> Any:
    if "prompt" in row:
        return row["prompt"]
    if "chosen" in row:  # a preference with its prompt in both sides
        spoken = row["chosen"]
        return spoken[:-1] or spoken if isinstance(spoken, list) else spoken
    from recipes.lib.evaluation.held_out import prompt_and_reference  # with its libraries

    return prompt_and_reference(row)[0]
