"""What llama.cpp itself makes of exported files; xllamacpp is a build of it."""

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

from scripts.bench.export.gguf_in_llama_cpp import BASE, measure, measure_adapter, stories, tales
from tests.helpers.gguf_models import CLASSES, save


@pytest.mark.slow
def test_a_trained_model_with_the_tokenizer_of_llama(shared: Path, tmp_path: Path) -> None:
    found = measure(str(shared / "models/stories260K"), tmp_path, stories())
    assert [one["tokens"] for one in found.values()] == [1, 1, 1]
    assert found["f32"]["greedy"] == 1
    assert found["f16"]["greedy"] >= 0.9


@pytest.mark.slow
def test_the_quickstarts_base(tmp_path: Path) -> None:
    """It knows many tales of like odds, so that rounding soon tells another one."""
    found = measure(str(BASE), tmp_path, tales())
    assert [one["tokens"] for one in found.values()] == [1, 1, 1]
    assert found["f32"]["greedy"] >= 0.95
    assert found["f16"]["greedy"] >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_a_model_of_each_class(kind: str, tmp_path: Path) -> None:
    found = measure(save(tmp_path / "model", kind), tmp_path / "out")
    assert [one["tokens"] for one in found.values()] == [1, 1, 1]
    assert found["f32"]["greedy"] >= 0.95  # coarser numbers change what random weights say


@pytest.mark.slow
def test_an_adapter_on_its_base(tmp_path: Path) -> None:
    assert measure_adapter(tmp_path) >= 0.95
