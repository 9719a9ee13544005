"""README and the index of the docs say what is there: commands, recipes, pages, names of TRL."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from recipes.lib.ppo.config import PPOConfig
from recipes.lib.recipe.main import parse

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted(
    path.stem
    for path in (ROOT / "recipes").glob("*.py")
    if path.stem not in {"__init__", "cli", "configs"}
)


def test_every_recipe_has_a_row_with_a_link() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(recipes/(\w+)\.py\)", README, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == RECIPES
    assert all(name == file for name, file in rows)


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo"])
def test_the_commands_for_an_own_run_parse(recipe: str) -> None:
    commands = re.findall(rf"^rlhf {recipe} --config (\S+)$", README, flags=re.MULTILINE)
    assert len(commands) == 1
    assert parse(recipe, ["--config", str(ROOT / commands[0])]).path


def test_links_lead_to_what_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def said_alike(text: str) -> list[list[str]]:
    """What does not depend on the language: numbers, links, names, commands without comments."""
    text = text.partition("\n\n")[2].partition("\n\n")[2]  # the title, and each other's link
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    code = [re.sub(r" *# .*", "", line) for block in blocks for line in block.splitlines()]
    names = re.findall(r"`([^`\n]+)`|^(\w+) +[\d.]+  ", text, flags=re.MULTILINE)
    links, numbers = re.findall(r"\]\(([^)]+)\)", text), re.findall(r"\d[\d.,]*\d|\d", text)
    return [code, sorted(map("".join, names)), sorted(links), sorted(numbers)]


def test_the_chinese_readme_has_the_same_commands_links_and_numbers() -> None:
    chinese = said_alike((ROOT / "README.zh-CN.md").read_text(encoding="utf-8"))
    assert chinese == said_alike(README)
    assert all(len(found) > 20 for found in chinese)


def test_it_is_for_a_newcomer() -> None:
    assert len(README.split()) < 1200


def test_every_page_of_the_docs_has_a_row_in_their_index() -> None:
    docs = ROOT / "docs"
    named = set(re.findall(r"\]\(([\w/-]+\.md)\)", (docs / "README.md").read_text()))
    assert named == {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {
        "README.md"
    }


def test_the_names_on_the_right_of_the_table_from_trl_are_keys_of_ours() -> None:
    page = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    table = page.partition("## From TRL 1.12's PPO")[2]
    new = table.partition("\nNew:")[2]
    known = {field.name for field in fields(PPOConfig)} | {"eval_dataset", "cost_funcs"}
    assert set(re.findall(r"`(\w+)`", new)) <= known
    same = next(line for line in table.splitlines() if "the same names" in line)
    left = same.split("|")[1]
    assert set(re.findall(r"`(\w+)`", left)) <= known


def test_the_numbers_of_the_quickstart_are_those_of_the_measured_page() -> None:
    page = (ROOT / "docs/benchmarks/quickstart.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^(\w+) +([\d.]+)  ", README, flags=re.MULTILINE))
    assert len(shown) == 8
    measured = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", page, flags=re.MULTILINE))
    for name, value in shown.items():
        assert float(measured[name]) == pytest.approx(float(value), rel=1e-3), name
