"""Every item of the checklist has a test named for it, or a line in the log saying why not."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
ITEMS = set(range(1, 53))


def text_of_tests() -> dict[str, str]:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def mutant_list() -> ModuleType:
    path = ROOT / "scripts/bench/mutants/mutant_list.py"
    spec = importlib.util.spec_from_file_location("mutant_list", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def items_with_tests() -> set[int]:
    return {
        int(number)
        for text in text_of_tests().values()
        for number in re.findall(r"^def test_item_(\d\d)_\w", text, re.MULTILINE)
    }


def test_every_item_has_a_test_or_a_line_in_the_log() -> None:
    log = (ROOT / "docs/log.md").read_text(encoding="utf-8")
    section = log.partition("## The checklist")[2].partition("\n## ")[0]
    excused = {int(number) for number in re.findall(r"^- item (\d+): \w", section, re.MULTILINE)}
    assert items_with_tests() | excused == ITEMS
    assert items_with_tests() & excused == set()


def test_every_tested_item_has_a_mutant_that_still_fits_the_code() -> None:
    module, tests = mutant_list(), text_of_tests()
    assert {mutant.item for mutant in module.MUTANTS} == items_with_tests()
    for mutant in module.MUTANTS:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert source.count(mutant.old) == 1, mutant.what
        assert mutant.new != mutant.old
        paths = [module.MODULES[name] for name in mutant.modules.split()]
        assert any(f"def test_{mutant.keyword}_" in tests[path] for path in paths), mutant.what
