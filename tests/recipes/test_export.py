"""Runs exported: what is written, what is compared, what is refused before anything is written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.export import ExportArguments, run
from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import save_base_quantization
from recipes.lib.recipe.main import parse
from tests.helpers import tiny
from tests.helpers.gguf_models import save

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def export(folder: Path, name: str, **values: Any) -> dict[str, Any]:
    return run(parse("export", [], {"run": name, "output_dir": str(folder)} | values))


def adapter(folder: Path, base: str, **more: Any) -> str:
    """A LoRA adapter of some size on every matrix of a model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    config: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ALL} | more
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    tiny.shake(adapted, 0.1)
    adapted.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: Any) -> str:
    return save(tmp_path_factory.mktemp("llama"), "llama3")


def gguf_model(folder: Path) -> Any:
    """The file as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf").eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None] * 7 % 300).logits[0]


def test_an_adapter_is_merged_into_the_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    base = save(tmp_path / "qwen2", "qwen2")
    name = adapter(tmp_path / "adapter", base)
    summary = export(tmp_path / "out", name, outtype="f32")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Modelfile",
        "config.yaml",
        "export.json",
        "lineage.json",
        "model.gguf",
        "report.html",
        "summary.json",
    ]
    numbers = json.loads((tmp_path / "out/export.json").read_text())
    assert numbers.items() <= summary.items()
    assert numbers["to"], numbers["outtype"] == ("gguf", "f32")
    assert numbers["tokenization"] == numbers["same_next_token"] == 1
    assert numbers["tensor_error"] == 0
    assert numbers["kl_per_token"] < 1e-6
    plain = AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()
    before = logits(plain)
    trained = logits(PeftModel.from_pretrained(plain, name))
    assert (trained - before).abs().max() > 0.1
    assert torch.allclose(logits(gguf_model(tmp_path / "out")), trained, atol=1e-3)
    lineage = json.loads((tmp_path / "out/lineage.json").read_text())
    assert lineage["model"]["name"] == name


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 2}}])
def test_an_adapter_alone_adds_what_peft_adds(
    llama: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    from gguf import GGUFReader

    name = adapter(tmp_path / "adapter", llama, **more)
    summary = export(tmp_path / "out", name, to="gguf-adapter")
    assert summary["tensor_error"] <= 1e-5
    reader = GGUFReader(tmp_path / "out/adapter.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    stored = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    assert len(stored) == summary["tensors"] == 2 * 2 * len(ALL)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype="float32")
    layers = PeftModel.from_pretrained(model, name).get_base_model().model.layers
    for number, layer in enumerate(layers):
        for part, place, heads in (
            (layer.self_attn.q_proj, "attn_q", 4),
            (layer.self_attn.k_proj, "attn_k", 2),
            (layer.self_attn.v_proj, "attn_v", 0),
            (layer.mlp.down_proj, "ffn_down", 0),
        ):
            inner, outer = (stored[f"blk.{number}.{place}.weight.lora_{half}"] for half in "ab")
            # As llama.cpp has it: alpha by the rank, which is the second size of B.
            found = outer @ inner * (fields["adapter.lora.alpha"] / outer.shape[1])
            if heads:  # neighbours back to halves
                rows = found.reshape(heads, -1, 2, found.shape[1])
                found = rows.transpose(1, 2).reshape(found.shape)
            assert torch.allclose(found, part.get_delta_weight("default"), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_an_adapters_file_cannot_hold_is_refused(llama: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    dora = adapter(tmp_path / "dora", llama, use_dora=True)
    head = adapter(tmp_path / "head", llama, target_modules=["q_proj", "lm_head"])
    extra = adapter(tmp_path / "extra", llama, modules_to_save=["embed_tokens"])
    rounded = adapter(tmp_path / "rounded", llama)
    known = {"load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
    (Path(rounded) / "base_quantization.json").write_text(json.dumps(known))
    for name, what in (
        (dora, "lora_magnitude_vector"),
        (head, "lm_head"),
        (extra, "embed_tokens"),
        (rounded, "a rounded base"),
    ):
        with pytest.raises(UserError, match=rf"it has .*{what}.*choose to=gguf, which merges it"):
            export(tmp_path / "out", name, to="gguf-adapter")
    with pytest.raises(UserError, match=r"it is a whole model; choose to=gguf\."):
        export(tmp_path / "out", llama, to="gguf-adapter")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def in_few_bits(llama: str, tmp_path_factory: Any) -> Path:
    """An adapter, what it is exported to in few bits, and what another process loads from that."""
    place = tmp_path_factory.mktemp("bits")
    name = adapter(place / "adapter", llama)
    for to in ("nf4", "int8"):
        summary = export(place / to, name, to=to)
        assert summary["kl_per_token"] > 0  # rounding costs, and the summary says what
    # In training mode, without dropout: in evaluation bitsandbytes packs 4-bit weights on CPUs with
    # AVX512-BF16, computes in bf16 from then on, and fails on widths that 64 does not divide.
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for to in ('nf4', 'int8'):\n"
        "    model = AutoModelForCausalLM.from_pretrained(to + '/final').train()\n"
        "    AutoTokenizer.from_pretrained(to + '/final')\n"
        "    ids = torch.arange(40)[None] * 7 % 300\n"
        "    with torch.no_grad():\n"
        "        torch.save(model(input_ids=ids).logits[0], to + '.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=place)
    return place


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_a_checkpoint_in_few_bits_loads_elsewhere_as_it_was(
    llama: str, in_few_bits: Path, tmp_path: Path, to: str
) -> None:
    settings = json.loads((in_few_bits / to / "final/config.json").read_text())
    assert settings["quantization_config"]["load_in_4bit"] is (to == "nf4")
    assert settings["quantization_config"]["load_in_8bit"] is (to == "int8")
    # What was saved is the trained model, rounded: merged in full, then loaded in few bits.
    plain = AutoModelForCausalLM.from_pretrained(llama, dtype="float32")
    merged = PeftModel.from_pretrained(plain, str(in_few_bits / "adapter")).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    from transformers import BitsAndBytesConfig

    bits: dict[str, Any] = {"load_in_8bit": True}
    if to == "nf4":
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        bits["bnb_4bit_compute_dtype"] = torch.float32
    rounded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", quantization_config=BitsAndBytesConfig(**bits), dtype="float32"
    ).train()
    assert torch.equal(torch.load(in_few_bits / f"{to}.pt"), logits(rounded))


def test_what_is_stored_in_few_bits_is_no_gguf(llama: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    export(tmp_path / "nf4", llama, to="nf4")
    with pytest.raises(UserError, match=r"a model stored in few bits cannot be a GGUF file"):
        export(tmp_path / "out", str(tmp_path / "nf4"))
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_rounded_base_is_merged_into_what_it_saw(
    llama: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    from transformers import BitsAndBytesConfig

    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(llama, quantization_config=bits, dtype="float32")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=ALL))
    tiny.shake(adapted, 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    save_base_quantization(adapted, tmp_path / "adapter")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "adapter")
    summary = export(tmp_path / "out", str(tmp_path / "adapter"))
    assert summary["kl_per_token"] < 1e-3


def test_beyond_tolerance_nothing_stays(llama: str, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    from recipes.lib.publishing import gguf

    monkeypatch.setattr(gguf, "_turned", lambda model, name, tensor: tensor)
    with pytest.raises(UserError, match=r"in f16 it says something else than the trained model"):
        export(tmp_path / "out", llama)
    assert not (tmp_path / "out").exists()


def test_keys_that_go_together(llama: str, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match=r"outtype=f16: it goes with to=gguf alone"):
        export(tmp_path / "out", llama, to="nf4", outtype="f16")
    with pytest.raises(UserError, match=r"to='onnx': must be one of gguf, gguf-adapter, nf4, int8"):
        export(tmp_path / "out", llama, to="onnx")
    monkeypatch.setattr("recipes.export.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rlhf-recipes\[gguf\]'"):
        export(tmp_path / "out", llama)
    assert not (tmp_path / "out").exists()


def test_the_folder_is_named_after_run_and_format() -> None:
    def folder(**values: Any) -> str:
        return str(ExportArguments(**values).output_dir)

    assert folder(run="runs/quickstart/ppo") == "runs/export/quickstart-ppo-f16"
    assert folder(run="runs/ppo/a/final", outtype="q8_0") == "runs/export/ppo-a-q8_0"
    assert folder(run="/elsewhere/model", to="nf4") == "runs/export/elsewhere-model-nf4"
    assert folder(run="Qwen/Qwen3-0.6B", to="int8") == "runs/export/Qwen-Qwen3-0.6B-int8"
