"""How earlier files named their data: alignment-handbook's mixers and TRL's data files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recipes.lib.config.legacy_tables import Values
from recipes.lib.errors import UserError, note

MIXTURE = ("datasets", "seed", "test_split_size")
LOADERS = ("json", "csv", "parquet")  # of the datasets library, with the file in data_files


def from_mixer(values: Values) -> Values:
    """alignment-handbook's first form: shares of datasets by name, with splits beside them.

    Args:
        values: The file's keys; dataset_mixer, and perhaps dataset_splits and dataset_configs.

    Returns:
        dataset_name with its splits for one whole dataset, else datasets with weights.

    Raises:
        UserError: dataset_mixer is no mapping of names to shares, or another key does not fit it.
    """
    mixer = values["dataset_mixer"]
    if not isinstance(mixer, dict) or not mixer or not all(map(_is_share, mixer.values())):
        raise UserError(
            f"dataset_mixer={mixer!r} must be a mapping of datasets to shares; write datasets: "
            "with a path and a weight for each."
        )
    configs = values.get("dataset_configs") or [None] * len(mixer)
    if not isinstance(configs, list) or len(configs) != len(mixer):
        raise UserError(
            f"dataset_configs={configs!r} must be a list with one entry for each dataset of "
            "dataset_mixer."
        )
    splits = _splits(values)
    if list(mixer.values()) == [1]:
        name = {"dataset_name": next(iter(mixer))}
        return name | ({"dataset_config": configs[0]} if configs[0] else {}) | splits
    parts = [
        {"path": path, "weight": float(share)} | ({"name": config} if config else {})
        for (path, share), config in zip(mixer.items(), configs, strict=True)
        if share > 0
    ]
    return {"datasets": parts} | splits


def from_mixture(values: Values) -> Values:
    """alignment-handbook's second form: a list of datasets with id, config, split and weight.

    Args:
        values: The file's keys; dataset_mixture.

    Returns:
        datasets, and test_fraction where the mixture is split.

    Raises:
        UserError: It is not written so.
    """
    mixture = values["dataset_mixture"]
    parts = mixture.get("datasets") if isinstance(mixture, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError(
            "dataset_mixture must hold datasets, a list of mappings; write datasets: with a path "
            "for each."
        )
    others = [key for key in mixture if key not in MIXTURE]
    if others:
        raise UserError(
            f"dataset_mixture has the unknown key {others[0]}; known are {', '.join(MIXTURE)}."
        )
    seed = mixture.get("seed")
    if seed is not None and seed != values.get("seed", seed):
        note(f"dataset_mixture: its seed={seed} is left out: the run's own seed chooses the rows.")
    names = {"id": "path", "config": "name"}
    result: Values = {
        "datasets": [{names.get(key, key): value for key, value in part.items()} for part in parts]
    }
    size = mixture.get("test_split_size")
    if size is not None:
        if not _is_share(size):
            raise UserError(
                f"test_split_size={size!r} must be a share of the rows, or a number of rows."
            )
        result["test_fraction"] = size
    return result


def with_file_paths(parts: Any) -> Any:
    """TRL's parts of a mixture that name a loader and a file, with the file as their path.

    Args:
        parts: The value of datasets.

    Returns:
        The same, but {path: json, data_files: FILE} as {path: FILE}.
    """
    if not isinstance(parts, list):
        return parts
    return [_with_file(part) if isinstance(part, dict) else part for part in parts]


def _with_file(part: Values) -> Values:
    files = part.get("data_files")
    if part.get("path") not in LOADERS or not isinstance(files, str):
        return part
    return {key: value for key, value in part.items() if key != "data_files"} | {"path": files}


def _splits(values: Values) -> Values:
    splits = values.get("dataset_splits") or []
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise UserError(f"dataset_splits={splits!r} must be a list of names of splits.")
    found = {}
    for name in splits:
        key = "dataset_test_split" if "test" in name else "dataset_train_split"
        if key in found:
            raise UserError(
                f"dataset_splits={splits!r} names two splits of one kind; set dataset_train_split "
                "and dataset_test_split."
            )
        found[key] = name
    return found


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def _named_splits(values: Values) -> Values | None:
    # With a mixer they are read with it; else they stand beside dataset_name.
    return {} if "dataset_mixer" in values else _splits(values)


def _named_config(values: Values) -> Values | None:
    if "dataset_mixer" in values:
        return {}
    configs = values["dataset_configs"] or []
    if not isinstance(configs, list) or len(configs) > 1:
        raise UserError(
            f"dataset_configs={configs!r} must be a list with the configuration of dataset_name."
        )
    return {"dataset_config": configs[0]} if configs else {}


DATA_KEYS: dict[str, Callable[[Values], Values | None]] = {
    "dataset_mixer": from_mixer,
    "dataset_mixture": from_mixture,
    "dataset_splits": _named_splits,
    "dataset_configs": _named_config,
}
READ_WITH_MIXER = ("dataset_splits", "dataset_configs")
