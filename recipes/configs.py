"""Lists, shows and copies the configurations that come with the project.

A configuration's name is its path under `configs/` without the ending, e.g. `quickstart/ppo`.
"""

from pathlib import Path

from recipes.lib.config.shipped_configs import FOLDER, find_config, find_configs
from recipes.lib.errors import UserError
from recipes.lib.recipe.help import answer, columns, print_text

USAGE = """usage: rlhf configs                     list names and purposes
       rlhf configs show NAME           print one
       rlhf configs copy NAME [DEST]    copy one, by default into this folder"""


def main(argv: list[str] | None = None) -> int:
    """Runs `rlhf configs`.

    Args:
        argv: The words after `configs`; None takes them from `sys.argv`.

    Returns:
        The exit code: 0, or 2 for a mistake of the user.
    """
    text = f"{(__doc__ or '').strip()}\n\n{USAGE}"
    return answer("configs", text, argv, lambda words: print_text(run(words)))


def run(argv: list[str], folder: Path = FOLDER) -> str:
    """Does what the words say.

    Args:
        argv: `[]`, `["show", NAME]` or `["copy", NAME, DEST]`.
        folder: Where the configurations are.

    Returns:
        What to print.

    Raises:
        UserError: No such action or name, a wrong number of words, or a file is in the way.
    """
    match argv:
        case [] | ["list"]:
            return listing(folder)
        case ["show", name]:
            return find_config(name, folder).read_text(encoding="utf-8").rstrip()
        case ["copy", name, *place] if len(place) < 2:
            return copy(find_config(name, folder), Path(*place))
        case ["show" | "copy" as action, *rest]:
            dest = " and perhaps a DEST" if action == "copy" else ""
            raise UserError(f"{action}: takes a NAME{dest}, got {len(rest)} words.")
    raise UserError(f"{argv[0]}: is no action; write rlhf configs [show|copy NAME].")


def listing(folder: Path) -> str:
    """Writes one line for each configuration.

    Args:
        folder: Where they are.

    Returns:
        Names and purposes.

    Raises:
        UserError: There are no configurations beside the package.
    """
    known = find_configs(folder)
    if not known:
        raise UserError(f"{folder}: holds no configurations; run rlhf from a checkout.")
    return "\n".join(columns({name: purpose(path) for name, path in known.items()}))


def purpose(path: Path) -> str:
    """Reads what a configuration is for.

    Args:
        path: The file.

    Returns:
        The first line of its header comment, or nothing.
    """
    with path.open(encoding="utf-8") as file:
        line = file.readline().strip()
    return line.lstrip("# ").removeprefix("Purpose:").strip() if line.startswith("#") else ""


def copy(source: Path, dest: Path) -> str:
    """Copies a configuration to where nothing is yet.

    Args:
        source: The configuration.
        dest: A file name or an existing folder.

    Returns:
        What was done.

    Raises:
        UserError: The destination exists, or cannot be written.
    """
    target = dest / source.name if dest.is_dir() else dest
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UserError(f"{target}: exists already; name another file.") from error
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}).") from error
    return f"copied to {target}"


if __name__ == "__main__":
    raise SystemExit(main())
