"""`rlhf` finds recipes, shows help without importing what takes seconds, and hands over."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import cli
from recipes.lib.config.option_table import HELP_TABLE, modules_with
from recipes.lib.recipe import help as help_page

ROOT = Path(__file__).parents[3]
RECIPES = list(modules_with({"arguments", "main"}))
HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "matplotlib", "yaml")


def loaded_by(code: str) -> tuple[str, set[str]]:
    """Runs code in a fresh process; what it printed, and which heavy modules it loaded."""
    code += f"\nimport sys; print(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, set(done.stderr.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import recipes") == ("", set())


def test_the_public_names_load_on_first_use() -> None:
    import recipes
    from recipes.lib.ppo.config import PPOConfig

    assert recipes.PPOConfig is PPOConfig
    assert {"PPOConfig", "PPOTrainer"} <= set(dir(recipes))
    assert all(getattr(recipes, name) for name in recipes.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        _ = recipes.DPOTrainer


def test_the_overview_names_every_recipe_and_loads_nothing_heavy() -> None:
    said, heavy = loaded_by("from recipes.cli import main; main(['--help'])")
    assert heavy == set()
    for name, sentence in cli.find_recipes().items():
        assert f"\n  {name} " in said
        assert sentence.split()[0] in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_of_a_recipe_is_one_text_and_loads_nothing_heavy(recipe: str) -> None:
    by_name, heavy = loaded_by(f"from recipes.cli import main; main([{recipe!r}, '--help'])")
    assert heavy == set()
    by_module, heavy = loaded_by(f"from recipes.{recipe} import main; main(['--help'])")
    assert heavy & {"torch", "transformers", "trl", "datasets"} == set()
    assert by_name == by_module
    assert by_name.startswith(f"usage: rlhf {recipe}")
    assert max(map(len, by_name.splitlines())) <= 80


def test_the_table_of_options_equals_the_live_dataclasses() -> None:
    # After a change of options: .venv/bin/python scripts/make_help
    build_table = runpy.run_path(str(ROOT / "scripts/make_help"))["build_table"]
    live = json.loads(json.dumps(build_table(RECIPES)))
    assert json.loads(HELP_TABLE.read_text()) == live


def test_rare_options_wait_for_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_page.print_help("sft", ["--help"])
    short = capsys.readouterr().out
    assert help_page.print_help("sft", ["--help_all"])
    full = capsys.readouterr().out
    assert "--learning_rate FLOAT" in short
    assert "--dataloader_prefetch_factor" not in short
    assert "--dataloader_prefetch_factor INT" in full
    assert "rlhf sft --help_all" in short
    assert "rlhf sft --help_all" not in full


def test_own_options_come_first_and_the_trainers_last(capsys: pytest.CaptureFixture[str]) -> None:
    help_page.print_help("sft", ["--help"])
    lines = capsys.readouterr().out.splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith((" ", "usage"))]
    assert groups == [
        "sft:",
        "method (SFTConfig):",
        "data:",
        "model and adapters:",
        "run folder:",
        "training (common options):",
    ]


def test_a_recipe_missing_from_the_table_is_left_to_itself() -> None:
    assert not help_page.print_help("no_such_recipe", ["--help"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["stf"], "rlhf: error: there is no recipe stf; did you mean sft?\n"),
        (["zzzz"], "rlhf: error: there is no recipe zzzz; see rlhf --help.\n"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == said


def test_no_words_show_the_overview_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: rlhf RECIPE")


def test_recipes_are_found_by_their_main_function(tmp_path: Path) -> None:
    (tmp_path / "walk.py").write_text(
        '"""Walks\nslowly. Then stops.\n\nMore."""\ndef main(): ...\n'
    )
    (tmp_path / "part.py").write_text('"""No entry point."""\n')
    (tmp_path / "_own.py").write_text("def main(): ...\n")
    assert cli.find_recipes(tmp_path) == {"walk": "Walks slowly."}


def test_a_reader_that_closes_early_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m recipes.cli sft --help_all | head -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "usage: rlhf sft [--config FILE] [--key value ...]\n"
    assert done.stderr == ""


def test_the_package_in_use_is_the_one_of_this_repository() -> None:
    import recipes

    assert Path(recipes.__file__ or "").parent == ROOT / "recipes"
