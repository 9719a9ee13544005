import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.lib.feedback.agreement import (
    cohen_kappa,
    dawid_skene,
    describe,
    krippendorff_alpha,
    share,
)
from recipes.lib.feedback.rows import make_row
from tests.helpers.planted_raters import LEANING, RATERS, accuracy, majority, planted

ORACLE = json.loads(Path(__file__).with_name("crowd_kit.json").read_text())["accuracy"]
NAN = math.nan
# Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C and D: four observers.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_that_of_the_published_example(level: str, alpha: float) -> None:
    assert round(krippendorff_alpha(OBSERVERS, level) or 0, 3) == alpha


def test_alpha_is_not_defined_where_no_two_values_could_differ() -> None:
    assert krippendorff_alpha(np.array([[1.0, 1.0], [1.0, NAN]]), "nominal") is None
    assert krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]]), "interval") is None


def test_kappa_is_that_worked_out_by_hand() -> None:
    # 20 and 15 of 50 on the diagonal: observed 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    one = [0.0] * 20 + [0.0] * 5 + [1.0] * 10 + [1.0] * 15 + [NAN]
    other = [0.0] * 20 + [1.0] * 5 + [0.0] * 10 + [1.0] * 15 + [1.0]
    number, kappa = cohen_kappa(np.array([one, other]), "nominal")
    assert (number, round(kappa or 0, 9)) == (50, 0.4)
    assert cohen_kappa(np.array([[1.0, 1.0], [1.0, 1.0]]), "nominal") == (2, None)


@pytest.mark.parametrize("seed", range(5))
def test_dawid_skene_beats_the_majority_and_is_as_good_as_crowd_kit(seed: int) -> None:
    truth, found = planted(seed)
    probabilities, _, _ = dawid_skene(*zip(*found, strict=True))
    ours = accuracy(truth, list(probabilities.argmax(1)))
    assert ours - accuracy(truth, majority(found)) > 0.04
    assert abs(ours - ORACLE[str(seed)]) <= 0.005


def test_dawid_skene_tells_how_each_rater_errs() -> None:
    _, confusions, _ = dawid_skene(*zip(*planted(0)[1], strict=True))
    for (right, zeros), confusion in zip(RATERS, confusions, strict=True):
        for label in (0, 1):
            wanted = (1 - right) * (zeros if label == 0 else 1 - zeros) + right
            assert confusion[label, label] == pytest.approx(wanted, abs=0.06)
    assert confusions[RATERS.index(LEANING), 1, 0] > 0.7


def test_a_share_has_the_interval_that_wilson_gives() -> None:
    # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n), z = 1.959964, by hand
    found = share([True] * 41 + [False] * 9)
    assert found == {
        "count": 41,
        "of": 50,
        "low": pytest.approx(0.6920, abs=1e-4),
        "high": pytest.approx(0.9023, abs=1e-4),
    }
    assert share([]) is None


def answer(number: int, value: Any, annotator: str, **fields: Any) -> dict[str, Any]:
    contents = [f"{number}", f"{number} is longer"]
    completions = [{"content": one, "run": None} for one in contents]
    item = {"id": f"item {number}", "prompt": "which?", "completions": completions}
    given = {"kind": "pair", "value": value, "annotator": annotator, "source": "human"}
    return make_row(item, **given | fields)


def test_describe_counts_what_each_annotator_leans_to() -> None:
    rows = [answer(n, int(n < 9), "anna", shown_order=[1, 0], seconds=n) for n in range(10)]
    rows += [answer(0, 0, "anna", shown_order=[0, 1]), answer(1, 1, "anna")]
    rows += [answer(20, None, "anna"), answer(21, None, "anna", weight=0.0)]
    rows += [answer(n, 0, "page", source="implicit", weight=0.0) for n in range(5)]
    found = describe(rows, {"item 1": 1, "item 9": 1})
    anna = found["annotators"]["anna"]
    assert (found["answers"], list(found["annotators"])) == (13, ["anna"])
    assert (anna["answers"], anna["kinds"], anna["cannot_judge"]) == (13, {"pair": 13}, 1)
    assert anna["seconds"] == 4.5
    counts = {
        key: (one["count"], one["of"])
        for key, one in anna.items()
        if isinstance(one, dict) and "of" in one
    }
    assert counts == {
        "first_shown": (10, 11),
        "longer": (10, 12),
        "consistent": (1, 2),
        "right": (2, 3),
    }
    assert found["hints"] == [
        "anna answered 'A' on 10 of 11 shown pairs (95 %: 0.62 to 0.98).",
        "anna preferred the longer one in 10 of 12 pairs (95 %: 0.55 to 0.95).",
    ]
    json.dumps(found, allow_nan=False)


def test_describe_tells_agreement_by_kind_and_aspect() -> None:
    truth, labels = planted(1)
    rows = [answer(unit, label, f"rater {rater}") for unit, rater, label in labels[:1500]]
    rating: dict[str, Any] = {"kind": "rating", "aspect": "tone"}
    for observer, values in enumerate(OBSERVERS):
        for unit, value in enumerate(values):
            if not math.isnan(value):
                row = answer(unit, 0, f"rater {observer}")
                item = row | {"id": row["item"], "completions": row["completions"][:1]}
                given = {"annotator": row["annotator"], "source": "human", "value": float(value)}
                rows.append(make_row(item, **rating | given))
    for name in ("a", "b"):
        rows.append(answer(0, [1, 2], name, kind="rank"))
    found = describe(rows, {f"item {unit}": label for unit, label in enumerate(truth)})
    pairs, ranks, ratings = found["agreement"]
    assert (pairs["units"], len(pairs["pairs"]), pairs["level"]) == (300, 45, "nominal")
    assert round(ratings["alpha"], 3) == 0.849
    assert ratings["units"] == 11  # the last one was seen by a single observer
    assert (ranks["units"], ranks["alpha"], ranks["pairs"][0]["kappa"]) == (2, 1.0, 1.0)
    people = found["annotators"]
    accuracies = [people[f"rater {n}"]["estimated_accuracy"]["pair, overall"] for n in range(10)]
    assert min(accuracies[:4]) > 0.85 > 0.65 > max(accuracies[4:])
    told = " ".join(found["hints"])
    assert f"alpha is {pairs['alpha']:.2f} on 300 shared answers of pair, overall" in told
    assert all(f"rater {n} answered" not in told for n in range(4))
    assert all(f"rater {n} answered" in told for n in range(4, 10))


def test_an_annotator_who_contradicts_himself_is_told_of() -> None:
    rows = [answer(0, turn % 2, "bo") for turn in range(41)]
    told = "bo answered 20 of 40 repeated items as before (95 %: 0.35 to 0.65)."
    assert told in describe(rows, {})["hints"]
