"""A bundle becomes one commit on the Hub, or none.

The Hub's client repeats what it uploads, but not the commit, and a commit whose answer was lost may
have been made. So each try begins with a look at what the repository holds: if that is the bundle,
it is done.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from httpx2 import ConnectError, HTTPError, TransportError
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash

from recipes.lib.errors import UserError, note, one_sentence
from recipes.lib.publishing.bundle import Bundle

PAUSES = (1, 2, 4, 8, 16)  # seconds between tries, where the Hub asks for no longer ones
LONGEST = 300  # that the Hub may ask for
# Of an earlier push: beside the bundle they would be loaded, too.
STALE = re.compile(
    r"[^/]*\.(safetensors|bin|index\.json|model)|(adapter|generation|tokenizer)_config\.json"
    r"|base_quantization\.json|chat_template\.jinja|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
)
REASONS = {
    401: "the Hub does not take the token; run hf auth login, or set HF_TOKEN",
    403: "the token may not write there; take one that may, or name a repository of yours",
    404: "there is no such repository, or the token may not see it",
    409: "another change of it is under way; push again when that is done",
    412: "somebody else has committed in the meantime; look at that, and push again",
    413: "the Hub has no room for it",
}
QUOTA = re.compile("storage|quota|limit", re.IGNORECASE)


@dataclass
class Repository:
    """Where a bundle goes, and what is known of it.

    Args:
        repo: Its name, with or without an owner.
        private: Whether nobody else may see it; None leaves that to the Hub.
        branch: The branch; None for the main one.
        name: With its owner, once it was found or made.
        before: The commit that it was at when it was first looked at.
        commit: The commit that holds the bundle.
        sent: Files that differed from it.
    """

    repo: str
    private: bool | None = None
    branch: str | None = None
    name: str = ""
    before: str = ""
    commit: str = ""
    sent: int = 0


def push(bundle: Bundle, place: Repository, message: str) -> None:
    """Make one commit of what changed, or none.

    Args:
        bundle: What is pushed.
        place: Where to; gets the commit.
        message: Of the commit.

    Raises:
        UserError: It cannot be done; the sentence says what the repository holds.
    """
    for planned in (*PAUSES, None):
        try:
            _try(bundle, place, message)
            return
        except UserError:
            raise
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            cause = _cause(error)
            pause = _pause(cause, planned, place)
            if pause is None:
                _tell(bundle, place, cause)
                return
            note(f"repo={place.repo}: {_reason(cause)}; trying again in {pause} s.")
        time.sleep(pause)


def _try(bundle: Bundle, place: Repository, message: str) -> None:
    api = HfApi()
    if not place.name:
        name = api.create_repo(place.repo, private=place.private, exist_ok=True).repo_id
        if place.branch:
            api.create_branch(name, branch=place.branch, exist_ok=True)
        place.name = name
    head, changes = _look(bundle, place)
    place.before = place.before or head
    if changes:
        if head != place.before:
            raise UserError(f"repo={place.repo}: {REASONS[412]}; it is at commit {head[:10]}.")
        place.sent = len(changes)
        options: dict[str, Any] = {"commit_message": message, "parent_commit": head}
        made = api.create_commit(place.name, changes, revision=place.branch, **options)
        head, left = _look(bundle, place, made.oid)
        if left:
            raise UserError(
                f"repo={place.repo}: commit {head[:10]} lacks {left[0].path_in_repo}; look whether "
                "a .gitignore there names it, and push again."
            )
    place.commit = head


def _look(bundle: Bundle, place: Repository, commit: str | None = None) -> tuple[str, list[Any]]:
    """The commit that the repository is at, and what would have to change in it."""
    api = HfApi()
    info = api.model_info(place.name, revision=commit or place.branch)
    if place.private and info.private is False:
        raise UserError(
            f"repo={place.repo}: it is public; make it private on the Hub, or give --private false."
        )
    tree = api.list_repo_tree(place.name, recursive=True, revision=info.sha)
    there = {file.path: file for file in tree if isinstance(file, RepoFile)}
    ours = bundle.files
    changes = [ours[name] for name in ours if not _is_same(ours[name], there.get(name))]
    stale = [name for name in sorted(set(there) - set(ours)) if STALE.fullmatch(name)]
    return str(info.sha), [*changes, *map(CommitOperationDelete, stale)]


def _is_same(file: Any, there: Any) -> bool:
    if there is None or file.upload_info.size != there.size:
        return False
    if there.lfs:
        return bool(file.upload_info.sha256.hex() == there.lfs.sha256)
    with file.as_file() as content:
        return bool(git_hash(content.read()) == there.blob_id)


def _cause(error: BaseException) -> Any:
    """What went wrong on the way to the Hub, below what the client made of it."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return next((one for one in chain if isinstance(one, HTTPError)), error)


def _pause(cause: Any, planned: int | None, place: Repository) -> int | None:
    """Seconds to wait before the next try; None where there is none."""
    response = getattr(cause, "response", None)
    if response is None:  # an error page is no JSON, and what Xet raises has no type of its own
        is_passing = isinstance(cause, (TransportError, json.JSONDecodeError, RuntimeError))
        is_offline = isinstance(cause, ConnectError) and not place.name
        return planned if is_passing and not is_offline else None
    if planned is None or (response.status_code not in (408, 429) and response.status_code < 500):
        return None
    asked = response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(response.headers)
    pauses = [planned, int(asked) if asked.isdigit() else 0]
    pauses += [limit.reset_in_seconds] if limit is not None and limit.remaining == 0 else []
    return max(pauses) if max(pauses) <= LONGEST else None


def _reason(cause: Any) -> str:
    said = getattr(cause, "server_message", None) or one_sentence(cause)
    if (response := getattr(cause, "response", None)) is None:
        return f"it does not get through ({said})"
    status = response.status_code
    if status == 402 or (status == 403 and QUOTA.search(said)):
        status = 413
    return f"{REASONS.get(status, f'the Hub says {status}')} ({said})"


def _tell(bundle: Bundle, place: Repository, error: Any) -> None:
    """Say what became of it; where the bundle is there after all, it is done."""
    reason = f"repo={place.repo}: {_reason(error)}"
    if not place.before:
        raise UserError(f"{reason}; nothing was sent.") from error
    try:
        head, changes = _look(bundle, place)
    except UserError:
        raise
    except Exception:
        raise UserError(
            f"{reason}, and cannot be asked whether it has the commit: the repository is as it was "
            f"(at {place.before[:10]}) or whole; push again, and nothing is sent twice."
        ) from error
    if changes:
        state = "as it was, at" if head == place.before else "as somebody else left it, at"
        raise UserError(f"{reason}; the repository is {state} commit {head[:10]}.") from error
    place.commit = head
