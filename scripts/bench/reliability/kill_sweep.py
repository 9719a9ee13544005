#!/usr/bin/env python3
"""PPO on stories260K, killed anywhere and resumed; writes docs/benchmarks/reliability.md.

`.venv/bin/python scripts/bench/reliability/kill_sweep.py [FOLDER]` needs ../shared beside the
project, and some minutes on one core. Runs that went wrong stay in FOLDER (default: a temporary
one). With --faults it injects all other faults instead, by running their tests, and writes their
part of the page.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from recipes.lib.verbosity import hush  # noqa: E402
from scripts.bench.conditions import conditions  # noqa: E402  the path above comes first
from tests.helpers import kills  # noqa: E402

SHARED = ROOT.parent / "shared"
PAGE = ROOT / "docs/benchmarks/reliability.md"
NUM_MOMENTS = 50
SAVED = 7  # the save whose file operations are counted; the one before is deleted in it
VALUES = {
    "model_name_or_path": str(SHARED / "models/stories260K"),
    "dataset_name": str(SHARED / "data/prompt/tinystories.jsonl"),
    "reward_funcs": [f"{ROOT / 'scripts/bench/happy_words.py'}:happy_words"],
    "total_episodes": 256,
    "rollout_batch_size": 32,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "per_device_train_batch_size": 16,
    "max_completion_length": 32,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "target_kl": 2.0,
    "save_steps": 1,
    "save_total_limit": 1,
    "logging_steps": 1,
    "log_completions": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "dtype": "float32",
}


def row(name: str, tally: kills.Tally) -> str:
    """A row of the table."""
    numbers = (tally.kills, tally.before_the_first, tally.after_the_end, tally.lost, tally.equal)
    return f"| {name} | {' | '.join(map(str, numbers))} |"


def put(title: str, text: str) -> None:
    """Write a section of the page and leave the others as they are."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Reliability\n"
    head, *sections = page.rstrip().split("\n## ")
    kept = {section.partition("\n")[0]: section for section in sections}
    kept[title] = f"{title}\n\n{text}"
    PAGE.write_text(
        "\n\n## ".join([head.strip(), *(kept[t].strip() for t in TITLES if t in kept)]) + "\n"
    )


