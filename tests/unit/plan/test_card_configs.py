"""Configurations for cards: the planned peak in the header, ids, columns, chains, gated models."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.lib.plan.breakdown import GIB
from recipes.lib.plan.options import parse_config, read_options
from recipes.lib.plan.planner import plan_of
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import parse
from tests.helpers.model_shapes import SHAPES, fill_cache

ROOT = Path(__file__).parents[3]
HEADER = re.compile(
    r"# Card: (\d+) GB.*\. Planned peak: (\d+\.\d) GiB \(rlhf plan\)\. "
    r"Measured time and peak: not yet measured\.$",
    flags=re.MULTILINE,
)
CARDS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if "# Card: " in path.read_text(encoding="utf-8")
)
TEXT, MESSAGES = "text", "messages"
# Columns and splits as far as they are known without the Hub; nothing was downloaded.
DATASETS: dict[str, tuple[set[str], set[str], str]] = {
    "trl-lib/Capybara": ({"messages"}, {"train", "test"}, MESSAGES),
    "trl-lib/tldr": ({"prompt", "completion"}, {"train", "validation", "test"}, TEXT),
    "trl-lib/tldr-preference": ({"prompt", "chosen", "rejected"}, {"train", "validation"}, TEXT),
    "trl-lib/ultrafeedback_binarized": ({"chosen", "rejected"}, {"train", "test"}, MESSAGES),
    "trl-lib/kto-mix-14k": ({"prompt", "completion", "label"}, {"train", "test"}, MESSAGES),
}
NEEDED: dict[str, tuple[set[str], ...]] = {
    "sft": ({"prompt", "completion"}, {"messages"}),
    "reward": ({"chosen", "rejected"},),
    "dpo": ({"chosen", "rejected"},),
    "kto": ({"prompt", "completion", "label"}, {"chosen", "rejected"}),
    "ppo": ({"prompt"},),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def values_of(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_cache(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def only_shapes(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that cannot be reached, and a cache with configurations and no weights."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("only_shapes")
@pytest.mark.parametrize("path", CARDS, ids=name_of)
def test_the_planned_peak_in_the_header_is_what_the_plan_says_and_fits(path: Path) -> None:
    found = HEADER.search(path.read_text(encoding="utf-8"))
    assert found is not None
    options = read_options(["--config", str(path)])
    config, autocast = parse_config(options, parse)
    plan = plan_of(config, Target(options.launch, autocast, configs=options.configs))
    assert f"{plan.peak / GIB:.1f}" == found[2]
    assert plan.peak < 0.97 * int(found[1]) * GIB


def test_there_is_one_for_each_card_and_at_most_twelve() -> None:
    assert 8 <= len(CARDS) <= 12
    found = [HEADER.search(path.read_text(encoding="utf-8")) for path in CARDS]
    assert {int(match[1]) for match in found if match} == {8, 12, 16, 24}


@pytest.mark.parametrize("path", CARDS, ids=name_of)
def test_models_are_known_and_gated_ones_are_named(path: Path) -> None:
    text, name = path.read_text(encoding="utf-8"), values_of(path)["model_name_or_path"]
    base = name
    while base.startswith("runs/"):
        base = values_of(ROOT / f"configs/{base.removeprefix('runs/')}.yaml")["model_name_or_path"]
    assert base in SHAPES
    assert (f"# Gated: ask for access on the page of {base}," in text) == (
        base.startswith("meta-llama/")
    )
    assert f"# rlhf {path.parent.name} --config {name_of(path)}" in text


@pytest.mark.parametrize("path", CARDS, ids=name_of)
def test_the_data_have_the_columns_and_splits_that_the_recipe_needs(path: Path) -> None:
    values, recipe = values_of(path), path.parent.name
    columns, splits, kind = DATASETS[values["dataset_name"]]
    assert any(needed <= columns for needed in NEEDED[recipe])
    assert "train" in splits
    assert "test" in splits or values["test_fraction"] >= 1
    # A base model has no chat template of its own; Qwen's and SmolLM3's do.
    if kind == MESSAGES:
        assert "llama" not in path.stem


@pytest.mark.parametrize("path", CARDS, ids=name_of)
def test_runs_that_a_configuration_starts_from_are_made_by_others(path: Path) -> None:
    values, text = values_of(path), path.read_text(encoding="utf-8")
    named = [values["model_name_or_path"], *values.get("reward_funcs", [])]
    named.append(values.get("critic_model_name_or_path") or "")
    for run in {name for name in named if name.startswith("runs/")}:
        made_by = f"configs/{run.removeprefix('runs/')}.yaml"
        assert (ROOT / made_by).is_file()
        assert made_by in text.partition("# Before it:")[2].partition("\n")[0]
        before = values_of(ROOT / made_by)
        for key in ("lora_r", "load_in_4bit", "dtype"):  # one base, adapters of one shape
            assert before.get(key) == values.get(key)


def test_the_shapes_have_as_many_weights_as_the_models() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, (shape, number) in SHAPES.items():
        if not name.endswith("-Base") and "Llama" not in name:
            continue
        config = AutoConfig.for_model(**shape)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == number, name


def test_the_table_of_the_readme_has_the_peaks_of_the_headers() -> None:
    table = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    for path in CARDS:
        found = HEADER.search(path.read_text(encoding="utf-8"))
        assert found is not None
        row = re.search(rf"^\| {found[1]} GB \| `{re.escape(path.stem)}`.*$", table, re.MULTILINE)
        assert row is not None, path
        assert f"{path.parent.name} {found[2]}" in row[0]
        assert row[0].endswith("| not yet measured |")
