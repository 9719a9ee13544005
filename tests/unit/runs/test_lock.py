"""Two runs in one folder: the second is refused; what a dead process left behind is no lock."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.lib.errors import UserError
from recipes.lib.runs.folder import move_aside
from recipes.lib.runs.lock import LOCK_FILE, acquire, is_locked, refuse_if_locked, release

HOLDER = """
import sys
import tempfile
from pathlib import Path
from recipes.lib.runs.lock import acquire
acquire(Path(sys.argv[1]))
print("taken", flush=True)
sys.stdin.read()  # until the test is done, however slow the machine
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "taken\n"
        yield child
        child.kill()


def test_a_second_run_is_refused_and_told_who_is_there(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError, match=f"in use by process {other.pid} on .*; wait for it"):
        acquire(tmp_path)
    assert is_locked(tmp_path)
    release(tmp_path)  # what is not held is not given back
    assert (tmp_path / LOCK_FILE).exists()


def test_a_killed_process_leaves_a_lock_that_is_recognised_as_stale(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == other.pid
    acquire(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    release(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_process_may_take_what_it_has_and_give_back_what_was_moved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    acquire(run)
    acquire(run)
    run.rename(tmp_path / "moved")
    release(run)
    run.mkdir()
    acquire(run)
    assert not is_locked(run)
    release(run)


def test_the_command_refuses_a_folder_in_use_and_leaves_it_as_it_is(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    (tmp_path / "config.yaml").write_text("{}\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for way in ("--resume", "--overwrite"):
        done = subprocess.run(
            [sys.executable, "-m", "recipes.base", "--output_dir", str(tmp_path), way],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"is in use by process {other.pid}" in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_in_use_is_not_moved_nor_the_folder_that_holds_it(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    root = tmp_path / "quickstart"
    root.mkdir()
    for held in (root, tmp_path):
        if held == root:  # a stage of it is in use, as seen from the root
            (root / "sft").symlink_to(tmp_path)
        with pytest.raises(UserError, match=f"in use by process {other.pid}"):
            move_aside(held)
    assert root.is_dir()


def test_a_folder_that_was_moved_is_refused_to_the_process_that_had_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    acquire(run)
    refuse_if_locked(run)
    run.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="was moved or deleted while the run wrote to it"):
        refuse_if_locked(run)
    assert is_locked(run)
    release(run)
    acquire(tmp_path / "moved")  # whoever goes on there may have it
    release(tmp_path / "moved")


OF_ANOTHER = """
import os, sys
from pathlib import Path
from recipes.lib.errors import UserError
from recipes.lib.runs.lock import is_locked, refuse_if_locked
os.setuid(65534)
try:
    refuse_if_locked(Path(sys.argv[1]))
except UserError as error:
    print(error, is_locked(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser can become another user")
def test_a_lock_of_another_user_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to others
        Path(name).chmod(0o777)
        (Path(name) / LOCK_FILE).write_text("{}")
        done = subprocess.run(
            [sys.executable, "-c", OF_ANOTHER, name], capture_output=True, text=True, check=False
        )
    assert done.stdout == (
        f"output_dir={name}: its {LOCK_FILE} belongs to another user, so whether it is in use "
        "cannot be seen; choose another output_dir. True\n"
    ), done.stderr
