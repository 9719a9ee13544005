"""What llama.cpp itself makes of exported files; needs llama-cpp-python, minutes to build."""

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")

from scripts.bench.export.gguf_in_llama_cpp import BASE, measure, measure_adapter
from tests.helpers.gguf_models import CLASSES, save

LEAST = {"f32": 0.95, "f16": 0.95, "q8_0": 0.9}  # share of the same greedy texts


def check(name: str, folder: Path) -> None:
    for outtype, found in measure(name, folder).items():
        assert found["tokens"] == 1, outtype
        assert found["greedy"] >= LEAST[outtype], outtype


@pytest.mark.slow
def test_the_quickstarts_base(tmp_path: Path) -> None:
    check(str(BASE), tmp_path)


@pytest.mark.slow
def test_a_trained_model_with_the_tokenizer_of_llama(shared: Path, tmp_path: Path) -> None:
    check(str(shared / "models/stories260K"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_a_model_of_each_class(kind: str, tmp_path: Path) -> None:
    found = measure(save(tmp_path / "model", kind), tmp_path / "out")
    assert [one["tokens"] for one in found.values()] == [1, 1, 1]
    assert found["f32"]["greedy"] >= 0.95  # the logits of random weights are near each other


@pytest.mark.slow
def test_an_adapter_on_its_base(tmp_path: Path) -> None:
    assert measure_adapter(tmp_path) >= 0.95
