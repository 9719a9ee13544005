"""The trainer against PPO written from the equations: rollout, loss and gradients of a batch."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import reference_ppo, tiny

SETTINGS = reference_ppo.Settings(
    temperature=0.8,
    kl_coef=0.3,
    gamma=0.95,
    lam=0.9,
    cliprange=0.1,
    cliprange_value=0.05,
    vf_coef=0.4,
    entropy_coef=0.05,
)


def logits_of(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits (T, V) that predict the completion, of a plain forward pass of one sequence."""
    return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]


def values_of(module: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids, places = torch.tensor([prompt + completion]), slice(len(prompt) - 1, -1)
    if module.critic is not None:
        hidden = module.critic.base_model(input_ids=ids).last_hidden_state
        return module.critic.score(hidden)[0, places, 0]
    hidden = module.policy.base_model(input_ids=ids).last_hidden_state
    return module.value_head(hidden.float())[0, places, 0]


@pytest.fixture(scope="module", params=["head", "model"])
def step(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One optimizer step of eight completions, by the trainer and by the reference."""
    more = {"per_device_train_batch_size": 8, "num_mini_batches": 1, "missing_eos_penalty": 0.7}
    # in float64, so that what differs is the arithmetic of PPO and not that of the network
    trainer = tiny.trainer(
        tmp_path_factory.mktemp("step"),
        tiny.llama().double(),
        critic=request.param,
        **(vars(SETTINGS) | more),
    )
    module = trainer.actor_critic
    tiny.shake(module, 0.05)
    trainer.collector.has_units = True  # a critic that has learned has them already
    old = copy.deepcopy(module)
    stream = iter(trainer.stream)
    next(stream)  # the first pass has ratio 1 everywhere
    batch, rollout = next(stream), trainer.stream.rollout
    tiny.shake(module, 0.05, seed=2)  # an update: ratios and values leave their ranges
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    episodes, rows = [], tiny.sequences(rollout)
    with torch.no_grad():
        for prompt, completion in rows:
            penalty = 0.0 if completion[-1] == 1 else 0.7
            episodes.append(
                reference_ppo.Episode(
                    score=sum(token % 3 == 0 for token in completion) / 2 - penalty,
                    tokens=completion,
                    old_logits=logits_of(old.policy, prompt, completion).numpy(),
                    ref_logits=logits_of(trainer.reference, prompt, completion).numpy(),
                    old_values=values_of(old, prompt, completion).numpy(),
                )
            )
    targets = reference_ppo.targets_of(episodes, SETTINGS)
    fresh = copy.deepcopy(module)
    fresh.zero_grad()
    logits = [logits_of(fresh.policy, *row) for row in rows]
    values = [values_of(fresh, *row) for row in rows]
    outcome = reference_ppo.update(
        episodes,
        targets,
        [row.detach().numpy() for row in logits],
        [row.detach().numpy() for row in values],
        SETTINGS,
    )
    # the hand-derived gradients of logits and values, carried back through the plain forward pass
    heads = [*outcome.logit_gradients, *outcome.value_gradients]
    outputs = [*logits, *values]
    gradients = [torch.from_numpy(g).to(o.dtype) for g, o in zip(heads, outputs, strict=True)]
    torch.autograd.backward(outputs, gradients)
    return {
        "rollout": rollout,
        "targets": targets,
        "loss": (loss.item(), outcome.loss),
        "sums": trainer.sums,
        "gradients": {n: p.grad for n, p in module.named_parameters()},
        "expected": {n: p.grad for n, p in fresh.named_parameters()},
    }


def test_advantages_and_returns_are_those_of_the_equations(step: dict[str, Any]) -> None:
    rollout, targets = step["rollout"], step["targets"]
    for name, ours in (
        ("advantages", rollout.advantages),
        ("returns", rollout.returns),
        ("old_logps", rollout.old_logps),
    ):
        for row, target in enumerate(targets):
            expected = getattr(target, name)
            got = ours[row].double().numpy()
            np.testing.assert_allclose(got[: len(expected)], expected, rtol=0, atol=1e-6)
            assert (got[len(expected) :] == 0).all()
    assert max(abs(target.advantages).max() for target in targets) > 1.0


def test_the_loss_is_that_of_the_equations_with_clipping_at_work(step: dict[str, Any]) -> None:
    ours, expected = step["loss"]
    assert ours == pytest.approx(expected, abs=1e-6)
    assert abs(expected) > 0.01
    assert 0.05 < step["sums"]["policy/clipfrac_avg"] < 0.95
    assert 0.01 < step["sums"]["val/clipfrac_avg"] < 0.99


def test_every_gradient_is_the_one_derived_by_hand(step: dict[str, Any]) -> None:
    assert step["gradients"].keys() == step["expected"].keys()
    sizes = []
    for name, expected in step["expected"].items():
        # log-probabilities and values are rounded to fp32 on the way, nothing else is
        assert torch.allclose(step["gradients"][name].to(expected), expected, atol=1e-6), name
        sizes.append(expected.abs().max().item())
    assert min(sizes) > 1e-4
