"""A merged model says what the trained one says, whatever was trained; else it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import dequantize, save_base_quantization
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.policies import load_policy
from recipes.lib.publishing import merge as merging
from recipes.lib.publishing.merge import Settings, compare, merge, record
from tests.helpers.tiny_models import save_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model (has|with) `tie_word_embeddings=True`",
    "ignore:Input and output embeddings are no longer tied",
    "ignore:Setting `save_embedding_layers`",
)
PROMPTS = ["the cat", "a bird", "rain and the sun", "the"]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "lora_alpha": 16},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
BASES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "4-bit": {"dtype": "float32", "load_in_4bit": True},
    "8-bit": {"dtype": "float32", "load_in_8bit": True},
}


def trained_adapter(
    folder: Path, tokenizer: Any, kind: str, base: str, name: str = "llama", **more: Any
) -> Path:
    """An adapter that has learned something, with its base."""
    model = save_model(folder / "base", tokenizer, name=name, **SIZES, **more)
    args = ModelConfig(model_name_or_path=model, **BASES[base])
    adapted = get_peft_model(
        load_policy(args), LoraConfig(task_type="CAUSAL_LM", r=4, **KINDS[kind])
    )
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    save_base_quantization(adapted, folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder / "adapter"


def settings_of(base: str, **more: Any) -> Settings:
    dtype = str(BASES[base]["dtype"])
    return Settings(dtype, dtype, max_completion_length=8, **more)


# peft cannot train DoRA on 8-bit weights, and recipes refuse it.
PAIRS = [(kind, base) for kind in KINDS for base in BASES if (kind, base) != ("dora", "8-bit")]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(("kind", "base"), PAIRS)
def test_every_kind_of_adapter_on_every_base(
    kind: str, base: str, name: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, kind, base, name)
    settings = settings_of(base)
    trained = record(str(path), PROMPTS, settings)
    merge(trained, tmp_path / "merged", settings)
    numbers = compare(trained, tmp_path / "merged", settings)
    assert numbers["prompts_equal"] == 1
    assert numbers["layers"] >= 2
    assert numbers["adapter_arrived"] == pytest.approx([1, 1], abs=0.1)
    if base == "float32":
        assert numbers["logits_max_difference"] <= 1e-3
        assert numbers["greedy_equal"] == 1
    # transformers alone loads it and says what the trained model said
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    said = trained.recording
    prompt, completion = said.prompts[0], said.completions[0]
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = plain(ids).logits[0, len(prompt) - 1 : -1].float()
    kept = torch.load(said.folder / "0")
    ours, theirs = kept.log_softmax(-1), logits.log_softmax(-1)
    kl = float((ours.exp() * (ours - theirs)).sum(-1).mean())
    assert kl <= {"float32": 1e-6, "bfloat16": 1e-2, "4-bit": 1e-4, "8-bit": 5e-3}[base]


def tamper(folder: Path, change: Any) -> None:
    """Change weights in a model's file."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("base", BASES)
def test_what_goes_wrong_in_a_merge_is_found(
    base: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", base, tie_word_embeddings=False)
    settings = settings_of(base)
    trained = record(str(path), PROMPTS, settings)
    target = tmp_path / "merged"

    def merged() -> None:
        merge(trained, target, settings)

    merged()
    key = "model.layers.1.mlp.down_proj.weight"
    whole = load_file(target / "model.safetensors")[key]
    alone = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "base"), **BASES[base]))
    alone = alone.dequantize() if "bit" in base else alone
    before = alone.state_dict()[key]

    tamper(target, lambda weights: weights.update({key: before.clone()}))
    with pytest.raises(UserError, match=r"-?\d+% of the adapter is in model\.layers\.1\.mlp"):
        compare(trained, target, settings)  # a layer was left out
    tamper(target, lambda weights: weights.update({key: before + 2 * (whole - before)}))
    with pytest.raises(UserError, match=r"\d+% of the adapter is in model\.layers\.1\.mlp"):
        compare(trained, target, settings)  # the scale is off
    merged()
    norm = "model.norm.weight"
    tamper(target, lambda weights: weights.update({norm: 3 * weights[norm]}))
    with pytest.raises(UserError, match="its KL is"):  # what no adapter touches
        compare(trained, target, settings)
    merged()
    (target / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="its tokenizer or chat template is another one"):
        compare(trained, target, settings)
    merged()
    file = target / "tokenizer.json"
    tokens = json.loads(file.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["cat"], vocabulary["bird"] = vocabulary["bird"], vocabulary["cat"]
    file.write_text(json.dumps(tokens))
    with pytest.raises(UserError, match="its tokenizer or chat template is another one"):
        compare(trained, target, settings)


def test_a_forward_pass_changes_nothing_of_what_is_merged_into(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    args = ModelConfig(
        model_name_or_path=save_model(tmp_path / "base", tiny_tokenizer, **SIZES),
        load_in_4bit=True,
        dtype="float32",
    )
    before = dequantize(load_policy(args)).state_dict()
    asked = load_policy(args).eval()
    with torch.no_grad():
        asked(torch.arange(8)[None])
    # Where bitsandbytes packs 4-bit weights at the first evaluation, they could not be read back.
    flags = [getattr(m, "support_avx512bf16_for_cpu", False) for m in asked.modules()]
    assert not any(flags)
    after = dequantize(asked).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_into_the_original_base_is_a_choice_with_its_cost(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", "4-bit")
    kl = {}
    for onto in ("trained", "original"):
        settings = settings_of("4-bit", onto=onto)
        trained = record(str(path), PROMPTS, settings)
        merge(trained, tmp_path / onto, settings)
        kl[onto] = compare(trained, tmp_path / onto, settings)["kl_per_token"]
    assert kl["trained"] <= 1e-4
    assert kl["original"] > 100 * kl["trained"]
    original = load_file(tmp_path / "original/model.safetensors")
    base = load_file(tmp_path / "base/model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"  # which has no adapter
    assert torch.equal(original[name], base[name])
    assert not torch.equal(load_file(tmp_path / "trained/model.safetensors")[name], base[name])


@pytest.mark.parametrize("base", BASES)
def test_a_reward_model_keeps_its_head(base: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = save_model(tmp_path / "base", tiny_tokenizer, **SIZES)
    args = ModelConfig(model_name_or_path=model, **BASES[base])
    dtype = str(BASES[base]["dtype"])
    classifier, _ = load_reward_model(model, dtype, new_head=True, model_args=args)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    adapted = get_peft_model(classifier, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    save_base_quantization(adapted, tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    settings = settings_of(base)
    trained = record(str(tmp_path / "adapter"), PROMPTS, settings)
    merge(trained, tmp_path / "merged", settings)
    numbers = compare(trained, tmp_path / "merged", settings)
    assert numbers["scores_max_difference"] <= 0.05 * numbers["scores_spread"]
    assert len(set(trained.recording.scores)) == len(PROMPTS)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([tiny_tokenizer(PROMPTS[0] + "<eos>")["input_ids"]])
    with torch.no_grad():
        score = float(plain(ids).logits)
    assert score == pytest.approx(trained.recording.scores[0], abs=0.05 * numbers["scores_spread"])
    tamper(tmp_path / "merged", lambda w: w.update({"score.weight": -w["score.weight"]}))
    with pytest.raises(UserError, match="its scores differ by"):
        compare(trained, tmp_path / "merged", settings)


def test_a_whole_model_has_nothing_to_merge(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = save_model(tmp_path / "base", tiny_tokenizer)
    with pytest.raises(UserError, match="is a whole model and has no adapter to merge"):
        merging.adapter_of(model)
