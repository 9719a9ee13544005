"""The libraries are the same, imported in less time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from recipes.lib.models.quick_import import _compile_late

ROOT = Path(__file__).parents[3]
FRESH = """
import gc, sys
from recipes.lib.models.quick_import import import_quickly
import_quickly()
import torch
plain = torch.compile
import bitsandbytes
print("torch._inductor.compile_fx" in sys.modules, torch.compile is plain, gc.isenabled())
print(gc.get_stats()[2]["collections"])
"""


def test_an_import_collects_no_garbage_and_loads_no_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "True", "0"]


def test_what_was_to_be_compiled_is_when_it_is_called() -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    def double(tensor: torch.Tensor, by: float = 2) -> torch.Tensor:
        return tensor * by

    late = _compile_late(double, backend=backend)
    assert (late.__name__, compiled) == ("double", [])
    assert late(torch.ones(2), by=3).tolist() == [3, 3]
    assert late(torch.zeros(2), by=3).tolist() == [0, 0]
    assert len(compiled) == 1
