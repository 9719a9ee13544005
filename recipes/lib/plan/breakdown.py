"""A plan: bytes by phase and by thing, and how people write and read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.lib.errors import UserError

GIB = 2**30
# The makers of cards sell 24 "GB" and build in 24 GiB, so both words mean the same here.
UNITS = {"m": 2**20, "g": GIB, "t": 2**40}


BASE, ADAPTERS, HEADS, OTHER_MODELS = "base weights", "adapters", "heads", "other models"
OPTIMIZER, GRADIENTS = "optimizer", "gradients"
ACTIVATIONS, LOGITS, CACHE, WORKSPACE = "activations", "logits", "KV cache", "workspace"
ALLOCATOR, CONTEXT = "allocator", "CUDA context"
FIXED = (BASE, ADAPTERS, HEADS, OTHER_MODELS, OPTIMIZER)  # there all the time
MOVING = (GRADIENTS, ACTIVATIONS, LOGITS, CACHE, WORKSPACE)
THINGS = (*FIXED, *MOVING, ALLOCATOR, CONTEXT)  # in the order of the table

# Assumed, not measured: what the driver and the libraries take beside PyTorch's allocator, and the
# part of what comes and goes that the allocator cannot use again at once.
CONTEXT_BYTES = 600 * 2**20
FRAGMENTED = 0.05


@dataclass(frozen=True)
class MemoryPhase:
    """What is in memory at the fullest moment of a phase.

    Args:
        name: sampling, scoring, training, update, evaluation or saving.
        parts: Bytes by thing.
        kept: Bytes without tensors that the allocator keeps for captured steps of sampling.
    """

    name: str
    parts: Mapping[str, int]
    kept: int = 0

    @property
    def allocated(self) -> int:
        """Bytes of tensors, as torch.cuda.max_memory_allocated counts them."""
        return sum(self.parts.values())

    @property
    def allocator(self) -> int:
        """Bytes that the allocator holds beyond the tensors."""
        moving = sum(self.parts.get(thing, 0) for thing in MOVING)
        return round(FRAGMENTED * moving) + self.kept

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.allocated + self.allocator + CONTEXT_BYTES

    def of(self, thing: str) -> int:
        """Bytes of one thing."""
        if thing == ALLOCATOR:
            return self.allocator
        return CONTEXT_BYTES if thing == CONTEXT else self.parts.get(thing, 0)


@dataclass(frozen=True)
class Plan:
    """What a run takes on each card.

    Args:
        recipe: Name of the recipe.
        model: Name of the model that gave the shapes.
        phases: The phases.
        trainable: Weights that are trained.
        parameters: Weights of the policy's model, quantized ones counted as they were.
        facts: What the plan assumed, by name, for the reader.
    """

    recipe: str
    model: str
    phases: tuple[MemoryPhase, ...]
    trainable: int
    parameters: int
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def fullest(self) -> MemoryPhase:
        """The phase that takes the most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Bytes on the device at the fullest moment."""
        return self.fullest.total

    @property
    def least(self) -> int:
        """Bytes without which nothing goes: weights, optimizer and gradients."""
        return max(sum(phase.of(thing) for thing in (*FIXED, GRADIENTS)) for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """The plan in plain values, in bytes."""
        return {
            "recipe": self.recipe,
            "model": self.model,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "facts": self.facts,
            "peak": self.peak,
            "peak_phase": self.fullest.name,
            "phases": {
                phase.name: {thing: phase.of(thing) for thing in THINGS}
                | {"allocated": phase.allocated, "total": phase.total}
                for phase in self.phases
            },
        }


def read_memory(text: str) -> int:
    """Read an amount of memory.

    Args:
        text: A number and a unit, such as 24GB, 11.5 GiB or 8192MB; without a unit, GiB.

    Returns:
        Bytes.

    Raises:
        UserError: It is no amount, or none above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([mgt])(?:i?b)?)?\s*", text.lower())
    if found is None:
        raise UserError(f"memory={text}: must be a number with GB or MB, such as 24GB.")
    amount = round(float(found[1]) * UNITS[found[2] or "g"])
    if amount < 1:
        raise UserError(f"memory={text}: must be above 0.")
    return amount


def memory_text(amount: int) -> str:
    """Bytes in GiB with two decimals; of less than that, MiB."""
    if amount == 0:
        return "-"
    if amount < 0.095 * GIB:
        return f"{amount / 2**20:.1f} MiB" if amount >= 2**20 / 20 else "< 0.1 MiB"
    return f"{amount / GIB:.2f} GiB"
