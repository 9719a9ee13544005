"""What is merged says what the adapter on its base did, or the run ends with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.models import merging
from recipes.lib.models.adapter_folders import save_base_quantization
from recipes.lib.models.classifiers import load_adapted_classifier
from recipes.lib.models.policies import load_adapted_policy, load_policy, lora_config
from tests.helpers.tiny_models import save_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model (has|with) `tie_word_embeddings=True`",  # which is what is tested
    "ignore:Input and output embeddings are no longer tied",
    "ignore:Setting `save_embedding_layers`",
)
IDS = torch.arange(20)[None]
PLACES: list[dict[str, Any]] = [
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["lm_head"]},
    {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
]


def adapt(model: Any, **more: Any) -> PeftModel:
    """An adapter that has learned something."""
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **more))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return adapted.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", PLACES, ids=str)
def test_a_merged_adapter_says_what_it_said_on_its_base(
    more: dict[str, Any], tied: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = save_model(
        tmp_path / "model", tiny_tokenizer, tie_word_embeddings=tied, initializer_range=0.3
    )
    adapted = adapt(AutoModelForCausalLM.from_pretrained(base), **more)
    with torch.no_grad():
        expected = adapted(IDS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))
    merged.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for model in (merged, again):
        assert torch.allclose(model(IDS).logits, expected, atol=2e-5)


def test_a_prompt_is_nothing_to_merge(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = save_model(tmp_path / "model", tiny_tokenizer)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(UserError, match="PROMPT_TUNING is a prompt and cannot be merged"):
        load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))


def test_a_merge_that_says_something_else_ends_the_run(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path / "model", tiny_tokenizer, tie_word_embeddings=True)
    adapt(AutoModelForCausalLM.from_pretrained(base), target_modules=["lm_head"]).save_pretrained(
        tmp_path / "adapter"
    )
    monkeypatch.setattr(merging, "_part_shared_embeddings", lambda _: None)  # as peft alone does
    with pytest.raises(UserError, match=r"merged into its base, the adapter says something else"):
        load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_of_a_4_bit_base_is_merged_into_what_it_was_trained_on(
    nested: bool, dtype: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = save_model(
        tmp_path / "model",
        tiny_tokenizer,
        tie_word_embeddings=False,
        hidden_size=64,
        intermediate_size=128,
    )
    own = {"dtype": dtype, "use_bnb_nested_quant": nested}
    args = ModelConfig(model_name_or_path=base, load_in_4bit=True, **own)
    adapted = adapt(load_policy(args), target_modules=["q_proj", "down_proj"])
    with torch.no_grad():
        expected = adapted(IDS).logits.float().log_softmax(-1)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)

    def kl(model: Any) -> float:
        with torch.no_grad():
            got = model(IDS).logits.float().log_softmax(-1)
        return float((expected.exp() * (expected - got)).sum(-1).mean())

    plain = ModelConfig(model_name_or_path=str(folder), dtype=dtype)
    before = kl(load_policy(plain))  # nothing is known of the base
    save_base_quantization(adapted, folder)
    merged, gone_on = load_policy(plain), load_adapted_policy(plain)
    after = kl(merged)
    print(
        f"KL, nats a token: {before:.1e} into the original base, {after:.1e} into the rounded one"
    )
    assert kl(gone_on) <= (1e-9 if dtype == "float32" else 1e-4)
    assert after < (1e-9 if dtype == "float32" else 1e-3)
    assert before > 10 * max(after, 1e-5)
    save_base_quantization(gone_on, tmp_path)  # it goes on with the rounded base
    assert (tmp_path / "base_quantization.json").read_text() == (
        folder / "base_quantization.json"
    ).read_text()
    assert not hasattr(merged, "base_quantization")
    # A reward model to be goes on with what the 4 bits stood for, and can be merged later.
    classifier = load_adapted_classifier(plain)
    assert "Params4bit" not in {type(weight).__name__ for weight in classifier.parameters()}
    last = [m(IDS, output_hidden_states=True).hidden_states[-1] for m in (gone_on, classifier)]
    assert torch.equal(*last)


def test_dora_on_8_bits_is_refused() -> None:
    args = ModelConfig(use_peft=True, use_dora=True, load_in_8bit=True)
    with pytest.raises(UserError, match="use_dora=true: peft's DoRA cannot be trained on 8-bit"):
        lora_config(args, "CAUSAL_LM")
