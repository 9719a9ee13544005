"""The guessing game, by games that are worked out by hand."""

from itertools import combinations

import pytest

from recipes.lib.errors import UserError
from recipes.lib.tasks.environments.guessing import TRAITS, Guessing
from recipes.lib.tasks.tales.words import ANIMALS
from scripts.bench.environments.classical import best_guessing


def game(secret: str, turns: int = 6) -> Guessing:
    """A game in which the user thinks of one animal of four."""
    for seed in range(100):
        world = Guessing()
        said = world.reset(seed=seed, animals="mouse hare otter goat", turns=turns)
        assert said == f"One of mouse hare otter goat. {turns} turns."
        if world.step(f"The {secret}.")[1]:
            world.reset(seed=seed, animals="mouse hare otter goat", turns=turns)
            return world
    raise AssertionError(f"nobody thinks of {secret}")


def test_no_two_animals_have_the_same_traits() -> None:
    of = {animal: {t for t, ones in TRAITS.items() if animal in ones} for animal in ANIMALS}
    assert all(of[one] != of[other] for one, other in combinations(ANIMALS, 2))
    assert {animal for ones in TRAITS.values() for animal in ones} <= set(ANIMALS)


def test_a_question_is_answered_and_a_right_guess_pays_less_after_it() -> None:
    world = game("hare")  # small, quick, quiet, brown
    assert world.step("Is it small?") == ("Yes.", 0.0, False, False)
    assert world.step("Is it quiet?") == ("Yes.", 0.0, False, False)
    assert world.step("is it BROWN") == ("Yes.", 0.0, False, False)
    said, reward, *ends = world.step("The hare.")
    assert (said, ends) == ("Yes, the hare.", [True, False])
    assert reward == pytest.approx(0.85)
    assert game("hare").step("A hare, I think, and not small.")[1] == 1.0
    world = game("goat")  # none of these
    assert [world.step(f"Is it {trait}?")[0] for trait in TRAITS] == ["No."] * 4
    assert world.step("goat")[1] == pytest.approx(0.8)


def test_a_wrong_guess_ends_the_game_with_nothing() -> None:
    assert game("otter").step("The mouse.") == ("No, the otter.", 0.0, True, False)
    assert game("otter").step("The bear.") == ("No, the otter.", 0.0, True, False)


@pytest.mark.parametrize("text", ["", "Is it nice?", "foxes", "\ud800"])
def test_what_is_no_question_costs_its_turn(text: str) -> None:
    world = game("mouse")
    assert world.step(text) == ("What?", 0.0, False, False)
    assert world.step("mouse")[1] == pytest.approx(0.95)


@pytest.mark.parametrize("last", ["Is it small?", "?"])
def test_the_last_turn_has_to_be_a_guess(last: str) -> None:
    world = game("mouse", turns=2)
    assert world.step("Is it small?") == ("Yes.", 0.0, False, False)
    assert world.step(last) == ("It was the mouse.", 0.0, True, False)
    world = game("mouse", turns=2)
    world.step("Is it small?")
    assert world.step("The mouse.")[1] == pytest.approx(0.95)


def test_the_seed_alone_draws_the_animal_and_every_one_is_drawn() -> None:
    def drawn(seed: int) -> str:
        world = Guessing()
        world.reset(seed=seed, animals="fox owl bear", turns=1)
        return world.step("")[0]

    said = [drawn(seed) for seed in range(300)]
    assert said == [drawn(seed) for seed in range(300)]
    shares = [said.count(f"It was the {animal}.") / 300 for animal in ("fox", "owl", "bear")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.25


@pytest.mark.parametrize("animals", ["", "fox unicorn"])
def test_animals_that_nobody_knows_are_refused(animals: str) -> None:
    with pytest.raises(UserError, match=f"^animals={animals}: write some of fox owl bear "):
        Guessing().reset(seed=0, animals=animals)


def test_the_best_play_is_the_one_that_is_worked_out_by_hand() -> None:
    pair = frozenset({"mouse", "hare"})
    assert best_guessing(pair, 1) == pytest.approx((0.5, 0.5))
    assert best_guessing(pair, 2) == pytest.approx((0.95, 1.0))  # brown or not, then the guess
    # One question tells one of three from two, of which one is guessed.
    assert best_guessing(pair | {"otter"}, 2) == pytest.approx((0.95 * 2 / 3, 2 / 3))
    # A third of the games is over after one question, the others after two.
    assert best_guessing(pair | {"otter"}, 6) == pytest.approx(((0.95 + 2 * 0.9) / 3, 1.0))
