"""Where the configurations are that come with the project: beside the package, or installed."""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2] / "configs"
INSTALLED = Path(sys.prefix) / "share" / "rlhf-recipes" / "configs"
FOLDER = CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def find_configs(folder: Path = FOLDER) -> dict[str, Path]:
    """Finds the configurations.

    Args:
        folder: Where they are.

    Returns:
        Paths by name, sorted by name.
    """
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
