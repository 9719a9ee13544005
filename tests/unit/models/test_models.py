import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import ModelConfig

from recipes.lib.errors import UserError
from recipes.lib.models.adapter_folders import adapter_base
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.folders import resolve_model
from recipes.lib.models.policies import load_policy, lora_config
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.rewards.reward_models import RewardModel

LORA = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 2}


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[6, 7, 8, 9]])).logits


def adapter(model: Any, path: Path, task: str = "CAUSAL_LM", seed: int = 1) -> torch.Tensor:
    """Save a random adapter on a model; give what the adapted model says."""
    from peft import get_peft_model

    adapted = get_peft_model(model, lora_config(ModelConfig(**LORA), task))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and ("lora" in name or "score" in name):
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(path)
    return logits(adapted.eval())


def test_a_run_stands_for_its_final_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "sft" / "one").mkdir(parents=True)
    folder.rename(tmp_path / "runs" / "sft" / "one" / "final")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("runs/sft/one") == resolve_model("sft/one") == "runs/sft/one/final"
    assert resolve_model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        resolve_model(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"neither config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="no final/ yet"):
        resolve_model(str(tmp_path))
    with pytest.raises(UserError, match="no causal language model can be loaded"):
        load_policy(ModelConfig(model_name_or_path="nobody/nothing"))


def test_a_missing_pad_token_becomes_the_eos_token_and_no_id_changes(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    before = load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "pad_token"})
    )
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert tokenizer.get_vocab() == before.get_vocab()
    assert tokenizer.padding_side == before.padding_side


def test_an_adapter_is_merged_into_its_base(folder: Path, tmp_path: Path) -> None:
    base = load_policy(ModelConfig(model_name_or_path=str(folder)))
    plain = logits(base)
    expected = adapter(base, tmp_path / "adapter")
    merged = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))
    assert type(merged) is LlamaForCausalLM
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 0.01
    assert load_tokenizer(str(tmp_path / "adapter")).eos_token == "<eos>"


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft, of the base's vocabulary
def test_an_adapter_on_an_adapter_finds_its_way_back(folder: Path, tmp_path: Path) -> None:
    adapter(load_policy(ModelConfig(model_name_or_path=str(folder))), tmp_path / "first")
    first = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "first")))
    expected = adapter(first, tmp_path / "second", seed=2)
    second = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "second")))
    torch.testing.assert_close(logits(second), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft, of the base's vocabulary
def test_an_adapter_by_hub_id_is_merged_and_keeps_that_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "cache" / "models--someone--adapter" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    expected = adapter(load_policy(ModelConfig(model_name_or_path=str(folder))), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    merged = load_policy(ModelConfig(model_name_or_path="someone/adapter"))
    assert type(merged) is LlamaForCausalLM
    assert merged.name_or_path == "someone/adapter"
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert load_tokenizer("someone/adapter").eos_token == "<eos>"
    model, _ = load_reward_model("someone/adapter", new_head=True)
    assert model.name_or_path == "someone/adapter"


def test_an_adapter_remembers_the_revision_of_its_base(tmp_path: Path) -> None:
    config = lora_config(ModelConfig(use_peft=True, model_revision="v2"), "CAUSAL_LM")
    config.base_model_name_or_path = "someone/model"
    config.save_pretrained(tmp_path)
    assert adapter_base(tmp_path) == ("someone/model", "v2")


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_an_adapter_is_merged_before_its_base_is_quantized(
    folder: Path, tmp_path: Path, key: str
) -> None:
    adapter(load_policy(ModelConfig(model_name_or_path=str(folder))), tmp_path / "adapter")
    load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter"))).save_pretrained(
        tmp_path / "merged"
    )
    stacked, whole = (
        load_policy(ModelConfig(model_name_or_path=str(tmp_path / name), **{key: True}))
        for name in ("adapter", "merged")
    )
    assert stacked.is_quantized
    assert stacked.name_or_path == str(tmp_path / "adapter")
    assert torch.equal(logits(stacked), logits(whole))


def test_an_adapter_is_not_merged_into_stored_quantized_weights(
    folder: Path, tmp_path: Path
) -> None:
    adapter(load_policy(ModelConfig(model_name_or_path=str(folder))), tmp_path / "adapter")
    quantized = load_policy(ModelConfig(model_name_or_path=str(folder), load_in_4bit=True))
    quantized.save_pretrained(folder)
    with pytest.raises(UserError, match="is stored quantized, and merging would round"):
        load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))


