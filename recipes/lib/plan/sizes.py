"""Bytes as people write and read them."""

from __future__ import annotations

import re

from recipes.lib.errors import UserError

GIB = 2**30
# The makers of cards sell 24 "GB" and build in 24 GiB, so both words mean the same here.
UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": 2**20, "mb": 2**20, "mib": 2**20}
UNITS |= {"t": 2**40, "tb": 2**40, "tib": 2**40}


def read_memory(text: str) -> int:
    """Read an amount of memory.

    Args:
        text: A number and a unit, such as 24GB, 11.5 GiB or 8192MB; without a unit, GiB.

    Returns:
        Bytes.

    Raises:
        UserError: It is no amount, or none above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise UserError(f"memory={text}: must be a number with GB or MB, such as 24GB.")
    amount = round(float(found[1]) * unit)
    if amount < 1:
        raise UserError(f"memory={text}: must be above 0.")
    return amount


def shown(amount: int) -> str:
    """Bytes in GiB with two decimals; of less than that, MiB."""
    if amount == 0:
        return "-"
    if amount < 0.095 * GIB:
        return f"{amount / 2**20:.1f} MiB" if amount >= 2**20 / 20 else "< 0.1 MiB"
    return f"{amount / GIB:.2f} GiB"
