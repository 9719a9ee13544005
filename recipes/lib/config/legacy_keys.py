"""Keys of earlier TRL, transformers and alignment-handbook files, under the names they have now.

A file that trained with those runs here: each old key is translated or left out with one remark,
and refused with the reason where that would change what the run computes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from recipes.lib.config.fields import Field
from recipes.lib.config.legacy_data import BESIDE, DATA_KEYS, with_files
from recipes.lib.config.legacy_ppo import other_defaults, rollout_batches, sign_of_trl
from recipes.lib.config.legacy_tables import (
    LEFT_OUT,
    LEFT_OUT_AT,
    LEFT_OUT_OF,
    MERGED,
    REFUSED,
    REFUSED_OF,
    RENAMED,
    SPECIAL,
)
from recipes.lib.errors import UserError, note

Values = dict[str, Any]


def translate(
    recipe: str,
    values: Values,
    known: Mapping[str, Field],
    where: Callable[[str], str],
) -> tuple[Values, dict[str, str]]:
    """Bring the keys of a file to today's names, with one remark for each that is not.

    Args:
        recipe: Name of the recipe.
        values: The keys of a file.
        known: Today's keys of the recipe.
        where: Says where a key stands.

    Returns:
        The values by today's keys, and the old key that each translated one came from.

    Raises:
        UserError: An old key cannot be translated, or the new one is set too.
    """
    result = {key: value for key, value in values.items() if key in known}
    origins: dict[str, str] = {}
    for key in values:
        if key in known:
            continue
        reason = _left_out_at(recipe, key, values)
        found = None if reason else _translated(recipe, key, values, known)
        if found is None:
            reason = reason or LEFT_OUT_OF.get(recipe, LEFT_OUT).get(key, LEFT_OUT.get(key))
            if reason is not None:
                note(f"{key} ({where(key)}) is left out: {reason}.")
                continue
            why_not = refusal(recipe, key)
            if why_not is not None:
                raise UserError(f"{key} ({where(key)}): {why_not}.")
            result[key] = values[key]  # refused as unknown, by the name that the user wrote
            continue
        if key not in MERGED:
            _refuse_both(key, found, values, where)
        _tell(key, found, where)
        result |= found
        origins |= dict.fromkeys(found, key)
    _change_values(recipe, result, origins, where)
    sign = sign_of_trl(values)
    if recipe == "ppo" and sign is not None:
        _as_trl_ppo(sign, result, origins, known)
    return result, origins


def new_name(recipe: str, key: str, known: Container[str]) -> str | None:
    """Today's name of an old key.

    Args:
        recipe: Name of the recipe.
        key: The old key.
        known: Today's keys of the recipe.

    Returns:
        The name, or None where the key has no successor.
    """
    name = RENAMED.get(recipe, {}).get(key) or RENAMED[""].get(key)
    return name if name is not None and name in known else None


def is_old(recipe: str, key: str, known: Container[str]) -> bool:
    """Whether a key is one of earlier files, which is translated, left out or refused.

    Args:
        recipe: Name of the recipe.
        key: The key.
        known: Today's keys of the recipe.

    Returns:
        False for today's keys, and for those that there never were.
    """
    if key in known:
        return False
    own = (LEFT_OUT_OF.get(recipe, {}), REFUSED_OF.get(recipe, {}))
    tables = (SPECIAL, DATA_KEYS, LEFT_OUT, LEFT_OUT_AT, REFUSED, *own)
    return new_name(recipe, key, known) is not None or any(key in table for table in tables)


def refusal(recipe: str, key: str) -> str | None:
    """Why an old key is refused, at values that mean something.

    Args:
        recipe: Name of the recipe.
        key: The old key.

    Returns:
        The reason, or None where it is not.
    """
    return REFUSED_OF.get(recipe, {}).get(key, REFUSED.get(key))


def _left_out_at(recipe: str, key: str, values: Values) -> str | None:
    """Why a key means nothing at the value that it has."""
    if key == "warmup_ratio":
        return _without_ratio(values)
    harmless, reason = LEFT_OUT_AT.get(key, ((), ""))
    if values[key] in harmless:
        return reason
    is_off = values[key] is None or values[key] is False
    return "it was off" if is_off and refusal(recipe, key) else None


def _without_ratio(values: Values) -> str | None:
    ratio, steps = values["warmup_ratio"], values.get("warmup_steps")
    if isinstance(steps, int | float) and steps > 0:
        return f"transformers went by warmup_steps={steps} beside it"
    return "null stood for no warmup" if ratio is None else None


def _translated(recipe: str, key: str, values: Values, known: Container[str]) -> Values | None:
    changes = SPECIAL.get(key) or DATA_KEYS.get(key)
    if changes is not None:
        found = changes(values)
        if found is not None and all(name in known for name in found):
            return found
        return None
    name = new_name(recipe, key, known)
    return None if name is None else {name: values[key]}


def _refuse_both(key: str, found: Values, values: Values, where: Callable[[str], str]) -> None:
    both = [name for name in found if name in values]
    if both:
        raise UserError(
            f"{key} ({where(key)}) is the old name of {both[0]}, which is set too "
            f"({where(both[0])}); leave {key} out."
        )


def _tell(key: str, found: Values, where: Callable[[str], str]) -> None:
    # Without the value of a key that was only renamed: it may be a token.
    is_plain = len(found) == 1 and key not in (*SPECIAL, *DATA_KEYS)
    shown = ", ".join(name if is_plain else f"{name}={found[name]!r}" for name in found)
    if found:
        note(f"{key} ({where(key)}) is now written {shown}; it is read as that.")
    elif key not in BESIDE:  # what stands beside another key is told with that one
        note(f"{key} ({where(key)}) is left out: its value is the default.")


def _change_values(
    recipe: str,
    values: Values,
    origins: dict[str, str],
    where: Callable[[str], str],
) -> None:
    """Changes the values of keys that have kept their name but not all of their meaning."""
    parts = with_files(values.get("datasets"))
    if parts != values.get("datasets"):
        note(f"datasets ({where('datasets')}): data_files is now written path; it is read as that.")
        values["datasets"] = parts
    if recipe == "ppo" and "gradient_accumulation_steps" in values:
        found = rollout_batches(values)
        if found:
            _tell("gradient_accumulation_steps", found, where)
            del values["gradient_accumulation_steps"]
            values |= found
            origins |= dict.fromkeys(found, "gradient_accumulation_steps")


def _as_trl_ppo(
    sign: str, values: Values, origins: dict[str, str], known: Mapping[str, Field]
) -> None:
    """Takes the batch that TRL's PPO had where a file leaves the accumulation to its default."""
    if "gradient_accumulation_steps" not in origins.values():
        found = rollout_batches({"gradient_accumulation_steps": 1} | values)
        if found:
            shown = ", ".join(f"{name}={value}" for name, value in found.items())
            note(f"gradient_accumulation_steps is absent, and was 1 in TRL's PPO: {shown}.")
            origins |= {name: sign for name in found if name not in values}
            values |= found
    others = other_defaults(values, known)
    if others:
        note(f"{others}.")
