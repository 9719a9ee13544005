"""What is drawn, what is left out, and which texts are picked."""

import math
import re
from typing import Any

import numpy as np
import pytest

from recipes.lib.report.charts import PPO, REWARD, SFT
from recipes.lib.report.curves import draw_curves, points, smoothed, with_episodes
from recipes.lib.report.figure import short
from recipes.lib.report.pairs import (
    differences,
    margin_histogram,
    reliability_diagram,
    win_histogram,
)
from recipes.lib.report.samples import comparison, progress, references


def test_a_curve_is_in_order_and_counts_a_repeated_step_once_with_its_later_value() -> None:
    rows = [
        {"step": 2, "loss": 5.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 4.0},
        {"step": 3, "accuracy": 1.0},
    ]
    x, y = points(rows, "step", "loss")
    assert x.tolist() == [1, 2]
    assert y.tolist() == [3, 4]


def test_values_that_are_no_finite_numbers_interrupt_the_line_and_are_counted() -> None:
    values: list[Any] = [1.0, math.nan, 3.0, None, math.inf, 2.0]
    rows = [{"step": i, "loss": value} for i, value in enumerate(values)]
    _, y = points(rows, "step", "loss")
    assert np.isnan(y).tolist() == [False, True, False, True, True, False]
    (picture,) = draw_curves(SFT, rows, {})
    assert "3 of 6 values were not finite" in picture.note
    assert "from 1.00 at 0 optimizer steps to 2.00 at 5" in picture.description


def test_an_evaluation_stands_at_the_episode_of_its_step() -> None:
    rows = [
        {"step": 4, "episode": 128, "objective/kl": 0.1},
        {"step": 4, "eval_kl": 0.2},
        {"step": 6, "eval_kl": 0.3},
        {"step": 8, "episode": 256, "objective/kl": 0.4},
    ]
    x, y = points(with_episodes(rows), "episode", "eval_kl")
    assert x.tolist() == [128, 192]  # step 6 lies midway between steps 4 and 8
    assert y.tolist() == [0.2, 0.3]


def test_a_single_held_out_value_is_a_point_beside_the_line_of_training() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}]
    (picture,) = draw_curves(SFT, rows, {})
    named = [(key.label, key.value) for key in picture.keys]
    assert named == [("training", "2.00 \u2192 1.00"), ("held out", "1.50")]
    assert "held out: 1.50 at 2 optimizer steps." in picture.description


def test_levels_of_the_summary_are_drawn_and_named() -> None:
    rows = [{"step": i, "accuracy": 0.5 + i / 10} for i in (1, 2)]
    (picture,) = draw_curves(REWARD, rows, {"accuracy_ceiling": 0.875, "other": 1})
    named = [(key.series, key.label, key.value) for key in picture.keys]
    assert named == [(1, "training", "0.600 \u2192 0.700"), (0, "ceiling", "0.875")]


@pytest.mark.parametrize("values", [[], [1.0], [math.nan, math.nan], [None, 1.0]])
def test_a_metric_with_fewer_than_two_points_draws_nothing(values: list[Any]) -> None:
    rows = [{"step": i, "loss": value} for i, value in enumerate(values)]
    assert draw_curves(SFT, rows, {}) == []


def test_the_running_mean_equals_the_hand_worked_one() -> None:
    values = np.array([1.0, 2.0, 6.0, math.nan, 4.0])
    # Windows {1,2}, {1,2,6}, {2,6}, {6,4}, {4}
    assert smoothed(values, 3).tolist() == [1.5, 3.0, 4.0, 5.0, 4.0]


def test_a_long_log_is_drawn_with_its_running_mean_and_stays_small() -> None:
    rng = np.random.default_rng(0)
    rows = [{"step": i, "loss": 3 + rng.normal()} for i in range(20_000)]
    (picture,) = draw_curves(SFT, rows, {})
    assert "running mean of 1001 values" in picture.note
    assert len(picture.svg) < 60_000


def test_a_page_with_episodes_has_them_on_the_axis() -> None:
    rows = [{"step": i, "episode": 128 * i, "objective/kl": i / 10} for i in (1, 2, 3)]
    (picture,) = draw_curves(PPO, rows, {})
    assert ">episodes</text>" in picture.svg
    assert ">KL, nats per completion</text>" in picture.svg


def test_the_line_of_a_picture_goes_through_its_points() -> None:
    rows = [{"step": i, "loss": y} for i, y in ((0, 0.0), (1, 10.0), (2, 5.0))]
    (picture,) = draw_curves(SFT, rows, {})
    line = re.search(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: var\(--series-1\)', picture.svg)
    assert line is not None
    (x0, y0), (x1, y1), (x2, y2) = (
        map(float, pair) for pair in re.findall(r"([\d.]+) ([\d.]+)", line[1])
    )
    assert x1 - x0 == pytest.approx(x2 - x1, rel=1e-4)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), rel=1e-4)  # 10 is twice as high as 5


