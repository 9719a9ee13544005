"""The libraries are imported in two thirds of their time.

Half of what is left out is garbage collection, which looks again and again at what an import has
made and keeps. The other half is a compiler that bitsandbytes loads for four functions, which only
devices without kernels of their own call.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LIBRARIES = {"torch", "transformers", "datasets", "accelerate", "peft", "trl"}
COMPILES = "bitsandbytes.backends.default.ops"


def import_quickly() -> None:
    """Have the imports to come of the large libraries take less time; for a process of ours."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds those libraries as everybody does, and has them loaded in other circumstances."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_large = name.partition(".")[0] in LIBRARIES and gc.isenabled()
        if name != COMPILES and not is_large:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder != self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module
            circumstances = _without_collection if is_large else _without_compiler

            def exec_module(module: ModuleType) -> None:
                with circumstances():
                    load(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _without_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    plain = torch.compile
    torch.compile = _compile_late  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = plain


def _compile_late(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    import torch

    @cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, **options)

    return wraps(function)(lambda *arguments, **named: compiled()(*arguments, **named))
