"""CartPole in letters is gymnasium's own CartPole, and can be balanced by what the letters say."""

import operator
import random
import string
import sys

import gymnasium
import numpy as np
import pytest

from recipes.lib.errors import UserError
from recipes.lib.tasks.environments.cartpole import WIDEST, CartPole, Gymnasium, four_letters


def letters(observation: np.ndarray) -> str:
    """The bins once more, by NumPy's edges."""
    edges = [np.linspace(-widest, widest, 27)[1:-1] for widest in WIDEST]
    return "".join(
        string.ascii_uppercase[np.digitize(number, inner)]
        for number, inner in zip(observation, edges, strict=True)
    )


def balanced(said: str) -> str:
    """Push to where the pole falls, and a little to where the cart strays."""
    numbers = [
        (ord(letter) - ord("N") + 0.5) * widest / 13
        for letter, widest in zip(said, WIDEST, strict=True)
    ]
    weights = (0.1, 0.2, 1.0, 0.4)
    return "right" if sum(map(operator.mul, weights, numbers)) > 0 else "left"


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_states_rewards_and_ends_are_gymnasiums(seed: int) -> None:
    world, own = CartPole(), gymnasium.make("CartPole-v1")
    rng = random.Random(seed)
    assert world.reset(seed=seed, episode=3) == letters(own.reset(seed=seed)[0])
    done = False
    while not done:
        action = rng.randrange(2)
        observation, reward, done, truncated, _ = own.step(action)
        said = rng.choice((("left", "L", " le"), ("right", "R", "right\n"))[action])
        assert world.step(said) == (letters(observation), reward, done, truncated)
        assert not truncated


def test_the_letters_are_enough_to_balance_until_the_time_is_up() -> None:
    world = CartPole()
    for seed in range(3):
        said, total = world.reset(seed=seed), 0.0
        for turn in range(500):
            said, reward, done, truncated = world.step(balanced(said))
            total += reward
            assert not done
            assert truncated == (turn == 499)
        assert total == 500


def test_letters_end_at_a_and_z() -> None:
    assert four_letters([0.0, -0.001, 0.0, -9.0]) == "NMNA"
    assert four_letters([2.4, 3.0, -0.21, 1e9]) == "ZZAZ"
    assert four_letters([2.4 / 13, 3.0 / 13 * 1.99, -0.21 / 13 * 1.01, -3.0]) == "OOLA"


def test_what_is_no_word_acts_at_random_by_the_seed_alone() -> None:
    def play(seed: int) -> list[tuple[str, float, bool, bool]]:
        world = CartPole()
        world.reset(seed=seed)
        return [world.step("?") for _ in range(8)]

    assert play(4) == play(4)
    assert len({str(play(seed)) for seed in range(8)}) == 8


def test_any_world_with_numbered_actions_can_be_told() -> None:
    """On ice that is not slippery the way around the holes of FrozenLake's map is known."""
    world = Gymnasium("FrozenLake-v1", "cell {}".format, ("left", "down", "right", "up"))
    world.world = gymnasium.make("FrozenLake-v1", is_slippery=False)
    assert world.reset(seed=0) == "cell 0"
    steps = [world.step(word) for word in "down d right r down right".split()]
    assert [said for said, *_ in steps] == [f"cell {n}" for n in (4, 8, 9, 10, 14, 15)]
    assert [reward for _, reward, *_ in steps] == [0, 0, 0, 0, 0, 1]
    assert steps[-1][2:] == (True, False)
    assert world.reset(seed=0) == "cell 0"


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError) as caught:
        CartPole()
    assert str(caught.value) == (
        "environment CartPole-v1: gymnasium is not installed; pip install 'rlhf-recipes[env]'."
    )
