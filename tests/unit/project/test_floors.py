"""Imports go down: a room imports rooms that stand below it, and no module imports in a circle.

FLOORS is the plan of the house, bottom first; rooms on one line do not import each other, and the
recipes stand on top of all. An import counts wherever it stands: at the top, in a function, for
types alone, or as a name that is handed to `import_module`. docs/architecture.md says what each
room is for.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FLOORS = [
    {"errors", "verbosity"},
    {"config", "models", "tasks"},
    {"distributed", "pictures"},
    {"data"},
    {"generation", "rewards", "runs"},
    {"environments", "feedback", "trainers"},
    {"annotation", "evaluation"},
    {"ppo", "report"},
    {"plan", "publishing"},
    {"doctor"},
    {"recipe"},
]
# They find a recipe by the name that a user gave, so its import is nowhere written down.
NAME_RECIPES = {
    "recipes.cli",
    "recipes.quickstart",
    "recipes.lib.recipe.main",
}
# They call the `run` of other recipes.
CONDUCTORS = {"recipes.compare", "recipes.quickstart", "recipes.rounds"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "recipes").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(source: str, known: set[str]) -> Iterator[str]:
    """Modules of the project that a file imports; `recipes.*` for a recipe that a user names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in known:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (whole & known) or {node.module}
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            match node.args[0]:
                case ast.Constant(value=str(name)) if name in known:
                    yield name
                case ast.JoinedStr(values=[ast.Constant(value="recipes."), *_]):
                    yield "recipes.*"


IMPORTS = {
    name: set(imported(path.read_text(encoding="utf-8"), set(MODULES)))
    for name, path in MODULES.items()
}


def room_of(name: str) -> str:
    """The room of a module, a file that stands beside the rooms, or nothing for a recipe."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["recipes", "lib"] and len(parts) > 2 else ""


def floor_of(name: str) -> int:
    room = room_of(name)
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    if name == "recipes.lib":
        return -1  # a docstring
    if room and not found:
        pytest.fail(
            f"recipes/lib/{room} stands on no floor; put it into FLOORS, and say what it is"
        )
    return found[0] if found else len(FLOORS)


def test_imports_go_down() -> None:
    wrong = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other in others - {"recipes.*"}
        if room_of(name) != room_of(other) and floor_of(name) <= floor_of(other)
    ]
    assert wrong == []


def test_no_module_imports_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_conductors_import_recipes_and_few_find_one_by_name() -> None:
    recipes = {name for name in MODULES if name.count(".") == 1 and name != "recipes.lib"}
    assert {name for name, others in IMPORTS.items() if others & recipes} <= CONDUCTORS
    assert {name for name, others in IMPORTS.items() if "recipes.*" in others} == NAME_RECIPES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from a.b import c", {"a.b"}),
        ("from a import b", {"a.b"}),
        ("def f():\n    import a.b", {"a.b"}),
        ("if TYPE_CHECKING:\n    from a.b import c", {"a.b"}),
        ("importlib.import_module('a.b')", {"a.b"}),
        ("import_module(f'recipes.{name}')", {"recipes.*"}),
        ("import_module(name)", set()),
        ("from torch import nn", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: set[str]) -> None:
    assert set(imported(source, {"a", "a.b"})) == found


def test_the_page_on_architecture_has_the_same_floors() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", page, flags=re.MULTILINE)
    named = {(int(n) - 1, room) for n, cell in rows for room in re.findall(r"\[(\w+)[\].]", cell)}
    there = {path.stem for path in (ROOT / "recipes/lib").iterdir()}
    built = {(n, room) for n, rooms in enumerate(FLOORS) for room in rooms & there}
    assert named - {(len(FLOORS), "recipes")} == built


def test_a_room_that_no_floor_lists_fails_with_a_sentence() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^recipes/lib/attic stands on no floor"):
        floor_of("recipes.lib.attic.chest")
