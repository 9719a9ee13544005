"""Configurations for cards: the planned peak in the header, ids, columns, chains, gated models."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.lib.errors import UserError
from recipes.lib.plan.breakdown import GIB
from recipes.lib.plan.model_shapes import find_source, shipped_models
from recipes.lib.plan.options import parse_config, read_options
from recipes.lib.plan.planner import plan_of
from recipes.lib.plan.target import Target
from recipes.lib.recipe.main import parse

ROOT = Path(__file__).parents[3]
HEADER = re.compile(
    r"# Card: (\d+) GB.*\. Planned peak: (\d+\.\d) GiB \(rlhf plan\)\.(?:"
    r" Measured time and peak: not yet measured"
    r"|\n# Measured on an H200 limited to \1 GB: (\d+\.\d) GiB, \d+\.\d\d s a micro-batch)\.$",
    flags=re.MULTILINE,
)
CARDS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if "# Card: " in path.read_text(encoding="utf-8")
)
# The number of weights that the page of each model gives.
NUM_WEIGHTS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
}
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


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that does not answer, which nobody has said, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_network")
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
    assert base in shipped_models()
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

    assert shipped_models().keys() == NUM_WEIGHTS.keys()
    for name, shape in shipped_models().items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        assert sum(p.numel() for p in model.parameters()) == NUM_WEIGHTS[name], name


@pytest.mark.usefixtures("no_network")
def test_all_models_of_shipped_files_are_known_without_a_network() -> None:
    found = set()
    for path in (ROOT / "configs").glob("*/*-*.yaml"):
        values = values_of(path)
        named = [values["model_name_or_path"], values.get("critic_model_name_or_path")]
        named += [name for name in values.get("reward_funcs", []) if ":" not in name]
        for name in filter(None, named):
            source = find_source(name, configs=ROOT / "configs")
            found.add(source.base)
            assert source.config().vocab_size == shipped_models()[source.base]["vocab_size"]
    assert found == shipped_models().keys()


@pytest.mark.usefixtures("no_network")
def test_another_model_is_refused_in_seconds_without_a_network() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"somebody/model.*connect") as caught:
        find_source("somebody/model").config()
    assert time.monotonic() - start < 15  # the Hub's client tries for half a minute and more
    assert "\n" not in str(caught.value)


def test_a_folder_of_the_name_comes_before_the_shipped_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Qwen/Qwen3-0.6B"
    (tmp_path / name).mkdir(parents=True)
    shape = shipped_models()[name] | {"num_hidden_layers": 2}
    (tmp_path / name / "config.json").write_text(json.dumps(shape))
    monkeypatch.chdir(tmp_path)
    assert find_source(name).config().num_hidden_layers == 2


def test_the_table_of_the_readme_has_the_peaks_of_the_headers() -> None:
    table = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    for path in CARDS:
        found = HEADER.search(path.read_text(encoding="utf-8"))
        assert found is not None
        row = re.search(rf"^\| {found[1]} GB \| `{re.escape(path.stem)}`.*$", table, re.MULTILINE)
        assert row is not None, path
        assert f"{path.parent.name} {found[2]}" in row[0]
        measured = row[0].split("|")[-2]
        assert (f" {path.parent.name} {found[3]} " in measured) == (found[3] is not None)
