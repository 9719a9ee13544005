"""The yardstick of a reward model: what counting words alone can tell about preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.lib.data.prompts import prompt_text
from recipes.lib.evaluation.win_rate import pair_accuracy

if TYPE_CHECKING:
    from datasets import Dataset


def bag_of_words_accuracy(train: Dataset, test: Dataset) -> float:
    """Accuracy of a logistic regression on differences of word counts.

    Features of a pair are the word counts of chosen minus those of rejected, words being those of
    the training rows. Each pair is shown both ways round, so no side is favoured and no intercept
    is needed.

    Args:
        train: Rows with chosen and rejected, text or messages.
        test: The rows to judge.

    Returns:
        Share of test pairs ordered rightly, in 0..1; ties count half.
    """
    import numpy as np
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    # One-letter words and numbers count too, unlike scikit-learn's own pattern.
    counter = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    sides = {name: [prompt_text(text) for text in train[name]] for name in ("chosen", "rejected")}
    counter.fit(sides["chosen"] + sides["rejected"])
    pairs = counter.transform(sides["chosen"]) - counter.transform(sides["rejected"])
    labels = np.repeat([1, 0], len(train))
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(vstack([pairs, -pairs]), labels)
    tests = [counter.transform(map(prompt_text, test[name])) for name in ("chosen", "rejected")]
    margins = model.decision_function(tests[0] - tests[1])
    return pair_accuracy(margins.tolist(), [0.0] * len(test))
