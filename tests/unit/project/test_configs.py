"""Every shipped configuration parses against its recipe; `rlhf configs` lists, shows, copies."""

from pathlib import Path

import pytest

from recipes import configs
from recipes.lib.config.option_table import modules_with
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "accelerate"
)
MAX_LINES = 70


def recipe_of(path: Path) -> str:
    """The folder names the recipe; of what runs in stages the command in the second line does."""
    if path.parent.name not in {"quickstart", "environments", "rounds"}:
        return path.parent.name
    return path.read_text(encoding="utf-8").partition("recipes.")[2].partition(" ")[0]


def positional_of(recipe: str) -> list[str]:
    """The word that a recipe wants before its flags, where it wants one."""
    import importlib

    module = importlib.import_module(f"recipes.{recipe}")
    if hasattr(module, "ACTIONS"):
        return [module.ACTIONS[0]]
    return ["runs/ppo/default"] if hasattr(module, "POSITIONAL") else []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_shipped_configuration_parses_strictly(path: Path) -> None:
    recipe = recipe_of(path)
    assert recipe in modules_with({"arguments", "main"})
    config = parse(recipe, [*positional_of(recipe), "--config", str(path)])
    assert config.values
    assert config.path == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_shipped_configuration_is_short_and_says_its_purpose(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert len(configs.purpose(path)) > 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs" / "sft").mkdir(parents=True)
    (tmp_path / "configs" / "sft" / "smoke.yaml").write_text("# Two steps on a CPU.\nseed: 1\n")
    (tmp_path / "configs" / "sft" / "bare.yaml").write_text("seed: 1\n")
    return tmp_path / "configs"


def test_the_list_has_names_and_purposes(folder: Path) -> None:
    assert configs.run([], folder) == "sft/bare\nsft/smoke  Two steps on a CPU."


@pytest.mark.parametrize("name", ["sft/smoke", "sft/smoke.yaml", "configs/sft/smoke.yaml"])
def test_show_prints_the_file(name: str, folder: Path) -> None:
    assert configs.run(["show", name], folder) == "# Two steps on a CPU.\nseed: 1"


def test_copy_goes_to_a_new_file_or_folder_only(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert configs.run(["copy", "sft/smoke", str(target)], folder) == f"copied to {target}"
    assert target.read_text() == "# Two steps on a CPU.\nseed: 1\n"
    configs.run(["copy", "sft/smoke", str(tmp_path)], folder)
    assert (tmp_path / "smoke.yaml").read_text() == target.read_text()
    target.write_text("changed")
    with pytest.raises(UserError, match=r"mine\.yaml: exists already; name another file\.$"):
        configs.run(["copy", "sft/smoke", str(target)], folder)
    assert target.read_text() == "changed"


def test_copy_into_a_folder_that_is_not_there_says_so(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "absent" / "mine.yaml"
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)\.$"):
        configs.run(["copy", "sft/smoke", str(target)], folder)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["show", "sft/smok"],
            "sft/smok: there is no such configuration; the nearest is sft/smoke.",
        ),
        (["show", "?"], "?: there is no such configuration; `rlhf configs` lists them."),
        (["show"], "show: takes a NAME, got 0 words."),
        (["copy", "a", "b", "c"], "copy: takes a NAME and perhaps a DEST, got 3 words."),
        (["move"], "move: is no action; write rlhf configs [show|copy NAME]."),
    ],
)
def test_mistakes_are_one_sentence(argv: list[str], said: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        configs.run(argv, folder)
    assert str(caught.value) == said


def test_the_command_ends_with_exit_code_2_on_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert configs.main(["move"]) == 2
    assert capsys.readouterr().err == (
        "rlhf configs: error: move: is no action; write rlhf configs [show|copy NAME].\n"
    )


def test_names_cannot_leave_the_folder(folder: Path) -> None:
    (folder.parent / "secret.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="there is no such configuration"):
        configs.run(["show", "../secret"], folder)
