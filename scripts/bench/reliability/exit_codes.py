#!/usr/bin/env python3
"""Counts exit codes of two processes that end in different ways.

`.venv/bin/python scripts/bench/reliability/exit_codes.py --runs 300` runs GRPO on a tiny model, as
two real processes of `python -m recipes.grpo`, beside busy loops. They are forks of this process,
which has imported the libraries; so a run takes seconds. An abort is rare there. With
--short the recipe is replaced by what makes it likely: one collective call, behind which a process
leaves at once, and gloo's worker threads get a processor only where nobody else wants one, so they
are late as on a busy machine. --old takes the way out as it was before process_exit.py.
"""

import argparse
import contextlib
import gc
import importlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.distributed import process_exit, processes  # noqa: E402  the path comes first
from recipes.lib.distributed.signals import Stopped  # noqa: E402
from recipes.lib.errors import UserError  # noqa: E402
from recipes.lib.recipe import main as way_in  # noqa: E402
from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402
from tests.helpers import kills  # noqa: E402
from tests.helpers.tiny_runs import flags, write  # noqa: E402

HOLDER = "torch.distributed.nn.functional"  # its default arguments hold the process group
IN_SHORT = ("accelerate", "recipes.grpo", HOLDER)
LIBRARIES = (
    "recipes.grpo",
    "recipes.lib.trainers.sampled_rewards",
    "recipes.lib.trainers.batch_sizes",
)
# What the second process does in its second call of the reward, and how both have to end.
WAYS = {"done": 0, "shards": 0, "signalled": 75, "failed": 2, "broken": 1}
REWARD = """
import os, signal

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
VALUES = {
    "max_steps": 2,
    "num_generations": 4,
    "steps_per_generation": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 4,
    "dataset_name": "rows.jsonl",
    "reward_funcs": "rewards.py:ends",
}
SHARDS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def slow_workers() -> None:
    """Let gloo's worker threads have what the others leave."""
    for thread in Path("/proc/self/task").iterdir():
        if (thread / "comm").read_text().strip() == "pt_gloo_runloop":
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def short(recipe: str, argv: list[str]) -> int:
    """A recipe that is done behind one collective call, whose worker thread is late."""
    import torch
    from accelerate import PartialState

    PartialState()
    importlib.reload(sys.modules[HOLDER])  # DDP and FSDP2 import it here, which takes seconds
    slow_workers()
    torch.distributed.all_reduce(torch.ones(4))
    way = os.environ["WAY"]
    if way == "signalled":
        raise Stopped("stopped by a signal")
    if way == "failed":
        raise UserError("no number for this one.")
    if way == "broken":
        raise RuntimeError("an error in the code")
    return 0


def be(rank: int, port: int, way: str, run: Path, asked: argparse.Namespace) -> None:
    """Be one of two processes, up to what Python does behind the last line of the command."""
    output = os.open(run.parent / f"said{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(run.parent)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(port), "WAY": way}
    is_sharded = way == "shards"
    if is_sharded:
        os.environ |= SHARDS
        from tests.helpers.distributed import gloo_shim  # noqa: F401
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if asked.short:
        way_in._run = short
        processes.PATIENCE = 0.0  # seconds that the second process waits before it tells a mistake
    if asked.old:
        process_exit._is_command = lambda: False
    sys.argv = ["grpo", *flags(VALUES | {"output_dir": str(run), "use_cpu": not is_sharded})]
    runpy.run_module("recipes.grpo", run_name="__main__", alter_sys=True)


def fork(*arguments: Any) -> int:
    """Start one of two processes, and return its number."""
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        be(*arguments)  # raises SystemExit, as the command does
    return number


def free_port() -> int:
    """A port for the two to meet at."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def run_once(way: str, folder: Path, asked: argparse.Namespace) -> list[int]:
    """Run two processes, and return their exit codes; minus the signal where one was killed."""
    run, port = folder / "run", free_port()
    shutil.rmtree(run, ignore_errors=True)
    numbers = [fork(rank, port, way, run, asked) for rank in (0, 1)]
    return [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]


def fill(folder: Path) -> None:
    """Write the model, the rows and the reward."""
    from tests.conftest import word_tokenizer
    from tests.helpers.tiny_models import save_model

    tokenizer = word_tokenizer()
    save_model(folder / "model", tokenizer)
    write(folder / "rows.jsonl", [{"prompt": f"the {w}"} for w in ("cat", "dog", "sun", "rain")])
    (folder / "rewards.py").write_text(REWARD)


@contextlib.contextmanager
def place(number: int) -> Iterator[Path]:
    """A folder for the runs, and busy loops beside them; a fork that ends touches neither."""
    own, folder = os.getpid(), Path(tempfile.mkdtemp())
    # In sessions of their own: in that of the runs they would leave idle threads nothing at all.
    loop = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(loop, start_new_session=True) for _ in range(number)]
    try:
        yield folder
    finally:
        if os.getpid() == own:
            for process in loops:
                process.kill()
                process.wait()
            shutil.rmtree(folder)


def tally(way: str, folder: Path, asked: argparse.Namespace) -> Counter[int]:
    """Run one way as often as asked."""
    codes: Counter[int] = Counter()
    for _ in range(asked.runs):
        got = run_once(way, folder, asked)
        codes.update(got)
        if set(got) != {WAYS[way]} and -signal.SIGABRT not in got:
            print(way, got, (folder / "said0").read_text()[-2000:], flush=True)
            print((folder / "said1").read_text()[-2000:], flush=True)
    return codes


def row(way: str, asked: argparse.Namespace, codes: Counter[int]) -> str:
    """A row of the table."""
    out = "before" if asked.old else "now"
    aborted = codes[-signal.SIGABRT]
    right, others = codes[WAYS[way]], codes.total() - codes[WAYS[way]] - aborted
    what = "short" if asked.short else "grpo"
    return (
        f"| {what} | {way} | {out} | {asked.runs} | {WAYS[way]} | {right} | {aborted} | {others} |"
    )


def main() -> int:
    """Run, print the tally, and add it to the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=300, help="of each way")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all")
    parser.add_argument("--busy", type=int, default=4, help="busy loops beside the runs")
    parser.add_argument("--short", action="store_true", help="what makes an abort likely")
    parser.add_argument("--old", action="store_true", help="the way out as it was")
    asked = parser.parse_args()
    there = [way for way in WAYS if way != ("shards" if asked.short else "broken")]
    if wrong := set(asked.ways or there) - set(there):
        parser.error(f"{wrong.pop()} is no way of {'the short' if asked.short else 'a whole'} run")
    if not asked.short:
        hush()
    for name in IN_SHORT if asked.short else (*kills.LIBRARIES, *LIBRARIES):
        importlib.import_module(name)
    gc.freeze()  # or each fork copies all of it when it is taken down
    rows, start = [], time.monotonic()
    with place(asked.busy) as folder:
        if not asked.short:
            fill(folder)
        for way in asked.ways or there:
            rows.append(row(way, asked, tally(way, folder, asked)))
            print(rows[-1], f"({time.monotonic() - start:.0f} s)", flush=True)
    print(
        conditions(
            ".venv/bin/python scripts/bench/reliability/exit_codes.py " + " ".join(sys.argv[1:])
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
