import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.errors import UserError
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.recipe.main import parse
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.runs.files import read_jsonl
from recipes.reward import run
from tests.helpers.tiny_runs import FAST, LORA, write

SUBJECTS = ("cat", "dog", "bird", "child", "sun", "moon", "rain", "tree")


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [
        {"prompt": f"the {subject}", "chosen": f" {verb} happy .", "rejected": f" {verb} sad ."}
        for subject in SUBJECTS
        for verb in ("was", "sat", "ran", "is")
    ]
    write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def train(folder: Path, name: str, **values: Any) -> dict[str, Any]:
    tiny = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "rows.jsonl"),
        "test_fraction": 0.25,
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "output_dir": str(folder / name),
    }
    return run(parse("reward", [], FAST | tiny | values))


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_a_run_learns_the_order_and_its_final_model_scores_as_written(
    folder: Path, method: dict[str, Any]
) -> None:
    summary = train(folder, "run", **method)
    rows = read_jsonl(folder / "run" / "samples.jsonl")
    assert len(rows) == 8
    assert summary["accuracy"] == 1.0 == summary["accuracy_bag_of_words"]
    assert "accuracy_ceiling" not in summary
    assert (folder / "run" / "final" / "adapter_config.json").is_file() == bool(method)
    model, tokenizer = load_reward_model(str(folder / "run"))
    scorer = RewardModel(model, tokenizer, "again", 3)
    for side in ("chosen", "rejected"):
        again = scorer([row["prompt"] for row in rows], [row[side] for row in rows])
        assert again == pytest.approx([row[f"score_{side}"] for row in rows], abs=1e-4)
    margins = [row["score_chosen"] - row["score_rejected"] for row in rows]
    assert summary["margin"] == pytest.approx(sum(margins) / 8)


def test_equal_scores_have_the_loss_of_a_coin(folder: Path) -> None:
    # With a learning rate of zero and a zero head every margin is 0: -log sigmoid(0) = ln 2.
    model, tokenizer = load_reward_model(str(folder / "tiny"), new_head=True)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder / "zero")
    tokenizer.save_pretrained(folder / "zero")
    values = {"model_name_or_path": str(folder / "zero"), "learning_rate": 0.0, "max_steps": 1}
    summary = train(folder, "run", **values)
    assert summary["train_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["accuracy"] == 0.5  # all ties
    assert summary["margin"] == 0.0


def test_the_ceiling_is_one_minus_the_mean_noise_of_the_test_rows(folder: Path) -> None:
    rows = read_jsonl(folder / "rows.jsonl")
    write(folder / "train.jsonl", rows[:24])
    noises = [0.0, 0.1, 0.2, 0.5, 0.0, 0.1, 0.2, 0.5]
    tests = [row | {"noise": noise} for row, noise in zip(rows[24:], noises, strict=True)]
    write(folder / "test.jsonl", tests)
    summary = train(
        folder,
        "run",
        max_steps=1,
        test_fraction=0.0,
        dataset_name=str(folder / "train.jsonl"),
        test_dataset_name=str(folder / "test.jsonl"),
    )
    assert summary["accuracy_ceiling"] == pytest.approx(1 - 1.6 / 8)


def test_lora_trains_adapter_and_head_and_nothing_else(folder: Path) -> None:
    from safetensors.torch import load_file

    train(folder, "run", **LORA)
    saved = load_file(folder / "run" / "final" / "adapter_model.safetensors")
    assert all("lora" in name or name.endswith("score.weight") for name in saved)
    assert sum("score" in name for name in saved) == 1
    model, _ = load_reward_model(str(folder / "run"))
    base = load_file(folder / "tiny" / "model.safetensors")
    weight = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(weight, base["model.layers.0.self_attn.q_proj.weight"])


def test_two_runs_with_one_seed_are_bit_equal(folder: Path) -> None:
    train(folder, "one", max_steps=3)
    train(folder, "two", max_steps=3)
    one, two = (read_jsonl(folder / name / "samples.jsonl") for name in ("one", "two"))
    assert one == two


def test_a_stopped_run_resumes_to_the_same_scores(folder: Path) -> None:
    import shutil

    keep = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    train(folder, "whole", **keep)
    train(folder, "cut", **keep)
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(folder / "cut" / name)
    (folder / "cut" / "summary.json").unlink()
    train(folder, "cut", **keep, resume=True)
    whole, cut = (read_jsonl(folder / name / "samples.jsonl") for name in ("whole", "cut"))
    assert whole == cut


def test_conversations_and_a_prompt_inside_chosen(folder: Path) -> None:
    def turns(row: dict[str, str], side: str) -> list[dict[str, str]]:
        user = {"role": "user", "content": row["prompt"]}
        return [user, {"role": "assistant", "content": row[side].strip()}]

    rows = [
        {side: turns(row, side) for side in ("chosen", "rejected")}
        for row in read_jsonl(folder / "rows.jsonl")
    ]
    write(folder / "chat.jsonl", rows)
    summary = train(folder, "run", dataset_name=str(folder / "chat.jsonl"))
    assert summary["accuracy"] == 1.0
    sample = read_jsonl(folder / "run" / "samples.jsonl")[0]
    assert sample["chosen"].startswith("user: the ")
    assert "assistant: " in sample["chosen"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"test_fraction": 0.0}, "set test_fraction"),
        ({"global_batch_size": 12}, "global_batch_size=12: not a multiple of 8"),
        ({"dataset_name": "prompts.jsonl"}, "column 'chosen' is missing"),
    ],
)
def test_mistakes_are_told_and_leave_no_folder(
    folder: Path, values: dict[str, Any], text: str
) -> None:
    write(folder / "prompts.jsonl", [{"prompt": str(row)} for row in range(8)])
    if "dataset_name" in values:
        values = {"dataset_name": str(folder / values["dataset_name"])}
    with pytest.raises(UserError, match=text):
        train(folder, "run", **values)
    assert not (folder / "run").exists()


