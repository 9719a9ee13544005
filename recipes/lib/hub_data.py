"""Which revision of a Hub dataset is read where the Hub cannot be reached.

The datasets library then takes whatever it has in its cache under the name, of any revision.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from recipes.lib.errors import UserError
from recipes.lib.notes import note

COMMIT = re.compile(r"[0-9a-f]{40}")


def open_hub(name: str, config: str | None, revision: str | None, **options: Any) -> Any:
    """Open a dataset on the Hub.

    Args:
        name: Its id.
        config: Its configuration.
        revision: A commit, tag or branch; None for the newest.
        options: Further arguments of `load_dataset`.

    Returns:
        Its splits.

    Raises:
        UserError: The revision is not on the Hub, and what is in the cache is not of it.
    """
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
