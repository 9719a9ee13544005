"""The arithmetic of docs/scaling.md is what its script prints, and a few terms by hand."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def terms() -> Any:
    path = ROOT / "scripts/bench/distributed/scaling_terms.py"
    spec = importlib.util.spec_from_file_location("scaling_terms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_is_the_one_that_is_printed(terms: Any) -> None:
    assert terms.table() in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_terms_by_hand(terms: Any) -> None:
    # 512 episodes in batches of 64 are 8 rounds of 512 steps of 26 ms.
    assert terms.sampling(1)[0] == pytest.approx(8 * 512 * 0.026)
    assert terms.sampling(64)[0] == pytest.approx(512 * 0.026)
    # One forward pass: 2 operations a weight and token.
    assert terms.passes(1, 1) == pytest.approx(2 * 8.03e9 * 512 * 1024 / (0.4 * 989e12))
    assert terms.ring(8.0, 8) == 7.0
    # Two adapters of 41.9 million fp32 gradients, summed (twice round the ring) in 8 steps.
    assert terms.lora(8).gradients == pytest.approx(8 * 2 * 7 / 8 * 2 * 41.9e6 * 4)
    assert terms.lora(1).gradients == 0.0
    assert (terms.bandwidth(8), terms.bandwidth(64)) == (450e9, 50e9)
