"""Finding rows: a file, a folder of split files, a saved dataset, a run that made data, the Hub.

Where the Hub cannot be reached, the datasets library takes whatever it has in its cache under the
name, of any revision; so the revision is compared here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from recipes.lib.data.file_rows import SUFFIXES, plain_name, read_file, readable
from recipes.lib.errors import UserError, first_line, note
from recipes.lib.pictures.files import has_pictures

if TYPE_CHECKING:
    from datasets import Dataset

Split = TypeVar("Split")
COMMIT = re.compile(r"[0-9a-f]{40}")


# What `rlhf feedback export` writes, by the form of its rows.
FEEDBACK_FILES = ("preference", "unpaired_preference", "prompt_completion", "ranks", "ratings")
ANSWER_FILES = ("ranks", "ratings", "unpaired_preference", "preference")  # of a reward model
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` of the datasets library leaves


def read_splits(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    on_bad_rows: str = "refuse",
) -> dict[str, Dataset]:
    """Read all splits that a name stands for.

    Args:
        name: A file, a folder, a run folder (its final/), or a Hub id.
        split: Name to give to the rows of a single file.
        config: Configuration of a Hub dataset.
        revision: Revision of a Hub dataset.
        on_bad_rows: "refuse" or "drop" lines of a file that cannot be read.

    Returns:
        Rows by split; the files of a folder are its splits, named by their stems.

    Raises:
        UserError: Nothing is there, or it cannot be read.
    """
    return find_splits(
        name,
        split,
        hub=lambda: dict(open_hub_dataset(name, config, revision)),
        saved=lambda rows: rows,
        file=lambda path: read_file(path, on_bad_rows),
    )


def find_splits(
    name: str,
    split: str,
    hub: Callable[[], dict[str, Split]],
    saved: Callable[[Dataset], Split],
    file: Callable[[Path], Split],
) -> dict[str, Split]:
    """Find all splits that a name stands for.

    Args:
        name: A file, a folder, a run folder (its final/), or a Hub id.
        split: Name to give to the rows of a single file.
        hub: Makes the splits of a Hub dataset.
        saved: Makes one of a split of a saved dataset.
        file: Makes one of a file.

    Returns:
        What was made, by split; the files of a folder are its splits, named by their stems.

    Raises:
        UserError: Nothing is there, or it cannot be read.
    """
    path = local_path(name)
    if path is None:
        return hub()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"dataset_name={path}: unknown ending; use {', '.join(SUFFIXES)}.")
        return {split: file(path)}
    is_run = (path / "config.yaml").is_file() and (path / "final").is_dir()
    if is_run and not (path / "summary.json").is_file():
        raise UserError(f"dataset_name={name}: the run that makes these rows has not ended.")
    folder = path / "final" if (path / "final").is_dir() else path  # a run's, or the folder itself
    if any((folder / mark).is_file() for mark in SAVED):
        return {key: saved(rows) for key, rows in _read_saved(folder, split).items()}
    every = sorted(one for one in folder.iterdir() if one.name.endswith(SUFFIXES))
    files = [one for one in every if plain_name(one).suffix != ".txt"]  # which tells of others
    if {plain_name(one).stem for one in files} <= {"metadata"} and has_pictures(folder):
        return {key: saved(rows) for key, rows in _read_pictures(folder).items()}
    files = files or every
    names = [plain_name(one).stem for one in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"dataset_name={name}: several files are the split {twice}; name the file.")
    if not files:
        raise UserError(
            f"dataset_name={name}: no {', '.join(SUFFIXES)} file in {folder}; name the file or "
            "a folder that holds train.jsonl."
        )
    return dict(zip(names, map(file, files), strict=True))


def choose_split(
    splits: dict[str, Split],
    split: str | None,
    name: str,
    key: str = "dataset_train_split",
    feedback: Sequence[str] = (),
) -> Split:
    """The split that a key asks for.

    Args:
        splits: What `name` stands for, by split.
        split: The value of the key.
        name: What the user wrote.
        key: The key.
        feedback: Of a feedback project, those of `FEEDBACK_FILES` that stand for "train".

    Returns:
        That split.

    Raises:
        UserError: There is no such split.
    """
    # Beside those files simulated annotators leave test rows.
    if split == "train" and split not in splits and {*splits} - {"test"} <= {*FEEDBACK_FILES}:
        found = next((file for file in feedback if file in splits), None)
        if feedback and found is None:
            raise UserError(
                f"dataset_name={name}: this feedback holds {', '.join(sorted(splits))} and no "
                f"{' or '.join(feedback)}, from which this recipe learns; collect answers of "
                "another kind, or name other data."
            )
        split = found or split
    if split is None or split not in splits:
        raise UserError(
            f"{key}={split}: {name} has the splits {', '.join(sorted(splits))}; name one of them."
        )
    return splits[split]


def local_path(name: str) -> Path | None:
    """Find out whether a name means something on this machine.

    Args:
        name: What the user wrote.

    Returns:
        An existing file or folder, or None for a Hub id.

    Raises:
        UserError: The name reads like a path and nothing is there.
    """
    try:
        path = Path(name).expanduser()
        if path.exists():
            if path.is_dir() or path.is_file():
                return path
            raise UserError(f"dataset_name={name}: neither a file nor a folder; name one.")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"dataset_name={name[:80]}: cannot be looked up ({reason}).") from error
    looks_local = path.name.endswith(SUFFIXES) or name.startswith((".", "~", "/", "runs/"))
    if looks_local or name.count("/") > 1:
        raise UserError(f"dataset_name={name}: there is no such file or folder; check the path.")
    return None


def _read_saved(folder: Path, split: str) -> dict[str, Dataset]:
    """What `save_to_disk` wrote, one split by that name; rows stay on disk until needed."""
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"dataset_name={folder}: cannot be read as a saved dataset ({first_line(error)}); save "
            "it again."
        ) from error
    return {split: saved} if isinstance(saved, Dataset) else dict(saved)


def _read_pictures(folder: Path) -> dict[str, Dataset]:
    """What the datasets library makes of a folder of pictures, whose folders are labels."""
    from datasets import load_dataset

    with readable(str(folder)):
        found: dict[str, Dataset] = load_dataset("imagefolder", data_dir=str(folder.resolve()))
    return found


def open_hub_dataset(name: str, config: str | None, revision: str | None, **options: Any) -> Any:
    """Open a dataset on the Hub.

    Args:
        name: Its id.
        config: Its configuration.
        revision: A commit, tag or branch; None for the newest.
        options: Further arguments of `load_dataset`.

    Returns:
        Its splits.

    Raises:
        UserError: There is no such dataset, it cannot be reached, or the revision is not on the Hub
            and what is in the cache is not of it.
    """
    try:
        return _open_hub(name, config, revision, options)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"dataset_name={name}: no such file here, and the Hub gave no dataset "
            f"({first_line(error)}); check the name and the network."
        ) from error


def _open_hub(name: str, config: str | None, revision: str | None, options: dict[str, Any]) -> Any:
    from datasets import load_dataset, load_dataset_builder

    builder = load_dataset_builder(name, config, revision=revision)
    if type(builder).__module__.endswith("packaged_modules.cache.cache"):
        commit = str(builder.hash)
        if revision is not None and commit != _commit_of(name, revision):
            raise UserError(
                f"dataset_revision={revision}: the Hub did not give this revision of {name}, and "
                f"the rows in the cache are of {commit[:10]}; check the name and the network, or "
                "leave it out to use those."
            )
        note(f"dataset_name={name}: not read from the Hub but from the cache, at {commit[:10]}.")
    return load_dataset(name, config, revision=revision, **options)


def _commit_of(name: str, revision: str) -> str | None:
    """The commit of a revision, as it was when something was last read of it."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if COMMIT.fullmatch(revision):
        return revision
    folder = repo_folder_name(repo_id=name, repo_type="dataset")
    path = Path(HF_HUB_CACHE) / folder / "refs" / revision
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