def test_bag_of_words_cannot_learn_an_order_of_words() -> None:
    from datasets import Dataset

    from recipes.lib.evaluation.pair_scores import bag_of_words_accuracy

    swaps = [(f"a {x} b {y}", f"b {y} a {x}") for x in "pqr" for y in "stu"]
    same_words = Dataset.from_list([{"chosen": one, "rejected": two} for one, two in swaps])
    assert bag_of_words_accuracy(same_words, same_words) == 0.5  # every difference is zero
    words = Dataset.from_list([{"chosen": f"good {x}", "rejected": f"bad {x}"} for x in "pqrs"])
    other = Dataset.from_list([{"chosen": "bad z", "rejected": "good z"}, words[0]])
    assert bag_of_words_accuracy(words, other) == 0.5  # one wrong, one right
    assert bag_of_words_accuracy(words, words) == 1.0
    faults = Dataset.from_list([{"chosen": f"{x}", "rejected": f"bad {x}"} for x in "pqrs"])
    assert bag_of_words_accuracy(faults, faults) == 1.0  # what the rejected side alone tells


def test_a_real_story_model_learns_the_polarity_of_sentences(shared: Path, tmp_path: Path) -> None:
    from recipes.sft import run as run_sft

    run_sft(
        parse(
            "sft",
            [],
            FAST
            | {
                "model_name_or_path": str(shared / "models" / "stories260K"),
                "dataset_name": str(shared / "data" / "sft" / "tinystories_pc.jsonl"),
                "max_length": 128,
                "test_fraction": 0,
                "max_steps": 5,
                "per_device_train_batch_size": 8,
                "learning_rate": 5e-4,
                "output_dir": str(tmp_path / "sft"),
            },
        )
    )
    summary = run(
        parse(
            "reward",
            [],
            FAST
            | {
                "model_name_or_path": str(tmp_path / "sft"),
                "dataset_name": str(
                    shared / "data" / "preference" / "sentence_polarity_pairs.jsonl"
                ),
                "test_fraction": 0.1,
                "max_length": 96,
                "max_train_rows": 1920,
                "num_train_epochs": 1,
                "per_device_train_batch_size": 16,
                "learning_rate": 2e-3,
                "warmup_steps": 10,
                "output_dir": str(tmp_path / "reward"),
            },
        )
    )
    accuracy, words = summary["accuracy"], summary["accuracy_bag_of_words"]
    print(f"accuracy {accuracy:.3f}, bag of words {words:.3f}, {summary['seconds']} s")
    # 533 test pairs: a coin has a standard error of 0.022, so 0.57 is three of them above it.
    assert accuracy > 0.57
    assert 0.6 < words < 0.85