def test_a_language_model_is_no_reward_model_but_may_become_one(folder: Path) -> None:
    with pytest.raises(UserError, match=r"do not hold score\.weight.*train it as a reward model"):
        load_reward_model(str(folder))
    model, tokenizer = load_reward_model(str(folder), new_head=True)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    base = load_policy(ModelConfig(model_name_or_path=str(folder)))
    for name, parameter in base.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], parameter)


def test_a_tied_embedding_that_is_stored_as_the_head_reaches_a_classifier(
    shared: Path, tmp_path: Path
) -> None:
    # This model stores its tied embedding under lm_head only, which a classifier does not have.
    name = str(shared / "models" / "TinyStories-656K")
    with pytest.raises(UserError, match=r"do not hold model\.embed_tokens\.weight"):
        load_reward_model(name)
    policy = load_policy(ModelConfig(model_name_or_path=name))
    model, tokenizer = load_reward_model(name, new_head=True)
    assert torch.equal(model.model.embed_tokens.weight, policy.lm_head.weight)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    again, _ = load_reward_model(str(tmp_path / "reward"))
    assert torch.equal(logits(again), logits(model))
    # Where the weights cannot be carried over by hand, it is refused and not trained on.
    args = ModelConfig(load_in_4bit=True)
    with pytest.raises(UserError, match=r"do not hold model\.embed_tokens\.weight, which would"):
        load_reward_model(name, new_head=True, model_args=args)


def test_a_classifier_of_two_labels_is_no_reward_model(folder: Path, tmp_path: Path) -> None:
    two = LlamaForSequenceClassification.from_pretrained(folder, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="it has 2 labels and a reward model has one"):
        load_reward_model(str(tmp_path / "two"))


def test_a_reward_adapter_brings_its_score_head(folder: Path, tmp_path: Path) -> None:
    model, _ = load_reward_model(str(folder), new_head=True)
    expected = adapter(model, tmp_path / "reward", task="SEQ_CLS")
    loaded, tokenizer = load_reward_model(str(tmp_path / "reward"))
    torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=1e-6)
    assert tokenizer.eos_token == "<eos>"
    merged, _ = load_reward_model(str(tmp_path / "reward"), new_head=True)
    assert type(merged) is LlamaForSequenceClassification
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft, of the base's vocabulary
def test_a_reward_model_can_start_from_an_sft_adapter(folder: Path, tmp_path: Path) -> None:
    base = load_policy(ModelConfig(model_name_or_path=str(folder)))
    adapter(base, tmp_path / "sft")
    with pytest.raises(UserError, match="an adapter without a score head is no reward model"):
        load_reward_model(str(tmp_path / "sft"))
    model, _ = load_reward_model(str(tmp_path / "sft"), new_head=True)
    sft = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "sft")))
    assert torch.equal(
        model.model(input_ids=torch.tensor([[6, 7]])).last_hidden_state,
        sft.model(input_ids=torch.tensor([[6, 7]])).last_hidden_state,
    )
    expected = adapter(model, tmp_path / "reward", task="SEQ_CLS", seed=3)
    loaded, _ = load_reward_model(str(tmp_path / "reward"))
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


def test_the_score_head_is_saved_with_a_classification_adapter_only() -> None:
    args = ModelConfig(use_peft=True, lora_modules_to_save=["embed_tokens"])
    assert lora_config(args, "SEQ_CLS").modules_to_save == ["embed_tokens", "score"]
    assert lora_config(args, "CAUSAL_LM").modules_to_save == ["embed_tokens"]
    assert lora_config(ModelConfig(), "SEQ_CLS") is None


def test_a_padded_batch_scores_like_a_batch_of_one(folder: Path) -> None:
    model, tokenizer = load_reward_model(str(folder), new_head=True)
    prompts = ["the cat", "the old dog sat on the warm hill and", "who"]
    completions = [" sat .", " slept in the sun with a bird .", " sang ?"]
    together = RewardModel(model, tokenizer, "reward", 3)(prompts, completions)
    alone = RewardModel(model, tokenizer, "reward", 1)(prompts, completions)
    assert together == pytest.approx(alone, abs=1e-6)
    for prompt, completion, score in zip(prompts, completions, together, strict=True):
        # The words and the closing EOS, read by hand: this tokenizer has one token per word.
        ids = tokenizer.convert_tokens_to_ids(f"{prompt}{completion} <eos>".split())
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        assert score == pytest.approx(float(hidden @ model.score.weight[0]), abs=1e-5)
