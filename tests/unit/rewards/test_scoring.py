"""What a reward function may say, and what it is given."""

from typing import Any

import numpy as np
import pytest
import torch

from recipes.lib.errors import UserError
from recipes.lib.rewards.reward_models import join_turns
from recipes.lib.rewards.scoring import checked_rewards, weighted_scores


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    "value",
    [1e39, -1e39, 10**400, float("nan"), float("inf"), "1", b"1", True, [1.0], {}, object()],
)
def test_what_is_no_number_that_adds_up_is_told_with_its_row(value: Any) -> None:
    with pytest.raises(UserError, match=r"function reward returned .* for line 4; return a finite"):
        checked_rewards(reward, [0.5, value], ["line 3", "line 4"])


def test_a_column_of_tensors_is_told_and_numbers_of_other_kinds_are_taken() -> None:
    with pytest.raises(UserError, match=r"returned \[1.0\] for row 0"):
        checked_rewards(reward, torch.ones(2, 1), ["row 0", "row 1"])
    said = [np.float32(0.5), torch.tensor(2.0), 3, None]
    assert checked_rewards(reward, said, "abcd")[:3] == [0.5, 2.0, 3.0]


def test_columns_do_not_stand_in_for_what_was_sampled() -> None:
    columns: dict[str, list[Any]] = {"completions": ["from the file"], "completion_ids": [[9]]}
    sums, _ = weighted_scores([reward], [1.0], ["a"], ["said"], [[1]], columns)
    assert sums.tolist() == [4.0]


def test_a_turn_that_the_prompt_opened_is_one_turn() -> None:
    asked = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "The"}]
    said = [{"role": "assistant", "content": " cat"}]
    assert join_turns(asked, said) == [asked[0], {"role": "assistant", "content": "The cat"}]
    assert join_turns(asked[:1], said) == [asked[0], *said]
    assert join_turns([], asked) == asked