def newton(differences: torch.Tensor, inverse: float) -> torch.Tensor:
    """Ridge logistic regression by Newton's method in float64: the gradient is zero at the end."""
    weights = torch.zeros(differences.shape[1], dtype=torch.float64)
    for _ in range(100):
        wrong = torch.sigmoid(-(differences @ weights))
        gradient = weights - inverse * differences.T @ wrong
        curvature = differences.T * (wrong * (1 - wrong)) @ differences
        hessian = torch.eye(len(weights), dtype=torch.float64) + inverse * curvature
        weights = weights - torch.linalg.solve(hessian, gradient)
    assert gradient.norm() < 1e-10
    return weights


def test_frozen_features_are_a_regression_and_a_reward_model(folder: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def words(good: int) -> str:
        chosen = torch.randint(len(SUBJECTS), (4,), generator=generator).tolist()
        last = ("happy", "sad")[int(torch.rand((), generator=generator) > (0.3, 0.7)[good])]
        return "".join(f" {SUBJECTS[n]}" for n in chosen) + f" {last} ."

    rows = [{"prompt": "the cat", "chosen": words(1), "rejected": words(0)} for _ in range(120)]
    write(folder / "train.jsonl", rows[:80])
    write(folder / "test.jsonl", rows[80:])
    data = {"dataset_name": str(folder / "train.jsonl"), "test_fraction": 0.0}
    data["test_dataset_name"] = str(folder / "test.jsonl")
    summary = train(folder, "run", frozen_features=True, max_steps=2, **data)

    base = LlamaForCausalLM.from_pretrained(folder / "tiny").model.eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tiny")

    @torch.no_grad()
    def last_state(row: dict[str, str], side: str) -> torch.Tensor:
        ids = tokenizer(row["prompt"] + row[side] + "<eos>", return_tensors="pt")["input_ids"]
        return base(input_ids=ids).last_hidden_state[0, -1].double()

    sides = {s: torch.stack([last_state(row, s) for row in rows]) for s in ("chosen", "rejected")}
    differences = sides["chosen"] - sides["rejected"]
    fitted, tested = differences[:80], differences[80:]
    scale = fitted.square().mean(0).sqrt()
    held_out = torch.arange(80) % 5 == 4
    strengths = [10.0**power for power in range(-4, 2)]
    losses = []
    for strength in strengths:
        margins = (fitted[held_out] / scale) @ newton(fitted[~held_out] / scale, strength)
        losses.append(torch.nn.functional.softplus(-margins).mean().item())
    best = strengths[losses.index(min(losses))]
    weights = newton(fitted / scale, best) / scale
    accuracy = (tested @ weights > 0).double().mean().item()
    assert 0.5 < accuracy < 1  # or it would tell nothing
    assert summary["accuracy_frozen_features"] == pytest.approx(accuracy, abs=1e-6)

    program = (
        "import json, sys\n"
        "from recipes.lib.rewards.reward_models import load_reward_functions\n"
        "rows = json.loads(sys.stdin.read())\n"
        "model = load_reward_functions(sys.argv[1], None, 8, 'cpu')[0]\n"
        "print(json.dumps(model([r['prompt'] for r in rows], [r['chosen'] for r in rows])))\n"
    )
    asked = [sys.executable, "-c", program, str(folder / "run" / "frozen_features")]
    told = subprocess.run(asked, input=json.dumps(rows), text=True, capture_output=True, check=True)
    expected = (sides["chosen"] @ weights).tolist()
    assert json.loads(told.stdout.splitlines()[-1]) == pytest.approx(expected, abs=2e-4)
