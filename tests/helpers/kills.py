"""Killing PPO runs with SIGKILL and resuming them: for a test, for kill_sweep.py of the benchmarks.

The libraries are imported once; every run is a fork of that process, which kills it.
"""

import functools
import gc
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.lib.models.quick_import import import_quickly
from recipes.lib.runs.checkpoints import list_checkpoints, newest_good
from recipes.lib.runs.files import read_jsonl

# What Python tells an audit hook of files; the rest is wrapped: it writes in C++ and in Rust.
AUDITED = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
LIBRARIES = (
    "recipes.ppo",
    "recipes.lib.ppo.trainer",
    "recipes.lib.models.policies",
    "recipes.lib.recipe.spine",
    "recipes.lib.runs.lineage",
    "recipes.lib.report.page",
    "datasets",
    "peft",
    "trl",
    "transformers.models.llama.modeling_llama",
)
WRAPPED = (("torch", "save", 1), ("safetensors.torch", "save_file", 1), ("os", "fsync", None))


@dataclass
class Operations:
    """Counts what a save does to files, and kills the process at one of these."""

    kill_at: int | None = None
    counts: bool = False
    done: list[str] = field(default_factory=list)

    def note(self, what: str, torn: Path | None = None) -> None:
        """One operation is about to happen, or has just happened to the file `torn`."""
        if not self.counts:
            return
        self.done.append(what)
        if len(self.done) == self.kill_at:
            self.counts = False
            if torn is not None and torn.is_file():
                os.truncate(torn, torn.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """As `sys.addaudithook` calls it."""
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.note(f"open {Path(str(arguments[0])).name}")
        elif event in AUDITED:
            self.note(f"{event} {Path(str(arguments[0])).name}")


def import_libraries() -> None:
    """Import what a run needs, so that its forks need not: most of a run would be that."""
    import_quickly()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # every run would look through it for garbage


def count_operations(step: int, operations: Operations) -> None:
    """Let a process count the file operations of the save at a step, from now on."""
    from recipes.lib.ppo.trainer import PPOTrainer

    sys.addaudithook(operations.hook)
    for module, name, place in WRAPPED:
        _wrap(sys.modules[module], name, place, operations)
    save = PPOTrainer._save_checkpoint

    def saving(self: Any, *args: Any, **kwargs: Any) -> None:
        operations.counts = self.state.global_step == step
        save(self, *args, **kwargs)
        operations.counts = False

    PPOTrainer._save_checkpoint = saving  # type: ignore[method-assign]


def _wrap(module: Any, name: str, place: int | None, operations: Operations) -> None:
    plain = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        operations.note(name)
        said = plain(*args, **kwargs)
        if place is not None and len(args) > place:  # cut off in the middle
            operations.note(f"{name}, torn", Path(str(args[place])))
        return said

    setattr(module, name, wrapped)


def run_in_fork(work: Callable[[], None], log: Path, kill_after: float | None = None) -> int:
    """Do something in a fork, and perhaps kill that.

    Args:
        work: What to do.
        log: Where its output goes.
        kill_after: Seconds after which SIGKILL is sent; None lets it end by itself.

    Returns:
        Its exit code, or -9 if it was killed.
    """
    child = os.fork()
    if child == 0:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def train(values: dict[str, Any], resume: bool = False) -> None:
    """Train PPO in this process."""
    from recipes import ppo
    from recipes.lib.recipe.main import parse

    ppo.run(parse("ppo", [], values | ({"resume": True} if resume else {})))


def result(run: Path) -> str:
    """A hash of what a run has to do with nothing but its configuration."""
    digest = hashlib.sha256((run / "final/model.safetensors").read_bytes())
    for name in ("metrics.jsonl", "samples.jsonl"):
        for row in read_jsonl(run / name):
            kept = {k: v for k, v in row.items() if k != "seconds" and "time/" not in k}
            digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass
class Tally:
    """What became of runs that were killed."""

    kills: int = 0
    before_the_first: int = 0  # checkpoint
    after_the_end: int = 0
    lost: int = 0  # the checkpoint that had to be there was not good
    equal: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, values: dict[str, Any], expected: str, least: int, where: str) -> None:
        """Resume a run that was killed, and see what comes out.

        Args:
            values: Its configuration.
            expected: `result` of the unbroken run.
            least: Step that a good checkpoint has to have, at least.
            where: Words for where it was killed.
        """
        run = Path(values["output_dir"])
        self.kills += 1
        good, _ = newest_good(run) if run.exists() else (None, [])
        self.before_the_first += good is None
        steps = [step for step, folder in list_checkpoints(run) if folder == good] or [0]
        if steps[0] < least:
            self.lost += 1
            self.wrong.append(f"{where}: no checkpoint of step {least} or later")
        if (run / "summary.json").exists():
            self.after_the_end += 1
        else:
            started = (run / "config.yaml").exists()
            code = run_in_fork(lambda: train(values, resume=started), run.with_suffix(".log"))
            if code:
                self.wrong.append(f"{where}: resuming ended with {code}, {run.with_suffix('.log')}")
                return
        if result(run) == expected:
            self.equal += 1
        else:
            self.wrong.append(f"{where}: the result differs")


def sweep_moments(
    values: dict[str, Any], folder: Path, expected: str, seconds: float, number: int
) -> Tally:
    """Kill runs at moments drawn uniformly from the time that the unbroken run takes."""
    tally, moments = Tally(), random.Random(1)
    for i in range(number):
        after = moments.uniform(0.0, seconds)
        mine = values | {"output_dir": str(folder / f"moment-{i}")}
        run_in_fork(functools.partial(train, mine), folder / f"moment-{i}.log", after)
        tally.add(mine, expected, 0, f"after {after:.2f} s")
    return tally


def sweep_operations(
    values: dict[str, Any], folder: Path, expected: str, step: int, every: int = 1
) -> Tally:
    """Kill runs at each file operation of the save at a step; the one before has to be kept."""
    tally, before = Tally(), step - int(values["save_steps"])
    told = folder / "operations.json"

    def dry(mine: dict[str, Any]) -> None:
        operations = Operations()
        count_operations(step, operations)
        train(mine)
        told.write_text(json.dumps(operations.done))

    def deadly(mine: dict[str, Any], at: int) -> None:
        count_operations(step, Operations(kill_at=at))
        train(mine)

    dry_run = values | {"output_dir": str(folder / "dry")}
    assert run_in_fork(lambda: dry(dry_run), folder / "dry.log") == 0
    names = json.loads(told.read_text())
    for at in range(1, len(names) + 1, every):
        mine = values | {"output_dir": str(folder / f"operation-{at}")}
        code = run_in_fork(functools.partial(deadly, mine, at), folder / f"operation-{at}.log")
        assert code == -signal.SIGKILL, (at, names[at - 1], code)
        tally.add(mine, expected, before, f"at {names[at - 1]}")
    return tally


def main(folder: Path) -> None:
    """A short sweep with the values in `values.json`; prints the tallies as JSON."""
    import_libraries()
    values = json.loads((folder / "values.json").read_text())
    whole = values | {"output_dir": str(folder / "whole")}
    start = time.monotonic()
    assert run_in_fork(lambda: train(whole), folder / "whole.log") == 0
    expected, seconds = result(folder / "whole"), time.monotonic() - start
    moments = sweep_moments(values, folder, expected, seconds, 3)
    saving = sweep_operations(values, folder, expected, 4, every=17)
    print(json.dumps({"moments": vars(moments), "saving": vars(saving)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
