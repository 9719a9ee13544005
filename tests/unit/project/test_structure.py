"""The house rules that a program can check: sizes, light imports, plain text."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "recipes"
SKIPPED = {".git", ".venv", "__pycache__"}
SKIPPED |= {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
RUNS = ROOT / "runs"  # what the recipes wrote
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".sh", ".html", ".jinja", ""}

FUNCTION_LINES = 50
LONG = 500  # lines of a module that is looked at twice: has it one subject?
SHORT = (
    80  # lines of a module that has to be wanted in two places, or to stand here with its reason
)
FOLDER_FILES = 20
LONG_MODULES = {"scripts/bench/mutants/mutant_list.py": "a table, one row for each mutant"}
SHORT_MODULES = {
    "recipes/lib/config/foreign_files.py": "files that are none of ours, whoever reads files",
    "recipes/lib/ppo/kl_controller.py": "found by its name; returns.py is arithmetic alone",
    "recipes/lib/distributed/process_exit.py": "why a process of several is not taken down",
    "recipes/lib/publishing/verify.py": "after the push, which ends with the commit",
    "recipes/lib/rewards/labels.py": "a label as a reward, which brings torch; loading.py does not",
    "recipes/lib/report/times.py": "where the time went, from the log to a table",
    "recipes/lib/tasks/environments/cartpole.py": "a world, found by its name",
    "recipes/lib/tasks/environments/guessing.py": "a world, found by its name",
    "recipes/lib/tasks/tales/pages.py": "text of the made-up world, by kind of text",
    "recipes/lib/tasks/tales/rows.py": "text of the made-up world, by kind of text",
}

# Put together here so that this file passes its own test.
ADDRESSES = ["pypi" + ".org", "pythonhosted" + ".org", "download." + "pytorch", "index" + "-url"]
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(?:root|home|work|Users|tmp|opt|mnt)/")


def files(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in SKIPPED or path == RUNS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from files(path, suffixes)
        elif path.suffix in suffixes:
            yield path


def python_files(folder: Path) -> list[Path]:
    return list(files(folder, {".py"}))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def recipe_modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.glob("*.py")) if not path.name.startswith("_")]


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=name_of)
def test_functions_can_be_held_in_mind(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


def test_a_long_module_has_a_reason() -> None:
    """One subject a file; one that grows beyond that is split, or its reason stands above."""
    long = {name_of(path) for path in python_files(ROOT) if lines_of(path) > LONG}
    assert long == set(LONG_MODULES)


def test_a_short_module_has_two_importers_or_a_reason() -> None:
    importers: dict[str, int] = {}
    for path in python_files(PACKAGE):
        for name in imported(path):
            importers[name] = importers.get(name, 0) + 1
    short = {
        name_of(path)
        for path in python_files(PACKAGE / "lib")
        if path.name != "__init__.py"
        and lines_of(path) < SHORT
        and importers.get(name_of(path)[:-3].replace("/", "."), 0) < 2
    }
    assert short == set(SHORT_MODULES)


def test_a_large_folder_becomes_two() -> None:
    folders = [PACKAGE / "lib", *(path for path in (PACKAGE / "lib").rglob("*") if path.is_dir())]
    assert [f for f in folders if len(list(f.glob("*.py"))) > FOLDER_FILES] == []


def test_what_tests_share_stands_in_the_helpers() -> None:
    helpers = ROOT / "tests/helpers"
    others = [path for path in python_files(ROOT / "tests") if helpers not in path.parents]
    assert [path for path in others if not re.fullmatch(r"test_\w+|conftest", path.stem)] == []


def test_every_python_script_is_read_by_ruff_and_mypy() -> None:
    import tomllib

    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    plain = [p for p in files(ROOT / "scripts", {""}) if "python" in p.read_text().split("\n")[0]]
    named = [name_of(path) for path in plain]
    assert tools["ruff"]["extend-include"] == named
    assert tools["mypy"]["files"] == ["recipes", "tests", "scripts/**/*.py", *named]


@pytest.mark.parametrize("path", python_files(ROOT), ids=name_of)
def test_python_files_are_ascii(path: Path) -> None:
    outside = [byte for byte in path.read_bytes() if byte > 127]
    assert not outside


def test_importing_any_recipe_loads_nothing_heavy() -> None:
    names = ", ".join(f"recipes.{path.stem}" for path in recipe_modules())
    code = f"import {names}, sys\nprint({{'torch', 'transformers', 'trl'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_no_file_names_a_registry_or_an_absolute_path() -> None:
    found = []
    for path in files(ROOT, TEXT):
        text = path.read_text(encoding="utf-8")
        found += [f"{name_of(path)}: {address}" for address in ADDRESSES if address in text]
        found += [f"{name_of(path)}: {hit.group()}" for hit in ABSOLUTE.finditer(text)]
    assert found == []


def test_pinned_versions_are_plain_and_inside_the_bounds() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    versions = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # The tests' environment has those extras.
    of_itself = f"{project['name']}[deepspeed,env,eval,feedback,gguf,serve]"
    lines = [*project["dependencies"], *extras["dev"]]
    for extra in ("deepspeed", "env", "eval", "feedback", "gguf", "serve"):
        lines += extras[extra]
    assert of_itself in lines
    for line in filter(lambda line: line != of_itself, lines):
        requirement = Requirement(line)
        assert "<" in line or "==" in line, f"{line} has no upper bound"
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("name", ["scripts/quickstart", "scripts/test", "scripts/check", ".ci/run"])
def test_scripts_can_be_executed_and_parse(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
