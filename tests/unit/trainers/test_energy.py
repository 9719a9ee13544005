"""Energy: a counter that wraps, cards that are shared, and what is not known is not told."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import compare, sft
from recipes.lib.publishing.card import write_card
from recipes.lib.recipe import spine
from recipes.lib.recipe.main import parse
from recipes.lib.report.run_files import read_json
from recipes.lib.runs.energy import EnergyArguments
from recipes.lib.trainers import energy
from recipes.lib.trainers.energy import EnergyMeter, told_energy
from tests.helpers.tiny_runs import FAST, write


class Counter:
    """A card that uses 2 kJ between two looks, by a counter of so many bits."""

    def __init__(self, start: int = 0, bits: int = 64) -> None:
        self.mj, self.bits = start - 2_000_000, bits

    def __call__(self) -> int:
        self.mj += 2_000_000
        return self.mj % 2**self.bits


@pytest.mark.parametrize("bits", [32, 64])
def test_a_counter_may_begin_anew(bits: int) -> None:
    meter = EnergyMeter("card", Counter(2**bits - 3_000_000, bits))
    for _ in range(9):
        meter.on_step_end()
    assert meter.joules() == 20_000


def test_a_card_of_several_processes_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("a", 7.2e6), ("a", 1.2e6), ("b", 3.6e6)]
    monkeypatch.setattr(energy, "gather_object", lambda _: found)
    told = told_energy(EnergyMeter(), EnergyArguments(power_watts=100), 60, 3)
    assert told == {"energy": "measured on the card", "energy_kwh_measured": 3.0}


def test_what_is_measured_in_part_is_not_called_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = EnergyMeter("card", Counter())
    meter.before = None  # an earlier process without a counter
    assert told_energy(meter, EnergyArguments(), 60, 1) == {"energy": "not measured"}
    monkeypatch.setattr(energy, "gather_object", lambda _: [("a", 7.2e6), ("b", None)])
    script = EnergyArguments(power_watts=1800, grid_intensity=400)
    told = {"energy": "estimated at 1800 W", "energy_kwh_estimated": 0.5, "co2_grams": 200.0}
    assert told_energy(EnergyMeter(), script, 1000, 2) == told


@pytest.fixture
def keys(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [{"text": f"the {one} saw the red house ."} for one in ("cat", "dog", "bird", "child")]
    write(tmp_path / "rows.jsonl", rows)
    own = {"model_name_or_path": str(tmp_path / "tiny"), "max_steps": 4, "save_steps": 1}
    own |= {"dataset_name": str(tmp_path / "rows.jsonl"), "per_device_train_batch_size": 2}
    return FAST | own | {"save_strategy": "steps", "output_dir": str(tmp_path / "run")}


def test_runs_say_how_their_energy_is_known(keys: dict[str, Any], tmp_path: Path) -> None:
    assert sft.run(parse("sft", [], keys))["energy"] == "not measured"
    page, run = (tmp_path / "run/report.html").read_text(), tmp_path / "run"
    assert "not measured" in page
    assert "CO2" not in page
    assert "| energy | not measured |" in write_card(run, run / "final")
    keys |= {"power_watts": 3.6e5, "output_dir": str(tmp_path / "stated"), "grid_intensity": 50.0}
    told = sft.run(parse("sft", [], keys))
    assert told["energy_kwh_estimated"] == pytest.approx(told["seconds"] / 10)
    assert told["co2_grams"] == pytest.approx(5 * told["seconds"])
    assert "estimated at 360000 W" in (tmp_path / "stated/report.html").read_text()
    card = write_card(tmp_path / "stated", tmp_path / "stated/final")
    assert "kWh, estimated at 360000 W" in card
    assert "energy_kwh" not in card
    both = {"runs": [str(run), str(tmp_path / "stated")], "output_dir": str(tmp_path / "compared")}
    compare.run(parse("compare", [], both))
    assert "energy_kwh_estimated" in (tmp_path / "compared/report.html").read_text()


def test_a_resumed_run_adds_up_what_was_measured(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spine, "card_meter", lambda: EnergyMeter("card", Counter()))
    whole = sft.run(parse("sft", [], keys))
    # A look after each of four steps, at each checkpoint, and at the end.
    assert whole["energy_kwh_measured"] == pytest.approx(9 * 2000 / 3.6e6)
    (tmp_path / "run/summary.json").unlink()
    for step in (3, 4):
        checkpoint = tmp_path / f"run/checkpoint-{step}"
        checkpoint.rename(tmp_path / f"away-{step}")
    carried = read_json(tmp_path / "run/checkpoint-2/carried_0.json")["energy"]
    assert carried == ["card", 4 * 2000]
    resumed = sft.run(parse("sft", [], keys | {"resume": True}))
    assert resumed["energy_kwh_measured"] == pytest.approx(9 * 2000 / 3.6e6)
