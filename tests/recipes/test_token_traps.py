"""Tokenizers, templates and vocabularies as they come: each trap is met, told or refused.

Positions under left padding (GPT-2) are items 13 of tests/checklist/test_logps.py; a tied
checkpoint as a classifier is in tests/unit/models/test_models.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import ModelConfig

from recipes import reward, sft
from recipes.lib.data.formats import format_of
from recipes.lib.data.prompts import prompt_token_ids
from recipes.lib.data.streaming import load_rows
from recipes.lib.data.tokenization import tokenize_row
from recipes.lib.errors import UserError
from recipes.lib.generation.completions import complete
from recipes.lib.models import tokenizers
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.models.policies import load_policy
from recipes.lib.models.tokenizers import load_tokenizer
from recipes.lib.recipe.main import parse
from tests.helpers import tiny
from tests.helpers.tiny_models import save_model, with_bos
from tests.helpers.tiny_runs import FAST, LORA, write

ROW = {"prompt": "the cat", "completion": " sat ."}
TURNS = [{"role": "user", "content": "who sat ?"}, {"role": "assistant", "content": "the cat ."}]
EOS = 1


def sft_trainer(folder: Path, row: dict[str, Any], model: str = "", **values: Any) -> Any:
    write(folder / "rows.jsonl", [row] * 4)
    own = {
        "model_name_or_path": model or str(folder / "model"),
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "run"),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
    }
    config = parse("sft", [], FAST | own | values)
    tokenizer = load_tokenizer(own["model_name_or_path"])
    rows = load_rows(config.script, config.training, sft.columns_of)
    return sft.make_trainer(config, tokenizer, rows)


def labelled(trainer: Any) -> list[int]:
    return [label for label in trainer.train_dataset[0]["labels"] if label != -100]


def test_without_a_pad_token_the_end_is_learned_and_padding_is_not(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.pad_token = None
    save_model(tmp_path / "model", tiny_tokenizer, pad_token_id=None)
    trainer = sft_trainer(tmp_path, ROW)
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    assert labelled(trainer)[-1] == EOS
    rows = [trainer.train_dataset[0], {"input_ids": [6, 7], "labels": [6, 7]}]
    batch = trainer.data_collator(rows)
    width = len(rows[0]["input_ids"])
    assert batch["labels"][0].tolist() == rows[0]["labels"]  # its own end still counts
    assert batch["labels"][1].tolist() == [6, 7] + [-100] * (width - 2)
    assert batch["attention_mask"][1].tolist() == [1, 1] + [0] * (width - 2)
    trainer.train()
    model, tokenizer = load_reward_model(str(tmp_path / "model"), new_head=True)
    assert model.config.pad_token_id == EOS


def test_bos_that_equals_eos_begins_the_prompt_and_ends_the_completion(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path / "model", with_bos(tiny_tokenizer, "<eos>"), bos_token_id=EOS)
    trainer = sft_trainer(tmp_path, ROW)
    ids = trainer.train_dataset[0]["input_ids"]
    words = tiny_tokenizer.convert_tokens_to_ids("the cat sat .".split())
    assert ids == [EOS, *words, EOS]
    assert trainer.train_dataset[0]["labels"] == [-100] * 3 + [*words[2:], EOS]
    # The sampler does not take the bos of a prompt for its end.
    said = complete(trainer.model, tiny_tokenizer, ["the cat"], max_new_tokens=3)[0]
    assert said.prompt_ids == [EOS, *words[:2]]
    assert len(said.ids) == 3 or said.has_ended


def fixed(model: Any, token: int) -> Any:
    """A model that says one token whatever it reads."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight[token].fill_(1.0)
    return model


@pytest.mark.parametrize("last", [1, 5])
def test_sampling_ends_with_each_of_several_eos_ids(
    last: int, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path / "model", tiny_tokenizer, tie_word_embeddings=False)
    model = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "model")))
    fixed(model, last)
    model.generation_config.eos_token_id = [1, 5]
    said = complete(model, tiny_tokenizer, ["the cat"], max_new_tokens=4, temperature=0)[0]
    assert (said.ids, said.has_ended, said.text) == ([last], True, "")


