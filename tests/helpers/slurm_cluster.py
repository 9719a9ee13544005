"""A Slurm cluster of two nodes by name on this machine, from Debian's slurm-wlm."""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Names that are addresses, so that the first one is reached as that of a real cluster is.
NODES = ("127.0.0.1", "127.0.0.2")
_started = itertools.count()  # two clusters of one process have ports of their own
# Nodes and controller are of one user on one machine, so they need no secret between them.
CONFIG = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SchedulerParameters=sched_interval=1,batch_sched_delay=0
InactiveLimit=0
KillWait=30
Waittime=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters={parameters}
{nodes}
PartitionName=DEFAULT Nodes=127.0.0.[1-2] MaxTime=INFINITE State=UP
PartitionName=all Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Default=NO PriorityTier=2 PreemptMode=OFF
"""


def is_installed() -> bool:
    """Whether Slurm's programs are here."""
    return all(shutil.which(name, path=search_path()) for name in ("slurmctld", "slurmd", "sbatch"))


def search_path() -> str:
    """Where programs are looked for; Debian has daemons where users have none."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@contextmanager
def cluster(folder: Path, parameters: str = "preempt_send_user_signal") -> Iterator[dict[str, str]]:
    """Start the cluster, end it afterwards. Jobs of the partition urgent preempt those of all.

    Args:
        folder: For its configuration, state and logs.
        parameters: SlurmctldParameters; by default a preemption sends the signal of --signal.

    Yields:
        The environment in which Slurm's commands find it.

    Raises:
        RuntimeError: Its nodes do not come up.
    """
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": search_path(),
    }
    (folder / "state").mkdir(parents=True)
    port = 20000 + (os.getpid() + 10 * next(_started)) % 10000
    lines = [
        f"NodeName={name} NodeHostname={os.uname().nodename} NodeAddr=127.0.0.1 CPUs=1 "
        f"Port={port + 1 + i} State=UNKNOWN"
        for i, name in enumerate(NODES)
    ]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    host, nodes = os.uname().nodename, "\n".join(lines)
    # Sockets are made in it, whose paths may have no more than 108 characters.
    spool = Path(tempfile.mkdtemp(prefix="slurm-"))
    values = {"host": host, "port": port, "user": user, "folder": folder, "nodes": nodes}
    text = CONFIG.format(parameters=parameters, spool=spool, **values)
    (folder / "slurm.conf").write_text(text)
    started = [subprocess.Popen(["slurmctld", "-D"], env=environment, **quiet())]
    try:
        time.sleep(1)
        for name in NODES:
            (spool / name).mkdir()
            started.append(
                subprocess.Popen(["slurmd", "-D", "-N", name], env=environment, **quiet())
            )
        wait_for_nodes(environment, folder)
        try:
            yield environment
        finally:
            end_jobs(environment)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=120)
        shutil.rmtree(spool, ignore_errors=True)


def end_jobs(environment: dict[str, str]) -> None:
    """End what still runs; without the controller its processes would wait for it for ever."""
    for _ in range(240):
        ask(environment, "scancel", "--me")
        if ask(environment, "squeue", "-h") == "":
            return
        time.sleep(0.5)


def quiet() -> dict[str, Any]:
    """No output: each daemon has a log of its own."""
    return {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def wait_for_nodes(environment: dict[str, str], folder: Path) -> None:
    """Wait until both nodes are idle."""
    for _ in range(240):
        said = ask(environment, "sinfo", "-h", "-N", "-p", "all", "-o", "%T")
        if said.split() == ["idle"] * len(NODES):
            return
        time.sleep(0.5)
    log = folder / "slurmctld.log"
    told = log.read_text()[-2000:] if log.exists() else ""
    raise RuntimeError(f"the nodes of Slurm did not come up: {said!r}\n{told}")


def ask(environment: dict[str, str], *words: str) -> str:
    """What one of Slurm's commands says."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()
