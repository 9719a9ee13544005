"""Processes that computed together end with the code that their run gave them, however it ended."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.runs.checkpoints import checkpoint_fault, list_checkpoints
from tests.helpers.distributed.runs_on_two import search_path
from tests.helpers.tiny_runs import flags, write

# Commands with a run that is one of gloo; the group is held, as torch itself does. Each is a fork
# of a process that has only imported what all of them need.
COMMAND = """
import atexit, os, sys
from torch import distributed
from recipes.lib.recipe import main
from recipes.lib.errors import UserError
from recipes.lib.distributed.signals import Stopped

class Told:
    def __del__(self, write=sys.stdout.write):
        write("taken down;")

def fail(error):
    raise error

def run(recipe, argv):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    held.append(distributed.group.WORLD)
    sys.stdout.write("ran;")
    return ENDS[argv[0]]()

ENDS = {
    "done": lambda: 0,
    "stopped": lambda: fail(Stopped("stopped")),
    "mistake": lambda: fail(UserError("a mistake.")),
    "interrupt": lambda: fail(KeyboardInterrupt()),
    "bug": lambda: fail(RuntimeError("a bug")),
    "exits": lambda: fail(SystemExit(3)),
}
for name, way in (words.split() for words in sys.argv[1:]):
    child = os.fork()
    if child == 0:
        sys.argv, __file__ = [name, way], name
        for number, place in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{way}.{place}", os.O_CREAT | os.O_WRONLY), number)
        break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(f"{name}.{way}.code", "w").write(str(code))
else:
    os._exit(0)
held = [Told()]
atexit.register(sys.stdout.write, "registered;")
main._run = run
code = main.launch("sft", sys.argv[1:])
sys.stdout.write("back;")
raise SystemExit(code)
"""
WAYS = ("done", "stopped", "mistake", "interrupt", "bug", "exits")
ENDINGS = ("code", "out", "err")
REWARD = """
import os, signal, sys
calls = []

def ends(completion_ids, **_):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        if os.environ["WAY"] == "signalled":
            os.kill(os.getpid(), signal.SIGTERM)
        if os.environ["WAY"] == "failed":
            raise ValueError("no number for this one")
    return [sum(token % 5 == 0 for token in ids) / 3 for ids in completion_ids]
"""
VALUES: dict[str, Any] = {
    "max_steps": 3,
    "num_generations": 4,
    "steps_per_generation": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 4,
    "dataset_name": "rows.jsonl",
    "reward_funcs": "rewards.py:ends",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands said, and their codes."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "command.py").write_text(COMMAND)
    commands = [*(f"rlhf.py {way}" for way in WAYS), "study.py done"]
    subprocess.run(
        [sys.executable, "command.py", *commands],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search_path()},
        timeout=300,
        check=True,
    )
    return folder


def told_by(ended: Path, name: str, way: str) -> tuple[int, str, str]:
    """Code, output and errors of a command."""
    code, out, err = ((ended / f"{name}.{way}.{part}").read_text() for part in ENDINGS)
    return int(code), out, err


@pytest.mark.parametrize(
    ("way", "code", "told"),
    [
        ("done", 0, ""),
        ("stopped", 75, "rlhf sft: stopped; go on with --resume."),
        ("mistake", 2, "rlhf sft: error: a mistake."),
        ("interrupt", 130, "rlhf sft: interrupted"),
        ("bug", 1, "RuntimeError: a bug"),
    ],
)
def test_a_command_that_had_a_group_keeps_its_code_and_is_not_taken_down(
    way: str, code: int, told: str, ended: Path
) -> None:
    ended_with, out, err = told_by(ended, "rlhf.py", way)
    assert ended_with == code, err[-2000:]
    back = "" if way == "bug" else "back;"
    assert out == f"ran;{back}registered;"
    assert told in err
    assert ("Traceback" in err) is (way == "bug")


def test_a_code_that_something_else_chose_is_kept(ended: Path) -> None:
    assert told_by(ended, "rlhf.py", "exits")[0] == 3


def test_a_program_that_calls_a_recipe_ends_as_it_likes(ended: Path) -> None:
    code, out, _ = told_by(ended, "study.py", "done")
    assert (code, out) == (0, "ran;back;registered;taken down;")


@pytest.mark.parametrize(
    ("way", "code"),
    [
        pytest.param("done", 0, marks=pytest.mark.slow),  # the other two: also in test_faults.py
        pytest.param("signalled", 75, marks=pytest.mark.slow),
        ("failed", 2),
    ],
)
def test_both_of_two_processes_end_with_the_code_of_their_run(
    way: str,
    code: int,
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write(tmp_path / "rows.jsonl", [{"prompt": f"the {w}"} for w in ("cat", "dog", "sun", "rain")])
    (tmp_path / "rewards.py").write_text(REWARD)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "WAY": way}
    both |= {"MASTER_PORT": port, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "recipes.grpo", *flags(VALUES)],
            cwd=tmp_path,
            env=os.environ | both | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [code, code], said
    if way == "done":
        assert (tmp_path / "run/report.html").is_file()
        assert "rlhf grpo" in said[0]  # the closing words have not stayed in a buffer
    else:
        assert checkpoint_fault(list_checkpoints(tmp_path / "run")[-1][1]) is None
