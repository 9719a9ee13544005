"""Rewards that fail for a while are asked again; what hangs or dies is killed and started anew."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.rewards import retries
from recipes.lib.rewards.retries import RewardProcess, is_transient, with_retries

FUNCTIONS = """
import os, signal, sys, time
from pathlib import Path
HERE = Path(__file__).parent

def turn():
    count = HERE / "count"
    number = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(number))
    return number

def length(completions, **_):
    print("a function may print")
    return [float(len(text)) for text in completions]

async def slowly(completions, **_):
    return [float(len(text)) for text in completions]

def hangs_once(completions, **_):
    if turn() == 1:
        time.sleep(60)
    return [2.0 for _ in completions]

def hangs(completions, **_):
    time.sleep(60)

def dies_every_third_time(completions, **_):
    if turn() % 3 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return [3.0 for _ in completions]

def wrong(completions, **_):
    raise KeyError("colour")

def drops(completions, **_):
    raise ConnectionResetError("connection reset by peer")
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(retries, "BACKOFF", 0.01)
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return str(tmp_path / "functions.py")


def process(functions: str, name: str, timeout: float = 60.0) -> RewardProcess:
    return RewardProcess(f"{functions}:{name}", name, timeout)


def test_a_function_in_a_process_says_what_it_says_here(functions: str) -> None:
    for name in ("length", "slowly"):
        reward = process(functions, name)
        assert reward(completions=["a", "bcd"], prompts=["", ""]) == [1.0, 3.0]
        first = reward.process
        assert reward(completions=["ef"]) == [2.0]
        assert reward.process is first
        reward.stop()


def test_what_hangs_is_killed_and_asked_again(functions: str) -> None:
    reward = process(functions, "hangs_once", 3.0)
    with pytest.raises(TimeoutError, match="hangs_once did not answer within 3 s"):
        reward(completions=["a"])
    assert reward.process is None
    Path(functions).with_name("count").unlink()
    assert with_retries(reward, 1)(completions=["a", "b"]) == [2.0, 2.0]
    reward.stop()


def test_what_dies_every_few_calls_answers_all_of_them(functions: str) -> None:
    reward = process(functions, "dies_every_third_time")
    asked = with_retries(reward, 1)
    assert [asked(completions=["a"]) for _ in range(5)] == [[3.0]] * 5
    assert Path(functions).with_name("count").read_text() == "7"
    reward.stop()


def test_patience_ends_and_nothing_becomes_a_zero(functions: str) -> None:
    reward = process(functions, "hangs", 0.5)
    with pytest.raises(UserError, match="hangs failed 2 times, at last with TimeoutError"):
        with_retries(reward, 1)(completions=["a"])
    dropped = process(functions, "drops")
    with pytest.raises(UserError, match=r"drops failed 3 times, .* connection reset by peer; mend"):
        with_retries(dropped, 2)(completions=["a"])
    dropped.stop()


def test_what_will_not_pass_is_not_asked_again(functions: str) -> None:
    reward = process(functions, "wrong")
    with pytest.raises(UserError, match=r"raised KeyError: 'colour' \(functions.py, line "):
        with_retries(reward, 5)(completions=["a"])
    reward.stop()
    with pytest.raises(UserError, match="has no function absent"):
        process(functions, "absent")(completions=["a"])


def test_the_process_ends_with_the_one_that_asks(functions: str, tmp_path: Path) -> None:
    asks = (
        "import sys, os, signal\n"
        "from recipes.lib.rewards.retries import RewardProcess\n"
        f"reward = RewardProcess({functions + ':length'!r}, 'length', 20.0)\n"
        "reward(completions=['a'])\n"
        "print(reward.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=False)
    number = int(done.stdout.split()[-1])
    deadline = time.monotonic() + 120
    while _is_alive(number):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_async_functions_and_exceptions_of_libraries_get_patience_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "BACKOFF", 0.01)
    calls: list[int] = []

    class APIConnectionError(Exception):
        """As libraries have that do not build on OSError."""

    async def endpoint(completions: list[str], **_: Any) -> list[float]:
        calls.append(1)
        if len(calls) < 3:
            raise APIConnectionError
        return [1.0 for _ in completions]

    assert asyncio.run(with_retries(endpoint, 2)(completions=["a"])) == [1.0]
    assert len(calls) == 3
    assert is_transient(TimeoutError())
    assert not is_transient(ValueError())
    assert not is_transient(FileNotFoundError())


def test_the_wait_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("recipes.lib.rewards.retries.time.sleep", waits.append)

    def drops(**_: Any) -> None:
        raise ConnectionResetError

    with pytest.raises(UserError, match="drops failed 4 times"):
        with_retries(drops, 3)(completions=[])
    assert waits == [1.0, 2.0, 4.0]
