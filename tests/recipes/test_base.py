import json
from pathlib import Path
from typing import Any

import pytest

from recipes.base import run
from recipes.lib.errors import UserError
from recipes.lib.recipe.main import parse

TINY = {
    "num_texts": 64,
    "num_sft_train": 20,
    "num_sft_test": 5,
    "num_feedback_prompts": 6,
    "num_ppo_prompts": 7,
    "num_eval_prompts": 1,
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 2,
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 1,
}


def train(path: Path, **values: Any) -> dict[str, Any]:
    return run(parse("base", [], TINY | {"output_dir": str(path)} | values))


def losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_base_writes_a_chat_model_and_the_rows_of_the_later_stages(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = train(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    # Tied embedding 400 x 32; a layer: 4 x 32 x 32 attention, 3 x 32 x 48 MLP, 2 norms; last norm.
    expected = 400 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert summary["num_parameters"] == model.num_parameters() == expected
    assert tokenizer.eos_token == "<|end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    messages = [{"role": "user", "content": "Hello."}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>Hello.<|end|><|assistant|>"
    counts = {
        file.name: len(file.read_text().splitlines()) for file in (tmp_path / "run/data").iterdir()
    }
    assert counts == {
        "sft_train.jsonl": 20,
        "sft_test.jsonl": 5,
        "feedback_prompts.jsonl": 6,
        "ppo_prompts.jsonl": 7,
        "eval_prompts.jsonl": 1,
    }
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    shown = losses(tmp_path / "run")
    assert shown[-1] < shown[0]


def test_two_base_runs_with_one_seed_are_equal_to_the_bit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(tmp_path / name, max_steps=3, logging_steps=1)
    weights = [
        (tmp_path / name / "final/model.safetensors").read_bytes() for name in ("one", "two")
    ]
    assert weights[0] == weights[1]
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_heads", 3),
        ("num_heads", 0),
        ("vocab_size", 200),
        ("num_texts", 0),
        ("num_ppo_prompts", 20_000),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, key: str, value: int
) -> None:
    with pytest.raises(UserError, match=f"{key}={value}"):
        train(tmp_path / "run", **{key: value})
    assert not (tmp_path / "run").exists()


def test_a_model_trained_before_is_taken_as_it_is(tmp_path: Path) -> None:
    trained = train(tmp_path / "one", max_steps=2)
    taken = train(tmp_path / "two", trained=str(tmp_path / "one" / "final"))
    assert taken["num_parameters"] == trained["num_parameters"]
    files = {path.name for path in (tmp_path / "one/final").iterdir()}
    assert files == {path.name for path in (tmp_path / "two/final").iterdir()}
    for name in files:
        one, two = (tmp_path / run / "final" / name for run in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "two/data/ppo_prompts.jsonl").is_file()


def test_a_folder_without_weights_is_refused_as_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model"):
        train(tmp_path / "run", trained=str(tmp_path))
    assert not (tmp_path / "run").exists()


def test_the_shipped_model_is_the_one_that_its_configuration_describes() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipes.base import SHIPPED

    root = Path(__file__).parents[2]
    values = parse("base", ["--config", str(root / "configs/base/tales.yaml")]).values
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    described = {
        "vocab_size": model.config.vocab_size,
        "hidden_size": model.config.hidden_size,
        "intermediate_size": model.config.intermediate_size,
        "num_layers": model.config.num_hidden_layers,
        "num_heads": model.config.num_attention_heads,
    }
    assert {key: values[key] for key in described} == described
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 5 * 2**20
    text = "\u72d0\u72f8 lost a key \U0001f98a"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_shipped_model_knows_the_tales(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipes.base import SHIPPED
    from recipes.lib.models.likelihood import perplexity
    from recipes.lib.tasks.tales.rows import base_texts

    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    rows = [tokenizer(text)["input_ids"] for text in base_texts(64, seed=99)]
    # the last loss of its training was 0.715 nats a token: a perplexity of 2.04
    assert 1.8 < perplexity(model, rows, rows, 32) < 2.6
