"""scripts/slurm/train.sbatch with an srun and an scontrol that only note what they are told."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts/slurm/train.sbatch"
SRUN = r"""#!/usr/bin/env bash
trap : USR1  # the script hands it on
while [ "$1" != bash ]; do echo "option $1"; shift; done
echo "cpus ${SRUN_CPUS_PER_TASK:-none}"
SLURM_NODEID=1 "$@"
[ -z "${WARNING:-}" ] || { kill -"$WARNING" "$PPID"; sleep 0.3; }
exit "${ENDS:-0}"
"""
SCONTROL = r"""#!/usr/bin/env bash
case $1-${2:-} in
  show-hostnames) printf 'n7\nn9\n' ;;
  show-*) echo "JobId=7 ${STATE:-JobState=RUNNING Reason=None PreemptTime=None} End" ;;
  *) echo "scontrol $*" ;;
esac
"""
COMMAND = "#!/usr/bin/env bash\nprintf 'word %s\\n' \"$@\"\n"
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[7,9]",
    "SLURM_GPUS_ON_NODE": "4",
}
FILLED_IN = (
    "--num_machines 2 --num_processes 8 --machine_rank 1 --main_process_ip n7 "
    "--main_process_port 20007"
)


def run(folder: Path, words: str, **more: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the script; also returns the words that the command got."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("rlhf", COMMAND)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SRUN"))}
    done = subprocess.run(
        ["bash", str(SCRIPT), *words.split()],
        cwd=folder,
        env=kept | JOB | {"PATH": f"{tools}:{os.environ['PATH']}"} | more,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    return done, " ".join(line[5:] for line in lines if line.startswith("word "))


@pytest.mark.parametrize(
    "words",
    ["ppo --accelerate_config fsdp2", "ppo --accelerate-config=zero2 --seed 1", "ppo --seed 1"],
)
def test_the_configuration_is_the_users_and_multi_node_where_there_is_none(
    words: str, tmp_path: Path
) -> None:
    done, got = run(tmp_path, words)
    default = "" if "accelerate" in words else " --accelerate_config multi_node"
    assert (done.returncode, done.stderr) == (0, "")
    assert got == f"{words}{default} {FILLED_IN}"


def test_what_the_script_fills_in_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done, got = run(tmp_path, "ppo --num-processes=4")
    assert (done.returncode, got) == (2, "")
    assert done.stderr == (
        "--num-processes: train.sbatch sets it; --nodes, PROCESSES_PER_NODE and MAIN_ADDRESS "
        "decide.\n"
    )


def test_variables_win_and_a_path_in_the_command_may_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder/rlhf").write_text(COMMAND)
    (tmp_path / "a folder/rlhf").chmod(0o755)
    more = {"MAIN_ADDRESS": "10.0.0.1", "PROCESSES_PER_NODE": "3"}
    done, got = run(tmp_path, "ppo", RLHF="'a folder/rlhf' more", **more)
    assert done.returncode == 0, done.stderr
    assert got.startswith("more ppo --accelerate_config multi_node ")
    assert "--num_processes 6 " in got
    assert "--main_process_ip 10.0.0.1 " in got


def test_srun_gets_one_task_a_node_and_the_cores_that_sbatch_got(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "ppo", SLURM_CPUS_PER_TASK="16", SLURM_NTASKS="16")
    assert "option --ntasks=2\noption --ntasks-per-node=1\n" in done.stdout
    assert "\ncpus 16\n" in done.stdout
    done, _ = run(tmp_path, "ppo")
    assert "\ncpus none\n" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--overwrite",
        "--overwrite true",
        "--overwrite=true",
        "--overwrite_output_dir --resume",
        "--overwrite-output-dir true",
        "--resume true",
    ],
)
def test_another_attempt_resumes_and_does_not_overwrite(words: str, tmp_path: Path) -> None:
    whole = f"ppo --seed 1 {words} --lora_r 4".replace("  ", " ")
    _, got = run(tmp_path, whole)
    assert got == f"{whole} --accelerate_config multi_node {FILLED_IN}"
    _, got = run(tmp_path, whole, SLURM_RESTART_COUNT="1")
    again = "ppo --seed 1 --lora_r 4 --resume --overwrite false --accelerate_config multi_node"
    assert got == f"{again} {FILLED_IN}"
    _, got = run(tmp_path, f"ppo {words}", SLURM_RESTART_COUNT="1")
    assert got.startswith("ppo --resume --overwrite false --accelerate_config multi_node ")


def test_an_attempt_that_never_trained_is_made_again_as_it_was_asked_for(tmp_path: Path) -> None:
    warned = {"ENDS": "138", "WARNING": "USR1"}
    done, _ = run(tmp_path, "ppo --overwrite", **warned)
    assert "scontrol requeue 7" in done.stdout
    _, got = run(tmp_path, "ppo --overwrite", SLURM_RESTART_COUNT="1")
    assert got.startswith("ppo --overwrite --accelerate_config ")  # an older run may be there yet
    done, _ = run(tmp_path, "ppo", **warned)
    _, got = run(tmp_path, "ppo", SLURM_RESTART_COUNT="1")
    assert got.startswith("ppo --resume ")  # the folder may be there already


RUNNING = "JobState=RUNNING Reason=None PreemptTime=None"
PREEMPTED = "JobState=RUNNING Reason=None PreemptTime=2026-01-01T00:00:00"
TIMEOUT = "JobState=COMPLETING Reason=TimeLimit PreemptTime=None"
CANCELLED = "JobState=COMPLETING Reason=None PreemptTime=None"


@pytest.mark.parametrize(
    ("code", "warning", "state", "queues"),
    [
        (75, "USR1", RUNNING, True),
        (75, "", RUNNING, True),  # the processes alone were warned
        (75, "TERM", RUNNING, False),
        (75, "USR1", CANCELLED, False),
        (75, "TERM", CANCELLED, False),
        (75, "TERM", TIMEOUT, True),
        (75, "", PREEMPTED, True),
        (138, "USR1", RUNNING, True),
        (143, "", PREEMPTED, True),
        (143, "TERM", TIMEOUT, True),
        (143, "TERM", RUNNING, False),
        (137, "", RUNNING, False),
        (1, "USR1", RUNNING, False),
        (0, "USR1", RUNNING, False),
    ],
)
def test_what_slurm_interrupts_queues_again_and_nothing_else(
    code: int, warning: str, state: str, queues: bool, tmp_path: Path
) -> None:
    done, _ = run(tmp_path, "ppo", ENDS=str(code), WARNING=warning, STATE=state)
    assert done.returncode == code
    assert ("scontrol requeue 7" in done.stdout) == queues
    assert (f"job 7 ended with {code} and queues again" in done.stderr) == queues


def test_two_attempts_in_a_row_that_never_trained_are_the_last(tmp_path: Path) -> None:
    def attempt(code: str, number: int, state: str = RUNNING) -> str:
        more = {"ENDS": code, "WARNING": "USR1", "STATE": state}
        done, _ = run(tmp_path, "ppo", SLURM_RESTART_COUNT=str(number), **more)
        assert done.returncode == int(code)
        return done.stderr

    assert "queues again" in attempt("138", 0)
    assert "queues again" in attempt("138", 1, PREEMPTED)  # which says nothing of its length
    assert "queues again" in attempt("75", 2)
    assert "queues again" in attempt("138", 3)
    assert attempt("138", 4) == (
        "job 7 ended twice before it had begun to train: give it more time (--time)\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


def test_restarts_have_a_maximum(tmp_path: Path) -> None:
    for number, maximum in (("100", {}), ("3", {"MAX_RESTARTS": "3"})):
        done, _ = run(tmp_path, "ppo", SLURM_RESTART_COUNT=number, ENDS="75", **maximum)
        assert done.stderr == (
            f"job 7 was restarted {number} times (MAX_RESTARTS) and does not queue again\n"
        )
        assert "requeue" not in done.stdout
    done, _ = run(tmp_path, "ppo", SLURM_RESTART_COUNT="99", ENDS="75")
    assert "scontrol requeue 7" in done.stdout
