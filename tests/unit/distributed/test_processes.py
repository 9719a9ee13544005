"""Which process tells a mistake, and when: those that may have heard of it wait longer."""

import socket
from types import SimpleNamespace

import pytest

from recipes.lib.distributed import processes
from recipes.lib.distributed.processes import PATIENCE, may_report


@pytest.mark.parametrize(
    ("rank", "machine", "local", "rounds"),
    [(0, 0, 0, 0), (1, 0, 1, 1), (2, 1, 0, 2), (3, 1, 1, 3)],
)
def test_a_process_waits_for_those_that_speak_before_it(
    rank: int, machine: int, local: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds)
    )
    monkeypatch.setattr(processes, "time", clock)
    with socket.create_server(("127.0.0.1", 0)) as launcher:  # of the first machine, still there
        names = {"RANK": rank, "GROUP_RANK": machine, "LOCAL_RANK": local}
        names["MASTER_PORT"] = launcher.getsockname()[1]
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        assert may_report()
    assert rounds * PATIENCE <= now[0] - 100 <= (rounds + 0.2) * PATIENCE


def test_another_machine_says_nothing_once_the_first_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as launcher:
        port = launcher.getsockname()[1]  # where nobody listens any more
    for name, value in {"RANK": "2", "GROUP_RANK": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    assert not may_report()
