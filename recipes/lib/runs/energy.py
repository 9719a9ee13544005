"""Keys about energy, of recipes that train."""

from dataclasses import dataclass

from recipes.lib.config.fields import option


@dataclass(kw_only=True)
class EnergyArguments:
    """What only the user knows of the energy."""

    power_watts: float | None = option(
        None, "Watts that all machines draw in training: an estimate where no card measures."
    )
    grid_intensity: float | None = option(
        None, "Grams of CO2 of a kWh of your grid; without it none are named."
    )
