"""Shards in bf16, as on a card: what is said is not rounded, and what is saved was trained."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from recipes.lib.evaluation.pair_scores import scores_of
from recipes.lib.models.classifiers import load_reward_model
from recipes.lib.rewards.reward_models import RewardModel
from recipes.lib.runs.files import read_jsonl
from tests.distributed.test_recipes_on_two import timeless
from tests.helpers.distributed.runs_on_two import (
    NOUNS,
    RUNS,
    fill,
    inside,
    needs_deepspeed,
    on_two,
    weights,
)
from tests.helpers.tiny_runs import flags, write

PPO = ("ppo_head", "ppo_adapter", "ppo_model")
# bf16 keeps 8 bits, so a logit between 4 and 8 is off by up to 2**-7 = 0.008 nats when it is
# rounded, and layers that are computed in it do so several times over.
ROUNDING = 0.1
SHORT = {"bf16": True, "use_cpu": False, "total_episodes": 16}
KEPT = {"save_strategy": "steps", "save_steps": 1}


def words_of(name: str, **more: Any) -> list[str]:
    recipe, values = (
        name.partition("_")[0],
        RUNS[name] | SHORT | {"output_dir": name, "save_strategy": "no"} | more,
    )
    if recipe != "ppo":
        del values["total_episodes"]
    return [recipe, *flags(values)]


# DeepSpeed's are long tests, as in test_recipes_on_two.py.
ZERO2, ZERO3 = (pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))


@pytest.fixture(scope="module", params=["fsdp2", ZERO2, ZERO3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, the last of them resumed behind its first step."""
    there = tmp_path_factory.mktemp("on") / request.param
    needs_deepspeed(request.param)
    fill(there, use_cpu=False)
    pairs = [{"prompt": "the", "chosen": f" {noun}", "rejected": f" {noun} was"} for noun in NOUNS]
    write(there / "test_pairs.jsonl", pairs[:5])
    words = [words_of("sft"), words_of("reward", test_dataset_name="test_pairs.jsonl")]
    words += [words_of("ppo_adapter"), words_of("ppo_model")]
    words += [words_of("ppo_head", **KEPT), ["cut", "ppo_head", "resumed"]]
    words += [[*words_of("ppo_head", output_dir="resumed", **KEPT), "--resume"]]
    (there / "runs.json").write_text(json.dumps(words))
    done = on_two(there, request.param)
    assert done.returncode == 0, done.stderr[-3000:]
    return there


def said(folder: Path, run: str) -> list[dict[str, Any]]:
    """What the losses of both processes were made of."""
    files = [folder / f"notes{rank}.pt" for rank in (0, 1)]
    return [loss for file in files for loss in torch.load(file, weights_only=True)[run]]


def of_one_process(model: Any, loss: dict[str, Any]) -> Tensor:
    """Log-probabilities of completion tokens, in bf16 as one process computes in it, nats."""
    ids = torch.cat([loss["prompt_ids"], loss["completion_ids"]], dim=1)
    mask = torch.cat([loss["prompt_mask"], loss["completion_mask"]], dim=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    before = logits[:, -loss["completion_ids"].shape[1] - 1 : -1].float().log_softmax(-1)
    return before.gather(-1, loss["completion_ids"].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("name", PPO)
def test_the_loss_of_ppo_gets_log_probabilities_and_values_in_fp32(name: str, folder: Path) -> None:
    losses = said(folder, name)
    assert len(losses) == 8  # two steps of two micro-batches on each process
    for loss in losses:
        counts = loss["completion_mask"].bool()
        for key in ("logps", "values"):
            assert loss[key].dtype == torch.float32
            assert loss[key][counts].isfinite().all()
        is_coarse = loss["logps"][counts] == loss["logps"][counts].bfloat16().float()
        assert not is_coarse.all()


@pytest.mark.parametrize("name", PPO)
def test_log_probabilities_are_those_of_one_process_in_bf16(name: str, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    first = [loss for loss in said(folder, name) if loss["rollout_number"] == 0]
    for loss in first:
        counts = loss["completion_mask"].bool()
        expected = of_one_process(model, loss)
        assert (loss["logps"] - expected)[counts].abs().max() < ROUNDING
        # And sampling said the same, where the weights are gathered once and not layer by layer.
        # Without bf16 products in hardware they are rounded otherwise in batches of another shape:
        # by at most a step of bf16, which is 2 ** -6 for numbers from 2 to 4.
        assert torch.allclose(loss["logps"][counts], loss["old_logps"][counts], atol=2**-6)


@pytest.mark.parametrize("name", ["sft", "reward", *PPO])
def test_runs_in_bf16_end_with_finite_weights_that_moved(name: str, folder: Path) -> None:
    start = weights(folder / "model")
    final = weights(folder / name / "final")
    assert all(tensor.isfinite().all() for tensor in final.values())
    still = [key for key, t in final.items() if key in start and torch.equal(t, start[key])]
    if folder.name.startswith("zero"):  # final/ is in 16 bits, which round what norms have moved
        assert len(still) < len(final) / 2
        still = [key for key in still if "norm" not in key]
    assert still == []
    for row in read_jsonl(folder / name / "metrics.jsonl"):
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, (int, float)))


@pytest.mark.parametrize("name", PPO)
def test_the_policy_begins_where_its_reference_is(name: str, folder: Path) -> None:
    rows = [row for row in read_jsonl(folder / name / "metrics.jsonl") if "objective/kl" in row]
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)


def test_values_are_finer_than_bf16(folder: Path) -> None:
    # Values of a second rollout are no more the constant that a critic of zeros begins with.
    later = [loss for loss in said(folder, "ppo_head") if loss["rollout_number"] == 1]
    values = torch.cat([loss["values"][loss["completion_mask"].bool()] for loss in later])
    assert len(values.unique()) > 1
    assert not torch.equal(values, values.bfloat16().float())


def test_the_loss_in_the_logs_is_not_rounded(folder: Path) -> None:
    told = json.loads((folder / "sft/summary.json").read_text())
    # Of all test rows in one batch both are the same mean over tokens.
    assert told["eval_loss"] == pytest.approx(math.log(told["perplexity"]), abs=1e-4)


def test_a_reward_model_of_fsdp2_is_saved_in_fp32_and_scores_the_same(folder: Path) -> None:
    with inside(folder):
        model, tokenizer = load_reward_model("reward/final", "float32")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    rows = read_jsonl(folder / "reward/samples.jsonl")
    pairs: Any = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    found = scores_of(RewardModel(model, tokenizer, "reward"), pairs)
    for row, scored in zip(rows, found, strict=True):
        assert scored == pytest.approx((row["score_chosen"], row["score_rejected"]), abs=0.05)


def test_test_pairs_are_dealt_out_and_come_back_in_order(folder: Path) -> None:
    shares = [torch.load(folder / f"notes{rank}.pt", weights_only=True) for rank in (0, 1)]
    counts = [[scored["pairs"] for scored in share["scored"]] for share in shares]
    # Under ZeRO-3 both score all, in step.
    assert counts == ([[5], [5]] if folder.name == "zero3" else [[3], [2]])
    rows = read_jsonl(folder / "reward/samples.jsonl")
    assert [row["chosen"] for row in rows] == [f" {noun}" for noun in NOUNS[:5]]


def test_a_checkpoint_in_bf16_resumes_to_the_bit(folder: Path) -> None:
    whole, resumed = (weights(folder / name / "final") for name in ("ppo_head", "resumed"))
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
    rows = [timeless(read_jsonl(folder / n / "metrics.jsonl")) for n in ("ppo_head", "resumed")]
    assert rows[0] == rows[1]
