"""What a training used: by the card's own counter, or estimated from watts that are stated.

The counter is NVML's, of the whole card and since its driver was loaded. What the rest of the
machine draws it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

JOULES = 3.6e6  # of a kWh


class EnergyMeter(TrainerCallback):
    """Adds up what a card has used, over resumed runs too.

    Args:
        card: Which card it is; processes that share one count it once.
        read: Its counter, in mJ; None where there is none.
    """

    def __init__(self, card: str = "", read: Callable[[], int] | None = None) -> None:
        self.card, self.read = card, read
        self.before: float | None = 0.0  # joules of earlier processes; None where nobody measured
        self.used = 0
        self.last = read() if read is not None else 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Look at the counter, so that it cannot begin anew twice unseen."""
        self.joules()

    def joules(self) -> float | None:
        """Joules so far, or None where a part of the run was not measured."""
        if self.read is None or self.before is None:
            return None
        now = self.read()
        if now < self.last:  # of 32 bits it lasts for 1.2 kWh
            self.used += 2**32 if self.last < 2**32 else 2**64
        self.used += now - self.last
        self.last = now
        return self.before + self.used / 1000


def card_meter() -> EnergyMeter:
    """A meter of the card that this process uses; of none where NVML cannot be asked."""
    import torch

    if not torch.cuda.is_available():
        return EnergyMeter()
    try:
        import pynvml
    except ImportError:
        return EnergyMeter()
    try:
        pynvml.nvmlInit()
        card = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(card)
        return EnergyMeter(card, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError:  # of an older card, or a part of one
        return EnergyMeter()


def told_energy(meter: EnergyMeter, script: Any, seconds: float, processes: int) -> dict[str, Any]:
    """What a summary says of energy; all processes call it.

    Args:
        meter: Of this process.
        script: With the keys of runs.energy.EnergyArguments.
        seconds: That the run took.
        processes: How many there are.

    Returns:
        Whether it was measured, estimated or neither, kWh, and grams of CO2 where the user gave
        their number.
    """
    own = [(meter.card, meter.joules())]
    found = gather_object(own) if processes > 1 else own
    # Of those that share a card the first also knows what was used before; unknown stays unknown.
    by_use = sorted(found, key=lambda one: math.inf if one[1] is None else one[1])
    cards: dict[str, float | None] = dict(by_use)
    joules = [one for one in cards.values() if one is not None]
    if len(joules) == len(cards):
        kwh, how, kind = sum(joules) / JOULES, "measured on the card", "measured"
    elif script.power_watts is not None:
        kwh, kind = script.power_watts * seconds / JOULES, "estimated"
        how = f"estimated at {script.power_watts:g} W"
    else:
        return {"energy": "not measured"}
    told = {"energy": how, f"energy_kwh_{kind}": kwh}
    return told | ({"co2_grams": kwh * g} if (g := script.grid_intensity) is not None else {})
