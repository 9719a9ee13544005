"""What is asked: gains against closed forms, the farthest first by hand, who is held out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recipes.lib.errors import UserError
from recipes.lib.feedback.selection import Chooser, check_selection, farthest_first, pair_gains
from recipes.lib.generation.completions import Completion
from recipes.lib.runs.files import write_jsonl

KEYS: dict[str, Any] = {
    "strategy": "random",
    "num_items": 10,
    "candidates_per_item": 4,
    "random_share": 0.2,
    "reward_model_name_or_path": None,
    "asked": [],
    "names": ["run"],
    "num_completions": 2,
    "repeat": 0.0,
    "seed": 1,
    "temperature": 1.0,
    "trust_remote_code": False,
}


def sample(name: str, prompts: Any, seed: int) -> list[Completion]:
    return [Completion([], [], f"{name} {n} {seed}", True) for n, _ in enumerate(prompts)]


def choose(outputs: Any = None, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    chooser = Chooser(SimpleNamespace(**KEYS | {"strategy": "random"}))
    chooser.script = SimpleNamespace(**KEYS | changes)
    chooser.outputs = outputs
    return chooser.choose([f"prompt {n}" for n in range(100)], sample)


def test_closest_and_widest_go_by_the_gap_of_the_mean_scores() -> None:
    outputs_NCK = np.array([[[0.0, 2.0], [1.0, 1.5], [4.0, 0.0]]])  # means 1, 1.25, 2
    widest, places = pair_gains("widest", outputs_NCK)
    assert places == [(0, 1), (0, 2), (1, 2)]
    assert widest == pytest.approx(np.array([[0.25, 1.0, 0.75]]))
    assert pair_gains("closest", outputs_NCK)[0] == pytest.approx(-widest)


def test_disagreement_is_what_an_answer_tells_of_which_output_is_right() -> None:
    # Two outputs that are sure of the opposite: the answer says which is right, one bit.
    sure = np.array([[[50.0, -50.0], [0.0, 0.0]]])
    assert pair_gains("disagreement", sure)[0] == pytest.approx(np.array([[np.log(2)]]))
    # Mutual information by its other form: mean divergence of each output from their mean.
    gaps = np.array([0.3, -1.2, 2.0])
    chances = 1 / (1 + np.exp(-gaps))
    mean = chances.mean()
    apart = [p * np.log(p / mean) + (1 - p) * np.log((1 - p) / (1 - mean)) for p in chances]
    found, _ = pair_gains("disagreement", np.stack([gaps, 0 * gaps])[None])
    assert found == pytest.approx(np.array([[np.mean(apart)]]))
    alike = np.array([[[0.7, 0.7], [0.0, 0.0]]])
    assert pair_gains("disagreement", alike)[0] == pytest.approx(0, abs=1e-12)


def test_the_farthest_first_takes_no_pair_twice_nor_its_reverse() -> None:
    zero = np.zeros(2)
    pairs = np.array([[3.0, 0.0], [-3.0, 0.1], [0.0, 1.0], [0.1, -1.0]])
    features_NCH = np.stack([pairs, np.tile(zero, (4, 1))], axis=1)
    first, second, *rest = farthest_first(features_NCH, 4)
    assert {first, second} in ({0, 2}, {0, 3}, {1, 2}, {1, 3})
    assert sorted([first, second, *rest]) == [0, 1, 2, 3]
    assert len(farthest_first(features_NCH, 9)) == 4


def test_random_items_are_held_out_and_the_strategy_takes_the_best_of_the_others() -> None:
    def outputs(prompts: list[str], texts: Any) -> Any:  # the gap is the number of the prompt
        gaps = [float(prompt.split()[1]) for prompt in prompts]
        return np.array([[[0.0], [gap / 2], [gap]] for gap in gaps])

    read = {"reward_model_name_or_path": "reward", "num_completions": 3}
    items, numbers = choose(outputs, strategy="widest", **read)
    assert numbers == {
        "num_items": 10,
        "num_held_out": 2,
        "num_repeated": 0,
        "num_candidates": 40,
    }
    drawn = [item for item in items if item.get("held_out")]
    chosen = [int(item["prompt"].split()[1]) for item in items if not item.get("held_out")]
    assert len(drawn) == 2
    assert chosen == sorted(chosen, reverse=True)
    again, _ = choose(outputs, strategy="widest", **read)
    assert again == items
    plain, _ = choose(strategy="random")
    assert [item["prompt"] for item in plain[:2]] != [item["prompt"] for item in items[2:4]]
    # Of the three completions of a prompt those whose scores are furthest apart.
    first = items[2]
    assert [one["content"].split()[1] for one in first["completions"]] in (
        [str(n), str(n + 2)] for n in range(0, 120)
    )


def test_half_of_the_items_can_be_random_and_all_of_them() -> None:
    def outputs(prompts: list[str], texts: Any) -> Any:
        return np.array([[[0.0], [float(prompt.split()[1])]] for prompt in prompts])

    read = {"reward_model_name_or_path": "reward"}
    items, numbers = choose(outputs, strategy="widest", random_share=1.0, **read)
    assert numbers["num_held_out"] == len(items) == 10


def test_a_prompt_that_comes_again_in_the_data_is_asked_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chooser = Chooser(SimpleNamespace(**KEYS))
    items, numbers = chooser.choose([f"prompt {n % 7}" for n in range(70)], sample)
    prompts = [item["prompt"] for item in items]
    assert sorted(prompts) == sorted({*prompts})
    assert numbers["num_items"] == len(items) == 7
    assert "only 7 prompts are left" in capsys.readouterr().err


def test_the_share_that_is_held_out_is_never_less_than_asked(tmp_path: Path) -> None:
    assert choose(num_items=12)[1]["num_held_out"] == 3  # 2.4 of 12
    (tmp_path / "final").mkdir()
    before = [{"id": str(n), "prompt": f"old {n}", "completions": []} for n in range(9)]
    write_jsonl(tmp_path / "final/items.jsonl", before)
    chooser = Chooser(SimpleNamespace(**KEYS | {"asked": [str(tmp_path)], "repeat": 0.5}))
    items, numbers = chooser.choose([f"prompt {n}" for n in range(100)], sample)
    assert (numbers["num_repeated"], numbers["num_items"]) == (5, 10)
    assert sum("held_out" in item for item in items) == 2


def test_no_more_is_asked_than_wanted_where_most_is_random_and_half_comes_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "final").mkdir()
    before = [{"id": str(n), "prompt": f"old {n}", "completions": []} for n in range(9)]
    write_jsonl(tmp_path / "final/items.jsonl", before)
    chooser = Chooser(SimpleNamespace(**KEYS))
    keys = {"asked": [str(tmp_path)], "repeat": 0.5, "random_share": 0.8, "strategy": "widest"}
    chooser.before, chooser.script = before, SimpleNamespace(**KEYS | keys)
    chooser.outputs = lambda prompts, texts: np.zeros((len(texts), 2, 1))
    items, numbers = chooser.choose([f"prompt {n}" for n in range(100)], sample)
    assert len(items) == numbers["num_items"] == 10


def test_where_all_texts_are_equal_there_is_nothing_to_ask() -> None:
    def same(name: str, prompts: Any, seed: int) -> list[Completion]:
        return [Completion([], [], "text", True) for _ in prompts]

    with pytest.raises(UserError, match="were equal or empty"):
        Chooser(SimpleNamespace(**KEYS)).choose(["a", "b"], same)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"repeat": 1.0}, "a share below 1"),
        ({"temperature": 0.0}, "at temperature 0 texts are equal"),
        ({"strategy": "widest"}, "give reward_model_name_or_path"),
        ({"reward_model_name_or_path": "reward"}, "reads no scores"),
        ({"random_share": 0.1}, "from 0.2 to 1"),
        ({"num_items": None}, "give how many are asked"),
        ({"names": []}, "name the run"),
        ({"names": ["a", "b", "c"]}, "or the two runs"),
        ({"candidates_per_item": 0}, "must be 2 and 1 or more"),
    ],
)
def test_mistakes_are_told_in_a_sentence(changes: dict[str, Any], told: str) -> None:
    check_selection(SimpleNamespace(**KEYS))
    with pytest.raises(UserError, match=told):
        check_selection(SimpleNamespace(**KEYS | changes))
