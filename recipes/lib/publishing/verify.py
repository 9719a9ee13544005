"""What was pushed is what lies here: downloaded, loaded by a fresh process, compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from httpx2 import HTTPError
from huggingface_hub import HfApi, get_token

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import adapter_base
from recipes.lib.models.folders import is_adapter
from recipes.lib.publishing.bundle import Bundle
from recipes.lib.publishing.push import Repository

MOST_BYTES = 2 * 10**9  # that are downloaded and loaded where nobody asked for it


def is_small(bundle: Bundle) -> bool:
    """Whether a bundle, with the base of an adapter, is loaded again unless told otherwise."""
    size = bundle.num_bytes
    if is_adapter(bundle.final):
        base, revision = adapter_base(bundle.final)
        with suppress(HTTPError):  # that it cannot be had is what loading it will say
            files = HfApi().list_repo_tree(base, revision=revision)
            size += sum(getattr(file, "size", 0) for file in files if "safetensors" in file.path)
    return size < MOST_BYTES


def load_again(bundle: Bundle, place: Repository, *, trust_remote_code: bool = False) -> None:
    """Load the commit as somebody else would, and compare it with the folder.

    Args:
        bundle: What was pushed.
        place: Where to, with the commit.
        trust_remote_code: Whether code beside the model may run.

    Raises:
        UserError: It cannot be loaded, or is another model.
    """
    asked = {
        "repo": place.name,
        "commit": place.commit,
        "folder": str(bundle.final.resolve()),
        "files": {name: file.upload_info.sha256.hex() for name, file in bundle.files.items()},
        "trust_remote_code": trust_remote_code,
    }
    script = str(Path(__file__).with_name("fresh_process.py"))
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with TemporaryDirectory() as home:
        empty = {"HF_HOME": home, "HF_HUB_CACHE": f"{home}/hub", "HF_TOKEN": get_token() or ""}
        done = subprocess.run(
            [sys.executable, "-I", script, json.dumps(asked)],
            env=os.environ | quiet | empty,
            cwd=home,  # where no folder has the name of the repository
            capture_output=True,
            text=True,
            check=False,
        )
    whole = f"repo={place.repo}: it is whole at commit {place.commit[:10]}, but"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"{whole} a process without this project cannot load it ({last}).")
    if wrong := json.loads(done.stdout.splitlines()[-1]):
        raise UserError(f"{whole} what loads from it is not {bundle.final}: {'; '.join(wrong)}.")
