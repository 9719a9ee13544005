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

# A command with a run that is one of gloo; the group is held, as torch itself does.
COMMAND = """
import atexit, sys
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
held = [Told()]
atexit.register(sys.stdout.write, "registered;")
main._run = run
code = main.launch("sft", sys.argv[1:])
sys.stdout.write("back;")
raise SystemExit(code)
"""
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


def run(folder: Path, name: str, way: str) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(COMMAND)
    return subprocess.run(
        [sys.executable, name, way],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search_path()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


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
    way: str, code: int, told: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "rlhf.py", way)
    assert done.returncode == code, done.stderr[-2000:]
    back = "" if way == "bug" else "back;"
    assert done.stdout == f"ran;{back}registered;"
    assert told in done.stderr
    assert ("Traceback" in done.stderr) is (way == "bug")


def test_a_code_that_something_else_chose_is_kept(tmp_path: Path) -> None:
    assert run(tmp_path, "rlhf.py", "exits").returncode == 3


def test_a_program_that_calls_a_recipe_ends_as_it_likes(tmp_path: Path) -> None:
    done = run(tmp_path, "study.py", "done")
    assert (done.returncode, done.stdout) == (0, "ran;back;registered;taken down;")


@pytest.mark.parametrize(("way", "code"), [("done", 0), ("signalled", 75), ("failed", 2)])
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
