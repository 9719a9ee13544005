import math
from typing import Any

import numpy as np
import pytest

from recipes.lib.errors import UserError
from recipes.lib.evaluation.ability import task_numbers, text_numbers

FILTER = "none"


def results(values: dict[str, Any], documents: list[dict[str, Any]], **groups: Any) -> Any:
    """As lm-eval gives them: metrics of the task `t`, and what it has of each document."""
    rows = [{"doc_id": n, "filter": FILTER} | row for n, row in enumerate(documents)]
    counts = {"t": {"original": len(rows), "effective": len(rows)}}
    return {"results": {"t": values} | groups, "samples": {"t": rows}, "n-samples": counts}


def accuracy(right: list[int], error: float = 0.1) -> Any:
    values = {"alias": "t", "acc,none": sum(right) / len(right), "acc_stderr,none": error}
    return results(values, [{"acc": one} for one in right])


def test_what_both_get_right_makes_the_interval_of_the_difference_narrow() -> None:
    # Of 400 documents both get 300 right and 40 wrong; 40 turn to right and 20 to wrong.
    ours = [1] * 300 + [0] * 40 + [1] * 40 + [0] * 20
    theirs = [1] * 300 + [0] * 40 + [0] * 40 + [1] * 20
    found = task_numbers(accuracy(ours), accuracy(theirs))
    assert found["t/acc"] == 340 / 400
    assert found["t/acc_baseline"] == 320 / 400
    assert found["t/acc_difference"] == pytest.approx(0.05)
    assert found["t/num_documents"] == 400
    # McNemar: variance (40 + 20 - 20 ** 2 / 400) / 400 ** 2, so 1.96 * 0.01920 = 0.0376; two
    # samples of their own would have 1.96 * sqrt((0.85 * 0.15 + 0.8 * 0.2) / 400) = 0.0525.
    low, high = found["t/acc_difference_ci95"]
    assert low == pytest.approx(0.05 - 0.0376, abs=0.004)
    assert high == pytest.approx(0.05 + 0.0376, abs=0.004)


def test_no_document_that_turned_is_not_certainty() -> None:
    found = task_numbers(accuracy([1] * 50), accuracy([1] * 50))
    # 0.025^(1/50) = 0.9289 of the documents at least do not turn.
    assert found["t/acc_difference"] == 0
    assert found["t/acc_difference_ci95"] == pytest.approx([-0.0711, 0.0711], abs=1e-4)


def test_what_is_no_mean_over_documents_has_the_interval_of_two_errors() -> None:
    # Of each document log-probabilities, whose mean is an exponent of the metric, or pairs.
    sides = [
        results(
            {"perplexity,none": value, "perplexity_stderr,none": error, "f1,none": 0.5}
            | {"f1_stderr,none": "N/A"},
            [{"perplexity": -math.log(value), "f1": (0, 1)}] * 4,
            g={"acc,none": value / 10, "acc_stderr,none": error / 10, "alias": "g"},
        )
        for value, error in ((3.0, 0.3), (2.5, 0.4))
    ]
    found = task_numbers(*sides)
    # sqrt(0.3^2 + 0.4^2) = 0.5, and 1.96 of them.
    assert found["t/perplexity_difference_ci95"] == pytest.approx(
        [0.5 - 0.98, 0.5 + 0.98], abs=1e-4
    )
    assert found["g/acc_difference_ci95"] == pytest.approx([-0.048, 0.148], abs=1e-4)
    assert found["t/f1_difference"] == 0
    assert "t/f1_difference_ci95" not in found
    assert "g/num_documents" not in found


def test_a_filter_is_part_of_the_name() -> None:
    values = {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.5}
    rows = [{"exact_match": n, "filter": "strict"} for n in (0, 1)]
    assert task_numbers(results(values, rows), results(values, rows))["t/exact_match,strict"] == 0.5


NO = -100


def test_perplexity_weighs_tokens_and_not_texts() -> None:
    # One token of 2 nats, and three of 2 together; the first of a text has nothing before it.
    labels = [[7, 8], [7, NO, 8, 9, 5]]
    found = text_numbers((labels, [2.0, 2.0]), (labels, [1.0, 2.0]))
    assert found["num_texts"] == 2
    assert found["nats_per_token"] == pytest.approx(1.0)
    assert found["perplexity"] == pytest.approx(math.e)
    assert found["perplexity_baseline"] == pytest.approx(math.exp(0.75))
    assert found["nats_per_token_difference"] == pytest.approx(0.25)
    assert "nats_per_token_difference_ci95" not in text_numbers(
        (labels[:1], [2.0]), (labels[:1], [1.0])
    )


def test_its_interval_is_that_of_texts_that_are_drawn_again() -> None:
    noise = np.random.default_rng(0)
    counts = noise.integers(1, 40, 300)
    labels = [[1] * (count + 1) for count in counts]
    theirs = counts * noise.normal(2.0, 0.5, 300)
    ours = theirs + counts * noise.normal(0.02, 0.1, 300)
    found = text_numbers((labels, [*ours]), (labels, [*theirs]))
    drawn = noise.integers(0, 300, (4000, 300))
    ratios = (ours - theirs)[drawn].sum(1) / counts[drawn].sum(1)
    expected = np.quantile(ratios, [0.025, 0.975])
    assert found["nats_per_token_difference_ci95"] == pytest.approx(expected, abs=0.002)
    assert np.ptp(expected) > 0.01
    same = text_numbers((labels, [*ours]), (labels, [*ours]))
    assert same["nats_per_token_difference_ci95"] == [0.0, 0.0]


def test_nats_of_other_tokens_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    found = text_numbers(([[1, 2]], [1.0]), ([[1, 2, 3]], [1.0]))
    assert found["nats_per_token_baseline"] == 0.5
    assert "nats_per_token_difference" not in found
    assert "different tokens" in capsys.readouterr().err
    with pytest.raises(UserError, match="no text has tokens to predict"):
        text_numbers(([[1]], [0.0]), ([[1, 2]], [1.0]))
