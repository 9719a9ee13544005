"""Heads: whether files hold one, and whether a new one would read more."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recipes.lib.doctor.saved import missing_head, refit_margins


def test_a_folder_without_a_head_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 2)}
    save_file(lora, tmp_path / "adapter_model.safetensors")
    found = missing_head(str(tmp_path))
    assert found is not None
    assert (found["name"], found["status"]) == ("head_not_saved", "fault")
    head = {"base_model.model.score.weight": torch.ones(1, 2)}
    save_file(lora | head, tmp_path / "adapter_model.safetensors")
    assert missing_head(str(tmp_path)) is None


def test_a_head_in_a_file_of_its_own_is_named(tmp_path: Path) -> None:
    # As LLaMA-Factory writes it beside an adapter.
    save_file({"a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    save_file({"v_head.summary.weight": torch.ones(1, 2)}, tmp_path / "value_head.safetensors")
    found = missing_head(str(tmp_path))
    assert found is not None
    assert "value_head.safetensors holds one apart, which nothing loads" in found["sentence"]


def test_what_is_no_folder_with_weights_is_left_to_the_loader(tmp_path: Path) -> None:
    assert missing_head("somebody/model") is None
    assert missing_head(str(tmp_path)) is None


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_a_head_fitted_anew_reads_what_stands_there_and_nothing_else(spread: float) -> None:
    noise = np.random.default_rng(0).normal(size=(200, 16))
    assert abs((refit_margins(noise) > 0).mean() - 0.5) < 0.12
    told = noise.copy()
    told[:, 3] += 3  # chosen ones have more of it, by three standard deviations
    assert (refit_margins(told * spread) > 0).mean() > 0.97
