"""A run whose folder is moved stops in one sentence, makes no second half, and goes on there."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.lib.errors import UserError
from recipes.lib.trainers import progress
from tests.helpers.stopped_runs import assert_same_runs, furnish, train


@pytest.fixture
def folder(
    tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return furnish(tmp_path, tiny_model, tiny_tokenizer)


def move_at(
    monkeypatch: pytest.MonkeyPatch, step: int, event: str, *, thesis: bool = False
) -> None:
    """Rename the run folder at an event after so many steps, and perhaps put another one there."""

    class Moving(progress.RunCallback):
        def _move(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run = self.metrics.parent
            if state.global_step == step:
                run.rename(run.with_name("moved"))
                if thesis:
                    run.mkdir()
                    (run / "thesis.txt").write_text("years")

    setattr(Moving, event, Moving._move)
    monkeypatch.setattr(progress, "RunCallback", Moving)


SENTENCE = (
    "output_dir={} was moved or deleted while the run wrote to it; go on in its new place with "
    "--resume and that output_dir."
)
SAVED = {"save_strategy": "steps", "save_steps": 2}
CASES: list[tuple[str, int, str, dict[str, Any]]] = [
    ("sft", 3, "on_step_begin", SAVED | {"eval_strategy": "no"}),  # a checkpoint is next
    ("sft", 5, "on_step_begin", SAVED | {"eval_strategy": "no", "save_steps": 5}),  # a log is
    ("ppo", 3, "on_step_begin", SAVED),  # an evaluation is
    ("sft", 10, "on_train_end", SAVED),  # the model is
]


@pytest.mark.parametrize(("recipe", "step", "event", "settings"), CASES)
def test_a_run_that_was_moved_stops_and_makes_no_second_half(
    recipe: str,
    step: int,
    event: str,
    settings: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    move_at(monkeypatch, step, event)
    with pytest.raises(UserError) as told:
        train(recipe, folder, "run", **settings)
    assert str(told.value) == SENTENCE.format(folder / "run")
    assert not (folder / "run").exists()


def test_what_lies_in_its_place_is_left_alone_and_the_run_is_resumed_where_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        move_at(patched, 3, "on_step_begin", thesis=True)
        with pytest.raises(UserError) as told:
            train("sft", folder, "run", **SAVED)
    assert str(told.value) == SENTENCE.format(folder / "run")
    assert [path.name for path in (folder / "run").iterdir()] == ["thesis.txt"]
    train("sft", folder, "moved", resume=True, **SAVED)
    train("sft", folder, "whole", **SAVED)
    assert_same_runs(folder / "whole", folder / "moved")
