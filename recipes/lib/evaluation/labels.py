"""How good predicted labels are, and yardsticks: what simple models say of the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.lib.evaluation.calibration import binned, calibration_error, suitable_bins

Table = NDArray[Any]
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse ones of the regularisation, that are tried
HELD_OUT = 5  # one of so many training rows decides between them
MOST_ROWS = 20_000  # training rows that a regression learns from
MOST_NUMBERS = 10_000_000  # of them where they are dense


def probabilities(logits: Table, is_multi: bool) -> Table:
    """Of each row and class, from logits of shape (rows, classes)."""
    if is_multi:
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def label_numbers(chances: Table, labels: Table) -> dict[str, float]:
    """Numbers of predicted labels.

    Args:
        chances: Probabilities, of shape (rows, classes).
        labels: Classes of shape (rows,), or 0 and 1 of shape (rows, classes).

    Returns:
        accuracy (of several labels: of rows in which all are right), f1_macro over classes,
        log_loss in nats per row (of several labels per row and class), calibration_error in 0..1.
    """
    from sklearn.metrics import f1_score

    if labels.ndim == 2:
        predicted, sure = chances > 0.5, np.maximum(chances, 1 - chances).ravel()
        right = (predicted == labels).ravel()
        accuracy = (predicted == labels).all(1).mean()
        own = np.where(labels, chances, 1 - chances)
    else:
        predicted, sure = chances.argmax(1), chances.max(1)
        right = predicted == labels
        accuracy = right.mean()
        own = chances[np.arange(len(labels)), labels]
    bins = suitable_bins(len(sure)) or 1
    return {
        "accuracy": float(accuracy),
        "f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "log_loss": float(-np.log(np.clip(own, 1e-12, None)).mean()),
        "calibration_error": calibration_error(binned(sure, right, bins)),
    }


def regression_accuracy(train: Any, labels: Table, test: Any, expected: Table) -> float:
    """Accuracy of a logistic regression; a fifth of the training rows decides how strong it is.

    Args:
        train: Features of the training rows, dense or sparse.
        labels: As of `label_numbers`.
        test: Features of the test rows.
        expected: Their labels.

    Returns:
        In 0..1, of several labels of rows in which all are right.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(strength: float, rows: Any) -> Any:
        model = LogisticRegression(C=strength, max_iter=1000)
        # Of words the rare ones stay small.
        scaled = make_pipeline(StandardScaler(), model) if isinstance(train, np.ndarray) else model
        whole = OneVsRestClassifier(scaled) if labels.ndim == 2 else scaled
        return whole.fit(train[rows], labels[rows])

    most = MOST_NUMBERS // train.shape[1] if isinstance(train, np.ndarray) else MOST_ROWS
    every = np.random.default_rng(0).permutation(len(labels))[: min(MOST_ROWS, most)]
    apart, rest = np.split(every, [len(every) // HELD_OUT])
    if len(apart) and (labels.ndim == 2 or len(np.unique(labels[rest])) > 1):
        tried = {c: fitted(c, rest).score(train[apart], labels[apart]) for c in STRENGTHS}
        best = max(tried, key=tried.__getitem__)
    else:
        best = 1.0
    return float(fitted(best, every).score(test, expected))


def words_accuracy(
    train: Sequence[str], labels: Table, test: Sequence[str], expected: Table
) -> float:
    """Accuracy of a logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    counter = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        known = counter.fit_transform(train)
    except ValueError:  # there are no words at all
        return float("nan")
    return regression_accuracy(known, labels, counter.transform(test), expected)
