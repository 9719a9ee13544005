"""Peaks of memory while a part of the GPU benchmark runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GIB = 2**30
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Peak:
    """Peaks of memory in GiB: what PyTorch allocated and reserved, and all on the device."""

    def __init__(self) -> None:
        self.on_device = 0.0
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

    def numbers(self) -> dict[str, float]:
        """The peaks; nothing on a CPU."""
        if DEVICE == "cpu":
            return {}
        return {
            "allocated": torch.cuda.max_memory_allocated() / GIB,
            "reserved": torch.cuda.max_memory_reserved() / GIB,
            "device": self.on_device,
        }
