"""Where a run came from, as lines of a table: seed, models, data, commit, versions."""

from collections.abc import Iterator
from typing import Any

from recipes.lib.report.run_files import Row, RunFiles

HASH_DIGITS = 12  # enough to compare by eye


def origin(run: RunFiles) -> list[tuple[str, str]]:
    """Name and text of each fact in config.yaml and lineage.json, versions last."""
    lineage = dict(run.lineage)
    versions = lineage.pop("versions", None)
    facts = [("seed", str(run.settings["seed"]))] if "seed" in run.settings else []
    for key, value in lineage.items():
        facts += _lines(key, value)
    facts += [("energy", spelled_energy(run.summary))] if "energy" in run.summary else []
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {text}" for name, text in versions.items())))
    return facts


def spelled_energy(summary: Row) -> str:
    """Energy with how it is known, as "0.12 kWh, estimated at 250 W"; or that it is not."""
    found = [summary.get(f"energy_kwh_{kind}") for kind in ("measured", "estimated")]
    known = next((f"{kwh:.3g} kWh, " for kwh in found if kwh is not None), "")
    grams = (
        f", {summary['co2_grams']:.3g} g CO2 by the stated grid" if "co2_grams" in summary else ""
    )
    return f"{known}{summary['energy']}{grams}"


def ancestry(model: Row) -> str:
    """The folder or id of a model, then those that it grew from, newest first."""
    names = []
    entry: Any = model
    while isinstance(entry, dict) and entry.get("name"):
        names.append(str(entry["name"]))
        entry = (entry.get("lineage") or {}).get("model")
    return " \u2190 ".join(names)


def _lines(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if value is None or value == [] or value == {}:
        return
    if isinstance(value, list):
        yield key, "; ".join(_spelled(entry) for entry in value)
    elif isinstance(value, dict) and "name" not in value:
        for name, entry in value.items():
            yield from _lines(f"{key} \u203a {name}", entry)
    else:
        yield key, _spelled(value)


def _spelled(value: Any) -> str:
    if isinstance(value, dict) and "sha256" in value:
        digest = value["sha256"]
        return f"{value.get('name')}" + (f" (sha256 {digest[:HASH_DIGITS]})" if digest else "")
    if isinstance(value, dict) and "name" in value:
        return ancestry(value)
    return str(value)
