"""A process that may not have more memory, and a model that asks for some with every row."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recipes.lib.trainers.progress import RunCallback

OF_A_ROW = 256 << 20  # bytes that are really asked for, and not touched
SLACK = 192 << 20  # for all else


@contextmanager
def room_for(rows: int) -> Iterator[None]:
    """No more memory than so many rows take, as the kernel counts addresses."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + rows * OF_A_ROW + SLACK, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def take(rows: int) -> None:
    """Ask PyTorch for the memory of so many rows, and give it back."""
    torch.empty(rows * OF_A_ROW, dtype=torch.uint8)


class Hungry(RunCallback):
    """From a step on, every forward pass of the model takes memory for each of its rows."""

    begins = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        super().on_train_begin(args, state, control, **given)
        embeddings = [m for m in given["model"].modules() if isinstance(m, torch.nn.Embedding)]

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            if state.global_step >= self.begins:
                self.pass_(inputs[0].shape[0], output)

        self.handles = [module.register_forward_hook(hook) for module in embeddings]

    def pass_(self, rows: int, output: torch.Tensor) -> None:
        """What a forward pass takes."""
        take(rows)


class HungryBackward(Hungry):
    """The same in the backward pass alone."""

    def pass_(self, rows: int, output: torch.Tensor) -> None:
        """What its backward pass will take."""
        if output.requires_grad:
            output.register_hook(lambda gradient: take(rows))
