"""NaN and infinity in logits, losses and weights: skipped and counted, or a stop that says why."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer

from recipes.lib.errors import UserError
from recipes.lib.generation.decoder import Decoder
from recipes.lib.generation.numerics import NotFiniteError
from recipes.lib.generation.sampling import (
    Decoding,
    episode_uniforms,
    generate,
    invert_cdf,
    pad_left,
)
from recipes.lib.ppo import trainer as ppo_trainer
from recipes.lib.ppo.rollouts import check_finite_scores
from recipes.lib.runs.checkpoints import checkpoint_fault, list_checkpoints
from recipes.lib.trainers import progress
from tests.helpers.stopped_runs import assert_same_runs, furnish, rows, train


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return furnish(tmp_path, tiny_model, tiny_tokenizer)


class PoisonedLogits(progress.RunCallback):
    """Adds a number to what logits are made of in some steps, or in what is sampled then."""

    number = math.nan
    steps: tuple[int, ...] = (1, 2)
    in_training = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        super().on_train_begin(args, state, control, **given)
        model = given["model"]
        # Before the head, which is fused with the loss under SFT and DPO.
        norms = [part for name, part in model.named_modules() if name.split(".")[-1] == "norm"]
        self.weights: dict[int, torch.Tensor] = {}
        self.weight = next(p for p in model.parameters() if p.requires_grad)

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            here = state.global_step in self.steps and torch.is_grad_enabled() == self.in_training
            return output + self.number if here else None

        for norm in norms:
            norm.register_forward_hook(hook)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.seen = self.weights.setdefault(state.global_step, self.weight.detach().clone())
        WEIGHTS[state.global_step] = self.seen


WEIGHTS: dict[int, torch.Tensor] = {}  # before each step


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("recipe", ["ppo", "sft", "dpo"])
def test_a_step_with_logits_that_are_not_finite_is_skipped_counted_and_kept(
    monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: str, number: float
) -> None:
    monkeypatch.setattr(progress, "RunCallback", type("P", (PoisonedLogits,), {"number": number}))
    train(recipe, folder, "run", logging_steps=1, eval_strategy="no")
    assert_skipped(folder / "run")


def assert_skipped(run: Path) -> None:
    """Steps 2 and 3 moved nothing; the others did, and every number that was logged is one."""
    assert torch.equal(WEIGHTS[1], WEIGHTS[2])
    assert torch.equal(WEIGHTS[2], WEIGHTS[3])
    assert not torch.equal(WEIGHTS[3], WEIGHTS[4])
    logged = [row for row in rows(run / "metrics.jsonl") if "loss" in row]
    assert [row.get("skipped_steps", 0) for row in logged] == [0, 1, *[2] * 8]
    kept = load_file(run / "faults/step-2-process-0.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    final = load_file(run / "final/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in final.values())


@pytest.mark.parametrize("recipe", ["ppo", "sft"])
def test_a_step_with_a_loss_that_is_not_finite_is_skipped(
    monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: str
) -> None:
    calls: list[int] = []
    micro_batches = 2  # of a step

    def poisoned(loss: Any) -> Any:
        calls.append(1)
        return loss * math.inf if len(calls) in (micro_batches + 1, 3 * micro_batches) else loss

    class Watching(PoisonedLogits):
        steps = ()

    if recipe == "ppo":
        of_batch = getattr(ppo_trainer, "micro_batch_loss")  # noqa: B009

        def micro_batch_loss(*given: Any) -> Any:
            loss, shares = of_batch(*given)
            return poisoned(loss), shares

        monkeypatch.setattr(ppo_trainer, "micro_batch_loss", micro_batch_loss)
    else:
        compute = SFTTrainer.compute_loss

        def compute_loss(self: Any, *given: Any, **named: Any) -> Any:
            return poisoned(compute(self, *given, **named))

        monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(progress, "RunCallback", Watching)
    train(recipe, folder, "run", logging_steps=1, eval_strategy="no")
    assert_skipped(folder / "run")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            "ppo",
            "rollout 2: the logits of 8 of 8 completions were NaN or infinite while they were "
            "sampled: the model's weights or number format overflowed; load it with dtype=float32",
        ),
        (
            "rloo",
            "the policy's logits were NaN or infinite while completions were sampled: its weights "
            "or its number format overflowed; load it with dtype=float32",
        ),
    ],
)
def test_nothing_is_sampled_from_logits_that_are_not_finite(
    monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: str, said: str
) -> None:
    plain = {"eval_strategy": "no"}
    train(recipe, folder, "whole", **plain)
    step = 4 if recipe == "ppo" else 8  # at which something is sampled
    with monkeypatch.context() as patch:
        given = {"steps": (step,), "in_training": False}
        patch.setattr(progress, "RunCallback", type("P", (PoisonedLogits,), given))
        ending = f".*; .*checkpoint-{step} holds where it stands, --resume goes on"
        with pytest.raises(UserError, match=said + ending):
            train(recipe, folder, "broken", **plain)
    assert [(at, checkpoint_fault(path)) for at, path in list_checkpoints(folder / "broken")] == [
        (step, None)
    ]
    train(recipe, folder, "broken", **plain, resume=True)
    assert_same_runs(folder / "whole", folder / "broken")


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    saved = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    saved |= {"eval_strategy": "no", "critic": "head"}

    class Overflow(progress.RunCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 4:
                head = next(p for n, p in given["model"].named_parameters() if "value" in n)
                head.data.fill_(math.inf)

    said = (
        "rollout 2: the values of the critic of 8 of 8 completions were NaN or infinite while they "
        "were scored: .*; the weights themselves are NaN or infinite, and .*checkpoint-3 is the "
        "newest checkpoint, --resume goes on"
    )
    with monkeypatch.context() as patch:
        patch.setattr(progress, "RunCallback", Overflow)
        with pytest.raises(UserError, match=said):
            train("ppo", folder, "run", **saved)
    assert [step for step, _ in list_checkpoints(folder / "run")] == [3]
    train("ppo", folder, "run", **saved, resume=True)
    train("ppo", folder, "whole", **saved)
    assert_same_runs(folder / "whole", folder / "run")


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_one_of_several_completions_is_enough_to_refuse_them(
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    greedy: bool,
    own_loop: bool,
) -> None:
    prompts = pad_left([[5, 6], [7, 8]], 0, "cpu")
    decoding = Decoding(4, 1.0, 2, 0)
    noise = None if greedy else episode_uniforms(0, range(2), 4)
    decoder = Decoder(tiny_model, decoding, 2, 6)

    def say() -> torch.Tensor:
        if own_loop:
            return decoder.sample(*prompts, noise)[0]
        return generate(tiny_model, *prompts, noise, decoding)[0]

    before = say()
    width: list[int] = []

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        width.append(1)
        output[1] = math.nan if len(width) == 2 else output[1]  # the second token of the second
        return output

    handle = tiny_model.lm_head.register_forward_hook(hook)
    with pytest.raises(NotFiniteError, match="the logits of 1 of 2 completions were NaN"):
        say()
    handle.remove()
    assert torch.equal(say(), before)  # nothing of it stays in the cache


def test_nan_picks_no_token_beyond_the_vocabulary() -> None:
    logits = torch.tensor([[0.0, math.nan, 0.0], [0.0, 1.0, 2.0]])
    picked = invert_cdf(logits, torch.tensor([0.5, 0.999]).double(), 1.0)
    assert picked.max() <= 2
    assert picked[1] == 2


def test_scores_count_where_a_token_is() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    good = torch.zeros(2, 3)
    padding = torch.tensor([[0.0, 0.0, math.nan], [0.0, math.inf, 0.0]])
    check_finite_scores(mask, good, padding, good)
    bad = torch.tensor([[0.0, -math.inf, 0.0], [0.0, 0.0, 0.0]])
    said = "the log-probabilities of the reference of 1 of 2 completions were NaN or infinite"
    with pytest.raises(NotFiniteError, match=said):
        check_finite_scores(mask, good, bad, good)
