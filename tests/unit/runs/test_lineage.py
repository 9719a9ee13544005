"""What a run says of its origin holds for all of a file, and for a checkout with changes."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from recipes.lib.runs import lineage


def test_the_hash_is_of_all_of_a_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 3_000_000 + b"b")
    other.write_bytes(b"a" * 3_000_000 + b"c")
    assert lineage.sha256(one) == hashlib.sha256(one.read_bytes()).hexdigest()
    assert lineage.sha256(one) != lineage.sha256(other)
    assert lineage.sha256(tmp_path) is None


def test_the_commit_says_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    module = tmp_path / "lineage.py"
    module.write_text("x = 1\n")
    monkeypatch.setattr(lineage, "__file__", str(module))
    assert lineage.commit() is None
    git("init", "-q")
    git("add", "lineage.py")
    git("commit", "-q", "-m", "one")
    clean = git("rev-parse", "--short=10", "HEAD")
    assert lineage.commit() == clean
    (tmp_path / "unknown").touch()
    assert lineage.commit() == clean
    module.write_text("x = 2\n")
    assert lineage.commit() == f"{clean}+"
