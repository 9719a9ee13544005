"""Keys of earlier TRL, transformers and alignment-handbook files, under the names they have now.

A file that trained with those runs here: each old key is translated or left out with one remark,
and refused with the reason where that would change what the run computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping

from recipes.lib.config import legacy_tables as tables
from recipes.lib.config.fields import Field
from recipes.lib.config.legacy_data import DATA_KEYS, READ_WITH_MIXER, with_file_paths
from recipes.lib.config.legacy_tables import Values
from recipes.lib.errors import UserError, note

# Keys that only files of TRL's own PPO have.
TRL_PPO_KEYS = (
    "sft_model_path reward_model_path response_length value_model_path ppo_epochs init_kl_coef "
    "local_rollout_forward_batch_size num_sample_generations".split()
)
DEFAULTS = {  # of TRL 1.12's PPOConfig
    "temperature": 0.7,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
}


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
            own = tables.LEFT_OUT_OF.get(recipe, {})
            reason = reason or own.get(key, tables.LEFT_OUT.get(key))
            if reason is not None:
                note(f"{key} ({where(key)}) is left out: {reason}.")
                continue
            why_not = refusal_reason(recipe, key)
            if why_not is not None:
                raise UserError(f"{key} ({where(key)}): {why_not}.")
            result[key] = values[key]  # refused as unknown, by the name that the user wrote
            continue
        if key not in tables.MERGED:
            _refuse_both(key, found, values, where)
        _tell(key, found, where)
        result |= found
        origins |= dict.fromkeys(found, key)
    _change_values(recipe, result, origins, where)
    sign = next((key for key in TRL_PPO_KEYS if key in values), None)
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
    name = tables.RENAMED.get(recipe, {}).get(key) or tables.RENAMED[""].get(key)
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
    own = (tables.LEFT_OUT_OF.get(recipe, {}), tables.REFUSED_OF.get(recipe, {}))
    old = (tables.SPECIAL, DATA_KEYS, tables.LEFT_OUT, tables.LEFT_OUT_AT, tables.REFUSED, *own)
    return new_name(recipe, key, known) is not None or any(key in table for table in old)


def refusal_reason(recipe: str, key: str) -> str | None:
    """Why an old key is refused, at values that mean something.

    Args:
        recipe: Name of the recipe.
        key: The old key.

    Returns:
        The reason, or None where it is not.
    """
    return tables.REFUSED_OF.get(recipe, {}).get(key, tables.REFUSED.get(key))


def _left_out_at(recipe: str, key: str, values: Values) -> str | None:
    """Why a key means nothing at the value that it has."""
    if key == "warmup_ratio":
        ratio, steps = values["warmup_ratio"], values.get("warmup_steps")
        if isinstance(steps, int | float) and steps > 0:
            return f"transformers went by warmup_steps={steps} beside it"
        return "null stood for no warmup" if ratio is None else None
    harmless, reason = tables.LEFT_OUT_AT.get(key, ((), ""))
    if values[key] in harmless:
        return reason
    is_off = values[key] is None or values[key] is False
    return "it was off" if is_off and refusal_reason(recipe, key) else None


def _translated(recipe: str, key: str, values: Values, known: Container[str]) -> Values | None:
    changes = tables.SPECIAL.get(key) or DATA_KEYS.get(key)
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
    is_plain = len(found) == 1 and key not in (*tables.SPECIAL, *DATA_KEYS)
    shown = ", ".join(name if is_plain else f"{name}={found[name]!r}" for name in found)
    if found:
        note(f"{key} ({where(key)}) is now written {shown}; it is read as that.")
    elif key not in READ_WITH_MIXER:  # what stands beside another key is told with that one
        note(f"{key} ({where(key)}) is left out: its value is the default.")


def _change_values(
    recipe: str,
    values: Values,
    origins: dict[str, str],
    where: Callable[[str], str],
) -> None:
    """Changes the values of keys that have kept their name but not all of their meaning."""
    parts = with_file_paths(values.get("datasets"))
    if parts != values.get("datasets"):
        note(f"datasets ({where('datasets')}): data_files is now written path; it is read as that.")
        values["datasets"] = parts
    for key, (old, new) in tables.NEW_VALUES.items():
        if values.get(key) == old:
            note(f"{key}={old} ({where(key)}) is now written {new}; it is read as that.")
            values[key] = new
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
    """Takes TRL's batch where a file leaves the accumulation to its default; tells other ones."""
    if "gradient_accumulation_steps" not in origins.values():
        found = rollout_batches({"gradient_accumulation_steps": 1} | values)
        if found:
            shown = ", ".join(f"{name}={value}" for name, value in found.items())
            note(f"gradient_accumulation_steps is absent, and was 1 in TRL's PPO: {shown}.")
            origins |= {name: sign for name in found if name not in values}
            values |= found
    others = [
        f"{key} {known[key].default} ({value} there)"
        for key, value in DEFAULTS.items()
        if key not in values and known[key].default != value
    ]
    if others:
        note(f"defaults here that differ from those of TRL's PPO: {', '.join(others)}.")


def rollout_batches(values: Values) -> Values:
    """The batches of TRL 1.12's PPO, which followed from the accumulation, by today's keys.

    Args:
        values: The file's keys, with gradient_accumulation_steps.

    Returns:
        rollout_batch_size, with what must divide it; empty where the file states rollout_batch_size
        or holds no whole numbers.
    """
    names = ("gradient_accumulation_steps", "per_device_train_batch_size", "num_mini_batches")
    sizes = [values.get(name, default) for name, default in zip(names, (1, 8, 1), strict=True)]
    is_stated = "rollout_batch_size" in values
    if is_stated or not all(type(size) is int and size > 0 for size in sizes):
        return {}
    accumulation, micro_batch, mini_batches = sizes
    share = accumulation * micro_batch  # episodes of one process
    found = {"rollout_batch_size": share * int(os.environ.get("WORLD_SIZE", "1"))}
    if share % mini_batches == 0 and micro_batch > share // mini_batches:
        found["per_device_train_batch_size"] = share // mini_batches
    episodes, batch = values.get("total_episodes"), found["rollout_batch_size"]
    if type(episodes) is int and episodes % batch:
        found["total_episodes"] = episodes + batch - episodes % batch  # TRL rounded up, too
    return found
