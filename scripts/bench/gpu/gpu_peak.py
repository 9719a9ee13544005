"""Peaks of memory while a part of the GPU benchmark runs, and its turn to train."""

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def used_by_process() -> float | None:
    """GiB that this process uses on the card, as nvidia-smi tells it; None where it does not."""
    with suppress(Exception):  # whatever NVML raises, where it knows no processes
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(0)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return float(process.usedGpuMemory) / GIB
    return None


def train_alone() -> None:
    """Let no two processes of the benchmark train at once, so that times are those of one."""
    from transformers import Trainer

    real = Trainer.train

    def train(trainer: Any, *given: Any, **named: Any) -> Any:
        with Path(tempfile.gettempdir(), "rlhf-gpu-turn").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            return real(trainer, *given, **named)

    Trainer.train = train


class Peak:
    """Peaks in GiB: what PyTorch allocated and reserved, and on the card this process and all."""

    def __init__(self) -> None:
        self.on_device = 0.0
        self.of_process: float | None = None
        self.ends = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch a section."""
        if DEVICE == "cpu":
            yield
            return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        yield
        self.ends.set()
        watcher.join()

    def _watch(self) -> None:
        while not self.ends.wait(0.02):
            free, total = torch.cuda.mem_get_info()
            self.on_device = max(self.on_device, (total - free) / GIB)
            if (used := used_by_process()) is not None:
                self.of_process = max(self.of_process or 0.0, used)

    def numbers(self) -> dict[str, float | None]:
        """The peaks; nothing on a CPU."""
        if DEVICE == "cpu":
            return {}
        return {
            "allocated": torch.cuda.max_memory_allocated() / GIB,
            "reserved": torch.cuda.max_memory_reserved() / GIB,
            "device": self.on_device,
            "process": self.of_process,
        }
