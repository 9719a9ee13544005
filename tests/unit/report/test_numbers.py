"""How numbers are written, and the sentence that a page opens with."""

import math
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.report.numbers import duration, number, percent, plain, tiles
from recipes.lib.report.run_files import RunFiles
from recipes.lib.report.verdict import quickstart_verdict, verdict


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.005, 1, "1.0"),
        (-0.5, 2, "\u22120.50"),
        (12345.6, 0, "12,346"),
        (0.00042, 2, "4.20e-04"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (math.nan, 2, "not a number"),
        (-math.inf, 2, "\u2212infinite"),
    ],
)
def test_numbers_are_written_for_reading(value: float, digits: int, text: str) -> None:
    assert plain(value, digits) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125.0, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7384.0, "2 h 03 min"),
        (math.nan, "not a number"),
    ],
)
def test_durations_name_their_units(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_fractions_are_written_as_percentages() -> None:
    assert percent(0.8749) == "87\u00a0%"
    assert percent(0.8749, 1) == "87.5\u00a0%"


def test_a_number_keeps_its_exact_value_beside_its_text() -> None:
    shown = number("win_rate_ci95", [0.8195, 0.9105])
    assert shown.value == "0.8195 0.9105"
    assert shown.text.replace("\u00a0", " ") == "82.0 % to 91.0 %"  # halves round to even


def test_an_unknown_key_is_shown_under_its_own_name() -> None:
    shown = number("num_widgets", 1200)
    assert (shown.label, shown.text) == ("num widgets", "1,200")


def test_tiles_leave_out_what_the_summary_lacks_or_what_is_no_number() -> None:
    summary = {"kl": 9.31, "win_rate": None, "gold_ppo": True, "gold_sft": 0.1}
    made = tiles(summary, [("win_rate", "win_rate_ci95"), ("gold_ppo", "gold_sft"), ("kl",)])
    assert [tile.main.key for tile in made] == ["kl"]


def said(**summary: Any) -> str:
    return quickstart_verdict(summary).replace("\u00a0", " ")


def test_the_verdict_of_a_clear_win_names_share_interval_and_price() -> None:
    assert said(win_rate=0.8723, win_rate_ci95=[0.8195, 0.9105], kl=9.3149) == (
        "PPO beats SFT on 87 % of unseen prompts (95 % interval 82 to 91) by the gold score, "
        "at 9.3 nats of KL."
    )


def test_the_verdict_does_not_claim_a_win_that_the_interval_does_not_carry() -> None:
    sentence = said(win_rate=0.54, win_rate_ci95=[0.47, 0.61], kl=2.0)
    assert sentence.startswith("PPO and SFT cannot be told apart: PPO wins on 54 %")


def test_the_verdict_says_so_when_ppo_is_worse() -> None:
    sentence = said(win_rate=0.3, win_rate_ci95=[0.24, 0.37], kl=2.0)
    assert sentence.startswith("PPO is worse than SFT: it wins on only 30 %")


def test_the_verdict_is_empty_without_a_win_rate() -> None:
    assert said(kl=2.0) == said(win_rate=math.nan) == ""


def run_of(recipe: str, **files: Any) -> RunFiles:
    return RunFiles(Path("run"), summary={"recipe": recipe}, **files)


def test_a_ppo_run_that_ends_in_nan_is_called_failed() -> None:
    rows = [
        {"episode": 128, "objective/scores": 0.5},
        {"episode": 256, "objective/scores": math.nan},
    ]
    assert "this run failed" in verdict(run_of("ppo", metrics=rows))


def test_the_ppo_verdict_goes_from_the_first_rollout_to_the_last() -> None:
    rows: list[dict[str, Any]] = [
        {"episode": 1280, "objective/scores": 1.456, "objective/kl": 14.04},
        {"episode": 128, "objective/scores": 0.184, "objective/kl": 0.01},
    ]
    assert verdict(run_of("ppo", metrics=rows)) == (
        "The mean score rose from 0.18 to 1.46 over 1,280 episodes, at 14.0 nats of KL per "
        "completion."
    )


def test_the_ppo_verdict_tells_the_means_of_the_summary_where_it_has_them() -> None:
    rows = [{"episode": 8 * i, "objective/scores": float(i), "objective/kl": 1.0} for i in (1, 2)]
    files = RunFiles(Path("run"), {"recipe": "ppo", "scores": 1.75, "kl": 3.21}, rows)
    assert "rose from 1.00 to 1.75 over 16 episodes, at 3.2 nats" in verdict(files)


def test_the_sft_verdict_tells_the_perplexities_of_the_summary() -> None:
    files = RunFiles(Path("run"), {"recipe": "sft", "perplexity": 4.656, "base_perplexity": 5.562})
    assert verdict(files) == "Held-out perplexity fell from 5.56 to 4.66."


def test_without_perplexities_the_sft_verdict_tells_the_loss() -> None:
    rows = [{"step": 1, "eval_loss": 2.5, "loss": 9.0}, {"step": 2, "eval_loss": 1.386}]
    sentence = verdict(run_of("sft", metrics=rows))
    assert sentence == "Held-out loss fell from 2.50 to 1.39 nats per token."
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}]
    assert "this run failed" in verdict(run_of("base", metrics=rows))


def test_the_reward_verdict_counts_the_pairs_in_the_right_order() -> None:
    rows = [{"score_chosen": c, "score_rejected": 0.0} for c in (1.0, 2.0, -1.0, 3.0)]
    rows.append({"score_chosen": math.nan, "score_rejected": 0.0})
    sentence = verdict(run_of("reward", samples=rows)).replace("\u00a0", " ")
    # 3 of 4; Wilson 95 %: 30.1 to 95.4.
    assert "in 75.0 % of 4 test pairs (95 % interval 30.1 to 95.4)" in sentence


def test_the_evaluation_verdict_falls_back_on_the_samples() -> None:
    rows = [{"score": 1.0, "score_baseline": 0.0}] * 30
    sentence = verdict(run_of("evaluate", samples=rows)).replace("\u00a0", " ")
    # 30 of 30 won: low = 0.025 ** (1 / 30) = 0.884.
    assert sentence == "The model beats its baseline on 100 % of prompts (95 % interval 88 to 100)."
