"""A merged model says what the trained one says, whatever was trained; else it is refused."""

import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import save_base_quantization
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.merging import _Unmerged
from recipes.lib.models.policies import load_policy
from recipes.lib.publishing import merge as merging
from recipes.lib.publishing.merge import Merge
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
    folder: Path,
    tokenizer: Any,
    kind: str | dict[str, Any],
    base: str,
    name: str = "llama",
    scale: float = 0.1,
    **more: Any,
) -> Path:
    """An adapter that has learned something, with its base."""
    model = save_model(folder / "base", tokenizer, name=name, **SIZES | more)
    args = ModelConfig(model_name_or_path=model, **BASES[base])
    keys = KINDS[kind] if isinstance(kind, str) else kind
    adapted = get_peft_model(load_policy(args), LoraConfig(task_type="CAUSAL_LM", r=4, **keys))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    save_base_quantization(adapted, folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder / "adapter"


def begin(path: Path, base: str, **more: Any) -> Merge:
    """The trained model has spoken."""
    dtype = str(BASES[base]["dtype"])
    merge = Merge(str(path), list(PROMPTS), dtype, dtype, max_completion_length=8, **more)
    merge.record()
    return merge


# peft cannot train DoRA on 8-bit weights, and recipes refuse it.
PAIRS = [(kind, base) for kind in KINDS for base in BASES if (kind, base) != ("dora", "8-bit")]
CASES: list[Any] = [("llama", *pair) for pair in PAIRS]
# Of two other models every kind and every base; the rest of their pairs where there is time.
SOME = [("lora", "bfloat16"), ("rslora", "8-bit"), ("dora", "4-bit"), ("embeddings", "8-bit")]
SOME += [("head", "float32")]
CASES += [
    pytest.param(name, *pair, marks=() if pair in SOME else pytest.mark.slow)
    for name in ("qwen3", "gemma3")
    for pair in PAIRS
]


@pytest.mark.parametrize(("name", "kind", "base"), CASES)
def test_every_kind_of_adapter_on_every_base(
    name: str, kind: str, base: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, kind, base, name)
    trained = begin(path, base)
    trained.save(tmp_path / "merged")
    numbers = trained.compare(tmp_path / "merged")
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
    trained = begin(path, base)
    target = tmp_path / "merged"
    trained.save(target)
    key = "model.layers.1.mlp.down_proj.weight"
    whole = load_file(target / "model.safetensors")[key]
    alone = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "base"), **BASES[base]))
    alone = alone.dequantize() if "bit" in base else alone
    before = alone.state_dict()[key]

    tamper(target, lambda weights: weights.update({key: before.clone()}))
    with pytest.raises(UserError, match=r"-?\d+% of the adapter is in model\.layers\.1\.mlp"):
        trained.compare(target)  # a layer was left out
    tamper(target, lambda weights: weights.update({key: before + 2 * (whole - before)}))
    with pytest.raises(UserError, match=r"\d+% of the adapter is in model\.layers\.1\.mlp"):
        trained.compare(target)  # the scale is off
    trained.save(target)
    norm = "model.norm.weight"
    tamper(target, lambda weights: weights.update({norm: 3 * weights[norm]}))
    with pytest.raises(UserError, match="its KL is"):  # what no adapter touches
        trained.compare(target)
    trained.save(target)
    (target / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="its tokenizer or chat template is another one"):
        trained.compare(target)
    trained.save(target)
    file = target / "tokenizer.json"
    tokens = json.loads(file.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["cat"], vocabulary["bird"] = vocabulary["bird"], vocabulary["cat"]
    file.write_text(json.dumps(tokens))
    with pytest.raises(UserError, match="its tokenizer or chat template is another one"):
        trained.compare(target)


@pytest.mark.parametrize("base", ["float32", "4-bit"])
def test_one_shard_of_merged_weights_is_in_memory(
    base: str, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", base)
    trained = begin(path, base)
    alive, most = weakref.WeakSet[torch.Tensor](), []
    merged = _Unmerged.__getitem__

    def watched(self: Any, name: str) -> torch.Tensor:
        weight = merged(self, name)
        alive.add(weight)
        most.append(sum(one.nbytes for one in alive))
        return weight

    monkeypatch.setattr(_Unmerged, "__getitem__", watched)
    monkeypatch.setattr(merging, "LARGEST_FILE", "40KB")
    trained.save(tmp_path / "merged")
    files = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(files) > 4
    assert max(most) <= max(file.stat().st_size for file in files) < sum(most) / 2
    assert trained.compare(tmp_path / "merged")["kl_per_token"] <= 1e-6


@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_what_16_bits_cost_is_measured_by_storing_the_whole_model_in_them(
    spread: float, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    more = {"initializer_range": spread, "tie_word_embeddings": False}
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", "bfloat16", **more)
    trained = begin(path, "bfloat16")
    trained.save(tmp_path / "merged")
    told = trained.compare(tmp_path / "merged")
    if spread == 1.0:  # its logits are so large that their rounding shows
        assert told["kl_per_token"] > 1e-3
        assert told["kl_from_float32"] <= 1.5 * told["kl_of_storing"]
        return
    assert "kl_of_storing" not in told  # nobody had to ask
    norm = "model.norm.weight"
    tamper(tmp_path / "merged", lambda weights: weights.update({norm: 1.1 * weights[norm]}))
    with pytest.raises(UserError, match=r"its KL is \d\.\de-03 nats a token"):
        trained.compare(tmp_path / "merged")


def test_a_forward_pass_changes_nothing_of_what_is_merged_into(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    args = ModelConfig(
        model_name_or_path=save_model(tmp_path / "base", tiny_tokenizer, **SIZES),
        load_in_4bit=True,
        dtype="float32",
    )
    before = load_policy(args).dequantize().state_dict()
    asked = load_policy(args).eval()
    with torch.no_grad():
        asked(torch.arange(8)[None])
    # Where bitsandbytes packs 4-bit weights at the first evaluation, they could not be read back.
    flags = [getattr(m, "support_avx512bf16_for_cpu", False) for m in asked.modules()]
    assert not any(flags)
    after = asked.dequantize().state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_into_the_original_base_is_a_choice_with_its_cost(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", "4-bit")
    kl = {}
    for onto in ("trained", "original"):
        trained = begin(path, "4-bit", onto=onto)
        trained.save(tmp_path / onto)
        kl[onto] = trained.compare(tmp_path / onto)["kl_per_token"]
    assert kl["trained"] <= 1e-4
    assert kl["original"] > 100 * kl["trained"]
    original = load_file(tmp_path / "original/model.safetensors")
    base = load_file(tmp_path / "base/model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"  # which has no adapter
    assert torch.equal(original[name], base[name])
    assert not torch.equal(load_file(tmp_path / "trained/model.safetensors")[name], base[name])


def reward_adapter(folder: Path, tokenizer: Any, base: str) -> Path:
    """A reward model's adapter with its head, on a base."""
    model = save_model(folder / "base", tokenizer, **SIZES)
    args = ModelConfig(model_name_or_path=model, **BASES[base])
    dtype = str(BASES[base]["dtype"])
    classifier, _ = load_reward_model(model, dtype, new_head=True, model_args=args)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    adapted = get_peft_model(classifier, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    save_base_quantization(adapted, folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize("base", BASES)
def test_a_reward_model_keeps_its_head(base: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    trained = begin(reward_adapter(tmp_path, tiny_tokenizer, base), base)
    trained.save(tmp_path / "merged")
    numbers = trained.compare(tmp_path / "merged")
    assert numbers["scores_max_difference"] <= 0.05 * numbers["scores_spread"]
    assert len(set(trained.recording.scores)) == len(PROMPTS)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([tiny_tokenizer(PROMPTS[0] + "<eos>")["input_ids"]])
    with torch.no_grad():
        score = float(plain(ids).logits)
    assert score == pytest.approx(trained.recording.scores[0], abs=0.05 * numbers["scores_spread"])
    tamper(tmp_path / "merged", lambda w: w.update({"score.weight": 1.5 * w["score.weight"]}))
    with pytest.raises(UserError, match="its scores differ by"):
        trained.compare(tmp_path / "merged")


def test_a_reward_model_on_the_original_base_has_its_weights(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = reward_adapter(tmp_path, tiny_tokenizer, "4-bit")
    trained = begin(path, "4-bit", onto="original")
    trained.save(tmp_path / "merged")
    assert trained.compare(tmp_path / "merged")["scores_max_difference"] > 0
    name = "model.layers.0.self_attn.o_proj.weight"  # which has no adapter
    merged, base = (load_file(tmp_path / f"{of}/model.safetensors") for of in ("merged", "base"))
    assert torch.equal(merged[name], base[name])


@pytest.mark.parametrize("base", ["4-bit", "8-bit"])
def test_a_light_adapter_on_a_rounded_base_arrives(
    base: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", base, scale=1e-3)
    trained = begin(path, base)
    trained.save(tmp_path / "merged")
    told = trained.compare(tmp_path / "merged")
    assert told["adapter_arrived"] == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("scale", [1e-4, 1e-2])
def test_a_light_adapter_in_16_bits_arrives_or_is_refused(
    scale: float, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = trained_adapter(tmp_path, tiny_tokenizer, "lora", "bfloat16", scale=scale)
    trained = begin(path, "bfloat16")
    trained.save(tmp_path / "merged")
    if scale == 1e-2:
        assert trained.compare(tmp_path / "merged")["adapter_arrived"][0] > 0.9
    else:
        with pytest.raises(UserError, match=r"store it in 32 bits \(dtype=float32\)"):
            trained.compare(tmp_path / "merged")
        return
    whole = Merge(str(path), list(PROMPTS), "bfloat16", "float32", max_completion_length=8)
    whole.record()
    whole.save(tmp_path / "whole")
    assert whole.compare(tmp_path / "whole")["adapter_arrived"] == pytest.approx([1, 1], abs=0.01)


def test_trained_tokens_are_left_to_what_is_said(tmp_path: Path, tiny_tokenizer: Any) -> None:
    keys = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}
    path = trained_adapter(tmp_path, tiny_tokenizer, keys, "float32")
    trained = begin(path, "float32")
    trained.save(tmp_path / "merged")
    assert trained.compare(tmp_path / "merged")["layers"] == 2  # q_proj of both layers


@pytest.mark.parametrize(
    "number", ["kl_per_token", "logits_max_difference", "scores_max_difference"]
)
def test_what_is_no_number_is_a_difference(number: str) -> None:
    numbers = {"same_tokenizer": True, "onto": "trained", number: math.nan}
    with pytest.raises(UserError, match="says something else than the trained one"):
        merging.refuse_difference("a", numbers, 1e-6, 0.0)
    merging.refuse_difference("a", numbers | {number: 0.0}, 1e-6, 0.0)


def test_a_whole_model_has_nothing_to_merge(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = save_model(tmp_path / "base", tiny_tokenizer)
    with pytest.raises(UserError, match="is a whole model and has no adapter to merge"):
        merging.adapter_of(model)
