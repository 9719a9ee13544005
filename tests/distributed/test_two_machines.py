"""Two launchers that take each other for another machine: who of the processes tells a mistake."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.helpers.tiny_runs import flags, write

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def start(folder: Path, rank: int, port: int, processes: int) -> subprocess.Popen[str]:
    launch = f"--accelerate_config cpu --num_machines 2 --num_processes {processes} "
    launch += f"--machine_rank {rank} --main_process_ip 127.0.0.1 --main_process_port {port}"
    values = {"dataset_name": "rows.jsonl", "eval_strategy": "no"}
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.cli", "sft", *launch.split(), *flags(values)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_mistake_on_both_machines_is_told_once(tmp_path: Path) -> None:
    port = free_port()
    machines = [start(tmp_path, rank, port, 4) for rank in (0, 1)]
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [2, 2]
    assert said[0].count("error: dataset_name=rows.jsonl") == 1, said
    assert said[1].strip() == ""


@pytest.mark.parametrize("place", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_mistake_on_one_machine_is_told_there_once(
    place: int,
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    folders = [tmp_path / str(rank) for rank in (0, 1)]
    for folder in folders:
        folder.mkdir()
        tiny_model.save_pretrained(folder / "model")
        tiny_tokenizer.save_pretrained(folder / "model")
    write(folders[1 - place] / "rows.jsonl", [{"prompt": "the cat", "completion": " was red ."}])
    port = free_port()
    machines = [start(folder, rank, port, 2) for rank, folder in enumerate(folders)]
    try:
        said = machines[place].communicate(timeout=300)[0]
    finally:
        machines[1 - place].terminate()
        machines[1 - place].communicate(timeout=300)
    assert machines[place].returncode == 2
    assert said.count("error: dataset_name=rows.jsonl") == 1, said
