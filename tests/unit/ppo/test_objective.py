"""The objective against hand-worked values, torch.distributions and any split of a batch."""

import torch

from recipes.lib.models.forward import logps_and_entropy
from recipes.lib.ppo.objective import policy_loss, value_loss


def test_item_10_logps_and_entropy_are_those_of_a_categorical_distribution() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(3, 4, 7, dtype=torch.bfloat16), torch.randint(7, (3, 4))
    reference = torch.distributions.Categorical(logits=logits.double() / 0.7)
    logps, entropies = logps_and_entropy(logits, ids, temperature=0.7)
    assert logps.dtype == torch.float32
    assert torch.allclose(logps.double(), reference.log_prob(ids), atol=1e-6)
    assert torch.allclose(entropies.double(), reference.entropy(), atol=1e-6)


def test_the_entropy_has_its_gradient_only_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 3, 5).double().requires_grad_(), torch.zeros(2, 3).long()
    assert not logps_and_entropy(logits, ids, 1.0)[1].requires_grad
    logps_and_entropy(logits, ids, 1.0, with_gradient=True)[1].sum().backward()
    expected = logits.detach().clone().requires_grad_()
    torch.distributions.Categorical(logits=expected).entropy().sum().backward()
    assert torch.allclose(logits.grad, expected.grad, atol=1e-6)


def test_the_policy_loss_clips_on_the_side_that_would_gain() -> None:
    old = torch.zeros(1, 4)
    new = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, sums = policy_loss(new, old, advantages, torch.ones(1, 4), 0.2, num_tokens=4)
    # A=1: min(1.5, 1.2) = 1.2 clipped; A=-1: max loss 1.5 not clipped;
    # A=1 at 0.5: 0.5 not clipped; A=-1 at 0.5: loss 0.8 clipped. Sum of losses:
    assert torch.isclose(loss, torch.tensor((-1.2 + 1.5 - 0.5 + 0.8) / 4))
    assert sums["policy/clipfrac_avg"].item() == 2
    assert torch.isclose(sums["val/ratio"], torch.tensor(4.0))


def test_item_15_a_huge_log_ratio_gives_a_finite_loss_and_gradient() -> None:
    new = torch.tensor([[100.0, -100.0]], requires_grad=True)
    loss, _ = policy_loss(
        new, torch.zeros(1, 2), torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2), 0.2, num_tokens=2
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()


def test_item_29_the_value_loss_takes_the_larger_of_the_two_errors() -> None:
    values, old = torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2)
    returns = torch.tensor([[1.0, 1.0]])
    loss, sums = value_loss(values, old, returns, torch.ones(1, 2), 0.2, num_tokens=2)
    # first: clipped to 0.2, error 0.64 against 0; second: inside the range, 0.81 both ways
    assert torch.isclose(loss, torch.tensor(0.5 * (0.64 + 0.81) / 2))
    assert sums["val/clipfrac_avg"].item() == 1


def test_item_34_any_split_of_a_batch_gives_the_same_loss_and_gradient() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    old, advantages, returns = torch.randn(3, 4, 5).unbind(0)
    new = old + 0.3 * torch.randn(4, 5)
    count = float(mask.sum())

    def gradient(sizes: list[int]) -> torch.Tensor:
        logps = new.clone().requires_grad_()
        for rows in torch.arange(4).split(sizes):
            of_policy, _ = policy_loss(
                logps[rows], old[rows], advantages[rows], mask[rows], 0.2, count
            )
            of_value, _ = value_loss(logps[rows], old[rows], returns[rows], mask[rows], 0.2, count)
            (of_policy + of_value).backward()
        return logps.grad  # type: ignore[return-value]

    whole = gradient([4])
    for sizes in ([1, 1, 1, 1], [2, 2], [1, 3]):
        # the same terms, each computed alone: nothing is added up in another order
        assert torch.equal(gradient(sizes), whole)
