"""Finding rows: a file, a folder of split files, a saved dataset, a run that made data, the Hub.

Where the Hub cannot be reached, the datasets library takes whatever it has in its cache under the
name, of any revision; so the revision is compared here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from recipes.lib.data.file_rows import SUFFIXES, read_file
from recipes.lib.errors import UserError, first_line, note

if TYPE_CHECKING:
    from datasets import Dataset

Split = TypeVar("Split")
COMMIT = re.compile(r"[0-9a-f]{40}")


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
    path = local_path(name)
    if path is not None and path.is_dir():
        folder = data_folder(path)
        if is_saved_dataset(folder):
            return read_saved_dataset(folder, split)
        files = split_files(folder, name)
        return {stem: read_file(file, on_bad_rows) for stem, file in files.items()}
    if path is not None:
        return {split: read_file(path, on_bad_rows)}
    return dict(open_hub_dataset(name, config, revision))


def choose_split(
    splits: dict[str, Split], split: str | None, name: str, key: str = "dataset_train_split"
) -> Split:
    """The split that a key asks for.

    Args:
        splits: What `name` stands for, by split.
        split: The value of the key.
        name: What the user wrote.
        key: The key.

    Returns:
        That split.

    Raises:
        UserError: There is no such split.
    """
    if split is None or split not in splits:
        raise UserError(
            f"{key}={split}: {name} has the splits {', '.join(sorted(splits))}; name one of them."
        )
    return splits[split]


def data_folder(folder: Path) -> Path:
    """The folder that holds the rows: of a run its final/, else the folder itself."""
    return folder / "final" if (folder / "final").is_dir() else folder


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the datasets library wrote a folder."""
    return any((folder / mark).is_file() for mark in SAVED)


def split_files(folder: Path, name: str) -> dict[str, Path]:
    """The files of a folder, which are its splits.

    Args:
        folder: The folder.
        name: What the user wrote.

    Returns:
        The files by their stems.

    Raises:
        UserError: There is none.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise UserError(
            f"dataset_name={name}: no {', '.join(SUFFIXES)} file in {folder}; name the file or "
            "a folder that holds train.jsonl."
        )
    return {file.stem: file for file in files}


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
    looks_local = path.suffix in SUFFIXES or name.startswith((".", "~", "/", "runs/"))
    if looks_local or name.count("/") > 1:
        raise UserError(f"dataset_name={name}: there is no such file or folder; check the path.")
    return None


def read_saved_dataset(folder: Path, split: str) -> dict[str, Dataset]:
    """Read a folder that `save_to_disk` wrote; its rows stay on disk until they are needed.

    Args:
        folder: The folder.
        split: Name to give to the rows where it holds one split.

    Returns:
        Rows by split.

    Raises:
        UserError: It cannot be read.
    """
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"dataset_name={folder}: cannot be read as a saved dataset ({first_line(error)}); save "
            "it again."
        ) from error
    return {split: saved} if isinstance(saved, Dataset) else dict(saved)


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
