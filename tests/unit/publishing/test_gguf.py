"""GGUF files, read by the package's own reader and compared with the model, key by key.

Names and the order of rotated rows are written out here once more, by hand.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf", reason="gguf is not installed")

from gguf import GGUFReader, dequantize

from recipes.lib.errors import UserError
from recipes.lib.publishing.comparison import distance
from recipes.lib.publishing.gguf import (
    file_keys,
    read_back,
    refuse_difference,
    write_model,
)
from recipes.lib.publishing.readback import say
from tests.helpers.gguf_models import CLASSES, save

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def place(name: str, kind: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    number, middle, end = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(\w+)", name).groups()
    table = BLOCK | (GEMMA if kind == "gemma3" else {})
    return f"blk.{number}.{table[middle]}.{end}"


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in the order first of one half, first of the other, second of one ..."""
    dim = len(weight) // heads
    order = [
        head * dim + row + half
        for head in range(heads)
        for row in range(dim // 2)
        for half in (0, dim // 2)
    ]
    return weight[order]


def expected(name: str, weight: torch.Tensor, config: Any, kind: str) -> torch.Tensor:
    if kind == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    if kind.startswith("llama") and "q_proj" in name:
        return neighbours(weight, config.num_attention_heads)
    if kind.startswith("llama") and "k_proj" in name:
        return neighbours(weight, config.num_key_value_heads)
    return weight


@pytest.fixture(scope="module", params=sorted(CLASSES))
def exported(request: Any, tmp_path_factory: Any) -> dict[str, Any]:
    """A model, its tokenizer, and what the reader finds in its files."""
    folder = tmp_path_factory.mktemp(request.param)
    name = save(folder, request.param)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    found = {"kind": request.param, "name": name, "model": model, "tokenizer": tokenizer}
    for outtype in ("f32", "f16", "q8_0"):
        path = folder / f"{outtype}.gguf"
        write_model(path, model, file_keys(model, tokenizer, outtype, name), outtype)
        found[outtype] = GGUFReader(path)
    return found


def test_every_weight_is_there_under_its_name(exported: dict[str, Any]) -> None:
    model, kind = exported["model"], exported["kind"]
    own = {place(name, kind): (name, one) for name, one in model.named_parameters()}
    tolerance = {"f32": 0.0, "f16": 2**-11, "q8_0": 1 / 254 + 2**-10}
    for outtype, most in tolerance.items():
        stored = {one.name: one for one in exported[outtype].tensors}
        extra = {"rope_freqs.weight"} if kind == "llama3" else set()
        assert set(stored) == set(own) | extra
        for key, (name, weight) in own.items():
            data = torch.from_numpy(dequantize(stored[key].data, stored[key].tensor_type).copy())
            wanted = expected(name, weight.detach(), model.config, kind)
            assert data.shape == wanted.shape
            if wanted.ndim == 1:
                assert torch.equal(data, wanted)
            elif outtype == "q8_0":  # blocks of 32 weights with one scale, rounded to 16 bits
                blocks = wanted.reshape(-1, 32)
                error = (data.reshape(-1, 32) - blocks).abs().amax(1)
                assert (error <= blocks.abs().amax(1) * most + 1e-7).all()
            else:
                assert ((data - wanted).abs() <= wanted.abs() * most + 1e-7 * bool(most)).all()


def test_the_shape_is_that_of_the_configuration(exported: dict[str, Any]) -> None:
    config, reader = exported["model"].config, exported["f16"]
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arch = fields["general.architecture"]
    assert arch == exported["kind"].replace("llama3", "llama")
    assert (fields["general.type"], fields["general.file_type"]) == ("model", 1)
    head_dim = 32 if exported["kind"] in ("qwen3", "gemma3") else 16
    wanted: dict[str, Any] = {
        "context_length": 512,
        "embedding_length": 64,
        "block_count": 7 if arch == "gemma3" else 2,
        "feed_forward_length": 96,
        "vocab_size": config.vocab_size,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.freq_base": {"llama3": 5e5, "gemma3": 1e6}.get(exported["kind"], 1e4),
    }
    if arch == "gemma3":
        wanted |= {"attention.sliding_window": 16, "rope.freq_base_swa": 10000.0}
    found = {name[len(arch) + 1 :]: one for name, one in fields.items() if name.startswith(arch)}
    assert found == wanted


def test_the_vocabulary_is_that_of_the_tokenizer(exported: dict[str, Any]) -> None:
    tokenizer = exported["tokenizer"]
    fields = {name: field.contents() for name, field in exported["f16"].fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    number = len(tokenizer)
    assert tokens[:number] == tokenizer.convert_ids_to_tokens(list(range(number)))
    assert tokens[number:] == [f"[PAD{number + row}]" for row in range(5)]
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[number:] == [5] * 5
    is_sentencepiece = fields["tokenizer.ggml.model"] == "llama"
    assert {tokens[i] for i, kind in enumerate(kinds) if kind == 6} == (
        {f"<0x{byte:02X}>" for byte in range(256)} if is_sentencepiece else set()
    )
    control = {tokens[i] for i, kind in enumerate(kinds) if kind == 3}
    if is_sentencepiece:
        assert control == {tokenizer.bos_token, tokenizer.eos_token} | (
            {"<pad>"} if exported["kind"] == "gemma3" else set()
        )
        assert kinds[tokenizer.unk_token_id] == 2
        assert fields["tokenizer.ggml.add_space_prefix"] == (exported["kind"] == "llama")
    else:
        assert control == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
        assert kinds[tokens.index("<tool>")] == 4
        pre = {"llama3": "llama-bpe", "qwen2": "qwen2", "qwen3": "gpt-2"}[exported["kind"]]
        assert fields["tokenizer.ggml.pre"] == pre
        assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    has_bos = exported["kind"] in ("llama", "llama3", "gemma3")
    assert fields["tokenizer.ggml.add_bos_token"] is has_bos
    assert fields["tokenizer.ggml.add_eos_token"] is False


def test_the_factors_of_llama3_are_those_of_its_rotation(exported: dict[str, Any]) -> None:
    if exported["kind"] != "llama3":
        return
    stored = next(one for one in exported["f16"].tensors if one.name == "rope_freqs.weight")
    # By the published rule: wavelengths under 64/4 stay, those over 64/1 become 8 times as long.
    waves = [2 * torch.pi * 500000 ** (i / 16) for i in range(0, 16, 2)]
    for factor, wave in zip(stored.data, waves, strict=True):
        smooth = (64 / wave - 1) / (4 - 1)
        between = 1 / ((1 - smooth) / 8 + smooth)
        assert factor == pytest.approx(1 if wave < 16 else 8 if wave > 64 else between, rel=1e-5)


def test_read_back_it_says_what_the_model_says(exported: dict[str, Any], tmp_path: Path) -> None:
    tokenizer, name = exported["tokenizer"], exported["name"]
    logits = say(exported["model"], tokenizer)
    for outtype in ("f32", "f16", "q8_0"):
        model = AutoModelForCausalLM.from_pretrained(name, dtype="float32").eval()
        numbers = read_back(Path(name) / f"{outtype}.gguf", model, tokenizer)
        numbers |= distance(zip(logits, say(model, tokenizer), strict=True))
        assert numbers["tokenization"] == 1
        if outtype == "f32":
            assert numbers["kl_per_token"] < 1e-7
        assert numbers["tensors"] == len(list(model.named_parameters()))
        if outtype != "q8_0":  # of random weights rounding leaves little
            refuse_difference(numbers, outtype, name)


def test_planted_errors_are_found(tmp_path: Path, monkeypatch: Any) -> None:
    from recipes.lib.publishing import gguf

    name = save(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(name)
    logits: Any = None
    turned = gguf._turned
    faults = {
        "rows not turned": lambda model, key, one: one,
        "a layer scaled": lambda model, key, one: (
            turned(model, key, one) * (2 if "1.mlp.up" in key else 1)
        ),
        "a norm forgotten": lambda model, key, one: (
            torch.ones_like(one) if key == "model.norm.weight" else turned(model, key, one)
        ),
        "none": turned,
    }
    for fault, function in faults.items():
        model = AutoModelForCausalLM.from_pretrained(name, dtype="float32").eval()
        logits = say(model, tokenizer) if logits is None else logits
        monkeypatch.setattr(gguf, "_turned", function)
        path = tmp_path / "model.gguf"
        write_model(path, model, file_keys(model, tokenizer, "f32", name), "f32")
        numbers = read_back(path, model, tokenizer) | distance(
            zip(logits, say(model, tokenizer), strict=True)
        )
        if fault == "none":
            refuse_difference(numbers, "f32", name)
            continue
        with pytest.raises(UserError, match=r"says something else .*tensor_error \d"):
            refuse_difference(numbers, "f32", name)


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True"),
        ("gemma3", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar=7"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types="),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    tmp_path: Path, kind: str, change: dict[str, Any], told: str
) -> None:
    name = save(tmp_path, kind, **change)
    model = AutoModelForCausalLM.from_pretrained(name)
    with pytest.raises(UserError, match=re.escape(told)):
        file_keys(model, AutoTokenizer.from_pretrained(name), "f16", name)


def test_other_classes_are_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=8))
    with pytest.raises(UserError, match=r"of the class GPT2LMHeadModel cannot be a GGUF file"):
        file_keys(other, tiny_tokenizer, "f16", "some")
    with pytest.raises(UserError, match="no tokenizer that splits text as this one does"):
        file_keys(tiny_model, tiny_tokenizer, "f16", "some")