def test_pictures_of_pairs_name_the_shares() -> None:
    picture = win_histogram([1.0, 2.0, 0.0, -1.0])
    assert picture is not None
    shares = {key.label: key.value.replace("\u00a0", " ") for key in picture.keys}
    assert shares == {"win": "50.0 %", "loss": "25.0 %", "tie": "25.0 %", "median": "0.50"}


def test_the_area_of_the_bars_right_of_zero_is_the_share_of_pairs_in_the_right_order() -> None:
    values = np.random.default_rng(5).normal(0.3, 1.0, size=300)
    picture = margin_histogram(values.tolist())
    assert picture is not None
    bars = re.findall(
        r'<path d="M \S+ (\S+) L \S+ \S+ L \S+ (\S+) [^"]*"[^>]*fill: var\((\S+)\)',
        picture.svg,
    )
    heights = {"--series-1": 0.0, "--series-2": 0.0}
    for bottom, top, color in bars:
        heights[color] += float(bottom) - float(top)
    # Coordinates have six decimals; a bar that straddled zero would shift the share by over 0.01.
    share = heights["--series-1"] / sum(heights.values())
    assert share == pytest.approx((values > 0).mean(), abs=1e-4)


@pytest.mark.parametrize("values", [[0.0], [2.0] * 5, [0.0, 0.0], [-1e-9, 1e9]])
def test_histograms_of_odd_values_are_drawn(values: list[float]) -> None:
    picture = win_histogram(values)
    assert picture is not None
    assert "var(--series-1)" in picture.svg


def test_zero_is_marked_where_wins_part_from_losses() -> None:
    picture = win_histogram([1.0, 2.0, 0.0, -1.0])
    assert picture is not None
    assert '<svg viewBox="0 0 360 208.8"' in picture.svg  # 5.0 by 2.9 inches
    bars = re.findall(r'<path d="M (\S+) [^"]*"[^>]*fill: var\(--series-1\)', picture.svg)
    lines = re.findall(r'<path d="M (\S+) [^"]*"[^>]*stroke: var\(--ink\)', picture.svg)
    assert lines == bars[:1]
    assert re.search(r'fill: var\(--muted\)"[^>]*>prompts<', picture.svg)


def test_without_pairs_there_is_no_histogram_and_below_forty_no_calibration() -> None:
    assert margin_histogram([]) is None
    assert reliability_diagram([1.0] * 39) is None
    assert reliability_diagram([1.0, -0.5] * 20) is not None


@pytest.mark.parametrize("margin", [3.0, -3.0, 0.0, 800.0])
def test_a_calibration_picture_is_drawn_where_every_pair_is_alike(margin: float) -> None:
    assert reliability_diagram([margin] * 200) is not None


def test_differences_pass_over_rows_without_two_numbers() -> None:
    rows: list[dict[str, Any]] = [{"a": 3, "b": 1.0}, {"a": math.nan, "b": 1}, {"a": 1}, {"b": "2"}]
    assert differences(rows, "a", "b") == [2.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (1600, "1,600"),
        (12_000, "12k"),
        (-3, "\u22123"),
        (2e-5, "2e\u22125"),
    ],
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_compared_prompts_run_from_the_largest_win_to_the_largest_loss() -> None:
    rows = [
        {"prompt": str(i), "baseline": "b", "completion": "c", "score_baseline": 0.0, "score": i}
        for i in range(-10, 11)
    ]
    table = comparison(rows, ("SFT", "PPO"), count=5)
    assert table is not None
    assert table.columns == ["Prompt", "SFT", "PPO"]
    assert [row[0].text for row in table.rows] == ["10", "5", "0", "-5", "-10"]
    assert [[c.is_best for c in row[1:]] for row in table.rows] == [
        [False, True],
        [False, True],
        [False, False],
        [True, False],
        [True, False],
    ]


def test_rollout_samples_come_from_the_first_a_middle_and_the_last_step() -> None:
    rows = [
        {"step": s, "episode": 8 * s, "prompt": f"{s}-{i}", "completion": "c", "score": i}
        for s in (1, 2, 3, 4, 5)
        for i in range(5)
    ]
    table = progress(rows)
    assert table is not None
    expected = [f"{s}-{i}" for s in (1, 3, 5) for i in (4, 2, 0)]
    assert [row[0].text for row in table.rows] == expected


def test_long_texts_are_cut_and_say_by_how_much() -> None:
    table = references([{"prompt": "p", "reference": "r", "completion": "x" * 1700}])
    assert table is not None
    assert (len(table.rows[0][2].text), table.rows[0][2].cut) == (1500, 200)
