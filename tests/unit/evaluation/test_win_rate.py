import pytest

from recipes.lib.evaluation.win_rate import pair_accuracy, smallest_difference, win_rate


def test_ties_count_half() -> None:
    # Two wins, one tie, one loss: (1 + 1 + 0.5 + 0) / 4.
    assert win_rate([2, 3, 1, 0], [1, 1, 1, 1]).value == 0.625
    assert pair_accuracy([2, 3, 1, 0], [1, 1, 1, 1]) == 0.625


def test_interval_is_that_of_the_binomial_for_many_pairs() -> None:
    scores = [1.0] * 300 + [0.0] * 100
    wins = win_rate(scores, [0.5] * 400)
    # p = 0.75, standard error sqrt(0.75 * 0.25 / 400) = 0.02165; 1.96 of them are 0.0424.
    assert wins.value == 0.75
    assert wins.low == pytest.approx(0.75 - 0.0424, abs=0.006)
    assert wins.high == pytest.approx(0.75 + 0.0424, abs=0.006)


def test_swapping_the_sides_mirrors_the_rate() -> None:
    ours, theirs = [1.0, 2.0, 5.0, 0.0, 3.0], [0.0, 3.0, 1.0, 0.0, 1.0]
    assert win_rate(ours, theirs).value == 1 - win_rate(theirs, ours).value


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    scores = [float(row % 3) for row in range(50)]
    first, again = win_rate(scores, [0.9] * 50, seed=1), win_rate(scores, [0.9] * 50, seed=1)
    assert first == again
    others = [win_rate(scores, [0.9] * 50, seed=seed, num_resamples=99) for seed in range(5)]
    assert len({(wins.low, wins.high) for wins in others}) > 1


def test_one_pair_says_next_to_nothing() -> None:
    wins = win_rate([1.0], [0.0])
    # Clopper-Pearson for 1 of 1: (0.05 / 2)^(1 / 1) to 1.
    assert (wins.value, wins.high) == (1.0, 1.0)
    assert wins.low == pytest.approx(0.025)


def test_ten_wins_of_ten_are_not_certainty() -> None:
    from scipy.stats import binomtest

    wins = win_rate([1.0] * 10, [0.0] * 10)
    exact = binomtest(10, 10).proportion_ci(method="exact")
    assert wins.low == pytest.approx(exact.low)
    assert wins.high == 1.0
    lost = win_rate([0.0] * 10, [1.0] * 10)
    assert lost.value == lost.low == 0.0
    assert lost.high == pytest.approx(1 - exact.low)


def test_all_ties_are_symmetric_around_a_half() -> None:
    wins = win_rate([1.0] * 20, [1.0] * 20)
    assert wins.value == 0.5
    assert wins.low + wins.high == pytest.approx(1.0)
    # 0.025^(1/20) = 0.8316 of the pairs at least are ties: half of it from below.
    assert wins.low == pytest.approx(0.4158, abs=1e-4)


@pytest.mark.parametrize("num_prompts", [50, 200, 805])
def test_the_smallest_difference_is_found_in_eighty_of_a_hundred(num_prompts: int) -> None:
    from scipy.stats import binom, norm

    gap = smallest_difference(num_prompts)
    limit = norm.isf(0.025) * (num_prompts / 4) ** 0.5  # of the number of wins, from the middle
    power = binom.sf(num_prompts / 2 + limit, num_prompts, 0.5 + gap)
    assert power == pytest.approx(0.8, abs=0.04)  # the number of wins is a whole one
    assert smallest_difference(1) == 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [([], [], "at least one prompt"), ([1.0], [1.0, 2.0], "1 scores against 2")],
)
def test_sides_without_pairs_are_refused(ours: list[float], theirs: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        win_rate(ours, theirs)


def test_a_score_that_is_no_number_is_refused_by_its_row() -> None:
    with pytest.raises(ValueError, match="row 1: scores nan"):
        win_rate([1.0, float("nan")], [0.0, 0.0])
