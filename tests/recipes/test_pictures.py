"""SFT, DPO and GRPO of a model that reads pictures: seen, adapted, resumed, handed on, refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes import data, dpo, grpo, kto, merge, ppo, sft
from recipes.lib.errors import UserError
from recipes.lib.models.vision import load_processor
from recipes.lib.publishing.card import write_card
from recipes.lib.publishing.fresh_process import answers
from recipes.lib.recipe.main import parse
from recipes.lib.runs.files import read_jsonl
from tests.helpers.shapes import COLOURS, TEMPLATE, make_llava, write_pictures
from tests.helpers.tiny_runs import FAST, LORA, write

RUNS: dict[str, Callable[..., Any]] = {"sft": sft.run, "dpo": dpo.run, "grpo": grpo.run}
RUNS |= {"kto": kto.run, "ppo": ppo.run}
REWARD = '''
def colour(prompts, completions, answer, images, **columns):
    """Whether the colour is right, by a reward that looks at the picture, too."""
    assert all(one[0].size == (24, 24) and len(one) == 1 for one in images)
    said = [one[-1]["content"] for one in completions]
    return [float(answer.split()[1] in text) for text, answer in zip(said, answer)]
'''
SHORT = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
GROUPS = {"num_generations": 4, "max_completion_length": 6, "per_device_train_batch_size": 16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_llava(tmp_path / "llava")
    rows = write_pictures(tmp_path, 96)
    write(tmp_path / "sft.jsonl", rows)
    wrong = [*COLOURS]
    pairs = []
    for row in rows:
        said = row["completion"][0]["content"]
        other = next(one for one in wrong if one not in said)
        rejected = [{"role": "assistant", "content": f"a {other} circle ."}]
        pairs.append({key: row[key] for key in ("images", "prompt")})
        pairs[-1] |= {"chosen": row["completion"], "rejected": rejected}
    write(tmp_path / "pairs.jsonl", pairs)
    prompts = [
        {"image": r["images"][0], "prompt": r["prompt"], "answer": r["completion"][0]["content"]}
        for r in rows
    ]
    write(tmp_path / "prompts.jsonl", prompts)
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


def train(recipe: str, name: str, rows: str, **values: Any) -> dict[str, Any]:
    own = {"model_name_or_path": "llava", "output_dir": name, "dataset_name": f"{rows}.jsonl"}
    found: dict[str, Any] = RUNS[recipe](parse(recipe, [], FAST | SHORT | own | values))
    return found


def logits(folder: str) -> torch.Tensor:
    """What a model says of the first picture."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    asked = [{"type": "image"}, {"type": "text", "text": "what is this ?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True
    )
    batch = processor(images=[Image.open("pictures/0.png")], text=text, return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 36
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def test_sft_sees_the_pictures_and_shows_them(folder: Path) -> None:
    summary = train("sft", "run", "sft", max_steps=100, test_fraction=8, num_samples=3)
    assert summary["eval_loss"] < 0.43  # (log 4 + log 3) / 5 = 0.50 where both are a guess
    samples = read_jsonl(folder / "run/samples.jsonl")
    assert [one["image"][:22] for one in samples] == ["data:image/png;base64,"] * 3
    assert (folder / "run/report.html").read_text().count("<img src") == 3
    card = write_card(folder / "run", folder / "run/final")
    assert "pipeline_tag: image-text-to-text" in card
    said, _ = answers({"folder": "run/final", "trust_remote_code": False}, "run/final")
    assert said.shape[1] == 8
    blank = folder / "pictures/0.png"
    first = logits("run/final")
    shutil.copy("pictures/1.png", blank)
    assert not torch.equal(first, logits("run/final"))


def test_lora_stands_in_the_language_half_and_is_merged(folder: Path) -> None:
    train("sft", "run", "sft", **LORA | {"lora_target_modules": ["all-linear"]})
    names = list(load_file("run/final/adapter_model.safetensors"))
    assert names
    assert all(".language_model." in name for name in names)
    merge.run(parse("merge", [], {"run": "run", "output_dir": "merged"}))
    torch.testing.assert_close(logits("merged/final"), logits("run/final"), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits("merged/final"), logits("llava"), atol=1e-3)
    train("dpo", "next", "pairs", model_name_or_path="run", **LORA)


@pytest.mark.parametrize(
    ("recipe", "rows"), [("sft", "sft"), ("dpo", "pairs"), ("grpo", "prompts")]
)
def test_a_resumed_run_is_equal_to_the_bit(folder: Path, recipe: str, rows: str) -> None:
    keys: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_train_rows": 64}
    if recipe == "grpo":
        keys |= GROUPS | {"reward_funcs": ["rewards.py:colour"]}
    summary = train(recipe, "run", rows, **keys)
    if recipe == "dpo":
        assert train(recipe, "tested", rows, **keys, test_fraction=8)["accuracy"] > 0.5
    whole = load_file("run/final/model.safetensors")
    start = load_file("llava/model.safetensors")
    assert any(not torch.equal(whole[name], start[name]) for name in whole if "vision" in name)
    shutil.rmtree("run/final")
    shutil.rmtree("run/checkpoint-4")
    (folder / "run/summary.json").unlink()
    again = train(recipe, "run", rows, **keys, resume=True)
    assert all(
        torch.equal(whole[name], w) for name, w in load_file("run/final/model.safetensors").items()
    )
    assert again.get("scores") == summary.get("scores")


def test_rows_may_have_several_pictures_or_none(folder: Path) -> None:
    rows = read_jsonl(folder / "sft.jsonl")[:24]
    rows[1]["images"] = [rows[1]["images"][0], rows[2]["images"][0]]
    rows[2]["images"], rows[3]["images"] = [], None
    write(folder / "mixed.jsonl", rows)
    summary = train("sft", "run", "mixed", test_fraction=4, num_samples=4, max_length=96)
    assert summary["num_rows_left_out"] == 0
    assert len(read_jsonl(folder / "run/samples.jsonl")) == 4
    write(folder / "test.jsonl", [rows[2] | {"prompt": [{"role": "user", "content": "what ?"}]}])
    train("sft", "other", "sft", test_dataset_name="test.jsonl", num_samples=1)
    (shown,) = read_jsonl(folder / "other/samples.jsonl")
    assert "image" not in shown


def test_rlhf_data_says_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"dataset_name": "sft.jsonl", "model_name_or_path": "llava"}
    data.run(parse("data", [], keys))
    assert "96 in 96 rows, 24 by 24 to 24 by 24 pixels" in " ".join(capsys.readouterr().out.split())
    (folder / "pictures/3.png").write_bytes(b"no picture")
    data.run(parse("data", [], keys))
    said = " ".join(capsys.readouterr().out.split())
    assert "which cannot be opened as a picture: 1, first in line 4" in said


