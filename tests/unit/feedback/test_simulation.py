import math
from collections import Counter
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.feedback.simulation import Rater, check_raters, simulate_answers

NUMBER = 4000


def answers(kind: str, scores: list[float], number: int = NUMBER, **rater: Any) -> list[Any]:
    """The rows of one annotator on many items with the same scores."""
    items = [
        {
            "id": f"{n}",
            "prompt": "which?",
            "completions": [{"content": f"{score}"} for score in scores],
        }
        for n in range(number)
    ]
    given = {"kinds": [kind], "raters": [Rater(name="bo", **rater)], "seed": 3}
    return simulate_answers(items, [scores] * number, created_at="2026-01-01", **given)


def shares(values: list[Any]) -> dict[Any, float]:
    return {value: count / len(values) for value, count in Counter(map(str, values)).items()}


def near(found: dict[Any, float], wanted: dict[str, float]) -> None:
    # Four standard deviations of a binomial share.
    for value, share in wanted.items():
        deviation = math.sqrt(share * (1 - share) / NUMBER)
        assert abs(found.get(value, 0) - share) < 4 * deviation, value


def test_pairs_and_their_ties_are_those_of_davidsons_model() -> None:
    # 4 : 1 : 0.5 * sqrt(4 * 1), at half the difference and half the temperature.
    rows = answers("pair", [math.log(2), 0.0], temperature=0.5, tie=0.5)
    near(shares([row["value"] for row in rows]), {"0": 4 / 6, "1": 1 / 6, "None": 1 / 6})
    assert {round(row["noise"], 9) for row in rows} == {0.2}
    assert None not in {row["value"] for row in answers("pair", [0.0, 0.0], 200)}


def test_a_position_bias_is_added_to_what_is_shown_first() -> None:
    rows = answers("pair", [0.0, 0.0], position_bias=math.log(3))
    near(shares([row["value"] == row["shown_order"][0] for row in rows]), {"True": 0.75})
    near(shares([row["shown_order"] for row in rows]), {"[0, 1]": 0.5})


def test_rankings_are_those_of_plackett_and_luce() -> None:
    rows = answers("rank", [math.log(3), math.log(2), 0.0])
    # 3, 2 and 1 of 6; then of what is left.
    wanted = {"[1, 2, 3]": 3 / 6 * 2 / 3, "[1, 3, 2]": 3 / 6 / 3, "[2, 1, 3]": 2 / 6 * 3 / 4}
    near(shares([row["value"] for row in rows]), wanted)


def test_ratings_follow_the_odds_of_their_thresholds() -> None:
    def above(threshold: float) -> float:
        return 1 / (1 + math.exp(-(2.0 + 0.5 - threshold) / 0.8))

    # Scores 2 and 0: mean 1, standard deviation 1; thresholds at -0.5, 0.5, 1.5 and 2.5.
    rows = answers("rating", [2.0, 0.0], temperature=0.8, bias=0.5)
    odds = [1.0, *map(above, (-0.5, 0.5, 1.5, 2.5)), 0.0]
    wanted = {f"{n + 1}": odds[n] - odds[n + 1] for n in range(5)}
    near(shares([row["value"] for row in rows[::2]]), wanted)
    assert all(row["completions"][0]["content"] == "2.0" for row in rows[::2])


def test_thumbs_are_logistic_around_the_mean_score() -> None:
    rows = answers("thumb", [2.0, 0.0], bias=math.log(3) - 1.0)[::2]
    near(shares([row["value"] for row in rows]), {"True": 0.75})
    assert {round(row["noise"], 9) for row in rows} == {0.25}


def test_texts_are_the_best_of_the_completions_and_edits_replace_the_last() -> None:
    texts = answers("text", [math.log(3), 0.0])
    near(shares([row["value"] for row in texts]), {str(math.log(3)): 0.75})
    assert texts[0]["completions"] == []
    edits = answers("edit", [3.0, 0.0, 1.0], 50, temperature=1e-3)
    assert {(row["completions"][0]["content"], row["value"]) for row in edits} == {("0.0", "3.0")}


def test_a_draw_depends_on_seed_annotator_and_item_alone() -> None:
    assert answers("pair", [0.0, 0.1], 60)[:40] == answers("pair", [0.0, 0.1], 40)
    items = [{"id": "a", "prompt": "?", "completions": [{"content": "b"}, {"content": "c"}]}]
    both = [Rater(name="bo"), Rater(name="anna")]
    for seed in range(20):
        given = {"kinds": ["rank"], "seed": seed, "created_at": "2026-01-01"}
        rows = simulate_answers(items, [[0.0, 0.1]], raters=both, **given)
        assert rows[1:] == simulate_answers(items, [[0.0, 0.1]], raters=both[1:], **given)


@pytest.mark.parametrize(
    ("raters", "kinds", "told"),
    [
        ([Rater(name="bo"), Rater(name="bo")], ["pair"], "no name of its own"),
        ([Rater(name=" ")], ["pair"], "no name of its own"),
        ([Rater(temperature=0.0)], ["pair"], "temperature must be above 0"),
        ([Rater(tie=-1.0)], ["pair"], "tie at least 0"),
        ([Rater()], ["star"], "kinds=star"),
        ([Rater()], [], "kinds=: must be one of"),
    ],
)
def test_what_cannot_be_simulated_is_told(raters: list[Rater], kinds: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_raters(raters, kinds)
