"""The pages in docs name files and functions that exist, and each equation has its function."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)")


def links(page: Path) -> list[tuple[str, str]]:
    return LINK.findall(page.read_text(encoding="utf-8"))


def functions(path: Path) -> set[str]:
    """Functions of a file, and methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            names |= {f"{node.name}.{item.name}" for item in inner}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_relative_and_lead_to_what_exists(page: Path) -> None:
    for text, target in links(page):
        if target.startswith("http"):
            continue
        path = page.parent / target
        assert path.exists(), target
        if path.suffix == ".py" and text.startswith("`"):
            assert text.strip("`") in functions(path), (text, target)


@pytest.mark.parametrize(
    "heading",
    [
        "What is maximised",
        "The weight of the KL",
        "Scores",
        "Advantages and returns",
        "Policy gradient and importance ratio",
        "Clipped objective",
        "Value loss",
        "Together",
    ],
)
def test_every_equation_of_ppo_has_its_function_and_its_paper(heading: str) -> None:
    page = ROOT / "docs/ppo.md"
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    section = section.partition("\n## ")[0]
    assert "```math\n" in section
    assert any(target.endswith(".py") for _, target in LINK.findall(section))
    assert re.search(r"\b(19|20)\d\d\b", section)


def test_math_is_written_so_that_it_renders() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```math\n(.*?)```", text, flags=re.DOTALL)
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        assert prose.count("$") % 2 == 0, page.name
        for part in [*blocks, *re.findall(r"\$([^$]+)\$", prose)]:
            for left, right in (("{", "}"), (r"\big[", r"\big]"), (r"\big(", r"\big)")):
                assert part.count(left) == part.count(right), part
