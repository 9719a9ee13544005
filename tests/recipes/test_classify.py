"""Classifiers: what is frozen stays, what is saved says the same, wrong data is refused."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

from recipes import classify
from recipes.lib.errors import UserError
from recipes.lib.publishing.card import write_card
from recipes.lib.recipe.main import parse
from recipes.lib.rewards.reward_models import load_reward_functions
from recipes.lib.runs.files import read_jsonl
from tests.helpers.tiny_runs import FAST, write

ANIMALS, COLOURS = ("cat", "dog", "bird", "child"), ("red", "blue")
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
OWN = {"learning_rate": 3e-2, "num_train_epochs": 8, "per_device_train_batch_size": 16}


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    torch.manual_seed(0)
    size = {"vocab_size": len(tiny_tokenizer), "pad_token_id": tiny_tokenizer.pad_token_id}
    bert = BertConfig(**SMALL, **size, intermediate_size=64, max_position_embeddings=64)
    distil = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **size)
    models = {"llama": tiny_model, "bert": BertModel(bert), "distilbert": DistilBertModel(distil)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    draw, rows = random.Random(0), []
    for number in range(400):
        animal, colour = draw.choice(ANIMALS), draw.choice(COLOURS)
        text = f"the {animal} saw {'the' if number % 2 else 'a'} {colour} house . {number}"
        rows.append({"text": text, "animal": animal, "label": colour, "labels": [animal, colour]})
    single = [{"text": row["text"], "label": row["label"]} for row in rows]
    write(tmp_path / "single.jsonl", single)
    write(tmp_path / "animals.jsonl", [{"t": r["text"], "animal": r["animal"]} for r in rows])
    write(tmp_path / "several.jsonl", [{"text": r["text"], "labels": r["labels"]} for r in rows])
    return tmp_path


def train(folder: Path, model: str, name: str = "run", **values: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"model_name_or_path": str(folder / model)}
    own["output_dir"] = str(folder / name)
    own |= {"dataset_name": str(folder / "single.jsonl"), "test_fraction": 100}
    return classify.run(parse("classify", [], FAST | OWN | own | values))


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_head_on_a_frozen_backbone_is_as_good_as_a_regression_on_its_features(
    folder: Path, model: str
) -> None:
    keys = {"dataset_name": str(folder / "animals.jsonl"), "freeze_backbone": True}
    keys |= {"columns": {"text": "t", "label": "animal"}, "num_train_epochs": 30}
    summary = train(folder, model, **keys)
    assert summary["labels"] == sorted(ANIMALS)
    assert summary["accuracy"] > summary["accuracy_frozen_features"] - 0.02
    assert summary["accuracy_tfidf"] == 1.0  # the word says it
    before = load_file(folder / model / "model.safetensors")
    after = load_file(folder / "run/final/model.safetensors")
    kept = {key.removeprefix("bert."): one for key, one in after.items()}
    shared = [key for key in before if key in kept]
    assert len(shared) > 15
    assert all(torch.equal(before[key], kept[key]) for key in shared)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("llama", {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4}),
        ("bert", {"learning_rate": 3e-3}),
        ("distilbert", {"freeze_backbone": True}),  # with two new layers, of which one is a head
    ],
)
def test_what_is_saved_is_what_was_judged(folder: Path, model: str, keys: Any) -> None:
    summary = train(folder, model, **keys)
    if model != "distilbert":  # whose backbone is drawn, and stays as it is
        assert summary["accuracy"] > 0.9
    assert ("accuracy_frozen_features" in summary) == (model != "distilbert")
    rows = read_jsonl(folder / "run/samples.jsonl")
    assert len(rows) == summary["num_test"]
    found = pipeline("text-classification", str(folder / "run/final"))([r["text"] for r in rows])
    assert [one["label"] for one in found] == [row["predicted"] for row in rows]
    expected = [row["probability"] for row in rows]
    assert [one["score"] for one in found] == pytest.approx(expected, abs=1e-5)
    page = (folder / "run/report.html").read_text()
    assert "The classifier is right in" in page
    assert "What is taken for what" in page
    card = write_card(folder / "run", folder / "run/final")
    assert "pipeline_tag: text-classification" in card
    assert 'pipeline("text-classification"' in card


def test_a_row_may_have_several_labels(folder: Path) -> None:
    keys = {"learning_rate": 1e-2, "num_train_epochs": 15, "class_weights": "balanced"}
    summary = train(folder, "llama", dataset_name=str(folder / "several.jsonl"), **keys)
    assert summary["labels"] == sorted(ANIMALS + COLOURS)
    assert summary["accuracy"] > 0.9
    rows = read_jsonl(folder / "run/samples.jsonl")
    judge = pipeline("text-classification", str(folder / "run/final"), top_k=None)
    for row, found in zip(rows, judge([row["text"] for row in rows]), strict=True):
        assert {one["label"] for one in found if one["score"] > 0.5} == {*row["predicted"]}


def test_a_label_is_a_reward(folder: Path) -> None:
    train(folder, "llama", learning_rate=3e-3)
    run = str(folder / "run")
    script = parse("ppo", [], {"reward_funcs": f"{run}:red", "cost_funcs": f"{run}:blue"}).script
    (cost,), (reward,) = script.costs(), script.rewards()
    assert reward.__name__ == "run:red"
    said = ["the cat saw a red house .", "the dog saw the blue house .", "a red bird ."]
    messages = [[{"role": "assistant", "content": text}] for text in said]
    scores = reward(prompts=["the"] * 3, completions=said)
    assert reward(prompts=[[]] * 3, completions=messages) == scores
    found = pipeline("text-classification", f"{run}/final", top_k=None)(said)
    expected = [next(o["score"] for o in one if o["label"] == "red") for one in found]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert np.add(scores, cost(prompts=["the"] * 3, completions=said)) == pytest.approx([1.0] * 3)
    assert 0 < reward(prompts=["the"], completions=[""])[0] < 1
    with pytest.raises(UserError, match="its labels are blue, red; name one"):
        load_reward_functions([f"{run}:green"], None, 2, "cpu")


def test_training_goes_on_to_the_same_weights(folder: Path) -> None:
    keys = {"freeze_backbone": True, "save_strategy": "steps", "save_steps": 20}
    train(folder, "llama", **keys)
    whole = load_file(folder / "run/final/model.safetensors")
    (folder / "run/summary.json").unlink()
    shutil.rmtree(folder / "run/final")
    newest = max((folder / "run").glob("checkpoint-*"), key=lambda one: int(one.name[11:]))
    shutil.rmtree(newest)
    train(folder, "llama", **keys, resume=True)
    again = load_file(folder / "run/final/model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_head_for_the_same_labels_goes_on_and_one_for_others_is_new(folder: Path) -> None:
    train(folder, "llama", learning_rate=3e-3)
    keys = {"num_train_epochs": 1, "learning_rate": 0.0}
    assert train(folder, "run", "again", **keys)["accuracy"] > 0.9
    before, after = (load_file(folder / f"{n}/final/model.safetensors") for n in ("run", "again"))
    assert torch.equal(before["score.weight"], after["score.weight"])
    more = [{"text": f"the cat {n} .", "label": "odd" if n % 2 else "even"} for n in range(120)]
    write(folder / "more.jsonl", more)
    others = {"dataset_name": str(folder / "more.jsonl"), "test_fraction": 24, **keys}
    assert train(folder, "run", "others", **others)["labels"] == ["even", "odd"]
    drawn = load_file(folder / "others/final/model.safetensors")["score.weight"]
    assert not torch.equal(drawn, before["score.weight"])


def test_a_head_keeps_the_order_of_its_labels(folder: Path) -> None:
    train(folder, "llama", learning_rate=3e-3)
    path = folder / "run/final/config.json"
    text = path.read_text().replace('"blue"', '"_"').replace('"red"', '"blue"')
    path.write_text(text.replace('"_"', '"red"'))
    summary = train(folder, "run", "again", num_train_epochs=1, learning_rate=0.0)
    assert summary["labels"] == ["red", "blue"]
    assert summary["accuracy"] < 0.1  # the names were turned round, and the head was not


def test_classes_of_the_datasets_library_have_their_names(folder: Path) -> None:
    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = [
        {"text": f"the {'red' if n % 2 else 'blue'} house {n}", "label": n % 2} for n in range(90)
    ]
    data = Dataset.from_list([*rows, {"text": " ", "label": 1}], features=kinds)
    data.save_to_disk(str(folder / "saved"))
    keys = {"dataset_name": str(folder / "saved"), "max_steps": 1, "test_fraction": 20}
    assert train(folder, "llama", **keys, on_bad_rows="drop")["labels"] == ["bad", "good"]
    unknown = Dataset.from_list([*rows, {"text": "a .", "label": -1}], features=kinds)
    unknown.save_to_disk(str(folder / "unknown"))
    with pytest.raises(UserError, match="column 'label' has -1, which is no label"):
        train(folder, "llama", "other", **keys | {"dataset_name": str(folder / "unknown")})


def test_the_mean_of_all_tokens_is_read_by_a_plain_model(folder: Path) -> None:
    source = masked(folder)["model_name_or_path"]  # whose files have no pooler
    keys = {"pooling": "mean", "freeze_backbone": True, "num_train_epochs": 30}
    summary = train(folder, "masked", **keys)
    assert summary["accuracy"] > summary["accuracy_frozen_features"] - 0.02
    words = PreTrainedTokenizerFast.from_pretrained(source)
    rows = words(["a red house .", "the dog saw the blue house ."], padding=True)
    rows = {key: torch.tensor(rows[key]) for key in ("input_ids", "attention_mask")}
    plain = BertForSequenceClassification.from_pretrained(folder / "run/final").eval()
    with torch.no_grad():
        states = BertModel.from_pretrained(source).eval()(**rows).last_hidden_state
        mask = rows["attention_mask"][..., None]
        means = torch.nn.functional.layer_norm((states * mask).sum(1) / mask.sum(1), (32,))
        read = plain.bert(**rows).pooler_output.atanh() * 3
    # A thousandth of the first state is left, which is some 1.6 times as long as the mean.
    torch.testing.assert_close(read, means, rtol=0.0, atol=1e-2)
    assert train(folder, "run", "again", pooling="mean", max_steps=1)["labels"] == ["blue", "red"]
    again = BertForSequenceClassification.from_pretrained(folder / "again/final")
    assert again.config.num_hidden_layers == plain.config.num_hidden_layers == 3
    with pytest.raises(UserError, match="pooling=mean: BERT has that, and llama does not"):
        train(folder, "llama", "other", pooling="mean")


def masked(folder: Path) -> dict[str, Any]:
    """A masked language model, whose files have no pooler."""
    config = BertConfig.from_pretrained(folder / "bert")
    BertForMaskedLM(config).save_pretrained(folder / "masked")
    for file in (folder / "bert").glob("tokenizer*"):
        shutil.copy(file, folder / "masked")
    return {"model_name_or_path": str(folder / "masked")}


def data(*rows: dict[str, Any], **more: Any) -> Callable[[Path], dict[str, Any]]:
    """Rows on which nothing can be trained."""

    def made(folder: Path) -> dict[str, Any]:
        return {"dataset_name": str(write(folder / "odd.jsonl", [*rows]))} | more

    return made


RED, BLUE = {"text": "a red house .", "label": "red"}, {"text": "a blue house .", "label": "blue"}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (masked, "do not hold bert.pooler.dense.bias, bert.pooler.dense.weight of the backbone"),
        (data({"text": "a"}, {"text": "b"}, test_fraction=1), "column 'label' is missing"),
        (data(RED, RED | {"text": "b"}, test_fraction=1), "the labels are ['red']"),
        (data(RED, BLUE, test_fraction=1), "there is nothing to tell apart"),
        (data(RED, BLUE, {"text": "c", "label": None}, test_fraction=1), "has None, which is no"),
        (lambda _: {"test_fraction": 0.0}, "test_fraction=0.0: a classifier is worth"),
        (lambda _: {"freeze_backbone": True, "use_peft": True}, "choose one of them"),
        (lambda _: {"dtype": "float16"}, "dtype=float16: steps of a classifier vanish"),
        (lambda _: {"load_in_4bit": True}, "load_in_4bit=true: classifiers are trained"),
        (lambda _: {"use_peft": True, "lora_target_modules": ["none"]}, "lora_target_modules="),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(
    folder: Path, made: Callable[[Path], dict[str, Any]], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        train(folder, "bert", **made(folder))
    assert told in str(caught.value)
    assert not (folder / "run").exists()


def test_a_label_of_test_rows_alone_is_refused(folder: Path) -> None:
    write(folder / "test.jsonl", [{"text": "a green house .", "label": "green"}])
    keys = {"test_dataset_name": str(folder / "test.jsonl"), "test_fraction": 0}
    with pytest.raises(UserError, match="test rows have the label 'green'"):
        train(folder, "bert", **keys)


def test_names_of_numbers_stay_in_their_order(folder: Path) -> None:
    rows = [{"text": f"the cat {n} .", "label": n % 12} for n in range(120)]
    write(folder / "numbers.jsonl", rows)
    keys = {"dataset_name": str(folder / "numbers.jsonl"), "max_steps": 1, "test_fraction": 24}
    assert train(folder, "llama", **keys)["labels"] == [*map(str, range(12))]
    assert np.isfinite(train(folder, "llama", "other", **keys)["log_loss"])
