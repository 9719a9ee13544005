"""Where the configurations are that come with the project: beside the package, or installed."""

import difflib
from pathlib import Path

from recipes.lib.errors import UserError

PACKAGE = Path(__file__).parents[2]
SHARE = Path("share") / "rlhf-recipes" / "configs"  # as pyproject.toml lays them in a wheel


# A checkout has them beside the package; pip puts data below the folder that it installs to,
# which is above the package, whether that is an environment, a user's or one of its own.
PLACES = [PACKAGE.parent / "configs", *(parent / SHARE for parent in PACKAGE.parents)]
FOLDER = next((place for place in PLACES if place.is_dir()), PLACES[0])


def find_configs(folder: Path = FOLDER) -> dict[str, Path]:
    """Finds the configurations.

    Args:
        folder: Where they are.

    Returns:
        Paths by name, sorted by name.
    """
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find_config(name: str, folder: Path = FOLDER) -> Path:
    """Finds one configuration by name.

    Args:
        name: With or without `configs/` in front and `.yaml` behind.
        folder: Where they are.

    Returns:
        Its path.

    Raises:
        UserError: There is none of that name; the nearest is named.
    """
    known = find_configs(folder)
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
    remedy = f"the nearest is {near[0]}" if near else "`rlhf configs` lists them"
    raise UserError(f"{name}: there is no such configuration; {remedy}.")