def small_context(folder: Path) -> None:
    config = json.loads((folder / "llava/config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 32
    (folder / "llava/config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("recipe", "rows", "keys", "told"),
    [
        ("kto", "pairs", {}, "it reads pictures, and is shown none here; sft, dpo and grpo"),
        ("ppo", "prompts", {}, "it reads pictures, and is shown none here"),
        ("sft", "texts", {}, "it reads pictures, and is shown none here"),
        ("sft", "sft", {"streaming": True}, "it reads pictures, and is shown none here"),
        ("sft", "sft", {"max_length": 16}, "max_length or the model's context (16), in 88 of 88"),
        ("sft", "long", {"max_length": 50}, "(50), in 19 of 20 rows, first in line 2"),
        ("dpo", "whole", {}, "have to be messages, in prompt and completion"),
        ("sft", "plain", {}, "have to be messages, in prompt and completion"),
        ("grpo", "some", GROUPS, "line 2 of some.jsonl has no picture, and others do"),
        ("grpo", "prompts", GROUPS | {"max_completion_length": 100}, "has 142 tokens with its"),
        ("sft", "sft", {"test_dataset_name": "texts.jsonl"}, "only one side has pictures"),
        ("sft", "paths", {}, "column 'images' holds Value('string'), and not a list of pictures"),
        ("sft", "deep", {}, "which cannot be opened as a picture, in 1 of 20 rows"),
        ("sft", "sft", {"use_peft": True, "lora_target_modules": ["fc1"]}, "it stands outside of"),
        ("sft", "sft", {"chat_template_path": "open.jinja"}, "does not end an answer with it"),
        ("sft", "sft", {"packing": True}, "Packing is not supported for vision datasets"),
        ("sft", "broken", {}, "which cannot be opened as a picture, in 1 of 20 rows"),
    ],
)
def test_what_is_not_shown_is_refused_in_a_sentence(
    folder: Path, recipe: str, rows: str, keys: dict[str, Any], told: str
) -> None:
    made = read_jsonl(folder / "sft.jsonl")[:20]
    write(folder / "texts.jsonl", [{k: r[k] for k in ("prompt", "completion")} for r in made])
    write(folder / "broken.jsonl", [*made[:19], made[0] | {"images": ["pictures/none.png"]}])
    both = [{"images": r["images"], "chosen": r["prompt"] + r["completion"]} for r in made]
    other = [{"role": "assistant", "content": "a ."}]
    write(folder / "whole.jsonl", [r | {"rejected": made[0]["prompt"] + other} for r in both])
    texts = {"prompt": "what is this ?", "completion": "a red square ."}
    write(folder / "plain.jsonl", [r | texts for r in made])
    asked = [{"role": "user", "content": "what is this ? " * 10}]
    write(folder / "long.jsonl", [made[0], *(r | {"prompt": asked} for r in made[1:])])
    prompts = read_jsonl(folder / "prompts.jsonl")[:20]
    write(folder / "some.jsonl", [prompts[0], prompts[1] | {"image": None}, *prompts[2:]])
    write(folder / "paths.jsonl", [r | {"images": r["images"][0]} for r in made])
    Image.new("I;16", (24, 24), 40_000).save(folder / "pictures/deep.png")
    write(folder / "deep.jsonl", [made[0] | {"images": ["pictures/deep.png"]}, *made[1:]])
    (folder / "open.jinja").write_text(TEMPLATE.replace(" <eos>", ""))
    if recipe in ("grpo", "ppo"):
        keys = keys | {"reward_funcs": ["rewards.py:colour"]}
    if recipe == "ppo":
        keys = {"reward_funcs": ["rewards.py:colour"], "total_episodes": 16, "max_steps": -1}
        keys |= {"rollout_batch_size": 16, "num_mini_batches": 1}
    with pytest.raises(UserError) as caught:
        train(recipe, "run", rows, **keys)
    assert told in str(caught.value)
    assert not (folder / "run").exists()


def test_a_context_without_room_for_pictures_is_refused(folder: Path) -> None:
    small_context(folder)
    with pytest.raises(UserError, match=r"max_length or the model's context \(32\), in 88 of 88"):
        train("sft", "run", "sft")


def test_a_processor_that_needs_what_is_not_here_is_refused(folder: Path) -> None:
    from trl import ModelConfig

    file = folder / "llava/processor_config.json"
    config = json.loads(file.read_text())
    config["processor_class"] = "Qwen2_5_VLProcessor"
    file.write_text(json.dumps(config))
    args = ModelConfig(model_name_or_path="llava")
    with pytest.raises(UserError, match="no processor of pictures can be loaded from it"):
        load_processor(args, None, trust_remote_code=False)
