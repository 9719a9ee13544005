"""Rewards: found by name, called sync or async, checked, added up."""

import asyncio
import functools
import importlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.lib.errors import UserError
from recipes.lib.rewards.loading import is_function_reference, load_function
from recipes.lib.rewards.reward_models import load_reward_functions
from recipes.lib.rewards.scoring import weighted_scores

PROMPTS = ["a", "b", "c"]
TEXTS = ["one", "two words", "three more words"]
IDS = [[1], [1, 2], [1, 2, 3]]


def words(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


async def tokens(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [float(len(ids)) if len(ids) > 1 else None for ids in completion_ids]


def call(functions: list[Any], weights: list[float], **columns: list[Any]) -> tuple[Any, Any]:
    return weighted_scores(functions, weights, PROMPTS, TEXTS, IDS, columns)


def test_sync_and_async_functions_add_up_with_their_weights() -> None:
    total_B, said_BF = call([words, tokens], [2.0, 0.5])
    # None of the second function for the first row leaves 2 * 1.
    assert total_B.tolist() == [2.0, 2 * 2 + 0.5 * 2, 2 * 3 + 0.5 * 3]
    assert said_BF[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert said_BF[1:, 1].tolist() == [2.0, 3.0]
    assert said_BF[0, 1].isnan()


def test_async_functions_wait_at_the_same_time() -> None:
    async def first(completions: list[str], **_: Any) -> list[float]:
        met.append("first")
        await asyncio.wait_for(second_is_there.wait(), timeout=120)
        return [1.0] * len(completions)

    class Second:
        async def __call__(self, completions: list[str], **_: Any) -> list[float]:
            met.append("second")
            second_is_there.set()
            return [10.0] * len(completions)

    met: list[str] = []
    second_is_there = asyncio.Event()
    # One after the other, the first would wait for the second until its time is up.
    total_B, _ = call([first, words, Second()], [1.0, 0.0, 1.0])
    assert total_B.tolist() == [11.0] * 3
    assert met == ["first", "second"]


def test_one_event_loop_serves_all_calls_even_inside_a_running_one() -> None:
    loops = []

    async def where(completions: list[str], **_: Any) -> list[float]:
        loops.append((asyncio.get_running_loop(), threading.current_thread().name))
        return [0.0] * len(completions)

    async def notebook() -> None:
        call([where], [1.0])

    call([where], [1.0])
    asyncio.run(notebook())
    assert loops[0] == loops[1]


def test_an_error_of_an_async_function_arrives_and_the_others_do_not_hold_it_up() -> None:
    async def wrong(**_: Any) -> list[float]:
        raise ZeroDivisionError("mine")

    async def slow(**_: Any) -> list[float]:
        await asyncio.sleep(600)
        return []

    start = time.monotonic()
    with pytest.raises(UserError, match="function wrong raised ZeroDivisionError: mine"):
        call([slow, wrong], [1.0, 1.0])
    assert time.monotonic() - start < 300


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (lambda **_: [1.0, 2.0], "returned 2 values for 3 completions; return a list with one"),
        (lambda **_: 1.0, "returned 1.0 for 3 completions; return a list with one"),
        (
            lambda **_: [1.0, float("nan"), 1.0],
            "returned nan for row 1 of the batch; return a finite number",
        ),
        (
            lambda **_: [1.0, "2", 1.0],
            "returned '2' for row 1 of the batch; return a finite number",
        ),
        (
            lambda **_: [True, 1.0, 1.0],
            "returned True for row 0 of the batch; return a finite number",
        ),
        (lambda **_: [1.0, None, 1.0], "every reward function returned None for row 1"),
    ],
)
def test_what_is_no_number_for_each_row_is_told(reward: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        call([reward], [1.0])

    async def later(**given: Any) -> Any:
        return reward(**given)

    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        call([later], [1.0])


def test_a_missing_package_is_one_sentence_sync_async_and_in_the_file(tmp_path: Path) -> None:
    def lacks(**_: Any) -> list[float]:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401

        return []

    async def lacks_too(**given: Any) -> list[float]:
        return lacks(**given)

    for function in (lacks, lacks_too, functools.partial(lacks, extra=1)):
        with pytest.raises(UserError) as caught:
            call([function], [1.0])
        name = "lacks_too" if function is lacks_too else "lacks"
        assert str(caught.value) == (
            f"reward function {name} needs a package that is not installed: "
            "No module named 'no_such_package'."
        )
    path = tmp_path / "mine.py"
    path.write_text("import no_such_package\ndef f(**_): return []\n")
    with pytest.raises(UserError, match=r"mine\.py needs a package that is not installed: No mod"):
        load_function(f"{path}:f")


def test_functions_are_found_in_files_modules_and_by_dotted_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_the_config.py").write_text("def f(**_):\n    return [7.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    for name in ("beside_the_config.py:f", "beside_the_config:f", "beside_the_config.f"):
        assert is_function_reference(name)
        assert load_function(name)() == [7.0]
    for name in ("os.path.no_such", "os.path:no_such"):
        with pytest.raises(UserError, match=r"os\.path has no function no_such"):
            load_function(name)
    with pytest.raises(UserError, match="module no_such of a function is not there"):
        load_function("no_such.thing")


@pytest.mark.parametrize(
    "name",
    ["org/model", "org/model-v1.5", "gpt2", "my-model.v2", "runs/reward/mine", "./folder.name"],
)
def test_names_of_models_are_no_functions(name: str) -> None:
    assert not is_function_reference(name)


def test_a_folder_or_run_with_the_name_of_a_function_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_function_reference("accuracy_reward")
    (tmp_path / "runs" / "accuracy_reward").mkdir(parents=True)
    (tmp_path / "my.model").mkdir()
    assert not is_function_reference("accuracy_reward")
    assert not is_function_reference("my.model")


@pytest.mark.parametrize("prefix", ["", "trl.rewards:", "trl.rewards."])
def test_rewards_of_trl_are_found_by_name(prefix: str) -> None:
    (think,) = load_reward_functions([f"{prefix}think_format_reward"], None, 1, "cpu")
    said = [[{"role": "assistant", "content": text}] for text in ("<think>a</think>b", "b")]
    total_B, _ = weighted_scores([think], [2.0], [[], []], said, [[1], [1]], {})
    assert total_B.tolist() == [2.0, 0.0]
    assert think.__name__ == "think_format_reward"
    (punishment,) = load_reward_functions([f"{prefix}get_soft_overlong_punishment"], None, 1, "cpu")
    # The limit is 1280 and the last 256 tokens cost: 1024 + 64 tokens cost 64 / 256.
    total_B, _ = weighted_scores([punishment], [1.0], [""], [""], [[0] * 1088], {})
    assert total_B.tolist() == [-0.25]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("accuracy_reward", "needs the package math_verify, which is not installed; pip install"),
        ("trl.rewards:reasoning_accuracy_reward", "needs the package math_verify, which is not"),
        ("trl.rewards.no_such", r"trl\.rewards has no reward no_such; known are accuracy_reward,"),
        ("trl.rewards:get_repetition_penalty_reward", "makes a reward and is none itself; write"),
    ],
)
def test_a_reward_of_trl_that_cannot_be_had_is_one_sentence(
    name: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the optional package happens to be installed, the sentence is tested all the same.
    packages = importlib.import_module("trl.import_utils")
    monkeypatch.setattr(packages, "is_math_verify_available", lambda: False)
    with pytest.raises(UserError, match=sentence) as caught:
        load_reward_functions([name], None, 1, "cpu")
    assert "\n" not in str(caught.value)


def test_a_reward_of_messages_does_not_take_plain_text() -> None:
    with pytest.raises(UserError, match="think_format_reward reads messages, but the prompts are"):
        call([load_function("think_format_reward")], [1.0])


def test_an_own_function_of_an_earlier_file_is_found_with_one_remark(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from recipes.lib.tasks import tales
    from recipes.lib.tasks.gsm8k import correct_number

    assert load_function("recipes.lib.gsm8k:correct_number") is correct_number
    said = "note: recipes.lib.gsm8k:correct_number is now recipes.lib.tasks.gsm8k:correct_number; "
    assert capsys.readouterr().err == f"{said}it is read as that.\n"
    assert load_function("recipes.lib.tales:gold_scores") is tales.gold_scores
    assert load_function("recipes.lib.tasks.gsm8k.correct_number") is correct_number
    assert capsys.readouterr().err.count("note: ") == 1
