"""The loss of labels and the weights of classes, against scikit-learn and values by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from recipes.lib.evaluation.labels import label_numbers, probabilities
from recipes.lib.trainers.labels import HeadOnFeatures, class_weights, label_loss


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 1, 0])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert class_weights(labels, 3).tolist() == pytest.approx(expected.tolist())
    assert class_weights(labels, 4)[3] == 0  # one that never comes
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert class_weights(several, 3).tolist() == [3.0, 1.0, 1.0]


def test_the_loss_is_the_weighted_mean_of_what_is_missed() -> None:
    logits, labels = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert label_loss(logits, labels).item() == pytest.approx(math.log(4 / 3 * 2) / 2)
    weights = torch.tensor([3.0, 1.0])
    weighted = label_loss(logits, labels, weights).item()
    assert weighted == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 2)
    alone = [label_loss(logits[n : n + 1], labels[n : n + 1], weights).item() for n in (0, 1)]
    assert sum(alone) / 2 == pytest.approx(weighted)  # whatever the batches
    both = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    by_hand = (math.log(4 / 3) + 3 * math.log(2)) / 4
    assert label_loss(logits, both).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_reads_features_as_they_are_when_it_has_learned(bias: bool) -> None:
    torch.manual_seed(0)
    features = 5.0 + torch.randn(50, 6) * torch.tensor([0.5, 1.0, 10.0, 2.0, 0.1, 3.0])
    head = torch.nn.Linear(6, 3, bias=bias)
    learner = HeadOnFeatures(head, features)
    learned = learner(features).logits
    learner.finish()
    # In fp32 a weight over 0.1 times features near 5 leaves a few 1e-5 of what cancels.
    torch.testing.assert_close(head(features), learned, rtol=1e-3, atol=1e-3)


def test_numbers_of_a_case_by_hand() -> None:
    chances = probabilities(np.log([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]]), False)
    found = label_numbers(chances, np.array([0, 1, 1, 0]))
    assert found["accuracy"] == 0.75
    assert found["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    expected = -(math.log(0.8) + math.log(0.4) + math.log(0.7) + math.log(0.9)) / 4
    assert found["log_loss"] == pytest.approx(expected)
    assert found["calibration_error"] == pytest.approx(0.0)  # 0.75 sure on average, and right
    several = label_numbers(
        np.array([[0.9, 0.2], [0.4, 0.6]]), np.array([[1, 0], [1, 1]], dtype=int)
    )
    assert several["accuracy"] == 0.5
