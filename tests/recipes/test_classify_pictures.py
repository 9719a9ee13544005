"""Classifiers of pictures: folders, named files, frozen backbones, and what is no picture."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)

from recipes import classify
from recipes.lib.errors import UserError
from recipes.lib.pictures.files import open_picture
from recipes.lib.publishing.bundle import gather
from recipes.lib.publishing.card import write_card
from recipes.lib.publishing.fresh_process import answers
from recipes.lib.recipe.main import parse
from recipes.lib.rewards.loading import load_function
from recipes.lib.runs.files import read_jsonl
from tests.helpers.shapes import COLOURS, SHAPES, SIDE, picture
from tests.helpers.tiny_runs import FAST, write

OWN = {"learning_rate": 1e-2, "num_train_epochs": 8, "per_device_train_batch_size": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 6}
    small = ViTConfig(**vit, intermediate_size=64, image_size=SIDE)
    convolutions = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    models = {
        "vit": ViTForImageClassification(small),
        "resnet": ResNetForImageClassification(convolutions),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / name)
    draw, rows = random.Random(0), []
    for number in range(240):
        shape = SHAPES[number % 3]
        file = tmp_path / "shapes" / shape / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(shape, draw.choice([*COLOURS]), draw).save(file)
        rows.append({"image": f"shapes/{shape}/{number}.png", "label": shape})
    (tmp_path / "shapes/README.txt").write_text("What they are, as downloaded folders tell.")
    write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def train(folder: Path, model: str, name: str = "run", **values: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"model_name_or_path": str(folder / model), "test_fraction": 60}
    own |= {"output_dir": str(folder / name), "dataset_name": str(folder / "shapes")}
    return classify.run(parse("classify", [], FAST | OWN | own | values))


def check_saved(folder: Path, summary: dict[str, Any]) -> None:
    """What pipelines say of the test rows is what was measured, and the page shows the errors."""
    lines = read_jsonl(folder / "run/samples.jsonl")
    right = sum(line["label"] == line["predicted"] for line in lines) / len(lines)
    assert right == pytest.approx(summary["accuracy"])
    page = (folder / "run/report.html").read_text()
    wrong = len(lines) - sum(line["label"] == line["predicted"] for line in lines)
    assert page.count('<img src="data:image/png;base64,') == min(wrong, 6)
    assert "one on pixels" in page
    card = write_card(folder / "run", folder / "run/final")
    assert "pipeline_tag: image-classification" in card
    assert 'pipeline("image-classification", ' in card


@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_a_head_on_a_frozen_backbone_leaves_that_as_it_is(folder: Path, model: str) -> None:
    keys = {"freeze_backbone": True, "num_train_epochs": 60}
    summary = train(folder, model, **keys)
    assert summary["labels"] == [*SHAPES]
    assert summary["accuracy"] > summary["accuracy_frozen_features"] - 0.1  # of 60 rows
    check_saved(folder, summary)
    before = load_file(folder / model / "model.safetensors")
    after = load_file(folder / "run/final/model.safetensors")
    shared = [key for key in before if not key.startswith("classifier")]
    assert len(shared) > 15
    assert all(torch.equal(before[key], after[key]) for key in shared)  # running means, too


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("resnet", {}),
        ("vit", {"learning_rate": 3e-3}),
        ("vit", {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4}),
    ],
)
def test_what_is_saved_is_what_was_judged(folder: Path, model: str, keys: dict[str, Any]) -> None:
    summary = train(folder, model, dataset_name=str(folder / "rows.jsonl"), **keys)
    check_saved(folder, summary)
    final = str(folder / "run/final")
    judge = pipeline("image-classification", final, top_k=1)
    draw = random.Random(1)
    files = [(shape, picture(shape, draw.choice([*COLOURS]), draw)) for shape in SHAPES * 10]
    found = [one[0]["label"] for one in judge([one for _, one in files])]
    if not keys:
        assert sum(one == shape for one, (shape, _) in zip(found, files, strict=True)) >= 24
    assert gather(str(folder / "run")).faults == []
    logits, names = answers({"folder": final, "trust_remote_code": False}, final)
    assert logits.shape == (1, 3)
    assert names == [dict(enumerate(SHAPES))]


def test_lines_of_a_row_are_those_that_the_pipeline_gives(folder: Path) -> None:
    rows = read_jsonl(folder / "rows.jsonl")
    write(folder / "train.jsonl", rows[:180])
    write(folder / "test.jsonl", rows[180:])
    keys = {"dataset_name": str(folder / "train.jsonl"), "test_fraction": 0}
    train(folder, "resnet", **keys, test_dataset_name=str(folder / "test.jsonl"))
    judge = pipeline("image-classification", str(folder / "run/final"), top_k=1)
    said = judge([str(folder / row["image"]) for row in rows[180:]])
    lines = read_jsonl(folder / "run/samples.jsonl")
    assert [one[0]["label"] for one in said] == [line["predicted"] for line in lines]
    expected = [line["probability"] for line in lines]
    assert [one[0]["score"] for one in said] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="it reads pictures, and completions are texts"):
        load_function(f"{folder / 'run'}:circle")


def test_a_picture_is_turned_as_its_file_says(folder: Path) -> None:
    made, turned = Image.new("L", (4, 8), 9), Image.Exif()
    turned[0x0112] = 6  # a quarter to the right
    made.save(folder / "turned.jpg", exif=turned)
    seen = open_picture({"bytes": None, "path": str(folder / "turned.jpg")})
    assert (seen.size, seen.mode) == ((8, 4), "RGB")
    packed = {"bytes": (folder / "turned.jpg").read_bytes(), "path": None}
    assert open_picture(packed).size == (8, 4)


def test_bytes_in_parquet_and_rows_without_a_picture(folder: Path) -> None:
    rows = read_jsonl(folder / "rows.jsonl")
    packed = [{**row, "image": (folder / row["image"]).read_bytes()} for row in rows]
    Dataset.from_list([*packed, rows[0] | {"image": None}]).to_parquet(folder / "packed.parquet")
    keys = {"dataset_name": str(folder / "packed.parquet"), "max_steps": 1}
    with pytest.raises(UserError, match="column 'image' is empty in 1 of 241 rows"):
        train(folder, "resnet", **keys)
    summary = train(folder, "resnet", **keys, on_bad_rows="drop")
    assert summary["num_train"] + summary["num_test"] == len(rows)


def test_the_same_picture_is_not_on_both_sides(folder: Path) -> None:
    rows = read_jsonl(folder / "rows.jsonl")
    shutil.copy(folder / rows[0]["image"], folder / "other.png")
    write(folder / "test.jsonl", [rows[0] | {"image": "other.png"}])
    keys = {"dataset_name": str(folder / "rows.jsonl"), "test_fraction": 0}
    with pytest.raises(UserError, match="1 of 1 test rows are also training rows"):
        train(folder, "vit", **keys, test_dataset_name=str(folder / "test.jsonl"))


def test_what_is_no_picture_is_told_with_its_line(folder: Path) -> None:
    whole = (folder / "shapes/circle/0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture")
    rows = read_jsonl(folder / "rows.jsonl")
    broken = [{"image": f"{one}.png", "label": "circle"} for one in ("half", "text", "absent")]
    write(folder / "bad.jsonl", [*rows, *broken])
    keys = {"dataset_name": str(folder / "bad.jsonl")}
    with pytest.raises(UserError, match=r"half.png', which cannot be opened as a picture, in 3 of"):
        train(folder, "resnet", **keys)
    assert not (folder / "run").exists()
    summary = train(folder, "resnet", **keys, on_bad_rows="drop", max_steps=1)
    assert summary["num_train"] + summary["num_test"] == len(rows)
    write(folder / "texts.jsonl", [{"text": "a circle", "label": "circle"}] * 20)
    with pytest.raises(UserError, match="column 'image' is missing"):
        train(folder, "vit", "other", dataset_name=str(folder / "texts.jsonl"))


def test_a_model_that_classifies_nothing_is_refused(folder: Path) -> None:
    config = json.loads((folder / "vit/config.json").read_text())
    grey = ViTForImageClassification(ViTConfig(**config | {"num_channels": 1}))
    grey.save_pretrained(folder / "vit")
    with pytest.raises(UserError, match="its pictures have 1 channels"):
        train(folder, "vit")
    (folder / "vit/config.json").write_text(json.dumps({"model_type": "sam"}))
    with pytest.raises(UserError, match="no classifier of texts or pictures on sam"):
        train(folder, "vit")