def test_an_eos_that_never_comes_is_cut_off_and_said(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    save_model(tmp_path / "model", tiny_tokenizer, tie_word_embeddings=False)
    model = fixed(load_policy(ModelConfig(model_name_or_path=str(tmp_path / "model"))), 7)
    said = complete(model, tiny_tokenizer, ["the cat"], max_new_tokens=4, temperature=0)[0]
    assert (said.ids, said.has_ended) == ([7] * 4, False)


def test_a_template_that_ends_answers_otherwise_asks_for_that_token(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<eos>", "<end>")
    save_model(tmp_path / "model", tiny_tokenizer)
    with pytest.raises(UserError, match="would not learn to stop; set eos_token=<end>, which it"):
        sft_trainer(tmp_path, {"messages": TURNS})
    trainer = sft_trainer(tmp_path, {"messages": TURNS}, eos_token="<end>")
    assert trainer.train_dataset[0]["input_ids"][-1] == len(tiny_tokenizer) - 1
    assert trainer.processing_class.eos_token == "<end>"
    assert trainer.model.generation_config.eos_token_id == [len(tiny_tokenizer) - 1, EOS]


def test_a_template_without_any_end_is_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<eos>", "")
    save_model(tmp_path / "model", tiny_tokenizer)
    with pytest.raises(UserError, match="set chat_template_path to a template that does"):
        sft_trainer(tmp_path, {"messages": TURNS})
    # A reward model reads turns and writes none.
    for asked, name in (("who sat ?", "rows"), ("who ran ?", "test")):
        sides = [[{"role": "user", "content": asked}, TURNS[1] | {"content": x}] for x in "?!"]
        write(tmp_path / f"{name}.jsonl", [{"chosen": sides[0], "rejected": sides[1]}] * 2)
    values: dict[str, Any] = {"dataset_name": str(tmp_path / "rows.jsonl"), "max_steps": 1}
    values |= {"test_dataset_name": str(tmp_path / "test.jsonl")}
    values |= {"model_name_or_path": str(tmp_path / "model"), "output_dir": str(tmp_path / "run")}
    assert reward.run(parse("reward", [], FAST | values))["recipe"] == "reward"


def test_without_a_template_one_is_asked_for(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    template, tiny_tokenizer.chat_template = tiny_tokenizer.chat_template, None
    save_model(tmp_path / "model", tiny_tokenizer)
    write(tmp_path / "rows.jsonl", [{"messages": TURNS}] * 4)
    values = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
    }
    with pytest.raises(UserError, match="chat_template_path is missing: messages holds messages"):
        sft.run(parse("sft", [], FAST | values))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine.jinja").write_text(template)
    trainer = sft_trainer(
        tmp_path, {"messages": TURNS}, chat_template_path=str(tmp_path / "mine.jinja")
    )
    words = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"]).split()
    assert words == "<user> who sat ? <assistant> the cat . <eos>".split()


def test_a_template_that_repeats_bos_is_refused_and_one_that_drops_it_is_told(
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = tiny_tokenizer.chat_template
    with_bos(tiny_tokenizer, "<system>").chat_template = "{{ bos_token }} {{ bos_token }} " + plain
    save_model(tmp_path / "model", tiny_tokenizer, bos_token_id=3)
    with pytest.raises(UserError, match="template begins with <system> twice"):
        sft_trainer(tmp_path, {"messages": TURNS})
    pairs = [
        {"chosen": TURNS, "rejected": [TURNS[0], TURNS[1] | {"content": text}]} for text in "?!"
    ]
    write(tmp_path / "pairs.jsonl", pairs * 2)
    values: dict[str, Any] = {"dataset_name": str(tmp_path / "pairs.jsonl")}
    values["output_dir"] = str(tmp_path / "other")
    values |= {"model_name_or_path": str(tmp_path / "model"), "test_fraction": 0.5, "max_steps": 1}
    with pytest.raises(UserError, match="template begins with <system> twice"):
        reward.run(parse("reward", [], FAST | values))
    assert not (tmp_path / "other").exists()
    tiny_tokenizer.chat_template = plain
    save_model(tmp_path / "model", tiny_tokenizer, bos_token_id=3)
    sft_trainer(tmp_path, {"messages": TURNS})
    assert "the chat template writes no <system>, which" in capsys.readouterr().err
    tiny_tokenizer.chat_template = "{{ bos_token }} " + plain
    save_model(tmp_path / "model", tiny_tokenizer, bos_token_id=3)
    trainer = sft_trainer(tmp_path, {"messages": TURNS})
    assert trainer.train_dataset[0]["input_ids"].count(3) == 1
    # Prompts and what a reward model reads: once too.
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert prompt_token_ids(tokenizer, TURNS[:1]).count(3) == 1


THINKS = "{% if add_generation_prompt %}<assistant> <system> {% endif %}"


def test_a_thinking_template_that_asks_otherwise_than_it_trains_is_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    head, _, _ = tiny_tokenizer.chat_template.partition("{% if add_generation_prompt %}")
    tiny_tokenizer.chat_template = head + THINKS
    save_model(tmp_path / "model", tiny_tokenizer)
    spoken = {"prompt": TURNS[:1], "completion": TURNS[1:]}
    for row in (spoken, {"messages": TURNS}):
        with pytest.raises(UserError, match=r"renders a prompt alone as .* but not so before"):
            sft_trainer(tmp_path, row)
    # Qwen3's way: an empty thought in both places, switched by an argument of the template.
    answer = "<assistant> {% generation %}"
    assert answer in head
    tiny_tokenizer.chat_template = head.replace(answer, "<assistant> <system> {% generation %}") + (
        "{% if add_generation_prompt %}<assistant> {% if not enable_thinking|default(true) %}"
        "<system> {% endif %}{% endif %}"
    )
    save_model(tmp_path / "model", tiny_tokenizer)
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    trainer = sft_trainer(tmp_path, spoken | kwargs)
    asked = prompt_token_ids(trainer.processing_class, TURNS[:1], {"enable_thinking": False})
    row = trainer.train_dataset[0]
    assert row["input_ids"][: len(asked)] == asked
    assert [label != -100 for label in row["labels"]].index(True) == len(asked)


def test_tokens_that_span_prompt_and_completion_are_split_in_sft(
    shared: Path, tmp_path: Path
) -> None:
    name = str(shared / "models" / "TinyStories-656K")
    row = {"prompt": "Once upon a time there was", "completion": " a little girl named Lily."}
    tokenizer = load_tokenizer(name)
    prompt, whole = (
        tokenizer(text)["input_ids"] for text in (row["prompt"], "".join(row.values()))
    )
    assert whole[: len(prompt)] != prompt  # or the model is none of that kind any more
    trainer = sft_trainer(tmp_path, row, name)
    made = trainer.train_dataset[0]
    assert made["input_ids"][: len(prompt)] == prompt == prompt_token_ids(tokenizer, row["prompt"])
    assert made["labels"] == [-100] * len(prompt) + made["input_ids"][len(prompt) :]
    end = tokenizer.eos_token_id
    assert made["labels"][-1] == end
    text = tokenizer.decode(made["input_ids"], skip_special_tokens=True)
    assert text.strip() == "".join(row.values())
    trainer.train()


def test_tokens_that_span_prompt_and_completion_in_sampling_and_ppo(
    shared: Path, tmp_path: Path
) -> None:
    name = str(shared / "models" / "TinyStories-656K")
    tokenizer = load_tokenizer(name)
    policy = load_policy(ModelConfig(model_name_or_path=name))
    prompt = "Once upon a time there was"
    said = complete(policy, tokenizer, [prompt], max_new_tokens=8, seed=1)[0]
    assert tokenizer.decode(said.prompt_ids + said.ids, skip_special_tokens=True) == (
        tokenizer.decode(said.prompt_ids, skip_special_tokens=True) + said.text
    )
    trainer = tiny.trainer(tmp_path, policy, tokenizer=tokenizer, prompts=[prompt], critic="head")
    rollout = trainer.collector.rollout(0)
    ids = tokenizer(prompt)["input_ids"]
    for asked, answer in tiny.sequences(rollout):
        assert asked == ids
        assert 1 <= len(answer) <= tiny.SETTINGS["max_completion_length"]
    # The log-probabilities that are kept are those of these very ids, none more and none less.
    asked, answer = tiny.sequences(rollout)[0]
    expected = tiny.log_probs(policy, asked + answer)[len(asked) - 1 : -1]
    expected = expected.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    kept = rollout.old_logps[0][rollout.completion_mask[0].bool()].double()
    torch.testing.assert_close(kept, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["zeros", "twins"])
def test_added_tokens_without_training_are_refused_under_an_adapter(
    kind: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    save_model(tmp_path / "model", tiny_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        rows = model.model.embed_tokens.weight
        rows[4:6] = 0.0 if kind == "zeros" else rows[7]
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="the data uses <user>, <assistant>, whose embeddings"):
        sft_trainer(tmp_path, {"messages": TURNS}, **LORA)
    learned = {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
    sft_trainer(tmp_path, {"messages": TURNS}, **LORA, **learned)
    sft_trainer(tmp_path, {"messages": TURNS})  # full fine-tuning trains them


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_longer_than_the_context_name_the_length_to_set(
    name: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    short = {"n_positions": 8} if name == "gpt2" else {"max_position_embeddings": 8}
    save_model(tmp_path / "model", tiny_tokenizer, name, **short)
    row = {"prompt": "the cat", "completion": " sat on the warm hill and sang ."}
    with pytest.raises(UserError, match=r"has 11 tokens and the model's context 8; set max_length"):
        sft_trainer(tmp_path, row)
    trainer = sft_trainer(tmp_path, row, max_length=8)
    assert len(trainer.train_dataset[0]["input_ids"]) == 8
    write(tmp_path / "pairs.jsonl", [{"chosen": f"{n} cat" * 9, "rejected": "a"} for n in "abcd"])
    values: dict[str, Any] = {"dataset_name": str(tmp_path / "pairs.jsonl")}
    values["output_dir"] = str(tmp_path / "other")
    values |= {"model_name_or_path": str(tmp_path / "model"), "test_fraction": 0.5, "max_steps": 1}
    with pytest.raises(UserError, match=r"the model's context 8; set max_length to 8 or less"):
        reward.run(parse("reward", [], FAST | values))
    assert not (tmp_path / "other").exists()


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def chat_model(folder: Path, tokenizer: PreTrainedTokenizerFast, tied: bool) -> dict[str, Any]:
    """A plain model, a chat template with tokens of its own, and what trains one on the other."""
    tokenizer.chat_template = None
    save_model(folder / "model", tokenizer, tie_word_embeddings=tied)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHAT
    save_model(folder / "chat", tokenizer)
    return LORA | {"chat_template_path": str(folder / "chat")}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_a_template_with_tokens_of_its_own_has_trained_is_loaded_again(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    more = chat_model(tmp_path, tiny_tokenizer, tied=False)
    trainer = sft_trainer(tmp_path, {"messages": TURNS}, **more, learning_rate=0.1)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    trainer.processing_class.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    loaded = load_policy(ModelConfig(model_name_or_path=str(tmp_path / "adapter")))
    with torch.no_grad():
        expected, got = (m.eval()(input_ids=ids).logits for m in (trainer.model, loaded))
    assert {61, 62} & set(ids[0].tolist())  # the tokens that are new
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tied", "more", "told"),
    [
        (True, {}, "cannot learn on a model whose input and output embeddings are one"),
        (False, {"lora_modules_to_save": ["embed_tokens"]}, "leave embed_tokens out of lora_mod"),
    ],
)
def test_new_tokens_that_an_adapter_cannot_learn_are_refused(
    tied: bool,
    more: dict[str, Any],
    told: str,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    given = chat_model(tmp_path, tiny_tokenizer, tied=tied) | more
    with pytest.raises(UserError, match=r"brings the tokens <\|im_start\|>, <\|im_end\|>") as error:
        sft_trainer(tmp_path, {"messages": TURNS}, **given)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
    ],
)
def test_a_template_without_an_end_is_refused(
    template: str,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizers, "MOST_SECONDS", 1)
    tiny_tokenizer.chat_template = template
    save_model(tmp_path, tiny_tokenizer)
    with pytest.raises(UserError, match="its chat template takes more than 1 s or 256 MiB"):
        load_tokenizer(str(tmp_path))
    again = torch.zeros(2**26)  # 256 MiB: the limit is gone again
    assert again.sum() == 0


def ending(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A model whose tokenizer puts BOS before every text and EOS behind it."""
    first = tokenizer.convert_tokens_to_ids("<system>")
    tokenizer.bos_token = "<system>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<system> $A <eos>", special_tokens=[("<system>", first), ("<eos>", EOS)]
    )
    return save_model(folder / "model", tokenizer)


def test_rows_have_one_end_and_prompts_none_whatever_the_tokenizer_adds(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = ending(tmp_path, tiny_tokenizer)
    assert tiny_tokenizer("the cat")["input_ids"][-1] == EOS  # as it comes
    trainer = sft_trainer(tmp_path, ROW, model)
    ids = trainer.train_dataset[0]["input_ids"]
    assert ids == [3, *tiny_tokenizer("the cat sat .", add_special_tokens=False)["input_ids"], EOS]
    tokenizer = trainer.processing_class
    assert prompt_token_ids(tokenizer, "the cat") == [3, *ids[1:3]]
    tokenizer.save_pretrained(tmp_path / "saved")
    save_model(tmp_path / "again", tokenizer)
    assert load_tokenizer(str(tmp_path / "again"))("the cat")["input_ids"] == [3, *ids[1:3]]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "<system> the cat sat ."},
        {"prompt": "<system> the cat", "completion": " sat ."},
        {"prompt": "<system> the cat", "completion": " sat .", "label": True},
    ],
    ids=lambda row: "-".join(row),
)
def test_a_written_bos_is_not_put_there_twice(
    row: dict[str, Any], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = ending(tmp_path, tiny_tokenizer)
    tokenizer = load_tokenizer(model)
    words = tokenizer("the cat sat .")["input_ids"]
    if "label" not in row:
        trainer = sft_trainer(tmp_path, row, model)
        assert trainer.train_dataset[0]["input_ids"] == [*words, EOS]
    shown = tokenize_row(row, format_of(Dataset.from_list([row])), tokenizer)
    assert shown[0].ids == [*words, EOS]
    if "prompt" in row:
        assert prompt_token_ids(tokenizer, row["prompt"]) == words[:3]