def faults() -> int:
    """Run the tests of all faults; the table has those that passed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        *{test.partition("::")[0] for *_, test in FAULTS},
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED ")]
    lines = []
    for fault, what, test in FAULTS:
        number = sum(line.removeprefix("PASSED ").startswith(test) for line in passed)
        if not number or f"FAILED {test}" in done.stdout:
            print(f"not shown: {test}")
            return 1
        path, _, name = test.partition("::")
        lines.append(f"| {fault} | {what} | [{name or Path(path).stem}](../../{path}) |")
    command_line = ".venv/bin/python scripts/bench/reliability/kill_sweep.py --faults"
    put(TITLES[1], FAULTS_TEXT.format(conditions=conditions(command_line), rows="\n".join(lines)))
    return 0


def main() -> int:
    """Sweep, print the tally and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", help="where runs that went wrong stay")
    parser.add_argument("--faults", action="store_true", help="all other faults, by their tests")
    asked = parser.parse_args()
    if asked.faults:
        return faults()
    hush()
    kills.import_libraries()
    folder = Path(asked.folder or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    warm, whole = (VALUES | {"output_dir": str(folder / name)} for name in ("warm", "whole"))
    kills.run_in_fork(lambda: kills.train(warm), folder / "warm.log")
    start = time.monotonic()
    if kills.run_in_fork(lambda: kills.train(whole), folder / "whole.log"):
        raise RuntimeError((folder / "whole.log").read_text())
    seconds = time.monotonic() - start
    expected = kills.result(folder / "whole")
    if expected != kills.result(folder / "warm"):
        raise RuntimeError("two unbroken runs differ")
    moments = kills.sweep_moments(VALUES, folder, expected, seconds, NUM_MOMENTS)
    saving = kills.sweep_operations(VALUES, folder, expected, SAVED)
    rows = [
        row(f"{NUM_MOMENTS} moments, uniform over the {seconds:.1f} s of a run", moments),
        row(f"every file operation of the save at step {SAVED}", saving),
    ]
    print(*rows, *moments.wrong, *saving.wrong, sep="\n")
    if moments.wrong or saving.wrong:
        return 1
    command = ".venv/bin/python scripts/bench/reliability/kill_sweep.py"
    put(TITLES[0], KILLS_TEXT.format(conditions=conditions(command), rows="\n".join(rows)))
    return 0


KILLS_TEXT = """{conditions}

PPO on stories260K (32 optimizer steps in 8 rollouts, a checkpoint at each step of which the newest
is kept, adaptive KL), killed by another process with SIGKILL and resumed. **Equal** means that
weights, metrics and samples are those of the unbroken run to the bit. At a file operation of a save
the run is killed right before it; where PyTorch or safetensors write a file, also after it with
half of the file left. **Lost** would be a save that leaves neither the checkpoint before nor the
new one.

| killed at | kills | no checkpoint yet | run was finished | lost | equal |
|---|---|---|---|---|---|
{rows}
"""
FAULTS_TEXT = """{conditions}

Each fault is really injected by the test behind it, into tiny runs of the recipes. **Goes on**
means that the resumed run is equal to the unbroken one to the bit, in weights, metrics and samples,
unless it says otherwise.

| fault | what the run does | shown by |
|---|---|---|
{rows}
"""
TITLES = ("Killed anywhere", "Faults")
STOPPING = "tests/recipes/test_stopping.py"
MEMORY = "tests/recipes/test_memory.py"
NOT_FINITE = "tests/recipes/test_not_finite.py"
TWO = "tests/distributed/test_faults.py"
IN_RUNS = "tests/recipes/test_faults.py"
FAULTS = [
    (
        "SIGTERM, SIGINT or SIGUSR1 in a step, between micro-batches, in an evaluation; sft, "
        "reward, dpo, kto, "
        "ppo (each critic), rloo, grpo",
        "saves a checkpoint, exit code 75; goes on",
        f"{STOPPING}::test_a_run_that_a_signal_ended_goes_on_as_if_nothing_had_been",
    ),
    (
        "SIGTERM while a rollout is sampled",
        "abandons the rollout, saves; goes on and samples it again",
        f"{STOPPING}::test_a_rollout_in_progress_is_abandoned_and_redone",
    ),
    (
        "a second Ctrl-C",
        "stops at once",
        f"{STOPPING}::test_a_second_ctrl_c_stops_at_once",
    ),
    (
        "another micro-batch after the resume",
        "the same episodes, weights within 1e-5",
        f"{STOPPING}::test_with_another_micro_batch_the_same_episodes_make_the_same_updates",
    ),
    (
        "a checkpoint that was truncated, altered, or lost a file",
        "is named, and the one before is taken",
        "tests/unit/runs/test_checkpoints.py::"
        "test_a_bad_checkpoint_is_named_and_the_one_before_is_used",
    ),
    (
        "a disk that fills up: while logging, while saving a checkpoint, at the end",
        "one sentence, the last checkpoint is good; goes on with room",
        f"{IN_RUNS}::test_a_disk_that_fills_up_costs_no_checkpoint_and_the_run_goes_on_with_room",
    ),
    (
        "a disk that is full when the report is written",
        "one sentence; model and numbers are there, `--resume` writes the report",
        f"{IN_RUNS}::test_a_disk_that_is_full_at_the_report_costs_the_report_until_there_is_room",
    ),
    (
        "memory that runs out: sampling, scoring, forward, backward, evaluation; sft, dpo, ppo, "
        "grpo",
        "says where and which flags fit, saves; with them it goes on, weights within 1e-5",
        f"{MEMORY}::test_a_run_without_memory_says_what_fits_and_goes_on_as_it_says",
    ),
    (
        "memory that runs out within an optimizer step, half of the weights moved",
        "does not save that; goes on from the last checkpoint",
        f"{MEMORY}::test_half_an_update_is_not_saved_and_is_made_anew",
    ),
    (
        "a reward endpoint that drops its connections",
        "asks again after 1, 2, 4 ... s, then saves and stops; goes on",
        f"{IN_RUNS}::test_a_reward_that_fails_in_the_middle_costs_no_step",
    ),
    (
        "a reward function that hangs",
        "is killed after reward_timeout and asked again: the same run",
        f"{IN_RUNS}::test_a_reward_that_hangs_is_killed_and_the_run_is_the_same",
    ),
    (
        "a reward function whose process dies every third call",
        "starts it anew: every call is answered",
        "tests/unit/rewards/test_retries.py::test_what_dies_every_few_calls_answers_all_of_them",
    ),
    (
        "logits that are NaN or infinite in training; ppo, sft, dpo",
        "skips the step, counts it, keeps its batch",
        f"{NOT_FINITE}::test_a_step_with_logits_that_are_not_finite_is_skipped_counted_and_kept",
    ),
    (
        "logits that are NaN while completions are sampled; ppo, rloo",
        "samples nothing from them, saves and stops; goes on",
        f"{NOT_FINITE}::test_nothing_is_sampled_from_logits_that_are_not_finite",
    ),
    (
        "weights that are infinite",
        "stops while it scores and does not save them; goes on from the last checkpoint",
        f"{NOT_FINITE}::test_weights_that_are_not_finite_are_not_saved_over_good_ones",
    ),
    (
        "a loss that is infinite; ppo, sft",
        "skips the step",
        f"{NOT_FINITE}::test_a_step_with_a_loss_that_is_not_finite_is_skipped",
    ),
    (
        "gradients that are not finite",
        "skips the step, counts it, keeps its batch",
        f"{IN_RUNS}::test_a_step_without_finite_gradients_is_skipped_counted_and_its_batch_kept",
    ),
    (
        "three such steps in a row",
        "saves and stops with the path of the batch",
        f"{IN_RUNS}::test_three_in_a_row_stop_the_run_which_goes_on_from_there",
    ),
    (
        "one process of two is killed; later SIGTERM to both, then SIGUSR1 to one, in a rollout",
        "the other one ends, too; both abandon the rollout and save; goes on with two, within 1e-5 "
        "with one",
        f"{TWO}::test_one_of_two_dies_then_both_are_stopped_and_the_run_goes_on",
    ),
    (
        "a reward function that raises on one process of two",
        "both stop with a checkpoint",
        f"{TWO}::test_a_reward_that_fails_on_one_process_ends_both_with_a_checkpoint",
    ),
    (
        "a second run in the folder; a lock that a killed run left behind",
        "is refused with process and host; is recognised as stale",
        "tests/unit/runs/test_lock.py::",
    ),
    (
        "the run folder is moved, and the times of its files run backwards",
        "goes on, finds its best checkpoint",
        f"{IN_RUNS}::test_a_run_that_was_moved_goes_on_and_finds_its_best_checkpoint",
    ),
]


if __name__ == "__main__":
    raise SystemExit(main())
